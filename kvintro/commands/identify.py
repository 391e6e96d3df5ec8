# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro identify``: what is at an address."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, List, Optional

from kvintro.commands import add_addresses, kcore_can_be_read, process, standard_input

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "what is at an address: everything known about it, most specific first"
EXAMPLES = """\
examples:
  kvintro -c vmcore identify ffff8da401258040
  kvintro -c vmcore identify init_task+0x40 ffffffffc0322010
  kvintro -c vmcore identify --from physical 1a2b3000
  kvintro -c vmcore identify --pid 1 7ffd12345000      an address of a process
  kvintro -c vmcore identify physmap                   where a region begins
  kvintro identify fffffffffffffff4 6b6b6b6b6b6b6b6b   error values and poison need no kernel
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    add_addresses(parser, ("virtual", "physical", "pfn"))
    parser.add_argument(
        "--pid", type=process, metavar="PID", help="interpret user addresses as those of this process"
    )


def needs_source(args: argparse.Namespace) -> bool:
    """Some values mean the same on every kernel; the running one is read if this user may."""
    return bool(args.core or args.qemu or getattr(args, "sudo", False)) or kcore_can_be_read()


def run(kernel: Optional[Kernel], args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.identify import identify

    texts: List[str] = []
    for text in args.addresses:
        texts.extend(_words() if text == "-" else [text])
    return identify(kernel, texts, form=args.form, pid=args.pid)


def _words() -> List[str]:
    with open(standard_input(), "rb", closefd=False) as file:
        return file.read().decode("utf-8", "replace").split()
