# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro explain``: what a region is for."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report

HELP = "what a region is for, what makes and moves it, and what it is on this kernel"
EXAMPLES = """\
examples:
  kvintro -c vmcore explain                      an overview of all
  kvintro -c vmcore explain vmalloc              one region in full
  kvintro -c vmcore explain physmap LDT          by other names, too
  kvintro -c vmcore explain ffffffffa1234567     the region that an address lies in
  kvintro -c vmcore explain --all | less         everything
  kvintro explain modules                        where no kernel can be read: the text alone
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "regions",
        nargs="*",
        metavar="REGION",
        help="its key or another name, or an address in it; none: all in short",
    )
    parser.add_argument("--all", action="store_true", dest="everything", help="all regions in full")


def needs_source(args: argparse.Namespace) -> bool:
    """The texts can be read without a kernel, so the running one is only asked if that needs no privilege."""
    return bool(args.core or args.qemu) or _kcore_can_be_read()


def _kcore_can_be_read() -> bool:
    """Not where it is masked, as in containers (an empty file, /dev/null), nor where lockdown forbids it."""
    try:
        with open("/proc/kcore", "rb") as file:
            return file.read(1) != b""
    except OSError:
        return False


def run(kernel: Optional[Kernel], args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.explain import explain

    return explain(kernel, args.regions, everything=args.everything)
