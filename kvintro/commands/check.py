# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro check``: the kernel against itself."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import watched

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report

HELP = "the kernel against itself: bounds, rights, lists, struct pages, and /proc where it runs"
EXAMPLES = """\
exit status: 1 for a defect (not for warnings and notices), 4 if a rule could not be checked and there is none

examples:
  kvintro -c vmcore check
  sudo kvintro check
  kvintro -c vmcore --format csv check | grep ^defect
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.check import check

    return check(kernel, progress=lambda rules: watched(rules, "rule", lambda rule: rule.key))
