# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro pages``: what all page frames are used for."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING, Callable

from kvintro.commands import Bar

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "a census of all page frames: how much memory each use takes, and a picture of physical memory"
EXAMPLES = """\
examples:
  kvintro -c vmcore pages
  kvintro -c vmcore pages --by cache --top 10          the largest slab caches
  kvintro -c vmcore pages --by flags                   in the form of tools/mm/page-types
  kvintro -c vmcore pages --by free                    free blocks by order, as in /proc/buddyinfo
  kvintro -c vmcore pages --range 100000000-140000000  physical addresses, the end exclusive
  kvintro -c vmcore --json pages
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    from kvintro.reports.pages import BREAKDOWNS

    parser.add_argument(
        "--by",
        choices=BREAKDOWNS,
        help="count pages only by this (default: type, free blocks and a picture)",
    )
    parser.add_argument(
        "--top", type=_count, metavar="N", help="show at most N rows of that list, the largest first"
    )
    parser.add_argument(
        "--range", metavar="A-B", help="only physical addresses from A up to but not including B; or A+SIZE"
    )
    parser.add_argument(
        "--raw", action="store_true", help="show all flags as /proc/kpageflags has them, and hide none"
    )
    parser.add_argument(
        "--cells",
        type=_count,
        default=512,
        metavar="N",
        help="draw at most N cells (default: 512)",
    )
    parser.add_argument(
        "--jobs",
        type=_count,
        metavar="N",
        help="count in N processes (default: for a large kdump the number of processors, otherwise 1)",
    )


def _count(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 0 < value <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to {1 << 20}")
    return value


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.pages import pages_report, parse_range

    with ExitStack() as stack:

        def progress(total: int) -> Callable[[int], None]:
            return stack.enter_context(Bar(total, "page", scale=True)).did

        return pages_report(
            kernel,
            by=args.by,
            top=args.top,
            where=None if args.range is None else parse_range(args.range, kernel.page_shift),
            raw=args.raw,
            cells=args.cells,
            jobs=args.jobs,
            progress=progress,
        )
