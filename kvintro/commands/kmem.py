# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro kmem``: the forms of crash's kmem that commands of kvintro answer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, List, NoReturn, Optional

from kvintro.commands import load_command
from kvintro.errors import UsageError

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "for users of crash: vmalloc's areas, page frames, or what an address is"
EXAMPLES = """\
kmem -s, -c, -o, -V and -h of crash have another meaning here. For kmem -s there is kvintro pages --by cache.

examples:
  kvintro -c vmcore kmem -v              same as kvintro show vmalloc
  kvintro -c vmcore kmem -p              same as kvintro pages
  kvintro -c vmcore kmem -p 1a2b3000     same as kvintro page 1a2b3000
  kvintro -c vmcore kmem 1a2b3000        same as kvintro identify 1a2b3000
"""
#: Other options of crash's kmem, and the commands that answer.
INSTEAD = {
    "-f": "kvintro pages --by free",
    "-F": "kvintro pages --by free",
    "-g": "kvintro page PAGE names the flags of a page",
    "-i": "kvintro pages",
    "-m": "kvintro read ADDR --type 'struct page'",
    "-n": "kvintro pages --by node",
    "-P": "kvintro identify --from physical ADDR",
    "-S": "kvintro pages --by cache",
    "-z": "kvintro pages --by zone",
}


class _Instead(argparse.Action):
    """Names the command that answers."""

    def __call__(
        self, _: argparse.ArgumentParser, __: Any, ___: Any, option: Optional[str] = None
    ) -> NoReturn:
        raise UsageError(f"kvintro kmem has no option {option}", INSTEAD[str(option)])


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    form = parser.add_mutually_exclusive_group()
    form.add_argument("-v", dest="areas", action="store_true", help="the areas of vmalloc")
    form.add_argument(
        "-p", dest="frames", action="store_true", help="the page frames of the addresses, or a census of all"
    )
    parser.add_argument(*INSTEAD, nargs=0, action=_Instead, help=argparse.SUPPRESS)
    parser.add_argument("addresses", nargs="*", metavar="ADDR", help="address, symbol or symbol+offset")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report of the command that answers."""
    command, *words = _answering(args)
    module = load_command(command)
    parser = argparse.ArgumentParser(add_help=False)
    module.configure(parser)
    report: Report = module.run(kernel, parser.parse_args(words))
    return report


def _answering(args: argparse.Namespace) -> List[str]:
    """The words of the command that answers."""
    if args.areas:
        if args.addresses:
            raise UsageError("kmem -v takes no address", "kvintro identify ADDR names the area")
        return ["show", "vmalloc"]
    if args.frames and not args.addresses:
        return ["pages"]
    if not args.addresses:
        raise UsageError("kmem needs -v, -p or an address", "kvintro kmem --help")
    return ["page" if args.frames else "identify", "--", *args.addresses]
