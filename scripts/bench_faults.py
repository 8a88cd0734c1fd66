"""What damage, forgery and kills do to artifacts; the figures of docs/threat-model.md.

    python scripts/bench_faults.py --kills 200 --fuzz 2000

Prints one JSON document. Ends with exit code 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from typing import Any

from faults.fuzz import PROMISES
from faults.fuzz import run as fuzz


def main(argv: list[str] | None = None) -> int:
    """Run the bench; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="writers to kill")
    parser.add_argument("--fuzz", type=int, default=2000, help="mutations of artifacts")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    args = parser.parse_args(argv)
    figures: dict[str, Any] = {}
    broken = 0
    if args.fuzz:
        found = fuzz(args.fuzz, args.seed, tell=lambda line: print(line, file=sys.stderr))
        figures["fuzz"] = found
        broken += sum(int(found[promise]) for promise in PROMISES)
    if args.kills:
        killed = import_module("faults.kills").run(args.kills)
        figures["kills"] = killed
        broken += int(killed.get("broken", 0))
    print(json.dumps(figures, indent=1))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
