# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro user``: a process's memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import process
from kvintro.commands.show import add_selection, selection_of

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = (
    "how much memory each process uses; or one process's areas, and how much of each is resident or swapped"
)
EXAMPLES = """\
examples:
  kvintro -c vmcore user                      all processes, one line for each
  kvintro -c vmcore user --top 5              which processes use most memory
  kvintro -c vmcore user 1                    areas with resident memory and page sizes
  kvintro -c vmcore user bash                 by the name of the command
  kvintro -c vmcore user 1 --maps | diff /proc/1/maps -
  kvintro -c vmcore user 1 --match heap
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "pid", nargs="?", type=process, metavar="PID", help="a process, by its pid or the name of its command"
    )
    which.add_argument("--all", action="store_true", help="all processes, one line for each (default)")
    parser.add_argument("--maps", action="store_true", help="print the text exactly as /proc/PID/maps does")
    add_selection(parser)


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.errors import UsageError
    from kvintro.reports.user import user

    if args.maps and args.pid is None:
        raise UsageError("--maps shows one process only", "give its PID")
    return user(kernel, args.pid, selection_of(args), maps=args.maps)
