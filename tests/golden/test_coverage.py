"""Every golden case is handled by one module, and every file it stores is read.

So a folder with other cases cannot pass because nothing looked at them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from tests.golden import (
    elementwise_cases,
    spectral_cases,
    test_layer_cases,
    test_methods,
    test_quantisers,
    test_svd_hybrid,
)
from tests.golden.compare import golden_case, stored_cases
from tests.golden.conftest import GOLDEN

pytestmark = pytest.mark.golden

CLAIMS = {
    "quantisers": test_quantisers.quantiser_cases(*test_quantisers.METHODS),
    "svd_hybrid": test_svd_hybrid.names(),
    "layers": test_layer_cases.layer_cases(),
    "methods": test_methods.family_cases(),
}
"""The cases that each module runs."""


def handled(facts: dict[str, Any], module: str) -> bool:
    """Whether the module knows the case's method."""
    if module == "layers":
        return facts["method"] in test_layer_cases.KINDS
    if module == "methods":
        known = facts["method"] in elementwise_cases.KINDS
        return known or spectral_cases.settings(facts) is not None
    return True  # these two pick their cases by method


def unread(facts: dict[str, Any], module: str) -> Iterable[str]:
    """Files of a case that its module does not read; test_methods fails on those itself."""
    reads = {
        "quantisers": test_quantisers.FILES,
        "svd_hybrid": test_svd_hybrid.FILES,
        "layers": test_layer_cases.FILES.get(facts["method"], {"merged"}),
    }
    files = {name.removesuffix(".safetensors") for name in facts["files"]}
    return files - reads[module] if module in reads else ()


def test_there_are_cases(golden):
    assert stored_cases(golden)


@pytest.mark.parametrize("name", [case.name for case in stored_cases(GOLDEN)])
def test_one_module_handles_the_case_and_reads_all_its_files(golden, name):
    case = golden_case(golden, name)
    modules = [module for module, names in CLAIMS.items() if name in names]
    assert len(modules) == 1, f"handled by {modules}"
    assert handled(case.facts, modules[0]), case.facts["method"]
    assert not unread(case.facts, modules[0])
    assert {path.name for path in case.folder.glob("*.safetensors")} == set(case.facts["files"])
