"""The original launcher's command line; see docs/migrating.md."""

import sys

from svd_hybrid.cli.original import main

sys.exit(main())
