r"""An artifact directory in the original layout: what its files say, tensor by tensor.

    basis/<tensor>.pt (or bases/)          region → basis record
    coeffs/<tensor>.pt (or compressed/)    task → region → coefficient record
    config.json  diagnostics.json  weights.json  clusters.json

File names are tensor names with `/` and `\` replaced by `_`, so they are matched to the names of
the base. Every .pt file is read weights-only: nothing in it can run. Masks, shapes and the base's
identity are not stored there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svd_hybrid.artifact import layout
from svd_hybrid.artifact.jsonfile import read_limited
from svd_hybrid.errors import ArtifactError, FamilyError, StorageError, UnsafeError, shorten
from svd_hybrid.io.torch_reader import load_torch
from svd_hybrid.legacy.region import (
    MALFORMED,
    NO_BASIS,
    NO_TASK,
    LegacyRegion,
    UnusableError,
    read_region,
)
from svd_hybrid.strict_json import check_limits

BASIS_FOLDERS = ("basis", "bases")
COEFFICIENT_FOLDERS = ("coeffs", "compressed")
REGIONS = {"masked": "masked", "noise": "unmasked"}
"""Region of a basis file → the same region in a coefficient file."""

MOST_SHOWN = 10


@dataclass(slots=True)
class Problems:
    """What stands in the way of a conversion, by kind; reported once, all together."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str = "") -> None:
        """Note one problem, of one tensor or of the artifact as a whole."""
        names = self.found.setdefault(kind, [])
        if name:
            names.append(name)

    def raise_if_any(self, folder: Path) -> None:
        """Refuse the artifact.

        Raises:
            ArtifactError: with a note for every kind of problem and the tensors it concerns.
        """
        if self.found:
            lines = [
                kind + (f": {shorten(names, MOST_SHOWN)}" if names else "")
                for kind, names in self.found.items()
            ]
            error = ArtifactError(
                f"the original artifact cannot be converted, for {len(lines)} reasons; the first: "
                f"{lines[0]}",
                where=str(folder),
                fix="supply what is missing; or run svdh compress on the fine-tunes themselves",
            )
            for line in lines:
                error.add_note(line)
            raise error


class LegacyArtifact:
    """An opened directory.

    Args:
        folder: the directory.
        names: tensor names of the base.
        problems: where to note what is missing.

    Raises:
        StorageError: there is no such directory.
        ArtifactError: it is not in the original layout, or a JSON file in it is damaged.
    """

    def __init__(self, folder: Path, names: Iterable[str], problems: Problems) -> None:
        if not folder.is_dir():
            raise StorageError(
                "directory of the original artifact does not exist", where=str(folder)
            )
        if (folder / layout.MANIFEST).is_file():
            raise ArtifactError(
                "this is an svdh artifact already", where=str(folder), fix="use it as it is"
            )
        self.folder = folder
        self.problems = problems
        self.config = self._json(layout.CONFIG)
        self._diagnostics = self._json(layout.DIAGNOSTICS)
        self._basis = self._files(BASIS_FOLDERS)
        self._coefficients = self._files(COEFFICIENT_FOLDERS)
        self._match(names)
        self.tasks = self._tasks()

    @property
    def nbytes(self) -> int:
        """Size of every file below the directory."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def centred(self) -> bool | None:
        """Whether the deltas were centred, as far as the configuration says."""
        value = self.config.get("svd_center")
        return value if isinstance(value, bool) else None

    def holds(self, name: str) -> bool:
        """Whether the tensor has files here; the original wrote none for tensors it left alone."""
        stem = file_stem(name)
        basis, coefficients = stem in self._basis, stem in self._coefficients
        if basis != coefficients:
            self.problems.add("basis or coefficients are missing", name)
        elif not basis and name in self._parameters():
            self.problems.add("basis and coefficients are missing", name)
        return basis and coefficients

    def regions(self, name: str) -> dict[str, LegacyRegion]:
        """The stored regions of a tensor: `masked`, `noise`.

        Raises:
            UnusableError: a record is missing something or means nothing.
            UnsafeError: a file needs code to load.
            ArtifactError: a file is damaged.
        """
        stem = file_stem(name)
        bases = _mapping(self._load(self._basis[stem]))
        tasks = _mapping(self._load(self._coefficients[stem]))
        found = {}
        for region, spelling in REGIONS.items():
            basis = bases.get(region)
            records = [_mapping(tasks.get(task, {})).get(spelling) for task in self.tasks]
            if basis is None and not any(records):
                continue
            if basis is None:
                raise UnusableError(NO_BASIS)
            if None in records:
                raise UnusableError(NO_TASK)
            coefficients = [_mapping(record) for record in records]
            found[region] = read_region(_mapping(basis), coefficients, self.centred)
        return found

    def recorded_shape(self, name: str) -> list[int] | None:
        """The tensor's shape as the diagnostics have it."""
        shape = _object(self._parameters().get(name)).get("original_shape")
        return shape if isinstance(shape, list) else None

    def weights(self) -> dict[str, float]:
        """Weight by task, in task order; what is missing is noted."""
        written = self._json(layout.WEIGHTS) or self._diagnostics.get("task_weights")
        if not written and self.config.get("svd_weighting") == "uniform":
            return dict.fromkeys(self.tasks, 1.0 / max(len(self.tasks), 1))
        if not written:
            self.problems.add("weights.json is missing, and no other file has the task weights")
            return {}
        weights = _object(written)
        wrong = [task for task in self.tasks if not _is_weight(weights.get(task))]
        if wrong or len(weights) != len(self.tasks):
            self.problems.add("weights.json does not have one finite number per task")
            return {}
        return {task: float(weights[task]) for task in self.tasks}

    def clusters(self) -> dict[str, int] | None:
        """Cluster id by task, when the run clustered."""
        recorded = _object(self._diagnostics.get("cluster_assignments"))
        written = self._json(layout.CLUSTERS) or recorded
        if set(written) != set(self.tasks) or not self.tasks:
            return None
        order: dict[str, int] = {}
        return {task: order.setdefault(str(written[task]), len(order)) for task in self.tasks}

    def noise_shrink(self) -> float | None:
        """What the noise region is multiplied by in the merge; noted when it is not recorded."""
        value = self.config.get("svd_noise_shrink")
        if not _is_weight(value):
            self.problems.add("config.json has no svd_noise_shrink, which the noise region needs")
        return float(value) if isinstance(value, int | float) else None

    def _tasks(self) -> list[str]:
        """Tasks in order: as configured, else as weighted, else as the first coefficient file."""
        stated = self.config.get("tasks")
        weighted = list(_object(self._diagnostics.get("task_weights")))
        listed = stated if isinstance(stated, list) else weighted
        if not listed and self._coefficients:
            listed = list(_object(self._load(next(iter(self._coefficients.values())))))
        tasks = [str(task) for task in listed]
        if not tasks or len(set(tasks)) != len(tasks):
            self.problems.add("no file tells the tasks")
        return tasks

    def _match(self, names: Iterable[str]) -> None:
        """Every file belongs to exactly one tensor of the base."""
        owners: dict[str, list[str]] = {}
        for name in names:
            owners.setdefault(file_stem(name), []).append(name)
        for stem in sorted({*self._basis, *self._coefficients}):
            if len(owners.get(stem, [])) > 1:
                shared = " and ".join(map(repr, owners[stem]))
                self.problems.add(f"file {stem}.pt may belong to {shared}: their names collide")
            if stem not in owners:
                self.problems.add("files belong to no tensor of the base", f"{stem}.pt")

    def _files(self, folders: tuple[str, ...]) -> dict[str, Path]:
        for folder in folders:
            if (self.folder / folder).is_dir():
                return {path.stem: path for path in sorted((self.folder / folder).glob("*.pt"))}
        raise ArtifactError(
            f"directory is no artifact in the original layout: it has no {' or '.join(folders)}/",
            where=str(self.folder),
            fix="pass the directory given as --artifact-dir to the original program",
        )

    def _json(self, name: str) -> dict[str, Any]:
        """A JSON document, {} when there is none; NaN is let pass, for the original wrote it."""
        path = self.folder / name
        if not path.is_file():
            return {}
        try:
            check_limits(data := read_limited(path, name))
            record = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"not valid JSON: {str(error)[:160]}", where=str(path)) from error
        if not isinstance(record, dict):
            raise ArtifactError("file does not hold a JSON object", where=str(path))
        return record

    def _parameters(self) -> Mapping[str, Any]:
        return _object(self._diagnostics.get("per_parameter"))

    def _load(self, path: Path) -> Any:
        try:
            return load_torch(path)
        except FamilyError as error:
            raise ArtifactError(error.what, where=error.where, fix=error.fix) from error
        except UnsafeError as error:
            error.fix = "where you trust it, re-save it as tensors and plain dictionaries"
            raise


def file_stem(name: str) -> str:
    r"""The file name the original gave a tensor.

    >>> file_stem("visual/proj\\weight")
    'visual_proj_weight'
    """
    return name.replace("/", "_").replace("\\", "_")


def _object(value: Any) -> Mapping[str, Any]:
    """A JSON object, or an empty one: what these documents say is optional."""
    return value if isinstance(value, Mapping) else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    """A record of tensors."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UnusableError(MALFORMED)
    return value


def _is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
