# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro shell``: its options. :mod:`kvintro.repl` is the prompt."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import InputPath
from kvintro.errors import UsageError

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report

HELP = "drgn's prompt on this kernel, with its types and symbols and all commands"
EXAMPLES = """\
examples:
  sudo kvintro shell                                     the running kernel
  kvintro -c vmcore shell
  kvintro -c vmcore shell -e 'print(k.translate("init_task").physical)'
  kvintro -c vmcore shell -e '%kvintro layout | head -5'
  kvintro -c vmcore shell script.py ARGUMENT             as `drgn script.py` would run it
  kvintro -c vmcore shell < script.py
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "-e", dest="code", metavar="CODE", help="run this: Python, or one command that starts with %%"
    )
    parser.add_argument(
        "script",
        nargs="?",
        type=InputPath,
        metavar="SCRIPT",
        help="run this file; - for standard input",
    )
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="the script's sys.argv"
    )


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """Only the command line can start a prompt."""
    raise UsageError("this is a prompt already", "start another with kvintro shell")
