"""The winner of a comparison as an artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from svd_hybrid.artifact.files import read_manifest
from svd_hybrid.comparison.grid import Combination
from svd_hybrid.comparison.judge import Judge
from svd_hybrid.comparison.result import SEARCHED, Candidate, Shipped
from svd_hybrid.compress.config import CompressConfig, resolve_config
from svd_hybrid.compress.request import CompressRequest
from svd_hybrid.compress.run import run_compress
from svd_hybrid.evaluation.subjects import ArtifactSubjects


def winning_config(
    winner: Candidate, combinations: Sequence[Combination], family: CompressRequest
) -> CompressConfig:
    """The configuration that makes the winner's artifact.

    Args:
        winner: one of the combinations at a scaling, or searched weights.
        combinations: that were tried.
        family: of the run; names the artifact that the merge is added to, if there is one.
    """
    parameters = dict(winner.parameters)
    if winner.method == SEARCHED:
        values = {
            "method": "task-arithmetic",
            "weights": list(parameters["weights"].values()),
            "scaling": 1.0,
        }
        return _named(resolve_config(values, "weight search"), SEARCHED, family)
    scaling = parameters.pop("scaling")
    config = next(
        combination.config
        for combination in combinations
        if (combination.config.method, dict(combination.varied)) == (winner.method, parameters)
    )
    config = replace(config, parameters={**config.parameters, "scaling": scaling})
    return _named(config, config.method, family)


def _named(config: CompressConfig, name: str, family: CompressRequest) -> CompressConfig:
    """With a merge name that the artifact it is added to does not have yet."""
    if family.from_artifact is None:
        return config
    taken = read_manifest(family.from_artifact).merges
    names = (f"{name}-{number}" if number else name for number in range(len(taken) + 1))
    return replace(config, merge_name=next(n for n in names if n not in taken))


def ship(request: CompressRequest, test: Judge) -> tuple[Shipped, tuple[str, ...]]:
    """Write the artifact and score its merge as it comes back; with what the user should know.

    Args:
        request: the run that makes it.
        test: of test data.

    Raises:
        SvdhError: as `run_compress`.
    """
    result = run_compress(request)
    name = request.config.merge_name
    verdict = test.verdict(ArtifactSubjects(result.artifact_dir, request.base).merge(name))
    shipped = Shipped(
        result.artifact_dir,
        result.manifest.artifact_id,
        name,
        int(result.bytes["bytes_artifact"]),
        verdict,
    )
    return shipped, result.notes
