"""Rebuilding weights from base + artifact alone. Imports nothing of compression.

Callable: `svd_hybrid.reload(artifact_dir, base, output_path, task="cars")`, see `api.reload`.
"""

from __future__ import annotations

from svd_hybrid._callable import make_callable

make_callable(__name__, "svd_hybrid.reload.api", "reload")
