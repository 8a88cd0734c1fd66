"""Peak memory and time of `svdh compress` and `svdh reload` on a family shaped like ViT-B/32.

Runs each command as a process of its own and samples its anonymous memory (RssAnon: what it
allocated; mapped checkpoint files do not count) every 20 ms, by the operating system's books. Ends
with exit code 1 when a peak exceeds the limit. Without --family it makes one in a temporary folder
(3.2 GB for 8 tasks, see make_vit_b32_family.py) and removes it.

    python scripts/bench_memory.py --tasks 8 --limit-mb 600
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from make_vit_b32_family import write_family

from svd_hybrid.artifact.files import directory_bytes

SAMPLE_S = 0.02


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process took.

    Args:
        peak_bytes: most anonymous memory seen.
        cpu_s: user and system time.
        wall_s: from start to end.
    """

    peak_bytes: int
    cpu_s: float
    wall_s: float


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
    return sizes[0] if sizes else 0


def measure(command: list[str]) -> Usage:
    """Run a command to its end and sample it; its output passes through to stderr.

    Raises:
        SystemExit: the command fails.
    """
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=sys.stderr)
    peak, ended, status = 0, 0, 0
    while not ended:
        peak = max(peak, anonymous_bytes(child.pid))
        time.sleep(SAMPLE_S)
        ended, status, usage = os.wait4(child.pid, os.WNOHANG)
    wall_s = time.monotonic() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {child.returncode}")
    return Usage(peak, usage.ru_utime + usage.ru_stime, wall_s)


def bench(family: Path, scratch: Path, more: list[str]) -> dict[str, Usage]:
    """Compress the family, reload the merge and one task; prints what it finds as it goes."""
    tasks = sorted(path.stem for path in family.glob("*.safetensors") if path.stem != "base")
    base, artifact = family / "base.safetensors", scratch / "artifact"
    svdh = [sys.executable, "-m", "svd_hybrid"]
    compress = [*svdh, "compress", "-q", "--base", str(base), "--checkpoint-dir", str(family)]
    reload = [*svdh, "reload", "-q", "--base", str(base), "--artifact-dir", str(artifact)]
    runs = {
        "compress": [*compress, "--artifact-dir", str(artifact), "--tasks", *tasks, *more],
        "reload merged": [*reload, "--output-path", str(scratch / "merged.safetensors")],
        f"reload {tasks[0]}": [
            *reload,
            *("--task", tasks[0], "--output-path", str(scratch / "task.safetensors")),
        ],
    }
    delta_bytes = len(tasks) * base.stat().st_size
    found: dict[str, Usage] = {}
    for name, command in runs.items():
        found[name] = usage = measure(command)
        moved = delta_bytes if name == "compress" else base.stat().st_size
        print(
            f"{name:>14}: peak {usage.peak_bytes / 1e6:.0f} MB anonymous, "
            f"{usage.cpu_s:.1f} s CPU, {usage.wall_s:.1f} s, "
            f"{moved / 1e6 / usage.cpu_s:.1f} MB of fp32 per CPU second",
            flush=True,
        )
    print(f"{'artifact':>14}: {directory_bytes(artifact)} bytes for {delta_bytes} of fp32 deltas")
    return found


def main() -> int:
    """Parse the command line, make a family if none is given, measure, compare with the limit."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--family", type=Path, help="folder with base.safetensors and the tasks")
    parser.add_argument("--tasks", type=int, default=8, help="fine-tunes to make (8)")
    parser.add_argument(
        "--limit-mb", type=float, default=600, help="largest peak, 10^6 bytes (600)"
    )
    parser.add_argument("more", nargs="*", help="after --: passed on to svdh compress")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="svdh-bench-") as scratch:
        family = arguments.family
        if family is None:
            family = Path(scratch) / "family"
            write_family(family, arguments.tasks, lambda text: print(text, file=sys.stderr))
        found = bench(family, Path(scratch), arguments.more)
    over = [name for name, usage in found.items() if usage.peak_bytes > arguments.limit_mb * 1e6]
    for name in over:
        print(f"{name} is over the limit of {arguments.limit_mb:.0f} MB", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
