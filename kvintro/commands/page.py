# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro page``: decode one page frame and say who uses it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import process

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "one page frame: flags, type, counts, slab, file, owner, and every process that maps it"
EXAMPLES = """\
numbers are hexadecimal. Without --from or pfn:, a number below the kernel half is a physical address, a
number in the memory map (vmemmap) is a struct page, and any other number is a virtual address.

examples:
  kvintro -c vmcore page 1a2b3000                  a physical address
  kvintro -c vmcore page pfn:1a2b3
  kvintro -c vmcore page ffffea0000068ac0          a struct page
  kvintro -c vmcore page init_task ffff888003a1c240
  kvintro -c vmcore page --pid 1 7ffd12345000      an address of a process
  kvintro -c vmcore page --search 1a2b3000         find its mappings by searching all page tables
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "pages", nargs="+", metavar="PAGE", help="address, pfn:NUMBER, symbol or symbol+offset"
    )
    parser.add_argument(
        "--from",
        dest="form",
        choices=("virtual", "physical", "pfn", "page"),
        help="how to interpret the numbers",
    )
    parser.add_argument(
        "--pid", type=process, metavar="PID", help="translate user addresses with this process's page tables"
    )
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--search",
        action="store_true",
        help="find mappings by searching all page tables instead of the reverse map",
    )
    who.add_argument("--no-mappings", action="store_false", dest="mappings", help="do not look for mappings")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.page import page_report

    return page_report(
        kernel, args.pages, form=args.form, pid=args.pid, search=args.search, mappings=args.mappings
    )
