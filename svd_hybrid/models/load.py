"""Building live models: from a local Hugging Face folder, or by calling a function of the user.

Libraries rename tensors while they load (transformers 5 has other names in memory than on disk),
so the names on disk are traced through the loader: it loads numbered tensors first, which shows
where each went, and then the real ones, which are compared with the file afterwards.
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svd_hybrid.data.extra import require
from svd_hybrid.errors import FamilyError, StorageError, UsageError, shorten
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.io.tensors import TensorInfo
from svd_hybrid.models.live import LiveModel
from svd_hybrid.models.names import matched_names
from svd_hybrid.registry import did_you_mean

LARGEST_STAMP = 2**24
"""Whole numbers up to this are exact in float32."""


def live_model(checkpoint: CheckpointReader, model: str | Path | None = None) -> LiveModel:
    """A live model with a checkpoint's tensors in it.

    Args:
        checkpoint: of the base or a fine-tune.
        model: a folder with config.json, or `module:function`, a function without arguments that
            returns an nn.Module; None for the checkpoint's own folder.

    Raises:
        UsageError: the extra is not installed, or the function cannot be called.
        FamilyError, StorageError: no configuration, or tensors that do not fit it.
    """
    if isinstance(model, str) and ":" in model and not Path(model).exists():
        return _from_function(checkpoint, model)
    folder = Path(model) if model is not None else _folder_of(checkpoint.path)
    return _from_folder(checkpoint, folder)


@contextmanager
def _importable_from_here() -> Iterator[None]:
    """With the current folder among those that modules come from, as with `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _folder_of(path: Path) -> Path:
    return path if path.is_dir() else path.absolute().parent


def _from_function(checkpoint: CheckpointReader, source: str) -> LiveModel:
    module_name, _, function_name = source.partition(":")
    try:
        with _importable_from_here():
            module = getattr(import_module(module_name), function_name)()
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(
            f"--model {source} cannot be called: {error}",
            fix="write module:function, importable from here and without arguments",
        ) from error
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"--model {source} returned {type(module).__name__}", fix="return an nn.Module"
        )
    module = module.float().eval()
    live = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    names = matched_names(checkpoint.infos, live, str(checkpoint.path))
    tied = _shared_names(module)
    covered = {other for name in names.values() for other in tied.get(name, {name})}
    floats = {name for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    if lacking := sorted(floats - covered):
        raise FamilyError(
            f"the checkpoint has no {shorten(lacking, 3)}",
            where=str(checkpoint.path),
            fix=f"let {source} build the model that this checkpoint was saved from",
        )
    made = LiveModel(module, names, checkpoint.infos, source)
    made.put_checkpoint(checkpoint)
    _note_names(made)
    return made


def _from_folder(checkpoint: CheckpointReader, folder: Path) -> LiveModel:
    if not (folder / "config.json").is_file():
        raise StorageError(
            "no config.json, which says what model this is",
            where=str(folder),
            fix="pass --model DIR with a folder that has one, or --model module:function",
        )
    require("transformers", "running a model")
    stamps = {
        name: torch.full((), float(number)).expand(info.shape)
        for number, (name, info) in enumerate(checkpoint.infos.items(), start=1)
        if info.is_float
    }
    if len(checkpoint.infos) > LARGEST_STAMP:
        raise FamilyError("checkpoint has too many tensors to trace", where=str(checkpoint.path))
    module, config = _loaded(folder, stamps, str(checkpoint.path))
    names = _traced(module, checkpoint.infos, folder)
    del module
    state = {name: checkpoint.read(name) for name in stamps}
    module, config = _loaded(folder, state, str(checkpoint.path))
    made = LiveModel(module, names, checkpoint.infos, str(folder), config, folder)
    _check_values(made, state)
    left = [name for name in checkpoint.infos if name not in names]
    if left:
        made.notes.append(f"not part of the live model, left out: {shorten(left, 3)}")
    _note_names(made)
    return made


def _loaded(folder: Path, state: Mapping[str, Tensor], where: str) -> tuple[nn.Module, Any]:
    """The module that config.json names, with this state, in eval mode; its configuration."""
    transformers = require("transformers", "running a model")
    with quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True)
            kind = _class_of(transformers, config, folder)
            options: dict[str, Any] = {}
            module, report = _from_pretrained(kind, config, state, options)
            lacking = sorted(report["missing_keys"])
            takes_pooler = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
            if lacking and takes_pooler and all(name.startswith("pooler.") for name in lacking):
                options = {"add_pooling_layer": False}
                module, report = _from_pretrained(kind, config, state, options)
        except (OSError, ValueError, RuntimeError) as error:
            raise FamilyError(
                f"transformers cannot load it: {str(error).strip().splitlines()[0][:300]}",
                where=where,
                fix=f"check {folder / 'config.json'}",
            ) from error
    problems = [
        f"{text} {shorten(sorted(str(entry) for entry in report[key]), 3)}"
        for key, text in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "unexpected"),
            ("mismatched_keys", "of another shape"),
        )
        if report.get(key)
    ]
    if problems:
        raise FamilyError(
            f"tensors do not fit {kind.__name__}: {'; '.join(problems)}",
            where=where,
            fix=f"check `architectures` in {folder / 'config.json'}, or pass --model",
        )
    return module.float().eval(), config


def _class_of(transformers: Any, config: Any, folder: Path) -> Any:
    for name in getattr(config, "architectures", None) or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
        raise FamilyError(
            f"transformers {transformers.__version__} has no model class {name!r}",
            where=str(folder / "config.json"),
            fix=did_you_mean(name, [n for n in dir(transformers) if n.endswith(name[-9:])]),
        )
    return transformers.AutoModel


def _from_pretrained(
    kind: Any, config: Any, state: Mapping[str, Tensor], options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    module, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(state),
        output_loading_info=True,
        dtype=torch.float32,
        **options,
    )
    return module, report


def _traced(module: nn.Module, infos: Mapping[str, TensorInfo], folder: Path) -> dict[str, str]:
    """Live name by checkpoint name, from a module that holds numbered tensors."""
    numbered = dict(enumerate(infos, start=1))
    names: dict[str, str] = {}
    live = {name: x for name, x in module.state_dict().items() if x.is_floating_point()}
    for name, tensor in live.items():
        low, high = (float(bound) for bound in torch.aminmax(tensor)) if tensor.numel() else (0, 0)
        origin = numbered.get(int(low)) if low == high else None
        if origin is not None and infos[origin].shape == tuple(tensor.shape):
            names.setdefault(origin, name)
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or []
    rebuilt = [
        name
        for name, info in infos.items()
        if info.is_float
        and info.count
        and name not in names
        and not any(re.search(pattern, name) for pattern in ignored)
    ]
    if rebuilt:
        raise FamilyError(
            f"transformers joins, splits or drops tensors while loading: {shorten(rebuilt, 3)}",
            where=str(folder),
            fix="pass --model module:function that builds the model with the checkpoint's names",
        )
    integers = {name for name, info in infos.items() if not info.is_float}
    return names | {name: name for name in integers & module.state_dict().keys()}


def _check_values(made: LiveModel, state: Mapping[str, Tensor]) -> None:
    live = made.module.state_dict()
    for name, tensor in state.items():
        if name in made.names and not torch.equal(
            live[made.names[name]].nan_to_num(), tensor.float().nan_to_num()
        ):
            raise FamilyError(
                f"transformers changed the values of {name!r} while loading",
                where=made.source,
                fix="pass --model module:function that builds the model",
            )


def _shared_names(module: nn.Module) -> dict[str, set[str]]:
    """All names of each parameter that has several (tied weights)."""
    groups: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    return {name: group for group in groups.values() if len(group) > 1 for name in group}


def _note_names(made: LiveModel) -> None:
    renamed = [(name, live) for name, live in made.names.items() if name != live]
    if renamed:
        first = f"{renamed[0][0]!r} is {renamed[0][1]!r}"
        made.notes.append(
            f"{len(renamed)} tensors have other names in the live model, such as {first}"
        )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without load reports and progress bars: what they say is checked and said by us."""
    transformers = require("transformers", "running a model")
    levels = transformers.utils.logging
    verbosity, bars = levels.get_verbosity(), levels.is_progress_bar_enabled()
    levels.set_verbosity(logging.CRITICAL)
    levels.disable_progress_bar()
    try:
        yield
    finally:
        levels.set_verbosity(verbosity)
        if bars:
            levels.enable_progress_bar()
