# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro user``: a process's memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands.show import add_selection, selection_of

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report

HELP = "a process's memory areas with what is resident and swapped, or a line for each process"
EXAMPLES = """\
examples:
  kvintro -c vmcore user --all --top 20       the biggest processes
  kvintro -c vmcore user 1                    areas with residency and page sizes
  kvintro -c vmcore user 1 --maps | diff /proc/1/maps -
  kvintro -c vmcore user 1 --match heap
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("pid", nargs="?", type=int, metavar="PID", help="a process")
    which.add_argument("--all", action="store_true", help="all processes, a line for each")
    parser.add_argument("--maps", action="store_true", help="text exactly as /proc/PID/maps has it")
    add_selection(parser)


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.errors import UsageError
    from kvintro.reports.user import user

    if args.maps and args.pid is None:
        raise UsageError("--maps is of one process", "give its PID")
    return user(kernel, args.pid, selection_of(args), maps=args.maps)
