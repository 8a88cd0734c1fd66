"""How much anonymous memory a call needs, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

CHILD = """
import json, sys, threading, time
from pathlib import Path
import numpy, scipy.linalg, safetensors.torch, torch
import svd_hybrid
from svd_hybrid.compress.run import run_compress
from svd_hybrid.reload.run import run_reload

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])

def watch():
    while not done.is_set():
        peaks.append(anonymous())
        time.sleep(0.002)

torch.set_num_threads(1)
name, choices, done = sys.argv[1], json.loads(sys.argv[2]), threading.Event()
before = anonymous()
peaks = [before]
thread = threading.Thread(target=watch)
thread.start()
getattr(svd_hybrid, name)(**choices)
done.set()
thread.join()
print(max(peaks) - before)
"""


def peak_bytes(function: str, **choices: Any) -> int:
    """Most anonymous memory held beyond what imports took; mapped files do not count.

    Args:
        function: public function of svd_hybrid.
        choices: its arguments; paths as text.
    """
    command = [sys.executable, "-c", CHILD, function, json.dumps(choices)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])
