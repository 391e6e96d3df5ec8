# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro report``: everything on one page."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kvintro.commands import watched

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "everything about a kernel on one self-contained HTML page, with the map drawn"
EXAMPLES = """\
examples:
  kvintro -c vmcore report -o vmcore.html
  kvintro --sudo report -o this-host.html
  kvintro -c vmcore --json report -o vmcore.json     the same as JSON
"""
#: The output format unless --format names another.
FORMAT = "html"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options of its own."""


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.errors import UsageError
    from kvintro.reports.report import full

    if args.format == "html" and args.output is None and sys.stdout.isatty():
        raise UsageError(
            "an HTML page cannot be shown in a terminal", "name a file: kvintro report -o FILE.html"
        )
    return full(kernel, progress=lambda titles: watched(titles, "section"))
