"""Whole pickled modules: read as data when the user says so, and never run."""

from __future__ import annotations

import io
import os
import pickle
import time
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from svd_hybrid.consent import allow_module_pickles
from svd_hybrid.errors import FamilyError, SvdhError, UnsafeError
from svd_hybrid.io.reader import open_checkpoint

LEGACY = {"_use_new_zipfile_serialization": False}
FORMATS = pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "older"])


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2).half())
        self.tied = self.head[0]
        self.register_buffer("hidden", torch.zeros(3), persistent=False)
        self.register_buffer("turned", torch.arange(6).reshape(2, 3).T)
        self.listed = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(2))])
        self.note = {"anything": object}


def same(path: Path, wanted: dict[str, torch.Tensor]) -> bool:
    reader = open_checkpoint(path)
    assert list(reader.infos) == list(wanted)
    got = {name: reader.read(name) for name in reader.infos}
    return all(got[n].dtype == x.dtype and torch.equal(got[n], x) for n, x in wanted.items())


@FORMATS
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_a_module_is_read_as_its_state_dict(tmp_path, options, key):
    net = Net()
    torch.save(net if key is None else {key: net, "epoch": 3}, tmp_path / "m.pt", **options)
    with pytest.raises(UnsafeError, match="--allow-module-pickle"):
        open_checkpoint(tmp_path / "m.pt")
    with allow_module_pickles():
        assert same(tmp_path / "m.pt", net.state_dict())


@FORMATS
def test_a_state_dict_beside_objects_of_a_class_is_read(tmp_path, options):
    state = {"w": torch.randn(3, 4), "b": torch.randn(3)}
    torch.save({"state_dict": state, "args": Net}, tmp_path / "m.pt", **options)
    with allow_module_pickles():
        assert same(tmp_path / "m.pt", state)


def test_reading_imports_no_class(tmp_path):
    """The module's class is in a package that does not exist."""
    net = Net()
    torch.save(net, tmp_path / "there.pt")
    with (
        zipfile.ZipFile(tmp_path / "there.pt") as there,
        zipfile.ZipFile(tmp_path / "gone.pt", "w") as gone,
    ):
        for entry in there.infolist():
            data = there.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"test_module_pickles\nNet\n" in data
                data = data.replace(b"test_module_pickles\nNet\n", b"not_module_pickles\nNet\n")
                data = data.replace(b"torch.nn.modules.conv", b"no.such.modules.conv")
            gone.writestr(entry.filename, data)
    with allow_module_pickles():
        assert same(tmp_path / "gone.pt", net.state_dict())


class Detonator:
    def __init__(self, call, *args) -> None:
        self.call = (call, args)

    def __reduce__(self):
        return self.call


def detonators(mark: Path) -> list[Detonator]:
    return [
        Detonator(os.system, f"touch {mark}"),
        Detonator(eval, f"open({str(mark)!r}, 'w')"),
        Detonator(exec, f"open({str(mark)!r}, 'w')"),
        Detonator(Path(mark).touch),
        Detonator(torch.load, str(mark)),
        Detonator(getattr, Path(mark), "touch"),
    ]


@FORMATS
@pytest.mark.parametrize("place", ["bare", "attribute", "parameter", "module", "entry"])
@pytest.mark.parametrize("number", range(6))
def test_code_in_a_module_does_nothing(tmp_path, options, place, number):
    mark = tmp_path / "ran"
    bomb = detonators(mark)[number]
    net = torch.nn.Linear(2, 2)
    if place == "attribute":
        net.__dict__["bomb"] = bomb
    elif place == "parameter":
        net._parameters["bomb"] = bomb
    elif place == "module":
        net._modules["bomb"] = bomb
    record = {"bare": bomb, "entry": {"w": torch.zeros(2), "x": bomb}}.get(place, net)
    path = tmp_path / "m.pt"
    torch.save(record, path, **options)
    with pytest.raises(UnsafeError):
        open_checkpoint(path)
    with allow_module_pickles():
        if place == "attribute":
            assert list(open_checkpoint(path).infos) == ["weight", "bias"]
        else:
            with pytest.raises(FamilyError):
                open_checkpoint(path)
    assert not mark.exists()


NESTED = b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(60))
BOMBS = {
    "memo doubling": b"\x80\x02]q\x00" + NESTED + b".",
    "memo index": b"\x80\x02Nr" + (2**31 - 1).to_bytes(4, "little") + b".",
    "memo index as text": b"\x80\x02Np4000000000\n.",
    "a long bytearray": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
    "long bytes": b"\x80\x04\x8e" + (2**50).to_bytes(8, "little") + b".",
    "a long frame": b"\x80\x04\x95" + (2**50).to_bytes(8, "little") + b"N.",
    "a long integer": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b".",
    "deep lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "a registered class": b"\x80\x02\x84\x01\x00\x00\x00.",
    "no end": b"\x80\x02" + b"N0" * 1000,
    "a stack that is empty": b"\x80\x02R.",
    "an odd protocol": b"\x80\xff.",
    "a storage of no number": b"\x80\x02(X\x07\x00\x00\x00storageNNNNtQ.",
}


def wrapped(pickled: bytes) -> bytes:
    """The pickle where torch keeps its own, beside a class that needs consent."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return out.getvalue()


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("wrap", [wrapped, bytes], ids=["zip", "bare"])
def test_bombs_are_refused_at_once(tmp_path, name, wrap):
    (tmp_path / "m.pt").write_bytes(wrap(BOMBS[name]))
    start = time.process_time()
    with allow_module_pickles(), pytest.raises(SvdhError) as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert caught.value.exit_code in (3, 9)
    assert time.process_time() - start < 5


def lying(tmp_path: Path, **changes: object) -> Path:
    """A pickled module whose one tensor claims more than it has."""
    storage = ("storage", "FloatStorage", "0", "cpu", changes.get("count", 4))
    facts = {"offset": 0, "sizes": (2, 2), "strides": (2, 1)} | changes

    class Pickler(pickle.Pickler):
        def persistent_id(self, x):
            return (*storage[:1], torch.FloatStorage, *storage[2:]) if x == "here" else None

    class Tensor:
        def __reduce__(self):
            view = ("here", facts["offset"], facts["sizes"], facts["strides"], False, {})
            return torch._utils._rebuild_tensor_v2, view

    class Module:
        pass

    globals()["Module"] = Module
    Module.__qualname__ = "Module"
    module = Module()
    module.__dict__ |= {"_parameters": {"w": Tensor()}, "_buffers": {}, "_modules": {}}
    out = io.BytesIO()
    Pickler(out, protocol=2).dump(module)
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("archive/data.pkl", out.getvalue())
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", "3\n")
    return tmp_path / "m.pt"


def test_an_honest_tensor_of_that_kind_is_read(tmp_path):
    with allow_module_pickles():
        assert same(lying(tmp_path), {"w": torch.zeros(2, 2)})


LIES: list[dict[str, object]] = [
    {"offset": 1},
    {"offset": -1},
    {"offset": 2**62},
    {"sizes": (2, 3)},
    {"sizes": (2**40, 1), "strides": (0, 0)},
    {"sizes": (-1, 2)},
    {"sizes": (2, 2, 2)},
    {"strides": (-1, 1)},
    {"strides": (2.0, 1)},
    {"count": 2**40},
    {"count": 5},
]


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, lie):
    path = lying(tmp_path, **lie)
    with allow_module_pickles(), pytest.raises(FamilyError, match="pickled module cannot be read"):
        open_checkpoint(path)


@cache
def saved(*, legacy: bool) -> bytes:
    out = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), out, **(LEGACY if legacy else {}))
    return out.getvalue()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_modules_raise_only_our_errors(tmp_path_factory, data):
    damaged = bytearray(saved(legacy=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("m") / "m.pt"
    path.write_bytes(damaged)
    with allow_module_pickles():
        try:
            reader = open_checkpoint(path)
            for name in reader.infos:
                reader.read(name)
        except SvdhError:
            pass


def test_the_option_reads_a_family_of_modules(project, svdh):
    state = {}
    for path in (project.base, *project.ckpts.iterdir()):
        module = torch.nn.Linear(3, 2)
        state[path.stem] = module.state_dict()
        path.unlink()
        torch.save(module, path.with_suffix(".pt"))
    base = project.base.with_suffix(".pt")
    assert svdh(*project.compress(base_model_path=base)).code == 9
    argv = project.compress("--allow-module-pickle", "--profile", "exact", base_model_path=base)
    assert svdh(*argv).code == 0
    made = {"artifact_dir": project.root / "new", "base_model_path": base}
    assert svdh(*project.reload("--task", "dtd", **made)).code == 9
    assert svdh(*project.reload("--task", "dtd", "--allow-module-pickle", **made)).code == 0
    from safetensors.torch import load_file

    back = load_file(project.root / "merged.safetensors")
    assert all(torch.equal(back[name], x) for name, x in state["dtd"].items())
    words = ["verify", "--artifact-dir", project.root / "new", "--base-model-path", base]
    assert svdh(*words).code == 9
    assert svdh(*words, "--allow-module-pickle").code == 0
