"""Stored merges in few bits (`merged_dtype=coded`): alone, and as what the tasks do not predict."""

from __future__ import annotations

import pytest

from svd_hybrid import Artifact, compress, reload
from svd_hybrid.errors import ParameterError
from svd_hybrid.reload.deep import verify_deep
from tests.families import deltas_of, pack, relative_error, write_family
from tests.format import minimal_reader
from tests.format.families import read_record

ALONE = {"store_tasks": "off"}
BESIDE = {"store_tasks": "on", "profile": "auto", "target_error": 0.05}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("family"), seed=5)


def bytes_of(artifact: Artifact) -> int:
    return sum(path.stat().st_size for path in artifact.path.glob("*/*"))


def changed(state):
    return {name: x for name, x in state.items() if x.any() and x.ndim > 1}


@pytest.mark.parametrize(
    ("method", "place"),
    [
        *((method, place) for method in ("ties", "iso-c", "tsv-m") for place in (ALONE, BESIDE)),
        ("task-arithmetic", ALONE),  # beside tasks it is weights over them, and nothing is coded
    ],
)
@pytest.mark.parametrize("error", [0.02, 0.3])
def test_every_matrix_keeps_to_the_error(family, tmp_path, method, place, error):
    exact = deltas_of(pack(family, tmp_path / "exact", method=method, store_tasks="off"))
    coded = pack(
        family, tmp_path / "coded", method=method, merged_dtype="coded", merged_error=error, **place
    )
    found = deltas_of(coded, merge="merged")
    for name, want in changed(exact).items():
        assert relative_error(found[name], want) <= 1.1 * error, name


def test_a_coarser_merge_takes_fewer_bytes(family, tmp_path):
    sizes = [
        bytes_of(
            pack(
                family,
                tmp_path / str(error),
                method="ties",
                merged_dtype="coded",
                merged_error=error,
                **ALONE,
            )
        )
        for error in (0.02, 0.1, 0.5)
    ]
    assert sizes == sorted(sizes, reverse=True)
    plain = bytes_of(pack(family, tmp_path / "fp16", method="ties", merged_dtype="fp16", **ALONE))
    assert sizes[1] < plain / 2


def test_what_the_tasks_predict_is_not_coded_again(family, tmp_path):
    """Magnitude trimming of little is nearly the sum of the tasks."""
    coded = {"method": "magnitude", "density": 0.95, "merged_dtype": "coded", "merged_error": 0.1}
    alone = pack(family, tmp_path / "alone", **coded, **ALONE)
    beside = pack(family, tmp_path / "beside", **coded, **BESIDE)
    tasks = pack(family, tmp_path / "tasks", method="task-arithmetic", **BESIDE)
    assert "weighted" in str(
        [t["merges"]["merged"] for t in read_record(beside.path)["tensors"] if "merges" in t]
    )
    assert bytes_of(beside) - bytes_of(tasks) < bytes_of(alone)


def test_the_independent_reader_rebuilds_it(family, tmp_path):
    coded = pack(family, tmp_path / "a", method="ties", merged_dtype="coded", **BESIDE)
    reload(coded.path, family.base, tmp_path / "o.safetensors")
    ours = minimal_reader.read_safetensors((tmp_path / "o.safetensors").read_bytes())
    opened = minimal_reader.Artifact(coded.path)
    base = minimal_reader.read_safetensors(family.base.read_bytes())
    assert ours == dict(opened.rebuild(base, minimal_reader.select(opened.manifest)))
    assert not verify_deep(coded.path, family.base).problems


def test_a_task_without_slices_counts_as_zero(family, tmp_path):
    """The last task is the base: every stacked part may lack its slice."""
    tasks = {**family.tasks, "still": family.base}
    first = tmp_path / "first"
    compress(family.base, tasks, first, profile="auto", target_error=0.05)
    second = tmp_path / "second"
    compress(
        family.base,
        {},
        second,
        from_artifact=first,
        method="ties",
        merged_dtype="coded",
        merge_name="ties",
        density=1.0,
    )
    weights = [
        expr["weights"]
        for tensor in read_record(second)["tensors"]
        for entry in tensor.get("merges", {}).values()
        for expr in [entry["merged"], *entry["merged"].get("terms", [])]
        if expr["op"] == "weighted"
    ]
    assert weights
    assert {len(some) for some in weights} == {len(tasks)}
    assert not verify_deep(second, family.base).problems


@pytest.mark.parametrize("error", [0.0, -1.0, 2.5])
def test_an_error_out_of_range_is_refused(family, tmp_path, error):
    with pytest.raises(ParameterError, match="merged_error"):
        pack(family, tmp_path / "a", method="ties", merged_dtype="coded", merged_error=error)
