"""SQLite's loop: call n fails, for n = 0, 1, … until a run completes.

Whatever failed, the target is what it was or what it should become, whole; the next run needs no
cleaning and leaves nothing else behind.
"""

from __future__ import annotations

import pytest

from tests.faults.cases import CASES, CRASHED, Place, make_inputs
from tests.faults.faulty_storage import NEEDS_SPACE, FaultyStorage

REMOVALS = ("remove_file", "remove_folder", "permit")
ERRORS = {
    "EIO": "cannot write: Input/output error",
    "ENOSPC": "no space left on the disk",
    "short": "no space left on the disk",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def place(tmp_path, inputs, request):
    return Place(tmp_path, CASES[request.param], inputs)


def calls_of(place: Place, exchanges: bool = True) -> list[str]:
    """What a run that succeeds calls."""
    place.reset()
    disk = FaultyStorage(exchanges=exchanges)
    assert place.run(disk=disk) == 0
    assert place.state() == "new"
    assert place.beside() == []
    return disk.calls


def is_tried(call: str, fault: str) -> bool:
    """Other calls behave as under EIO, or as when the kill comes between two of them."""
    if fault in ("short", "torn"):
        return call == "write"
    return fault != "ENOSPC" or call in NEEDS_SPACE


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        *((case, "EIO") for case in CASES),
        *((case, fault) for case in ("compress", "reload to pt") for fault in ("ENOSPC", "short")),
    ],
    indirect=["place"],
)
def test_an_error_ends_in_one_message_and_leaves_nothing(place, fault, capsys):
    calls = calls_of(place)
    begun = "old" if place.case.before else "absent"
    placed = max(at for at, call in enumerate(calls) if call in ("rename", "rename_with"))
    for at, call in list(enumerate(calls))[:: place.case.stride]:
        if not is_tried(call, fault):
            continue
        place.reset()
        capsys.readouterr()
        disk = FaultyStorage(at, fault)
        code = place.run(disk=disk)
        said = capsys.readouterr().err
        what = f"{fault} at call {at}, {call}"
        assert len(disk.calls) > at, what
        if call in REMOVALS:  # what could not be removed is left to the next run
            assert (code, place.state()) == (0, "new") or code == 8, what
        else:
            assert code == 8, what
            assert said.startswith(f"error: {ERRORS[fault]}\n"), (what, said)
            assert said.count("\n") == 3, (what, said)
            assert place.state() == ("new" if at > placed else begun), what
            left = [f".{place.case.name}.lock"] if call == "lock" else []  # whose it is is unknown
            assert place.beside() == left, what
        if call in REMOVALS:
            check_next_run(place, what)


@pytest.mark.parametrize(
    ("place", "fault"),
    [*((case, "kill") for case in CASES), ("compress", "torn")],
    indirect=["place"],
)
def test_a_kill_leaves_old_or_new_and_the_next_run_sweeps(place, fault):
    check_kills(place, fault, {"old", "new"} if place.case.before else {"absent", "new"})


@pytest.mark.parametrize(
    "place", ["compress --overwrite", "append", "reload to a folder"], indirect=True
)
def test_without_an_exchange_the_old_output_comes_back(place):
    check_kills(place, "kill", {"old", "new", "absent"}, exchanges=False)


def check_kills(place: Place, fault: str, allowed: set[str], exchanges: bool = True) -> None:
    seen = set()
    calls = calls_of(place, exchanges)
    begin = 0 if exchanges else len(calls) - calls[::-1].index("write")  # staged as ever until then
    for at, call in list(enumerate(calls))[begin :: place.case.stride]:
        if not is_tried(call, fault):
            continue
        place.reset()
        what = f"{fault} at call {at}, {call}"
        disk = FaultyStorage(at, fault, exchanges=exchanges)
        assert place.run(disk=disk) == CRASHED, what
        state = place.state()
        seen.add(state)
        assert state in allowed, what
        if state == "absent" and place.case.before:
            assert any(".old-" in name for name in place.beside()), what
        check_next_run(place, what)
    assert fault == "torn" or seen == allowed, "the loop met less than it claims"


def check_next_run(place: Place, what: str) -> None:
    """It needs no cleaning first, and cleans."""
    before = place.state()
    if before == "new" and place.case is CASES["append"]:
        assert place.run() == 2, what  # it is there already
        assert place.run("--replace") == 0, what
    elif before == "new" and not place.case.overwrite:
        assert place.run() == 8, what
        assert place.run("--overwrite") == 0, what
    else:
        assert place.run() == 0, what
        assert place.state() == "new", what
    assert place.beside() == [], what
