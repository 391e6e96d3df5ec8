# SPDX-License-Identifier: LGPL-2.1-or-later
"""``python -m kvintro``."""

import os
import sys

from kvintro import isolation

if os.geteuid() == 0:
    # Before any other import, because -m puts the working directory first on the search path.
    isolation.narrow_search_path()

from kvintro.cli import main

sys.exit(main())
