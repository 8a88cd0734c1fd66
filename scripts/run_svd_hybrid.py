"""The original launcher's command line; see docs/migrating.md."""

import sys

from svd_hybrid.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()
    from svd_hybrid.cli.original import main

    sys.exit(main())
