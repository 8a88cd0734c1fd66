"""Phrases: runs of symbols that are coded together, so that one step of the coder gives many.

From the frequencies of single symbols grows a tree: the likeliest phrase is replaced by its
extensions by every symbol, again and again. Any sequence begins with exactly one of the phrases,
and all are about equally likely, so rounding their frequencies costs 0.02 % or less.
Source: Tunstall 1967, "Synthesis of noiseless compression codes".
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from svd_hybrid.codec.entropy.tables import TOTAL_BITS, Bytes, Table

MOST_PHRASES = 256
LONGEST = 64
WEIGHT_BITS = 40
"""The weight of a phrase is its probability in units of 2**-40."""
SLOT_BITS = WEIGHT_BITS - TOTAL_BITS


def phrase_table(freqs: Sequence[int]) -> Table:
    """The table of the phrases of symbols 0, 1, … with these frequencies.

    Args:
        freqs: each above 0, sum 4096.
    """
    weights, phrases = grow(freqs)
    ends = [(total + (1 << SLOT_BITS - 1)) >> SLOT_BITS for total in accumulate(weights)]
    shares = [max(1, after - before) for before, after in pairwise([0, *ends])]
    shares[0] += (1 << TOTAL_BITS) - sum(shares)
    return Table(shares, phrases)


def grow(freqs: Sequence[int]) -> tuple[list[int], list[bytes]]:
    """Weights and phrases, the likeliest first, those made first before others as likely.

    None is extended beyond LONGEST, nor where an extension would get less than half a slot.

    >>> weights, phrases = grow([4092, 4])
    >>> len(phrases), len(phrases[0]), phrases[1].hex(), weights[1] >> SLOT_BITS
    (65, 64, '01', 4)
    """
    alive = [(-(1 << WEIGHT_BITS), 0, b"")]
    done: list[tuple[int, int, bytes]] = []
    made = 0
    while alive and len(done) + len(alive) + len(freqs) - 1 <= MOST_PHRASES:
        minus, order, phrase = heapq.heappop(alive)
        least = -minus * min(freqs) >> TOTAL_BITS
        if len(phrase) == LONGEST or least < 1 << SLOT_BITS - 1:
            done.append((minus, order, phrase))
            continue
        for symbol, freq in enumerate(freqs):
            made += 1
            child = (-(-minus * freq >> TOTAL_BITS), made, phrase + bytes([symbol]))
            heapq.heappush(alive, child)
    ranked = sorted(done + alive)
    return [-minus for minus, *_ in ranked], [phrase for *_, phrase in ranked]


class Parser:
    """Cuts sequences into the phrases of a table."""

    def __init__(self, table: Table) -> None:
        self.longest = table.longest
        self.lengths = np.array([len(phrase) for phrase in table.phrases])
        self.index = {phrase: index for index, phrase in enumerate(table.phrases)}
        self.pattern = re.compile(_branch(sorted(table.phrases)), re.DOTALL)

    def parse(self, symbols: Bytes, lanes: int) -> tuple[Bytes, int]:
        """Steps of phrases, as long as no phrase can pass the end.

        Args:
            symbols: (n,) uint8.
            lanes: phrases of a step.

        Returns:
            (steps * lanes,) uint8 indices of phrases, and the number of symbols in them.
        """
        found = self.pattern.findall(symbols.tobytes())
        indices = np.fromiter(map(self.index.__getitem__, found), np.uint8, len(found))
        lengths = self.lengths[indices]
        starts = (np.cumsum(lengths) - lengths)[::lanes]
        count = int(np.count_nonzero(starts <= len(symbols) - self.longest * lanes)) * lanes
        return indices[:count], int(lengths[:count].sum())


def _branch(phrases: list[bytes]) -> bytes:
    """A pattern of sorted phrases, none of which begins another; b"" for the empty one alone."""
    if phrases == [b""]:
        return b""
    firsts = sorted({phrase[:1] for phrase in phrases})
    tails = (_branch([phrase[1:] for phrase in phrases if phrase[:1] == first]) for first in firsts)
    choices = [b"\\x%02x" % first[0] + tail for first, tail in zip(firsts, tails, strict=True)]
    return b"(?:" + b"|".join(choices) + b")"
