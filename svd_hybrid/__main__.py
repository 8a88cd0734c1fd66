"""`python -m svd_hybrid` is `svdh`."""

import sys

from svd_hybrid.cli.app import main

sys.exit(main())
