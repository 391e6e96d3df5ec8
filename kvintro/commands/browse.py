# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro browse``: its options. :mod:`kvintro.browse.app` is the screen."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.errors import UsageError

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "walk through the address space with the keyboard"
EXAMPLES = """\
It needs Textual: pip install 'kvintro[browse]'

examples:
  kvintro -c vmcore browse
  sudo kvintro browse                     the running kernel
  kvintro -c vmcore browse schedule       begin at a symbol
  kvintro -c vmcore browse pfn:1a2b       begin at a page frame
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "place",
        nargs="?",
        metavar="PLACE",
        help="where to begin: an address, symbol, pfn:NUMBER, phys:ADDR, pid, command, module or region",
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """Only the command line can start it."""
    raise UsageError("the browser needs a terminal of its own", "run kvintro browse from a command line")
