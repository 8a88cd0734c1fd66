"""Random damage to an artifact directory: to its bytes, its files, or, sealed anew, its facts."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from svd_hybrid.artifact.blocks import block_digests
from svd_hybrid.artifact.jsonfile import canonical_json
from svd_hybrid.artifact.manifest import sealed

MANIFEST, INDEX = "manifest.json", "index.json.zst"
IN_INDEX = ("tensors", "rebuilt")


@dataclass(frozen=True, slots=True)
class Mutation:
    """What was done.

    Args:
        kind: in a word.
        paths: the files concerned, relative to the artifact.
        resealed: whether every digest was made to fit again.
        detail: for people who look into a finding.
    """

    kind: str
    paths: tuple[str, ...]
    resealed: bool = False
    detail: str = ""


def files_of(artifact: Path) -> list[str]:
    """Relative paths of all files, sorted."""
    found = (path for path in artifact.rglob("*") if path.is_file())
    return sorted(path.relative_to(artifact).as_posix() for path in found)


def damage(artifact: Path, path: str, donor: Path, rng: random.Random) -> Mutation:
    """Damage one file in a way chosen by chance; nothing is sealed anew.

    Args:
        artifact: a directory that may be changed.
        path: the file to damage.
        donor: another artifact, for foreign content.
        rng: decides everything.
    """
    while True:
        kind = rng.choice(list(DAMAGES))
        paths = DAMAGES[kind](artifact, path, donor, rng)
        if paths:
            return Mutation(kind, paths)


def forge(artifact: Path, rng: random.Random) -> Mutation:
    """Change one fact or one stored byte, and make every digest fit again."""
    shards = [path for path in files_of(artifact) if path.endswith(".safetensors")]
    if shards and rng.random() < 0.5:
        return _forge_shard(artifact, rng.choice(shards), rng)
    detail = ""

    def change(record: dict[str, Any]) -> None:
        nonlocal detail
        detail = _change_leaf(record, rng)

    reseal(artifact, change)
    return Mutation("fact", (MANIFEST,), resealed=True, detail=detail)


def reseal(artifact: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the parsed manifest and index, and write them back with digests that fit."""
    record = json.loads((artifact / MANIFEST).read_bytes())
    index = artifact / INDEX
    if index.exists():
        record |= json.loads(zstandard.decompress(index.read_bytes()))
    change(record)
    if index.exists():
        content = {key: record.pop(key) for key in IN_INDEX if key in record}
        data = zstandard.compress(canonical_json(content))
        index.write_bytes(data)
        for file in record.get("files", []):
            if isinstance(file, dict) and file.get("path") == INDEX:
                file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (artifact / MANIFEST).write_bytes(canonical_json(sealed(record)))


def _forge_shard(artifact: Path, path: str, rng: random.Random) -> Mutation:
    data = bytearray((artifact / path).read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    first = start if rng.random() < 0.8 and start < len(data) else 0
    at = rng.randrange(first, len(data))
    data[at] ^= 1 << rng.randrange(8)
    digest = hashlib.sha256(data).hexdigest()
    new = f"{path.split('/')[0]}/{digest}.safetensors"
    (artifact / path).unlink()
    (artifact / new).write_bytes(data)

    def relist(record: dict[str, Any]) -> None:
        order = [file["path"] for file in record["files"]]
        for file in record["files"]:
            if file["path"] == path:
                file |= {"path": new, "sha256": digest}
                if "blocks" in file:
                    file["blocks"] = block_digests(artifact / new)
        if sorted(order) != order:
            raise AssertionError("files were not sorted")
        _sort_files(record)

    reseal(artifact, relist)
    return Mutation("shard", (new,), resealed=True, detail=f"byte {at} of {path}")


def _sort_files(record: dict[str, Any]) -> None:
    """Sort the files again; the parts that name them by number follow."""
    before = [file["path"] for file in record["files"]]
    record["files"].sort(key=lambda file: file["path"])
    after = {file["path"]: number for number, file in enumerate(record["files"])}
    for tensor in record["tensors"]:
        for part in tensor.get("parts", {}).values():
            if "shards" in part:
                part["shards"] = [
                    after[before[number]] if length else 0
                    for number, length in zip(part["shards"], part["lengths"], strict=True)
                ]


def _change_leaf(record: dict[str, Any], rng: random.Random) -> str:
    """Change one value somewhere; says where."""
    here: Any = record
    steps = []
    while isinstance(here, dict | list) and here:
        parent = here
        step = rng.choice(sorted(here)) if isinstance(here, dict) else rng.randrange(len(here))
        steps.append(str(step))
        here = here[step]
    where = ".".join(steps)
    if rng.random() < 0.15:
        del parent[step]
        return f"{where} deleted"
    parent[step] = _another(here, rng)
    return f"{where}: {str(here)[:60]} -> {str(parent[step])[:60]}"


def _another(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice([value + 1, value - 1, -value - 1, 0, 2 * value + 3, 2**40, 2**53])
    if isinstance(value, float):
        return rng.choice([value + 0.125, -value - 1.0, 1e300])
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + chr(33 + rng.randrange(90)) + value[at + 1 :]
    return rng.choice([None, 7, "x", [], {}])


def _flip(artifact: Path, path: str, _donor: Path, rng: random.Random) -> tuple[str, ...]:
    data = bytearray((artifact / path).read_bytes())
    for _ in range(rng.choice([1, 1, 1, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return _put(artifact, path, bytes(data))


def _cut(artifact: Path, path: str, _donor: Path, rng: random.Random) -> tuple[str, ...]:
    data = (artifact / path).read_bytes()
    return _put(artifact, path, data[: rng.randrange(len(data))])


def _extend(artifact: Path, path: str, _donor: Path, rng: random.Random) -> tuple[str, ...]:
    more = rng.randbytes(rng.choice([1, 8, 500]))
    return _put(artifact, path, (artifact / path).read_bytes() + more)


def _blank(artifact: Path, path: str, _donor: Path, rng: random.Random) -> tuple[str, ...]:
    data = bytearray((artifact / path).read_bytes())
    at = rng.randrange(len(data))
    data[at : at + 64] = bytes(len(data[at : at + 64]))
    return _put(artifact, path, bytes(data))


def _swap(artifact: Path, path: str, _donor: Path, rng: random.Random) -> tuple[str, ...]:
    other = rng.choice(files_of(artifact))
    one, two = (artifact / path).read_bytes(), (artifact / other).read_bytes()
    if one == two:
        return ()
    (artifact / path).write_bytes(two)
    (artifact / other).write_bytes(one)
    return (path, other)


def _duplicate(artifact: Path, path: str, _donor: Path, rng: random.Random) -> tuple[str, ...]:
    """Another file's content under this file's name."""
    other = rng.choice(files_of(artifact))
    return _put(artifact, path, (artifact / other).read_bytes())


def _rename(artifact: Path, path: str, _donor: Path, rng: random.Random) -> tuple[str, ...]:
    target = artifact / path
    name = rng.choice([f"{target.name}.bak", target.name[1:] + "0", target.name.swapcase()])
    target.rename(target.with_name(name))
    return (path,)


def _remove(artifact: Path, path: str, _donor: Path, _rng: random.Random) -> tuple[str, ...]:
    (artifact / path).unlink()
    return (path,)


def _add(artifact: Path, _path: str, donor: Path, rng: random.Random) -> tuple[str, ...]:
    """A file that no manifest lists."""
    source = rng.choice([path for path in files_of(donor) if path != MANIFEST])
    folder = rng.choice(["", "coeffs/", "mine/"])
    name = f"{folder}{rng.randrange(10**6)}-{Path(source).name}"
    (artifact / name).parent.mkdir(exist_ok=True)
    shutil.copyfile(donor / source, artifact / name)
    return (name,)


def _foreign(artifact: Path, path: str, donor: Path, rng: random.Random) -> tuple[str, ...]:
    """A file of another artifact in this one's place."""
    alike = [name for name in files_of(donor) if Path(name).suffix == Path(path).suffix]
    return _put(artifact, path, (donor / rng.choice(alike or files_of(donor))).read_bytes())


def _put(artifact: Path, path: str, data: bytes) -> tuple[str, ...]:
    if data == (artifact / path).read_bytes():
        return ()
    (artifact / path).write_bytes(data)
    return (path,)


DAMAGES: dict[str, Callable[[Path, str, Path, random.Random], tuple[str, ...]]] = {
    "flip": _flip,
    "cut": _cut,
    "extend": _extend,
    "blank": _blank,
    "swap": _swap,
    "duplicate": _duplicate,
    "rename": _rename,
    "remove": _remove,
    "add": _add,
    "foreign": _foreign,
}
