"""From a family of checkpoints to an artifact.

Callable: `svd_hybrid.compress(base, tasks, artifact_dir, low_bits=3)`, see `api.compress`.
"""

from __future__ import annotations

from svd_hybrid._callable import make_callable

make_callable(__name__, "svd_hybrid.compress.api", "compress")
