"""`python -m bertkit` is the command `bertkit`."""

from __future__ import annotations

import sys

from bertkit.cli import main

sys.exit(main())
