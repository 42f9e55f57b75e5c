"""`python -m vlprune` is the `vlprune` command."""

import sys

from .cli import main

sys.exit(main())
