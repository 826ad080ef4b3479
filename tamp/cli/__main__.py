"""Run the command line: ``python -m tamp.cli``."""

import sys

from tamp.cli import main

sys.exit(main())
