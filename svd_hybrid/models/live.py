"""A model that runs, and the checkpoint names of its tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svd_hybrid.errors import FamilyError, shorten
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.io.tensors import TensorInfo


@dataclass(slots=True)
class LiveModel:
    """A module in eval mode, float32, on the CPU.

    Args:
        module: what runs.
        names: live parameter or buffer name by checkpoint name.
        infos: of the checkpoint's tensors, which `put` expects.
        source: where the model came from, for errors and records.
        config: the transformers configuration; None for a user's own module.
        folder: of configuration and tokenizer; None for a user's own module.
        notes: what the user should know.
    """

    module: nn.Module
    names: Mapping[str, str]
    infos: Mapping[str, TensorInfo]
    source: str
    config: Any = None
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def checkpoint_names(self) -> dict[str, str]:
        """Checkpoint name by live name."""
        return {live: name for name, live in self.names.items()}

    @property
    def vocabulary(self) -> int | None:
        """Rows of the input embedding; None where the model has none."""
        get = getattr(self.module, "get_input_embeddings", None)
        try:
            layer = get() if get else None
        except NotImplementedError:
            layer = None
        return layer.num_embeddings if isinstance(layer, nn.Embedding) else None

    def put(self, state: Iterable[tuple[str, Tensor]], where: str) -> None:
        """Replace every tensor by the one of that checkpoint name; nothing may be left over.

        Args:
            state: (checkpoint name, tensor), in any order and float dtype.
            where: what to call it in errors.

        Raises:
            FamilyError: a tensor is missing, unexpected or of another shape, or two that the model
                holds as one (tied weights) differ. The model must not be used after that.
        """
        targets = self.module.state_dict()
        waiting = set(self.names)
        written: dict[int, str] = {}
        unexpected = []
        with torch.no_grad():
            for name, tensor in state:
                if name not in self.infos:
                    unexpected.append(name)
                elif tuple(tensor.shape) != self.infos[name].shape:
                    raise FamilyError(
                        f"tensor {name!r} has shape {list(tensor.shape)}, "
                        f"the model has {list(self.infos[name].shape)}",
                        where=where,
                    )
                elif name in waiting:
                    target = targets[self.names[name]]
                    other = written.setdefault(target.data_ptr(), name)
                    if other == name:
                        target.copy_(tensor)
                    elif not torch.equal(target, tensor.to(target.dtype)):
                        raise FamilyError(
                            f"{other!r} and {name!r} differ, and the model holds them as one",
                            where=where,
                            fix="use a configuration with untied weights",
                        )
                    waiting.discard(name)
        if waiting or unexpected:
            parts = [f"it lacks {shorten(sorted(waiting), 3)}"] if waiting else []
            parts += [f"it has {shorten(unexpected, 3)} besides"] if unexpected else []
            raise FamilyError(
                f"tensors do not fit the model: {'; '.join(parts)}",
                where=where,
                fix="pass a checkpoint of this model",
            )

    def put_checkpoint(self, reader: CheckpointReader) -> None:
        """Replace every tensor by those of a checkpoint.

        Raises:
            FamilyError: as `put`.
        """
        self.put(((name, reader.read(name)) for name in reader.infos), str(reader.path))

    def __call__(self, inputs: Mapping[str, Tensor]) -> Any:
        """The module's output for named inputs (`input_ids`, `attention_mask`, `pixel_values`).

        A module of the user gets those its forward() names; if it names none, the first alone.

        Raises:
            FamilyError: the model cannot take them.
        """
        needed = getattr(self.module, "main_input_name", None)
        if self.config is not None and needed not in inputs:
            raise FamilyError(
                f"the model takes {needed}, the data gives {', '.join(inputs)}",
                where=self.source,
                fix="pass images to vision models and text or token ids to language models",
            )
        try:
            if self.config is not None:
                return self.module(**inputs)
            accepted = inspect.signature(self.module.forward).parameters
            named = {name: value for name, value in inputs.items() if name in accepted}
            return self.module(**named) if named else self.module(next(iter(inputs.values())))
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise FamilyError(
                f"the model cannot run on {shapes}: {str(error).strip().splitlines()[0][:200]}",
                where=self.source,
                fix="check that the data is what this model takes; --debug shows where it failed",
            ) from error
