# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro show``: what is inside a region."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import process

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report
    from kvintro.reports.show import Selection

HELP = "list what is inside a region, from the kernel's own structures, and compare it with the page tables"
EXAMPLES = """\
regions are those of `kvintro layout`, by their keys or by other names (physmap, text, lowmem)

examples:
  kvintro -c vmcore show                                    which regions there are
  kvintro -c vmcore show vmalloc
  kvintro -c vmcore show vmalloc --table areas              lines as in /proc/vmallocinfo
  kvintro -c vmcore show vmalloc --top 10                   the largest areas, callers and gaps
  kvintro -c vmcore show vmalloc --match kernel_clone
  kvintro -c vmcore show modules --sort size
  kvintro -c vmcore show kasan_shadow --range ffff888001000000-ffff888001001000
  kvintro -c vmcore --json show fixmap
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "region", nargs="?", metavar="REGION", help="a region's key or another name (default: list them)"
    )
    add_selection(parser)
    parser.add_argument(
        "--pid", type=process, metavar="PID", help="show this process (for user and ldt_remap)"
    )


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that choose rows."""
    parser.add_argument(
        "--table", metavar="NAME", help="show only this table, without its heading and totals"
    )
    parser.add_argument("--match", metavar="REGEX", help="only rows whose text matches REGEX")
    parser.add_argument(
        "--range", metavar="A-B", help="only rows that overlap the range from A up to but not including B"
    )
    parser.add_argument(
        "--top",
        type=_count,
        metavar="N",
        help="show at most N rows of each table, the largest first unless --sort is given",
    )
    parser.add_argument(
        "--sort",
        metavar="COLUMN",
        help="sort by COLUMN: addresses and names ascending, sizes and counts descending",
    )
    parser.add_argument("--reverse", action="store_true", help="reverse the order")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a number of rows")
    return int(text)


def selection_of(args: argparse.Namespace) -> Selection:
    """The selection that those options describe."""
    from kvintro.reports.show import Selection, parse_pattern, parse_range

    return Selection(
        table=args.table,
        match=None if args.match is None else parse_pattern(args.match),
        within=None if args.range is None else parse_range(args.range),
        sort=args.sort,
        reverse=args.reverse,
        top=args.top,
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.errors import UsageError
    from kvintro.model import Asked
    from kvintro.reports.layout import layout
    from kvintro.reports.show import Selection, show

    selection = selection_of(args)
    if args.region is None:
        if selection != Selection():
            raise UsageError("these options choose rows of a region", "name one: kvintro show REGION ...")
        return layout(kernel, holes=False, pid=args.pid)
    return show(kernel, args.region, Asked(within=selection.within, pid=args.pid), selection)
