"""From a source to samples, by what the source is."""

from __future__ import annotations

from svd_hybrid.data.arrays import npz_file
from svd_hybrid.data.examples import Examples
from svd_hybrid.data.images import image_folder
from svd_hybrid.data.source import Source
from svd_hybrid.data.tables import Fields, dataset, jsonl_file, parquet_file
from svd_hybrid.errors import DataError, StorageError, UsageError

FIELDS = Fields()


def load_examples(source: Source, task: str, fields: Fields = FIELDS) -> Examples:
    """The samples of one task, all that the source's range allows.

    The range of a `document` is one of rows of tokens, which are yet to be made.

    Args:
        source: folder of images, .npz, .parquet, .jsonl or .txt file, or a dataset.
        task: chooses among the arrays or rows of a source with several tasks.
        fields: names of columns.

    Raises:
        StorageError: there is no such file.
        UsageError: a split of a file that has none.
        DataError: it holds no samples, or not what its kind should.
    """
    found = _whole(source, task, fields)
    return found if found.kind == "document" else found.part(source.start, source.stop)


def _whole(source: Source, task: str, fields: Fields) -> Examples:
    path = source.path
    if path.is_dir() and not (path / "dataset_info.json").is_file():
        if (path / "dataset_dict.json").is_file():
            return dataset(source, task, fields)
        _refuse_split(source)
        return image_folder(path)
    if path.is_file():
        _refuse_split(source)
        if not path.stat().st_size:
            raise DataError("file is empty", where=str(path))
        return _file(source, task, fields)
    looks_like_file = source.name.startswith((".", "/", "~")) or (path.suffix and not source.split)
    if not path.exists() and looks_like_file:
        raise StorageError("data does not exist", where=source.name, fix="check the path")
    return dataset(source, task, fields)


def _file(source: Source, task: str, fields: Fields) -> Examples:
    path = source.path
    match path.suffix.lower():
        case ".npz":
            return npz_file(path, task)
        case ".jsonl":
            return jsonl_file(path, task, fields)
        case ".parquet":
            return parquet_file(path, task, fields)
        case ".txt":
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"no UTF-8 text: {error}", where=str(path)) from error
            if not text.strip():
                raise DataError("file is empty", where=str(path))
            return Examples("document", [text], str(path))
    raise UsageError(
        f"data of kind {path.suffix or 'without a suffix'!r} is not known",
        where=str(path),
        fix="pass a folder of images, or a .npz, .parquet, .jsonl or .txt file",
    )


def _refuse_split(source: Source) -> None:
    if source.split:
        raise UsageError(
            f"--data names the split {source.split!r} of something that has none",
            where=source.name,
            fix=f"write {source.name}",
        )
