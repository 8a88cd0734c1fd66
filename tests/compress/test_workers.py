"""Worker processes: same bits, order kept, errors passed on, ends told."""

from __future__ import annotations

import io
import math
import operator
import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from svd_hybrid import compress
from svd_hybrid.codec.checks import integer_in
from svd_hybrid.compress.messages import receive, send
from svd_hybrid.compress.workers import Workers
from svd_hybrid.errors import ArtifactError, StorageError, UsageError
from tests.families import FamilyFiles, write_states


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilyFiles:
    """Matrices, a vector, a tensor no task changes, a twin, half precision and an empty one."""
    base = {
        "a.weight": normal(48, 32, seed=1),
        "b.weight": normal(32, 64, seed=2).to(torch.bfloat16),
        "c.bias": normal(40, seed=3),
        "d.same": normal(9, seed=4),
        "e.steps": torch.tensor(7),
        "f.empty": torch.zeros(0, 4),
    }
    base["g.twin"] = base["a.weight"].clone()
    tasks = {}
    for number, task in enumerate(("x", "y", "z")):
        tasks[task] = {
            name: value if name[0] in "def" else value + 0.1 * normal(*value.shape, seed=number)
            for name, value in base.items()
        }
        tasks[task]["g.twin"] = tasks[task]["a.weight"].clone()
        tasks[task] = {name: x.to(base[name].dtype) for name, x in tasks[task].items()}
    return write_states(tmp_path_factory.mktemp("family"), base, tasks)


def content(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    "options",
    [
        {"profile": "auto", "target_bits": 8.0},
        {"profile": "exact"},
        {"profile": "hybrid", "method": "ties", "store_tasks": "on"},
    ],
    ids=lambda options: options["profile"],
)
def test_the_number_of_workers_changes_no_byte(family, tmp_path, options):
    for workers in (1, 2):
        compress(family.base, family.tasks, tmp_path / str(workers), workers=workers, **options)
    assert content(tmp_path / "1") == content(tmp_path / "2")


@pytest.fixture(scope="module")
def workers():
    with Workers(2) as started:
        yield started


def test_answers_come_in_the_order_of_the_calls(workers):
    slow = [(time.sleep, (0.2,)), (operator.add, (1, 1)), None, (operator.mul, (2, 3))]
    found = list(workers.answers(slow, lambda item: item))
    assert [answer for _, answer in found] == [None, 2, None, 6]
    assert [item for item, _ in found] == slow


def test_items_are_read_as_they_are_needed(workers):
    read = []

    def items():
        for number in range(20):
            read.append(number)
            yield number

    answers = workers.answers(items(), lambda number: (operator.neg, (number,)))
    assert next(answers) == (0, 0)
    assert len(read) <= 5
    assert [answer for _, answer in answers] == [-number for number in range(1, 20)]


def test_an_error_of_ours_comes_back_as_it_is(workers):
    wrong = (integer_in, ("affine", {"bits": 99}, "bits", 1, 8))
    with pytest.raises(ArtifactError) as here:
        integer_in(*wrong[1])
    with pytest.raises(ArtifactError) as there:
        list(workers.answers([wrong], lambda item: item))
    assert str(there.value) == str(here.value)
    assert list(workers.answers([1], lambda item: (operator.neg, (item,)))) == [(1, -1)]


def test_a_mistake_of_ours_comes_with_its_trace(workers):
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        list(workers.answers([0], lambda item: (operator.truediv, (1, item))))


def test_what_the_system_refuses_is_told(workers, tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        list(workers.answers([tmp_path / "missing"], lambda path: (os.listdir, (path,))))


@pytest.mark.parametrize(
    ("call", "said"), [((os._exit, (3,)), "exit code 3"), ((os.abort, ()), "signal 6")]
)
def test_a_process_that_ends_is_told(call, said):
    with Workers(2) as mortal, pytest.raises(StorageError, match=said):
        list(mortal.answers([call], lambda item: item))


def test_a_process_that_ended_before_it_was_asked_is_told():
    """Its error, and not that of the pipe, which would pass for a reader of stdout that left."""
    with Workers(2) as mortal:
        list(mortal.answers([0], lambda _: (os.getpid, ())))
        for worker in mortal._all:
            worker._process.kill()
            worker._process.wait()
        with pytest.raises(StorageError, match="signal 9"):
            list(mortal.answers([torch.zeros(100_000)], lambda values: (torch.sum, (values,))))


def test_processes_end_with_the_block():
    with Workers(2) as started:
        [(_, process)] = started.answers([0], lambda _: (os.getpid, ()))
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.parametrize("count", [0, -1, 257])
def test_a_number_of_workers_that_makes_no_sense(count):
    with pytest.raises(UsageError, match="workers"):
        Workers(count)


def test_messages_keep_every_bit():
    values = [
        torch.tensor([[math.nan, -0.0], [math.inf, 1e-45]]),
        normal(3, 5, seed=1).to(torch.bfloat16),
        normal(4, 6, seed=2)[:, ::2],
        torch.zeros(0, 7, dtype=torch.float16),
        torch.tensor(3),
        torch.tensor([True, False]),
    ]
    pipe = io.BytesIO()
    send(pipe, {"values": values, "twice": [values[1], values[1]]})
    pipe.seek(0)
    got = receive(pipe)
    for mine, theirs in zip(values, got["values"], strict=True):
        assert theirs.dtype == mine.dtype
        assert theirs.shape == mine.shape
        bits = mine.contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(theirs.reshape(-1).view(torch.uint8), bits)
    with pytest.raises(EOFError):
        receive(pipe)
