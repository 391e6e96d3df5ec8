# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro show``: what is inside a region."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report
    from kvintro.reports.show import Selection

HELP = "what is inside a region, from the kernel's own structures, checked against the page tables"
EXAMPLES = """\
regions are those of `kvintro layout`: vmalloc, modules, fixmap, cpu_entry_area, direct_map, vmemmap,
kernel_image, kasan_shadow, ldt_remap, espfix, efi, vsyscall, user

examples:
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
    parser.add_argument("region", metavar="REGION", help="key of a region")
    add_selection(parser)
    parser.add_argument("--pid", type=int, metavar="PID", help="one process, of user and ldt_remap")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """The options that choose rows."""
    parser.add_argument("--table", metavar="NAME", help="this table alone, without head and totals")
    parser.add_argument("--match", metavar="REGEX", help="rows whose text has it")
    parser.add_argument(
        "--range", metavar="A-B", help="rows that lie, even partly, from A up to but not including B"
    )
    parser.add_argument(
        "--top", type=_count, metavar="N", help="so many rows of each table, the largest unless sorted"
    )
    parser.add_argument(
        "--sort", metavar="COLUMN", help="addresses and names ascending, sizes and counts descending"
    )
    parser.add_argument("--reverse", action="store_true", help="the other way round")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is no number of rows")
    return int(text)


def selection_of(args: argparse.Namespace) -> Selection:
    """What those options say."""
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
    from kvintro.regions import Asked
    from kvintro.reports.show import show

    selection = selection_of(args)
    return show(kernel, args.region, Asked(within=selection.within, pid=args.pid), selection)
