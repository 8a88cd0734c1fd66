"""Dense packing against integers read little-endian, and the byte layouts the format fixes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from svd_hybrid.codec.bitpack import pack, packed_bytes, unpack


@st.composite
def code_rows(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """A width, and rows of equally many codes below 2**width."""
    bits = draw(st.integers(1, 8))
    length = draw(st.integers(1, 40))
    row = st.lists(st.integers(0, 2**bits - 1), min_size=length, max_size=length)
    return bits, draw(st.lists(row, min_size=1, max_size=3))


@given(code_rows())
def test_a_packed_row_is_the_little_endian_integer_of_its_codes(case):
    bits, rows = case
    packed = pack(torch.tensor(rows, dtype=torch.uint8), bits)
    for row, stored in zip(rows, packed.tolist(), strict=True):
        wanted = sum(code << (bits * position) for position, code in enumerate(row))
        assert int.from_bytes(bytes(stored), "little") == wanted


@given(code_rows())
def test_unpacking_gives_the_codes_back_and_rows_are_padded_to_a_byte(case):
    bits, rows = case
    codes = torch.tensor(rows, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (len(rows), packed_bytes(len(rows[0]), bits))
    assert packed.shape[1] == -(-len(rows[0]) * bits // 8)
    assert packed.is_contiguous()
    assert torch.equal(unpack(packed, bits, len(rows[0])), codes)


@pytest.mark.parametrize(
    ("bits", "codes", "layout"),
    [
        (8, [7, 255], [7, 255]),  # one code per byte
        (4, [0xA, 0xB, 0xC], [0xBA, 0x0C]),  # first code in bits 0-3
        (2, [1, 2, 3, 0, 2], [0b00_11_10_01, 0b10]),  # first code in bits 0-1
        (3, [1, 2, 3, 4, 5, 6, 7, 0], [0b11_010_001, 0b0_101_100_0, 0b000_111_11]),  # 24-bit word
        (1, [1, 0, 1, 1, 0, 0, 0, 1, 1], [0b10001101, 1]),
        (5, [31, 0, 1], [0b000_11111, 0b0_00001_00]),
        (6, [63, 1], [0b01_111111, 0]),
    ],
)
def test_layouts_are_those_of_the_codec_design(bits, codes, layout):
    """Codec design §12: eight codes fill b bytes, code j at bits j*b ... j*b+b-1."""
    assert pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist() == layout


def test_packing_neither_aliases_nor_changes_its_input():
    codes = torch.arange(8, dtype=torch.uint8)
    packed = pack(codes, 8)
    packed[0] = 99
    unpack(packed, 8, 8)[1] = 98
    assert codes.tolist() == list(range(8))
    assert packed.tolist()[1] == 1
