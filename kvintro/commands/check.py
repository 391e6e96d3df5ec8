# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro check``: the kernel against itself."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report

HELP = "the kernel against its own rules: W+X, writable text, what user mode can see"
EXAMPLES = """\
exit status: 1 if a rule is broken, 4 if one could not be checked and none is broken

examples:
  kvintro -c vmcore check
  sudo kvintro check --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.check import check

    return check(kernel)
