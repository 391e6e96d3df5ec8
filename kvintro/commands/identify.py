# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro identify``: what is at an address."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, List

from kvintro.commands import add_addresses, standard_input

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report

HELP = "everything known about an address, most specific first"
EXAMPLES = """\
examples:
  kvintro -c vmcore identify ffff8da401258040
  kvintro -c vmcore identify init_task+0x40 ffffffffc0322010
  kvintro -c vmcore identify --from physical 1a2b3000
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    add_addresses(parser, ("virtual", "physical", "pfn"))


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.identify import identify

    texts: List[str] = []
    for text in args.addresses:
        texts.extend(_words() if text == "-" else [text])
    return identify(kernel, texts, form=args.form)


def _words() -> List[str]:
    with open(standard_input(), "rb", closefd=False) as file:
        return file.read().decode("utf-8", "replace").split()
