"""Writing a rebuilt model: HF folder, one safetensors file, or a torch state dict.

The output is built beside its target and renamed when it is whole, so a run that fails or is
stopped leaves the target as it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from svd_hybrid.io.new_file import NewFile, copy_file, write_file
from svd_hybrid.io.outputs import OutputKind, check_free
from svd_hybrid.io.safetensors_writer import SafetensorsWriter
from svd_hybrid.io.staging import staged_directory, staged_file
from svd_hybrid.io.tensors import TensorInfo

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
HF_METADATA = {"format": "pt"}
DEFAULT_SHARD_BYTES = 5 * 10**9
COMPANION_PATTERNS = (
    "*config*.json",
    "*.txt",
    "tokenizer*",
    "vocab*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "*.tiktoken",
    "modeling_*.py",
    "configuration_*.py",
    "tokenization_*.py",
)
"""What is copied from a base folder: configuration and tokenizer files, never weights."""

INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")
MODEL = OutputKind("model of svdh", (*COMPANION_PATTERNS, *WEIGHTS, INDEX), WEIGHTS)

TensorStream = Callable[[list[str]], Iterator[tuple[str, Tensor]]]
"""Given names in an order, yields (name, tensor) in that order, one at a time."""


def write_model(
    path: Path,
    infos: Mapping[str, TensorInfo],
    stream: TensorStream,
    *,
    base: Path,
    overwrite: bool = False,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Write a model in the layout that the target's suffix asks for.

    Args:
        path: `*.safetensors` for one file; `*.pt|.pth|.bin` for a torch state dict (held in memory
            as a whole, as torch.save needs); anything else becomes an HF folder.
        infos: dtype and shape of every tensor of the result, in base order.
        stream: gives the tensors in the order asked for.
        base: the base checkpoint; when it is a folder its companion files are copied.
        overwrite: replace an existing output, whole.
        max_shard_bytes: largest weight file of an HF folder, >= 1; a tensor larger than that gets
            a file of its own.

    Raises:
        LockedError: another run is writing it.
        StorageError: the target is in the way or cannot be written.
    """
    check_free(path, overwrite, model_kind(path))
    if path.suffix == ".safetensors":
        with staged_file(path, overwrite) as target:
            _write_file(target, infos, stream)
    elif path.suffix in TORCH_SUFFIXES:
        with staged_file(path, overwrite) as target:
            _write_torch(target, dict(stream(list(infos))))
    else:
        with staged_directory(path, overwrite, MODEL) as target:
            _write_folder(target, infos, stream, max_shard_bytes)
            if base.is_dir():
                _copy_companions(base, target)


def model_kind(path: Path) -> OutputKind | None:
    """What a path's suffix makes of a model: MODEL for a folder, None for a file."""
    return None if path.suffix in (".safetensors", *TORCH_SUFFIXES) else MODEL


def _write_file(path: Path, infos: Mapping[str, TensorInfo], stream: TensorStream) -> None:
    with SafetensorsWriter(path, infos, HF_METADATA) as writer:
        for name, tensor in stream(writer.order):
            writer.write(name, tensor)
            del tensor  # before the next one is made


def _write_torch(path: Path, state: dict[str, Tensor]) -> None:
    with NewFile(path) as file:
        try:
            torch.save(state, cast("IO[bytes]", file))
        except RuntimeError as error:  # which torch makes of whatever a write raised
            raise file.failure or error from error


def _write_folder(
    folder: Path, infos: Mapping[str, TensorInfo], stream: TensorStream, max_shard_bytes: int
) -> None:
    shards = plan_shards(infos, max_shard_bytes)
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", infos, stream)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file_name, {name: infos[name] for name in names}, stream)
        weight_map |= dict.fromkeys(names, file_name)
    total = sum(info.nbytes for info in infos.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
    write_file(folder / INDEX, text.encode())


def plan_shards(infos: Mapping[str, TensorInfo], max_bytes: int) -> list[list[str]]:
    """Names per weight file: in order, each file at most `max_bytes` unless one tensor is larger.

    >>> f32 = lambda n: TensorInfo("F32", (n,))
    >>> plan_shards({"a": f32(2), "b": f32(1), "c": f32(9)}, 12)
    [['a', 'b'], ['c']]
    """
    shards: list[list[str]] = [[]]
    room = max_bytes
    for name, info in infos.items():
        if shards[-1] and info.nbytes > room:
            shards.append([])
            room = max_bytes
        shards[-1].append(name)
        room -= info.nbytes
    return shards


def _copy_companions(base: Path, folder: Path) -> None:
    for entry in sorted(base.iterdir()):
        wanted = any(entry.match(pattern) for pattern in COMPANION_PATTERNS)
        if wanted and entry.is_file() and not (folder / entry.name).exists():
            copy_file(entry, folder / entry.name)
