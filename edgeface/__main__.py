"""`python -m edgeface`: the same as the command `edgeface`."""

import sys

from edgeface.cli import main

sys.exit(main())
