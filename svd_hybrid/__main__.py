"""`svdh`, and `python -m svd_hybrid`."""

import sys

from svd_hybrid.signals import exit_on_signals


def main() -> int:
    """Run one command; returns its exit code."""
    exit_on_signals()  # from the first moment: the import below takes longer than some runs
    from svd_hybrid.cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
