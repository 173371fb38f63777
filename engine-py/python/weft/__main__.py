"""`python -m weft` is the command line program."""

import sys

from ._cli import main

sys.exit(main())
