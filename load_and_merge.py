"""Rebuild models from base + artifact: the front door of the original system.

As a program it is `svdh reload`, flag by flag:

    python load_and_merge.py --artifact-dir ART --base-model-path BASE --output-path merged.pt

As a module it gives tensors without writing a file:

    from load_and_merge import load_merged
    model.load_state_dict(load_merged("art", "base.pt"))

Nothing of compression is imported. Every error is an `svd_hybrid.SvdhError`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["iter_tensors", "load_merged", "load_task", "main"]


def load_merged(
    artifact_dir: str | PathLike[str],
    base: str | PathLike[str],
    *,
    merge: str | None = None,
    weights: Mapping[str, float] | None = None,
    dtype: str | None = None,
    expect: str | None = None,
) -> dict[str, Tensor]:
    """The merged model as a state dict, held in memory as a whole.

    Args:
        artifact_dir: the directory svdh compress wrote.
        base: the base checkpoint it was made from.
        merge: a stored merge; the default one when nothing is given.
        weights: task → weight for a new weighting instead; every task named.
        dtype: F64, F32, F16 or BF16 for float tensors; None keeps the base's dtypes.
        expect: `sha256:` and the artifact's id, when only that artifact will do.

    Raises:
        SvdhError: its class says what is wrong: selection, base, artifact or path.
    """
    chosen = iter_tensors(
        artifact_dir, base, merge=merge, weights=weights, dtype=dtype, expect=expect
    )
    return dict(chosen)


def load_task(
    artifact_dir: str | PathLike[str],
    base: str | PathLike[str],
    task: str,
    *,
    dtype: str | None = None,
    expect: str | None = None,
) -> dict[str, Tensor]:
    """One fine-tune as a state dict; arguments as for `load_merged`."""
    return dict(iter_tensors(artifact_dir, base, task=task, dtype=dtype, expect=expect))


def iter_tensors(
    artifact_dir: str | PathLike[str],
    base: str | PathLike[str],
    *,
    task: str | None = None,
    merge: str | None = None,
    weights: Mapping[str, float] | None = None,
    dtype: str | None = None,
    expect: str | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a task, a weighting or a merge (default), one at a time.

    Only one tensor of the result is in memory at a time; order and dtypes are the base's.
    Arguments as for `load_merged`; at most one of task, merge and weights.
    """
    from svd_hybrid.reload.model import Artifact

    artifact = Artifact.open(artifact_dir, expect=expect)
    yield from artifact.iter_tensors(base, task=task, merge=merge, weights=weights, dtype=dtype)


def main(argv: list[str] | None = None) -> int:
    """Run the reload command; returns its exit code."""
    from svd_hybrid.reload.command import main as reload_main

    return reload_main(argv, "python load_and_merge.py")


if __name__ == "__main__":
    from svd_hybrid.signals import exit_on_signals

    exit_on_signals()
    sys.exit(main())
