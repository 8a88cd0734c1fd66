"""A task's data as the batches one live model takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from svd_hybrid.data.batches import Prepare, TaskData
from svd_hybrid.data.examples import Examples
from svd_hybrid.data.extra import require
from svd_hybrid.data.load import load_examples
from svd_hybrid.data.pixels import Normalise, Pixels, Processed
from svd_hybrid.data.source import Source
from svd_hybrid.data.tables import Fields
from svd_hybrid.data.tokens import Tokenised, TokenRows, document_rows
from svd_hybrid.errors import FamilyError, UsageError
from svd_hybrid.models.live import LiveModel
from svd_hybrid.models.load import quiet_transformers

DEFAULT_LENGTH = 512
SPARE_ROWS = 1024
"""Embeddings are padded to round numbers, by fewer rows than this."""
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True, slots=True)
class InputSettings:
    """How data becomes batches.

    Args:
        samples: how many, evenly spaced over the data; None for all.
        batch_size: samples per batch.
        max_length: tokens per sample; None for the smaller of 512 and the model's positions.
        tokenizer: folder with a tokenizer; None for the model's own.
        normalise: of images: `auto` (the model's image processor, else standardise), `standardise`,
            `none` or `MEAN/DEVIATION`.
        image_size, image_channels: None for those of the model's configuration.
        fields: names of columns.
    """

    samples: int | None = None
    batch_size: int = 16
    max_length: int | None = None
    tokenizer: Path | None = None
    normalise: str = "auto"
    image_size: int | None = None
    image_channels: int | None = None
    fields: Fields = Fields()  # noqa: RUF009

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "max_length", "image_size", "image_channels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} is {value}", fix="pass 1 or more")


def open_task_data(
    live: LiveModel,
    source: Source,
    task: str,
    settings: InputSettings = InputSettings(),
) -> TaskData:
    """The samples a source has for a task, ready for this model.

    Raises:
        UsageError, StorageError, FamilyError: no data, too little, or not what the model takes.
    """
    return task_data(live, load_examples(source, task, settings.fields), source, settings)


def task_data(
    live: LiveModel, examples: Examples, source: Source, settings: InputSettings
) -> TaskData:
    """Samples that were loaded from a source, ready for this model.

    Raises:
        UsageError, FamilyError: too few, or not what the model takes.
    """
    if examples.kind == "images":
        examples = examples.spread(settings.samples)
        prepare, used, notes = _pixels(live, settings)
    else:
        examples, prepare, used, notes = _tokens(live, examples, source, settings)
    used["asked"] = str(source)
    return TaskData(examples, prepare, settings.batch_size, used, notes)


def _pixels(
    live: LiveModel, settings: InputSettings
) -> tuple[Prepare, dict[str, Any], tuple[str, ...]]:
    config = getattr(live.config, "vision_config", None) or live.config
    size = settings.image_size or _whole(getattr(config, "image_size", None))
    channels = settings.image_channels or _whole(getattr(config, "num_channels", None))
    has_processor = live.folder and (live.folder / "preprocessor_config.json").is_file()
    if settings.normalise == "auto" and has_processor:
        transformers = require("transformers", "running a model")
        with quiet_transformers():
            processor = transformers.AutoImageProcessor.from_pretrained(
                str(live.folder), local_files_only=True
            )
        return Processed(processor), {"normalise": "processor"}, ()
    chosen = "standardise" if settings.normalise == "auto" else settings.normalise
    notes: tuple[str, ...] = ()
    if settings.normalise == "auto":
        notes = (
            "no preprocessor_config.json: each image is standardised by its own mean and "
            "deviation; --normalise says otherwise",
        )
    used = {"normalise": chosen, "image_size": size, "image_channels": channels}
    return Pixels(Normalise.parse(chosen), channels, size), used, notes


def _whole(value: Any) -> int | None:
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        value = value[0]
    return value if isinstance(value, int) else None


def _tokens(
    live: LiveModel, examples: Examples, source: Source, settings: InputSettings
) -> tuple[Examples, Prepare, dict[str, Any], tuple[str, ...]]:
    length = sequence_length(live, settings, examples.source)
    rows = TokenRows(live.vocabulary, length, examples.source)
    used: dict[str, Any] = {"max_length": length}
    if examples.kind == "tokens":
        return examples.spread(settings.samples), rows, used, ()
    tokenizer = model_tokenizer(live, settings.tokenizer)
    used["tokenizer"] = type(tokenizer).__name__
    notes = _size_note(len(tokenizer), live.vocabulary)
    if examples.kind == "document":
        made = document_rows(examples.inputs[0], tokenizer, length, examples.source)
        chosen = replace(examples, inputs=made).part(source.start, source.stop)
        return chosen.spread(settings.samples), rows, used, notes
    return examples.spread(settings.samples), Tokenised(tokenizer, rows), used, notes


def _size_note(tokens: int, vocabulary: int | None) -> tuple[str, ...]:
    """A warning about a tokenizer that may be another model's; ids it lacks raise no error."""
    if vocabulary is None or vocabulary - tokens < SPARE_ROWS:
        return ()
    return (
        f"the tokenizer has {tokens:,} tokens, the model {vocabulary:,}: "
        "check that it is this model's",
    )


def sequence_length(live: LiveModel, settings: InputSettings, where: str) -> int:
    """Tokens per sample: as asked for, else the smaller of 512 and the model's positions.

    Raises:
        UsageError: more than the model has positions.
    """
    config = getattr(live.config, "text_config", None) or live.config
    found = (getattr(config, name, None) for name in POSITIONS)
    positions = next((value for value in found if isinstance(value, int)), None)
    if settings.max_length is None:
        return min(DEFAULT_LENGTH, positions or DEFAULT_LENGTH)
    if positions is not None and settings.max_length > positions:
        raise UsageError(
            f"--max-length is {settings.max_length}, the model has {positions} positions",
            where=where,
            fix=f"pass --max-length {positions} or less",
        )
    return settings.max_length


def model_tokenizer(live: LiveModel, folder: Path | None = None) -> Any:
    """The tokenizer of a model, or of a folder.

    Raises:
        UsageError: the model has none, or it cannot be read.
    """
    chosen = folder or live.folder
    if chosen is None:
        raise UsageError("the model has no tokenizer", fix="pass --tokenizer DIR")
    if not any(chosen.glob("tokenizer*")) and not any(chosen.glob("vocab*")):
        raise UsageError("folder holds no tokenizer", where=str(chosen), fix="pass --tokenizer DIR")
    transformers = require("transformers", "tokenising text")
    with quiet_transformers():
        try:
            return transformers.AutoTokenizer.from_pretrained(str(chosen), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise FamilyError(
                f"tokenizer cannot be read: {str(error).splitlines()[0][:200]}", where=str(chosen)
            ) from error
