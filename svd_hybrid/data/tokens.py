"""Text and token ids as padded batches with masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from svd_hybrid.errors import DataError


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Makes `input_ids` of rows of token ids; shorter rows are padded on the right.

    Args:
        vocabulary: rows of the model's embedding; None if unknown.
        max_length: ids beyond it are cut off.
        where: what to call the data in errors.
    """

    vocabulary: int | None
    max_length: int
    where: str

    def __call__(self, samples: Sequence[Any]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Rows → input_ids (B, L) and, where some are padded, attention_mask.

        Raises:
            DataError: an empty row, or ids that the model's embedding does not have.
        """
        rows = [torch.from_numpy(np.array(row[: self.max_length])).long() for row in samples]
        ids = torch.zeros(len(rows), max(len(row) for row in rows), dtype=torch.int64)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            if not len(row):
                raise DataError("a sample has no tokens", where=self.where, fix="remove it")
            ids[number, : len(row)], mask[number, : len(row)] = row, True
        check_ids(ids, self.vocabulary, self.where)
        if bool(mask.all()):
            return {"input_ids": ids}, None
        return {"input_ids": ids, "attention_mask": mask.long()}, mask


@dataclass(frozen=True, slots=True)
class Tokenised:
    """Makes `input_ids` and what else the tokenizer gives of strings, padded on the right.

    Args:
        tokenizer: of transformers.
        rows: pads and checks.
    """

    tokenizer: Any
    rows: TokenRows

    def __call__(self, samples: Sequence[Any]) -> tuple[dict[str, Tensor], Tensor | None]:
        """Strings → the tokenizer's tensors, with attention_mask where some are padded.

        Raises:
            DataError: a string without tokens, or ids that the model's embedding does not have.
        """
        limit = self.rows.max_length
        made = self.tokenizer(list(samples), truncation=True, max_length=limit)
        inputs, mask = self.rows([np.asarray(row, dtype=np.int64) for row in made["input_ids"]])
        if "token_type_ids" in made:
            length = inputs["input_ids"].shape[1]
            types = [row + [0] * (length - len(row)) for row in made["token_type_ids"]]
            inputs["token_type_ids"] = torch.tensor(types)
        return inputs, mask


def document_rows(text: str, tokenizer: Any, length: int, where: str) -> np.ndarray[Any, Any]:
    """A text's tokens in rows of `length`, (N, length) int64; the rest at its end is left out.

    Raises:
        DataError: it has fewer tokens than one row.
    """
    ids = np.asarray(tokenizer(text, verbose=False)["input_ids"], dtype=np.int64)
    rows = len(ids) // length
    if not rows:
        raise DataError(
            f"text has {len(ids)} tokens, fewer than one row of {length}",
            where=where,
            fix="pass more text, or a smaller --max-length",
        )
    return ids[: rows * length].reshape(rows, length)


def check_ids(ids: Tensor, vocabulary: int | None, where: str) -> None:
    """Refuse ids that the model's embedding does not have.

    Raises:
        DataError: one is negative or too large.
    """
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        raise DataError(
            f"token id {low if low < 0 else high} is not in the model's vocabulary of {vocabulary}",
            where=where,
            fix="use the tokenizer of this model",
        )
