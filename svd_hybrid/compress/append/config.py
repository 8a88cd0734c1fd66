"""How appended fine-tunes are stored: as the artifact stores the others, unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.diagnostics import read_diagnostics
from svd_hybrid.artifact.jsonfile import read_json_object
from svd_hybrid.artifact.manifest import Manifest
from svd_hybrid.compress.config import DEFAULT_PROFILE, CompressConfig, resolve_config
from svd_hybrid.compress.profiles.params import PROFILE_PARAMS
from svd_hybrid.errors import ArtifactError, UsageError

SHARED_PROFILES = ("hybrid", "rtvq")
"""Profiles that gain by what several tasks share, of which one task alone has nothing."""
EXACT = "exact"
OWN_KEYS = (
    *("profile", "on_missing", "on_extra", "on_shape_mismatch", "nonfinite"),
    *("eval_reconstruction", "overrides"),
)
"""Configuration that has a meaning without a merge; parameters of the profile have, too."""
FINEST_ERROR = 1e-4
UNKNOWN_ERROR = 0.02
"""Targets, where the tasks that are there have no error, or none that was measured."""


def append_config(
    given: Mapping[str, Any], where: str, artifact: Path, manifest: Manifest
) -> CompressConfig:
    """The configuration of a run that appends, with what was not given as in the artifact.

    Args:
        given: by key, from file or command line.
        where: what to call those in errors.
        artifact: its directory.
        manifest: its manifest.

    Raises:
        UsageError: a key that says how to merge, or a profile the artifact's tasks do not allow.
    """
    exact = is_exact(manifest)
    config = artifact_config(artifact)
    profile = str(given.get("profile") or _profile(manifest.profile, exact))
    if (profile == EXACT) != exact:
        raise UsageError(
            f"the artifact's fine-tunes are {'' if exact else 'not '}stored bit for bit, so "
            f"what is appended must be stored by {EXACT if exact else 'another profile'} too",
            where=str(artifact),
            fix=f"drop --profile {profile}, or make the artifact anew",
        )
    names = {f.name for f in fields(PROFILE_PARAMS[profile])} if profile in PROFILE_PARAMS else ()
    for key in given:
        if key not in OWN_KEYS and key not in names:
            raise UsageError(
                f"{key!r} has no meaning where a fine-tune is appended",
                where=where,
                fix="append first; svdh compress --from-artifact then makes another merge",
            )
    defaults: dict[str, Any] = {}
    if config is not None and config.profile == profile:
        defaults = {key: value for key, value in config.parameters.items() if key in names}
    elif "profile" not in given:
        defaults = _same_error(artifact, manifest) if "target_error" in names else {}
    if any(key in given for key in ("step", "target_error", "target_bits", "target_size")):
        targets = ("step", "target_error", "error_scope")
        defaults = {k: v for k, v in defaults.items() if k not in targets}
    return resolve_config({**defaults, **given, "profile": profile}, where)


def _profile(label: str, exact: bool) -> str:
    if exact:
        return EXACT
    if label in PROFILE_PARAMS and label not in SHARED_PROFILES and label != EXACT:
        return label
    return DEFAULT_PROFILE


def _same_error(artifact: Path, manifest: Manifest) -> dict[str, Any]:
    """The error of the stored tasks as the target of the new one, where it was measured."""
    error = read_diagnostics(artifact, manifest).get("summary", {}).get("relative_error")
    return {"target_error": max(float(error), FINEST_ERROR) if error else UNKNOWN_ERROR}


def is_exact(manifest: Manifest) -> bool:
    """Whether the tasks of an artifact are stored bit for bit."""
    stored = [tensor.task for tensor in manifest.tensors if tensor.task is not None]
    if not stored:
        return manifest.profile == EXACT
    return any(task["op"] == EXACT for task in stored)


def artifact_config(artifact: Path) -> CompressConfig | None:
    """The configuration an artifact was made with; None when it does not say, or says too much.

    Raises:
        ArtifactError: its file is damaged.
    """
    path = artifact / layout.CONFIG
    if not path.is_file():
        return None
    record = read_json_object(path, "configuration", ArtifactError)
    record.pop("tasks", None)
    try:
        return resolve_config(record, str(path))
    except UsageError:
        return None


def document_config(
    artifact: Path, manifest: Manifest, own: CompressConfig, more: int
) -> CompressConfig:
    """What config.json of the grown artifact says: how its default merge is made.

    Args:
        artifact: that it is made from.
        manifest: of that.
        own: configuration of this run, for an artifact without config.json.
        more: tasks that are added.
    """
    config = artifact_config(artifact) or own
    if config.weights:
        config = replace(config, weights=(*config.weights, *[0.0] * more))
    return replace(config, merge_name=manifest.default_merge)
