"""`python -m svd_hybrid.reload` is `svdh reload`, without anything of compression."""

import sys

from svd_hybrid.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()
    from svd_hybrid.reload.command import main

    sys.exit(main())
