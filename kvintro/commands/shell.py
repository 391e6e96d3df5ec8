# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro shell``: its options. :mod:`kvintro.repl` is the prompt."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import InputPath
from kvintro.errors import UsageError

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "a drgn prompt for this kernel, with its types, its symbols and all commands of kvintro"
EXAMPLES = """\
examples:
  kvintro --sudo shell                                   the running kernel
  kvintro -c vmcore shell
  kvintro -c vmcore shell -e 'print(k.translate("init_task").physical)'
  kvintro -c vmcore shell -e '%kvintro layout | head -5'
  kvintro -c vmcore shell script.py ARGUMENT             runs as under `drgn script.py`
  kvintro -c vmcore shell < script.py
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "-e", dest="code", metavar="CODE", help="run CODE: Python, or one command that starts with %%"
    )
    parser.add_argument(
        "script",
        nargs="?",
        type=InputPath,
        metavar="SCRIPT",
        help="run this file; - for standard input",
    )
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="arguments of the script, in sys.argv"
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """Only the command line can start a prompt."""
    raise UsageError("this is already a prompt", "run kvintro shell from a command line")
