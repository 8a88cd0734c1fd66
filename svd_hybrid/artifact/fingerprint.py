"""Is this the base the artifact was made from? Tensor by tensor, whatever files hold them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from svd_hybrid.artifact.manifest import Manifest, TensorRecord
from svd_hybrid.errors import BaseMismatchError, shorten
from svd_hybrid.io.reader import CheckpointReader
from svd_hybrid.io.tensors import tensor_digest

WHAT = "this base is not the one the artifact was made from"
FIX = "pass the base the artifact was compressed with; the same tensors in other files will do"


def check_names(manifest: Manifest, base: CheckpointReader) -> None:
    """Compare names, shapes and dtypes, which the file headers already tell.

    Raises:
        BaseMismatchError: they differ, by name.
    """
    wanted = {tensor.name: tensor for tensor in manifest.tensors}
    lacks = [name for name in wanted if name not in base.infos]
    extra = [name for name in base.infos if name not in wanted]
    if lacks or extra:
        parts = [f"it lacks {shorten(lacks, 2)}"] if lacks else []
        parts += [f"it has {shorten(extra, 2)} besides"] if extra else []
        raise BaseMismatchError(f"{WHAT}: {', '.join(parts)}", where=str(base.path), fix=FIX)
    for name, tensor in wanted.items():
        info = base.infos[name]
        if (info.dtype, info.shape) != (tensor.dtype, tensor.shape):
            raise BaseMismatchError(
                f"{WHAT}: {name!r} is {info.dtype} {list(info.shape)}, "
                f"the manifest has {tensor.dtype} {list(tensor.shape)}",
                where=str(base.path),
                fix=FIX,
            )


def check_tensor(record: TensorRecord, tensor: Tensor, path: Path) -> None:
    """Compare the content of one base tensor.

    Raises:
        BaseMismatchError: it differs in a bit.
    """
    check_digest(record, tensor_digest(tensor), path)


def check_digest(record: TensorRecord, digest: str, path: Path) -> None:
    """Compare the `tensor_digest` of one base tensor.

    Raises:
        BaseMismatchError: it differs.
    """
    if digest != record.sha256:
        raise BaseMismatchError(
            WHAT,
            where=f"tensor {record.name!r} in {path} (sha256 {digest[:12]}…; "
            f"the manifest has {record.sha256[:12]}…)",
            fix=FIX,
        )
