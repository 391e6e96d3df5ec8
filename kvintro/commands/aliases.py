# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro aliases``: where the kernel and processes see a page of memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "every virtual address that maps a physical page, in the kernel and in processes"
EXAMPLES = """\
examples:
  kvintro -c vmcore aliases 1a2b3000                 a physical address
  kvintro -c vmcore aliases init_task                the page at a virtual address
  kvintro -c vmcore aliases --from pfn 1a2b3
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "address",
        metavar="ADDR",
        help="hex, symbol or symbol+offset; a number below the kernel half is a physical address, "
        "any other a virtual one",
    )
    parser.add_argument(
        "--from",
        dest="form",
        choices=("virtual", "physical", "pfn", "page"),
        help="how to interpret the number",
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.aliases import alias_report

    return alias_report(kernel, args.address, form=args.form)
