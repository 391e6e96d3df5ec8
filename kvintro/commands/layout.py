# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro layout``: the whole address space."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import process

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "the whole address space: every region and hole at its actual address"
EXAMPLES = """\
examples:
  kvintro --sudo layout                the running kernel
  kvintro -c vmcore layout             a dump, no debuginfo needed
  kvintro -c vmcore --json layout      for programs
  kvintro -c vmcore layout --pid 1     also count what process 1 maps in user space
  kvintro -c vmcore layout --map       draw it in the terminal
  kvintro -c vmcore --format svg -o map.svg layout
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    holes = parser.add_mutually_exclusive_group()
    holes.add_argument("--holes", action="store_true", default=True, help="show unused ranges (default)")
    holes.add_argument("--no-holes", action="store_false", dest="holes", help="hide unused ranges")
    parser.add_argument(
        "--pid", type=process, metavar="PID", help="count what this process maps in user space"
    )
    parser.add_argument(
        "--map",
        action="store_const",
        dest="format",
        const="map",
        default=argparse.SUPPRESS,
        help="draw it in the terminal (--format svg draws a picture)",
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.layout import layout

    return layout(kernel, holes=args.holes, pid=args.pid)
