"""Dense bit packing: b bits a code, first code in the lowest bits, rows padded to a byte.

Eight codes fill b bytes: they are the little-endian word with code j at bits j*b … j*b+b-1.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

CODES_PER_WORD = 8


def packed_bytes(codes: int, bits: int) -> int:
    """Bytes of one packed row.

    >>> packed_bytes(5, 3)
    2
    """
    return (codes * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last axis.

    Args:
        codes: (…, n) uint8, each below 2**bits.
        bits: 1..8.

    Returns:
        (…, ceil(n * bits / 8)) uint8.

    >>> pack(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
    [33, 3]
    """
    n = codes.shape[-1]
    if bits == CODES_PER_WORD:
        return codes.clone()
    if bits == 1:
        return torch.from_numpy(np.packbits(codes.numpy(), axis=-1, bitorder="little"))
    words = torch.nn.functional.pad(codes, (0, -n % CODES_PER_WORD))
    words = words.reshape(*codes.shape[:-1], -1, CODES_PER_WORD).to(torch.int64)
    shifts = torch.arange(CODES_PER_WORD) * bits
    word = (words << shifts).sum(-1)
    byte_shifts = torch.arange(bits) * 8
    packed = ((word.unsqueeze(-1) >> byte_shifts) & 255).to(torch.uint8).flatten(-2)
    return packed[..., : packed_bytes(n, bits)].contiguous()


def unpack(packed: Tensor, bits: int, n: int) -> Tensor:
    """The n codes of each packed row.

    Args:
        packed: (…, ceil(n * bits / 8)) uint8.
        bits: 1..8.
        n: codes in a row.

    Returns:
        (…, n) uint8.

    >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 4, 3).tolist()
    [1, 2, 3]
    """
    if bits == CODES_PER_WORD:
        return packed.clone()
    if bits == 1:
        rows = np.unpackbits(packed.numpy(), axis=-1, count=n, bitorder="little")
        return torch.from_numpy(rows)
    whole = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % bits))
    octets = whole.reshape(*packed.shape[:-1], -1, bits).to(torch.int64)
    word = (octets << (torch.arange(bits) * 8)).sum(-1, keepdim=True)
    codes = (word >> (torch.arange(CODES_PER_WORD) * bits)) & (2**bits - 1)
    unpacked: Tensor = codes.to(torch.uint8).flatten(-2)
    return unpacked[..., :n].contiguous()
