# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro explain``: what a region is for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Optional

from kvintro.commands import kcore_can_be_read

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "what a region is for, what decides its place, and its values on this kernel"
EXAMPLES = """\
examples:
  kvintro -c vmcore explain                      an overview of all regions
  kvintro -c vmcore explain vmalloc              one region in full
  kvintro -c vmcore explain physmap LDT          other names work too
  kvintro -c vmcore explain ffffffffa1234567     the region that contains an address
  kvintro -c vmcore explain --all | less         everything
  kvintro explain modules                        without a readable kernel: the text alone
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "regions",
        nargs="*",
        metavar="REGION",
        help="the region's key or another name, or an address in it (default: a summary of all)",
    )
    parser.add_argument("--all", action="store_true", dest="everything", help="all regions in full")


def needs_source(args: argparse.Namespace) -> bool:
    """The texts need no kernel, so the running one is read only if this user may read it anyway."""
    return bool(args.core or args.qemu) or kcore_can_be_read()


def run(kernel: Optional[Kernel], args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.explain import explain

    return explain(kernel, args.regions, everything=args.everything)
