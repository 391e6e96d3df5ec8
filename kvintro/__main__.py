# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python -m kvintro``."""

import sys

from kvintro.cli import main

sys.exit(main())
