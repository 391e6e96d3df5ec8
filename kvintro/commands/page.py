# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro page``: what a page of memory is, and who has it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report

HELP = "one page frame: flags, type, counts, slab, file, owner, and every process that maps it"
EXAMPLES = """\
numbers are hexadecimal; below the kernel half they are physical addresses, in the memory map struct pages,
elsewhere virtual addresses, unless --from or pfn: says otherwise.

examples:
  kvintro -c vmcore page 1a2b3000                  a physical address
  kvintro -c vmcore page pfn:1a2b3
  kvintro -c vmcore page ffffea0000068ac0          a struct page
  kvintro -c vmcore page init_task ffff888003a1c240
  kvintro -c vmcore page --pid 1 7ffd12345000      an address of a process
  kvintro -c vmcore page --search 1a2b3000         look through all page tables for who maps it
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "pages", nargs="+", metavar="PAGE", help="address, pfn:NUMBER, symbol or symbol+offset"
    )
    parser.add_argument(
        "--from", dest="form", choices=("virtual", "physical", "pfn", "page"), help="what the numbers are"
    )
    parser.add_argument("--pid", type=int, metavar="PID", help="whose page tables to take for user addresses")
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--search", action="store_true", help="find who maps it in all page tables, not by reverse map"
    )
    who.add_argument(
        "--no-mappings", action="store_false", dest="mappings", help="do not look for who maps it"
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.page import page_report

    return page_report(
        kernel, args.pages, form=args.form, pid=args.pid, search=args.search, mappings=args.mappings
    )
