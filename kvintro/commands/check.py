# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro check``: look for contradictions in the kernel's own data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import watched

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = (
    "check the kernel's own data for contradictions: bounds, rights (is anything writable and executable?), "
    "lists, struct pages, /proc"
)
EXAMPLES = """\
exit status: 1 if a defect was found (warnings and notices do not count); otherwise 4 if some rule could not
be checked

examples:
  kvintro -c vmcore check
  sudo "$(command -v kvintro)" check
  kvintro -c vmcore --format csv check | grep ^defect
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options of its own."""


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.check import check

    return check(kernel, progress=lambda rules: watched(rules, "rule", lambda rule: rule.key))
