"""Where the symbols of a phase come from: given frequencies, alone or in phrases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy.phrases import Parser, phrase_table
from svd_hybrid.codec.entropy.tables import TOTAL, Bytes, Table


class PhaseSource(Protocol):
    """What an encoder wants of a source."""

    @property
    def bits(self) -> NDArray[np.float64]:
        """What each symbol costs."""

    def events(self, symbols: Bytes, lanes: int) -> list[tuple[Table, Bytes]]:
        """Tables and indices of their phrases, as a decoder with these lanes takes them."""


class Source:
    """Symbols 0, 1, … of given frequencies.

    Args:
        freqs: sum 4096, at least two of them not 0.
        in_phrases: whether long sequences are coded in phrases; then none is 0.
    """

    def __init__(self, freqs: Sequence[int], *, in_phrases: bool = False) -> None:
        self.single = Table(freqs, [bytes([symbol]) for symbol in range(len(freqs))])
        self.phrases = phrase_table(freqs) if in_phrases else None

    @cached_property
    def bits(self) -> NDArray[np.float64]:
        """What each symbol costs."""
        with np.errstate(divide="ignore"):
            bits: NDArray[np.float64] = np.log2(TOTAL / self.single.freqs)
        return bits

    @cached_property
    def parser(self) -> Parser:
        """For the encoder, of a source with phrases."""
        assert self.phrases is not None
        return Parser(self.phrases)

    def events(self, symbols: Bytes, lanes: int) -> list[tuple[Table, Bytes]]:
        """Indices of phrases, then of single symbols, as a decoder with these lanes takes them."""
        if self.phrases is None or len(symbols) < lanes * self.phrases.longest:
            return [(self.single, symbols)]
        found, used = self.parser.parse(symbols, lanes)
        return [(self.phrases, found), (self.single, symbols[used:])]
