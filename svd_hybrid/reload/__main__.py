"""`python -m svd_hybrid.reload` is `svdh reload`, without anything of compression."""

import sys

from svd_hybrid.reload.command import main

sys.exit(main())
