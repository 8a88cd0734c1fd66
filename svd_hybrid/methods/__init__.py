"""Merge rules, one per file, and the table of them."""

from __future__ import annotations

from svd_hybrid.methods.base import MergeMethod
from svd_hybrid.methods.consensus import CONSENSUS
from svd_hybrid.methods.dare import DARE_LINEAR, DARE_TIES
from svd_hybrid.methods.emr import EMR
from svd_hybrid.methods.iso_c import ISO_C
from svd_hybrid.methods.iso_cts import ISO_CTS
from svd_hybrid.methods.iso_iasad import ISO_IASAD
from svd_hybrid.methods.magnitude import MAGNITUDE
from svd_hybrid.methods.magnitude_masking import MAGNITUDE_MASKING
from svd_hybrid.methods.scale_svd import SCALE_SVD
from svd_hybrid.methods.sparsegpt import SPARSEGPT_DARE, SPARSEGPT_TIES
from svd_hybrid.methods.svd_hybrid import SVD_HYBRID
from svd_hybrid.methods.tall_masks import TALL_MASKS
from svd_hybrid.methods.task_arithmetic import TASK_ARITHMETIC
from svd_hybrid.methods.ties import TIES
from svd_hybrid.methods.tsv_compress import TSV_COMPRESS
from svd_hybrid.methods.tsv_m import TSV_M
from svd_hybrid.methods.weight_averaging import WEIGHT_AVERAGING
from svd_hybrid.methods.weight_select import WEIGHT_SELECT
from svd_hybrid.registry import Registry

METHODS: Registry[MergeMethod] = Registry(
    "method",
    [
        SVD_HYBRID,
        WEIGHT_AVERAGING,
        TASK_ARITHMETIC,
        MAGNITUDE,
        MAGNITUDE_MASKING,
        WEIGHT_SELECT,
        TIES,
        DARE_LINEAR,
        DARE_TIES,
        TALL_MASKS,
        CONSENSUS,
        EMR,
        TSV_M,
        TSV_COMPRESS,
        ISO_C,
        ISO_CTS,
        SCALE_SVD,
        ISO_IASAD,
        SPARSEGPT_TIES,
        SPARSEGPT_DARE,
    ],
)

__all__ = ["METHODS", "MergeMethod"]
