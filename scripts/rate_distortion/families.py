"""A family to measure: folders of base and tasks, and the program that scores a model."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from make_family_b import write_family_b

from svd_hybrid.delta.evaluate import matrix_shape
from svd_hybrid.demo.train import train_family
from svd_hybrid.io.family import Family as OpenFamily
from svd_hybrid.io.family import FamilyPolicy, open_family
from svd_hybrid.numerics.bounds import DeltaSpectrum, delta_spectrum

WEIGHTS = "model.safetensors"
DEMO_EVALUATOR = Path(__file__).with_name("evaluate_demo.py")
Metric = Literal["accuracy", "perplexity"]


@dataclass(frozen=True, slots=True)
class Family:
    """Where everything of a family lies.

    Args:
        name: for files and headings.
        base: HF folder of the base.
        tasks: HF folder by task name, in order.
        evaluator: `evaluate.py`, printing a JSON object task → score; None without scores.
        options: further arguments of every call of the evaluator.
    """

    name: str
    base: Path
    tasks: dict[str, Path]
    evaluator: Path | None = None
    options: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """What the evaluator prints, by its own words: accuracy in percent, or perplexity."""
        text = self.evaluator.read_text(encoding="utf-8") if self.evaluator else ""
        return "perplexity" if "perplexity" in text.lower() else "accuracy"

    @property
    def fingerprint(self) -> str:
        """Digest of all weights, so that results are not taken for those of another family."""
        digest = hashlib.sha256()
        for name, folder in {"base": self.base, **self.tasks}.items():
            digest.update(name.encode() + b"\0")
            for path in sorted(folder.glob("*.safetensors")):
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def open(self) -> OpenFamily:
        """Base and tasks, checked against each other."""
        return open_family(self.base, self.tasks, FamilyPolicy())

    def spectra(self) -> list[DeltaSpectrum]:
        """Of every tensor as a matrix of first axis by all others."""
        opened = self.open()
        stacks = (opened.stack(name).deltas for name in opened.base.infos)
        return [
            delta_spectrum(deltas.reshape(len(deltas), *matrix_shape(deltas.shape[1:])))
            for deltas in stacks
            if deltas is not None
        ]


def open_measured_family(text: str, workspace: Path) -> Family:
    """The family a user named.

    Args:
        text: a folder with `base/`, a folder per task and `evaluate.py`; or with
            `materialize.py`, which writes such folders; or `demo`; or `B`.
        workspace: where families that have to be made are kept.
    """
    if text == "B":
        if not (workspace / text).exists():
            write_family_b(workspace / text)
        return _at(workspace / text, None)
    if text == "demo":
        return _demo(workspace / text)
    folder = Path(text).resolve()
    evaluator = folder / "evaluate.py"
    if (folder / "base" / WEIGHTS).is_file():
        return _at(folder, evaluator if evaluator.is_file() else None)
    maker = folder / "materialize.py"
    if not maker.is_file():
        raise SystemExit(f"{folder}: neither base/{WEIGHTS} nor materialize.py")
    made = workspace / folder.name
    if not made.exists():
        _materialize(maker, made)
    return _at(made, evaluator if evaluator.is_file() else None)


def _at(folder: Path, evaluator: Path | None) -> Family:
    names = sorted({path.parent.name for path in folder.glob(f"*/{WEIGHTS}")} - {"base"})
    return Family(folder.name, folder / "base", {name: folder / name for name in names}, evaluator)


def _demo(folder: Path) -> Family:
    """The digits family of `svdh demo`; training it takes about a minute."""
    if not (folder / "heads.safetensors").exists():
        train_family(folder, progress=lambda line: print(line, file=sys.stderr, flush=True))
    tasks = {path.name: path for path in sorted((folder / "tasks").iterdir())}
    return Family("demo", folder / "base", tasks, DEMO_EVALUATOR, ("--family", str(folder)))


def _materialize(maker: Path, folder: Path) -> None:
    """Run the maker with an output beside the folder, which appears when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-B", str(maker), str(partial)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    partial.rename(folder)
