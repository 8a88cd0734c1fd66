"""Pickles of torch read without importing, calling or building anything that they name.

A pickle is a program. Here every name in it stands for an inert record: what is called with, given
as a state or put into such a record is kept there and nothing else happens. Tensors become records
of their storage, offset, sizes and strides. The opcodes are walked over first, so that none can ask
for memory that the file does not pay for.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import dataclass
from typing import IO, Any

from svd_hybrid.limits import MOST_OPCODES, MOST_PICKLE_BYTES


@dataclass(frozen=True, slots=True)
class Storage:
    """Where the numbers of a tensor are: a name in the file, a torch storage class, their count."""

    key: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor as a pickle describes it; nothing of it is checked yet."""

    storage: Any
    offset: Any
    sizes: Any
    strides: Any


class Inert:
    """An instance of a class that was not imported."""

    named = ""

    def __init__(self, *args: object, **_: object) -> None:
        self.args = args
        self.state: object = None
        self.entries: dict[object, object] = {}

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __call__(self, *args: object) -> Inert:
        """What a call of it would have given: a record too."""
        return Inert(*args)

    def __setitem__(self, key: object, value: object) -> None:
        self.entries[key] = value

    def append(self, _item: object) -> None:
        """Lists of subclasses hold nothing that is looked for."""

    def extend(self, _items: object) -> None:
        """As `append`."""

    def add(self, _item: object) -> None:
        """As `append`, for sets."""


def inert_class(module: str, name: str) -> type[Inert]:
    """A class of its own for every name, so that errors can say which it was."""
    return type("Inert", (Inert,), {"named": f"{module}.{name}"})


class _Mapping(dict[Any, Any]):
    """An OrderedDict; what it is called with may be a list of pairs."""

    def __init__(self, pairs: object = ()) -> None:
        super().__init__(pairs if isinstance(pairs, list | dict) else ())

    def __setstate__(self, _state: object) -> None:
        """Attributes of a dictionary, such as `_metadata`, do not matter."""


class _View:
    """What rebuilds a tensor when torch reads it; kept as a record."""

    def __new__(cls, storage: Any, offset: Any, sizes: Any, strides: Any, *_: Any) -> Any:
        return TensorView(storage, offset, sizes, strides)


class _First:
    """What returns its first argument: a parameter is its data."""

    def __new__(cls, first: Any, *_: Any) -> Any:
        return first


STAND_INS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Mapping,
    ("torch._utils", "_rebuild_tensor"): _View,
    ("torch._utils", "_rebuild_tensor_v2"): _View,
    ("torch._utils", "_rebuild_parameter"): _First,
    ("torch._utils", "_rebuild_parameter_with_state"): _First,
    ("torch", "Size"): _First,
}


class _InertUnpickler(pickle.Unpickler):
    """Builds plain containers and the records above; imports nothing."""

    def __init__(self, file: IO[bytes], storages: dict[str, Storage]) -> None:
        super().__init__(file)
        self._storages = storages
        self._classes: dict[tuple[str, str], Any] = dict(STAND_INS)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._classes:
            self._classes[module, name] = inert_class(module, name)
        return self._classes[module, name]

    def persistent_load(self, pid: Any) -> Any:
        match pid:
            case ("storage", kind, str(key), _, int(count), *_) if isinstance(kind, type):
                storage = Storage(key, getattr(kind, "named", ""), count)
                return self._storages.setdefault(key, storage)
            case ("module", kind, *_):  # torch before 1.6 kept source code beside a class
                return kind
        raise pickle.UnpicklingError("it refers to something that is no storage")


def read_pickle(file: IO[bytes], storages: dict[str, Storage] | None = None) -> Any:
    """The next pickle of a file; the position afterwards is the byte after it.

    Args:
        file: seekable.
        storages: gets every storage that the pickle refers to, by key.

    Raises:
        ValueError, pickle.UnpicklingError: it is damaged, or asks for more than is read here.
        Exception: any other that a malformed pickle provokes in Python's own reader.
    """
    start = file.tell()
    end = walk_over(file, MOST_PICKLE_BYTES)
    loaded = _InertUnpickler(
        io.BytesIO(file.read(end - start)), {} if storages is None else storages
    ).load()
    file.seek(end)
    return loaded


def walk_over(file: IO[bytes], most_bytes: int) -> int:
    """Where the next pickle of a file ends, once it is known to ask for no more than it holds.

    The position is where it was.

    Raises:
        ValueError: it is damaged, or asks for more than is read here.
    """
    start = file.tell()
    for number, (opcode, argument, position) in enumerate(pickletools.genops(file)):
        if number > MOST_OPCODES or (position or 0) - start > most_bytes:
            raise ValueError("the pickle is larger than svdh reads")
        if "PUT" in opcode.name and int(argument or 0) > MOST_OPCODES:
            raise ValueError("the pickle numbers what it remembers too high")
        if opcode.name.startswith("EXT"):
            raise ValueError("the pickle refers to a registry of classes")
    end = file.tell()
    file.seek(start)
    return end
