# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro ptdump``: whole page tables."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import process

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import AddressRange, Stream

HELP = "page tables as ranges, in the format of the kernel's own ptdump; or what is writable and executable"
EXAMPLES = """\
the text has the format of /sys/kernel/debug/page_tables/kernel (ends are exclusive), so that diff can compare
the two:
  kvintro -c vmcore ptdump | diff page_tables/kernel -

examples:
  kvintro -c vmcore ptdump --wx                    what is both writable and executable
  kvintro -c vmcore ptdump --range modules
  kvintro -c vmcore ptdump --range ffffffff81000000-ffffffff82000000
  kvintro -c vmcore ptdump --pid 1 --root user     the tables of process 1 in user mode, under PTI
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "--root",
        choices=("kernel", "user", "efi", "tramp", "idmap", "reserved"),
        default="kernel",
        help="which tables: kernel (those that the kernel runs on), user (those that user mode runs on under "
        "page-table isolation), efi (those that firmware runs on); on arm64 also tramp, idmap and reserved "
        "(tramp_pg_dir and so on); default: kernel",
    )
    parser.add_argument("--pid", type=process, metavar="PID", help="the tables of this process")
    parser.add_argument(
        "--range", metavar="A-B", help="only addresses from A up to but not including B; or a region's key"
    )
    parser.add_argument("--wx", action="store_true", help="only what is both writable and executable")


def run(kernel: Kernel, args: argparse.Namespace) -> Stream:
    """The dump."""
    from kvintro.errors import UsageError
    from kvintro.queries.roots import named_root, process_root, user_half
    from kvintro.reports.ptdump import ptdump

    if args.pid is None:
        root = named_root(kernel, args.root)
    elif args.root in ("kernel", "user"):
        root = process_root(kernel, args.pid)
        if args.root == "user":
            root = user_half(kernel, root)
    else:
        raise UsageError(
            f"the page tables {args.root} do not belong to a process", f"omit --pid or --root {args.root}"
        )
    wanted = None if args.range is None else _range(kernel, args.range)
    return ptdump(kernel, root, wanted=wanted, only_wx=args.wx)


def _range(kernel: Kernel, text: str) -> AddressRange:
    from kvintro.errors import UsageError
    from kvintro.model import AddressRange, NoRange, Placement
    from kvintro.queries.names import region_key
    from kvintro.queries.placements import HOLE

    key = region_key(kernel.regions, kernel.arch, text)
    if key is not None and key != HOLE:
        found = kernel.locate(key)
        if not isinstance(found, Placement):
            raise UsageError(f"this kernel has no {key}: {found.reason}", "choose another range")
        return found.range
    try:
        start, end = (int(part, 16) for part in text.split("-"))
        # An exclusive end of 2^64 is written as 0.
        return AddressRange(start, (end or 1 << 64) - 1 if end != (1 << 64) - 1 else end)
    except (ValueError, NoRange):
        raise UsageError(
            f"{text} is not a range",
            f"give A-B in hex, or one of {', '.join(sorted(region.key for region in kernel.regions))}",
        ) from None
