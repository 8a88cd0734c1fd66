"""Speed and size of the entropy coder: one thread, medians of processor time.

Rounded Gaussian slices whose rows differ in scale. MB/s counts four bytes a number. zstd packs one
byte a number, where the module is installed and numbers fit.

    python scripts/bench_entropy.py [--runs 5]
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from svd_hybrid.codec.entropy import Classes, classify, decode, encode
from svd_hybrid.codec.entropy.alphabet import class_shift, split

SLICES = [
    (1000, 4096, 2.0),
    (1000, 4096, 1.0),
    (1000, 4096, 0.5),
    (1000, 4096, 0.25),
    (1000, 4096, 0.1),
    (1000, 4096, 0.05),
    (768, 768, 0.1),
    (256, 1024, 0.5),
    (64, 768, 0.5),
    (24, 192, 0.5),
    (1, 192, 1.0),
    (1000, 4096, 30.0),
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print("rows columns scale |    bytes  bits/n  entropy  over %  zstd-19 | encode decode MB/s")
    for rows, columns, scale in SLICES:
        matrix = make(rows, columns, scale)
        data = encode(matrix)
        wanted = entropy(matrix, classify(matrix)) / matrix.size
        bits = 8 * len(data) / matrix.size
        slow = speed(partial(encode, matrix), matrix.nbytes, runs)
        fast = speed(partial(decode, data, (rows, columns)), matrix.nbytes, runs)
        print(
            f"{rows:4d} {columns:7d} {scale:5.2f} | {len(data):8d} {bits:7.4f} {wanted:8.4f}"
            f" {100 * (bits / wanted - 1):7.2f} {zstd(matrix):>8} | {slow:6.1f} {fast:6.1f}"
        )


def make(rows: int, columns: int, scale: float) -> NDArray[np.int32]:
    """Rounded normal numbers, rows sorted by falling scale."""
    rng = np.random.default_rng(rows + columns)
    row = np.sort(np.exp(rng.normal(0, 0.6, (rows, 1))), axis=0)[::-1] * scale
    return np.rint(rng.normal(size=(rows, columns)) * row).astype(np.int32)


def entropy(matrix: NDArray[np.int32], classes: Classes) -> float:
    """Bits of the numbers given their classes, from their own counts."""
    bits = 0.0
    for c, where in classes.places(matrix.shape[1]):
        numbers, _ = split(matrix[where] if classes.columns is None else matrix.ravel()[where], c)
        counts = np.unique(numbers, return_counts=True)[1]
        bits += float(counts @ np.log2(numbers.size / counts)) + numbers.size * class_shift(c)
    return bits


def zstd(matrix: NDArray[np.int32]) -> str:
    """Bits a number of zstd at level 19, or a dash."""
    if np.abs(matrix).max() > 127:
        return "-"
    try:
        module = importlib.import_module("zstandard")
    except ImportError:
        return "-"
    packed = module.ZstdCompressor(level=19).compress(matrix.astype(np.int8).tobytes())
    return f"{8 * len(packed) / matrix.size:.4f}"


def speed(work: Callable[[], object], size: int, runs: int) -> float:
    """MB/s of processor time, the median of `runs` after one to warm up."""
    work()
    times = []
    repeat = max(1, 2_000_000 // size)
    for _ in range(runs):
        before = time.process_time()
        for _ in range(repeat):
            work()
        times.append((time.process_time() - before) / repeat)
    return size / statistics.median(times) / 1e6


if __name__ == "__main__":
    main()
