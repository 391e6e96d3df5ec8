# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per subcommand: ``HELP``, ``configure(parser)`` and ``run(kernel, args) -> Report``.

A command that can do without a kernel also has ``needs_source(args) -> bool``; where that says no, ``kernel`` is
None. ``run`` may return a :class:`~kvintro.model.Stream` in place of a report.

The three doors (:mod:`kvintro.cli`, ``kvintro shell``, ``%kvintro`` in drgn) find commands by the names of
these files, and by the aliases here.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Dict, List

#: Other names that people know a command by; ``args.command`` says which was used.
ALIASES: Dict[str, str] = {"vtop": "translate", "ptov": "translate"}


def command_names() -> List[str]:
    """Names of all subcommands."""
    return [info.name for info in pkgutil.iter_modules(__path__)]


def load_command(name: str) -> Any:
    """The module of one subcommand, by its name or an alias."""
    return importlib.import_module(f"{__name__}.{ALIASES.get(name, name)}")
