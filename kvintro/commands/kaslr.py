# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro kaslr``: what is randomised, and how well."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "every randomised base: default, actual value, displacement, slots and bits of entropy"
EXAMPLES = """\
examples:
  kvintro --sudo kaslr
  kvintro -c vmcore kaslr
  kvintro -c vmcore --json kaslr
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options of its own."""


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.kaslr import kaslr

    return kaslr(kernel)
