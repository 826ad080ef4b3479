"""``python -m tamp``, which ``torchrun -m tamp`` needs."""

import sys

from tamp.cli import main

sys.exit(main())
