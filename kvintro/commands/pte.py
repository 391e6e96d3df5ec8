# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro pte``: decode a page-table entry."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "decode a page-table entry: flags, page, swap and migration entries"
EXAMPLES = """\
examples:
  kvintro pte 8000000003a12163                 needs no kernel
  kvintro pte 80000000076000e3 --level pmd     as an entry of a 2M page
  kvintro -c vmcore pte 7fffe00000000200       with this kernel's own swap types and address mask
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument("values", nargs="+", metavar="VALUE", help="64 bits in hex, with or without 0x")
    parser.add_argument(
        "--level",
        default="pte",
        metavar="LEVEL",
        help="the table that the entry is from: pte (default), pmd, pud, p4d, pgd, or 1 to 5",
    )
    parser.add_argument(
        "--half",
        choices=("user", "kernel"),
        help="which half of the address space the entry maps (default: inferred from its flags)",
    )


def needs_source(args: argparse.Namespace) -> bool:
    """Only if the user names a kernel, whose address mask is then used; the running one is not opened."""
    return bool(args.core or args.qemu or getattr(args, "sudo", False))


def run(kernel: Optional[Kernel], args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.pte import pte

    return pte(kernel, args.values, level=args.level, half=args.half)
