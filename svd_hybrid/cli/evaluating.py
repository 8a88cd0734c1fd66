"""Options of the commands that score models, and what they say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from svd_hybrid.cli.compress import resolve_tasks
from svd_hybrid.console import PATH, F, base_option
from svd_hybrid.errors import FamilyError, StorageError, UsageError

if TYPE_CHECKING:
    from svd_hybrid.cache import ResultsCache
    from svd_hybrid.evaluation.factory import EvaluatorChoice

INPUT_KEYS = (
    "samples",
    "batch_size",
    "max_length",
    "tokenizer",
    "normalise",
    "image_size",
    "image_channels",
)
FIELD_KEYS = ("text", "image", "label", "task")
POOLINGS = ("auto", "cls", "mean", "pooler", "embeds", "logits")


def family_options(command: F) -> F:
    """--family, --base-model-path, --checkpoint-dir, --tasks, --task."""
    for option in (
        click.option(
            "--task",
            "task_names",
            multiple=True,
            metavar="NAME[=PATH]",
            help="Score on this task alone, and others so named; with =PATH, its fine-tune.",
        ),
        click.option(
            "--tasks",
            multiple=True,
            metavar="NAME …",
            help="Fine-tunes, looked up in --checkpoint-dir.  [default: all it holds]",
        ),
        click.option(
            "--checkpoint-dir",
            type=PATH,
            metavar="DIR",
            help="Folder with the original fine-tunes.",
        ),
        base_option,
        click.option(
            "--family",
            type=PATH,
            metavar="DIR",
            help="Folder with base/, a folder per task, heads.safetensors and test_data.npz or "
            ".jsonl: stands for the base, --checkpoint-dir, --evaluator, --data and --heads.",
        ),
    ):
        command = option(command)
    return command


def evaluator_options(command: F) -> F:
    """--evaluator and what it needs, and the cache."""
    whole = click.IntRange(min=1)
    for option in (
        click.option("--no-cache", is_flag=True, help="Neither read nor keep results."),
        *(
            click.option(f"--{key}-field", metavar="NAME", help=f"Column of the data with {what}.")
            for key, what in reversed(
                (
                    ("text", "text  [default: text]"),
                    ("image", "images  [default: image]"),
                    ("label", "labels  [default: label]"),
                    ("task", "the task of a row  [default: task]"),
                )
            )
        ),
        click.option("--image-channels", type=whole, help="1 or 3.  [default: the model's]"),
        click.option("--image-size", type=whole, help="Pixels per side.  [default: the model's]"),
        click.option(
            "--normalise",
            default="auto",
            show_default=True,
            metavar="HOW",
            help="Images: auto (the model's image processor, else standardise), standardise, none, "
            "or MEAN/DEVIATION.",
        ),
        click.option(
            "--tokenizer", type=PATH, metavar="DIR", help="Tokenizer.  [default: the model's]"
        ),
        click.option(
            "--stride", type=whole, help="Perplexity: new tokens per window.  [default: half of it]"
        ),
        click.option(
            "--max-length",
            type=whole,
            help="Tokens of a sample or window.  [default: 512, or the model's positions if fewer]",
        ),
        click.option("--batch-size", type=whole, default=50, show_default=True, help="Samples."),
        click.option(
            "--samples", type=whole, help="Samples per task, evenly spaced.  [default: all]"
        ),
        click.option(
            "--pooling",
            type=click.Choice(POOLINGS),
            default="auto",
            show_default=True,
            help="Features for the heads; auto: image_embeds, else cls for vision, mean for text.",
        ),
        click.option(
            "--head-kind",
            type=click.Choice(["linear", "zero-shot"]),
            default="linear",
            show_default=True,
            help="linear: W x + b; zero-shot: cosine with each row, times logit_scale.",
        ),
        click.option(
            "--heads",
            type=PATH,
            metavar="FILE",
            help="<task>.weight, <task>.bias of each task.  [default: the model's own logits]",
        ),
        click.option(
            "--model-path",
            "--model",
            "model",
            metavar="DIR|MODULE:FUNCTION",
            help="Folder with config.json, or a function that builds the model.  [default: "
            "the base's folder]",
        ),
        click.option(
            "--data",
            multiple=True,
            metavar="[TASK=]SOURCE",
            help="Folder of images by class, .npz, .parquet, .jsonl or .txt file, or "
            "NAME@SPLIT[[A:B]] of a dataset.",
        ),
        click.option(
            "--evaluator",
            metavar="NAME",
            help="vision, text, perplexity, or module:function.",
        ),
    ):
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Resolved:
    """What options and family folder say together.

    Args:
        base: base checkpoint.
        checkpoints: original fine-tunes by task; empty for none.
        choice: the evaluator, yet to be built.
        head_tasks: tasks of the heads file; for runs without fine-tunes.
    """

    base: Path
    checkpoints: Mapping[str, Path]
    choice: EvaluatorChoice
    head_tasks: tuple[str, ...]


def resolve(values: Mapping[str, Any], stored: Sequence[str] = ()) -> Resolved:
    """The options of both groups, a family folder's facts where they are left out.

    Args:
        values: by parameter name.
        stored: tasks of the artifact; of fine-tunes that nobody named, only theirs count.

    Raises:
        UsageError: something needed is missing.
        SvdhError: as the paths deserve.
    """
    from svd_hybrid.data.tables import Fields
    from svd_hybrid.evaluation.classification import ClassificationSettings
    from svd_hybrid.evaluation.factory import EvaluatorChoice
    from svd_hybrid.evaluation.family import open_family_folder
    from svd_hybrid.evaluation.heads import head_tasks
    from svd_hybrid.models.inputs import InputSettings

    folder = None if values["family"] is None else open_family_folder(values["family"])
    base = values["base"] or (folder.base if folder else None)
    if base is None:
        raise UsageError("no base given", fix="pass --base-model-path PATH")
    name = values["evaluator"] or (folder.evaluator if folder else None)
    if name is None:
        raise UsageError(
            "no evaluator given",
            fix="pass --evaluator vision|text|perplexity|module:function, or --family DIR",
        )
    takes_data = ":" not in name
    heads = values["heads"] or (folder.heads if folder and takes_data else None)
    given = tuple(values["data"])
    if not given and folder and takes_data:
        given = (str(folder.data),)
    fields = {key: values[f"{key}_field"] for key in FIELD_KEYS if values[f"{key}_field"]}
    inputs = {key: values[key] for key in INPUT_KEYS}
    choice = EvaluatorChoice(
        name,
        base,
        given,
        values["model"],
        InputSettings(**inputs, fields=Fields(**fields)),
        ClassificationSettings(
            None if name == "perplexity" else heads, values["head_kind"], values["pooling"]
        ),
        values["stride"],
    )
    checkpoints = _checkpoints(values, folder.tasks if folder else {}, stored)
    tasks = () if heads is None or checkpoints or stored else head_tasks(heads)
    return Resolved(base, checkpoints, choice, tasks)


def _checkpoints(
    values: Mapping[str, Any], of_family: Mapping[str, Path], stored: Sequence[str]
) -> dict[str, Path]:
    """The original fine-tunes that are named, else all there are of the artifact's tasks."""
    from svd_hybrid.io.lookup import match_name

    folder, names = values["checkpoint_dir"], list(values["tasks"])
    paths = [text for text in values["task_names"] if "=" in text]
    if folder is not None:
        found = _found_in(folder)
        return resolve_tasks(names or [n for n in found if n in (stored or found)], paths, folder)
    if names and not of_family:
        raise UsageError("--tasks needs --checkpoint-dir", fix="pass --checkpoint-dir DIR")
    chosen = [match_name(name, of_family, "task", "--tasks") for name in names]
    kept = chosen or [task for task in of_family if task in (stored or of_family)]
    own = resolve_tasks((), paths, None) if paths else {}
    return {task: of_family[task] for task in kept if task not in own} | own


def _found_in(folder: Path) -> list[str]:
    """Names of the checkpoints in a folder, sorted; neither the base nor adapters."""
    from svd_hybrid.evaluation.family import ADAPTER, BASE
    from svd_hybrid.io.lookup import FILE_SUFFIXES, find_task_checkpoint

    if not folder.is_dir():
        raise StorageError("checkpoint folder does not exist", where=str(folder))
    names: set[str] = set()
    for entry in folder.iterdir():
        if entry.is_dir():
            try:
                find_task_checkpoint(folder, entry.name)
            except FamilyError:
                continue  # a folder of something else
            if not (entry / ADAPTER).is_file():
                names.add(entry.name)
        elif entry.suffix in FILE_SUFFIXES:
            names.add(entry.stem)
    return sorted(names - {BASE})


def scored_names(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Tasks that `--task` names, in its order."""
    return tuple(text.partition("=")[0] for text in values["task_names"])


def opened_cache(values: Mapping[str, Any]) -> ResultsCache | None:
    """The results cache, unless it is turned off."""
    from svd_hybrid.cache import ResultsCache

    return None if values["no_cache"] else ResultsCache()
