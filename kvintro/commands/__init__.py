# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per subcommand: ``HELP``, ``configure(parser)`` and ``run(kernel, args) -> Report``.

The three doors (:mod:`kvintro.cli`, ``kvintro shell``, ``%kvintro`` in drgn) find commands by the names of
these files.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, List


def command_names() -> List[str]:
    """Names of all subcommands."""
    return [info.name for info in pkgutil.iter_modules(__path__)]


def load_command(name: str) -> Any:
    """The module of one subcommand."""
    return importlib.import_module(f"{__name__}.{name}")
