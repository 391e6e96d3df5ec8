# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro info``: which dump this is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report

HELP = "which dump is this: its format, its kernel, and what each command can do with it"
EXAMPLES = """\
examples:
  kvintro -c vmcore info
  kvintro -c memory.lime info
  kvintro -c vmcore --json info | jq -r '.facts[] | select(.key == "release").value'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.commands import searched
    from kvintro.reports.info import info

    return info(kernel, searched)
