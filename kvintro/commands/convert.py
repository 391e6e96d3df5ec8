# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro convert``: write memory as a dump that other tools read."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING, Callable

from kvintro.commands import Bar, InputPath

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "write a dump, saved guest or running guest as ELF or kdump, for crash, drgn and makedumpfile"
EXAMPLES = """\
The file is new, and only its owner may read it. It contains the VMCOREINFO that kvintro verified,
so other tools read it without options. If the command fails or is interrupted, no file remains.

-d excludes pages as makedumpfile does. The levels add up: 1 pages of zeros, 2 cache pages without private
flag, 4 cache pages with or without private flag, 8 memory of processes, 16 free pages. Pages of zeros never
take room, and always read as zeros.

examples:
  kvintro convert guest.save -o vmcore                   ELF
  kvintro convert vm.vmss -o vmcore --to kdump -d 31     compressed, only the kernel's memory
  kvintro convert part1 part2 -o vmcore                  the parts of a split dump in one
  kvintro --qemu /run/vm.qmp convert -o vmcore           a running guest
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "core",
        nargs="*",
        metavar="SOURCE",
        type=InputPath,
        action="extend",
        default=argparse.SUPPRESS,
        help="the dump to read, or all files of one; as -c",
    )
    parser.add_argument(
        "--to", choices=("elf", "kdump"), default="elf", help="the format of the file (default: elf)"
    )
    parser.add_argument(
        "--compress",
        choices=("zstd", "zlib", "none"),
        help="how to compress a kdump; old tools read zlib only (default: zstd)",
    )
    parser.add_argument(
        "-d",
        "--exclude",
        dest="level",
        type=_level,
        default=0,
        metavar="LEVEL",
        help="exclude pages as makedumpfile -d does: 0 to 31 (default: 0, nothing)",
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it exists")


def _level(text: str) -> int:
    if not text.isdecimal() or len(text) > 2 or int(text) > 31:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 31")
    return int(text)


def needs_source(args: argparse.Namespace) -> bool:
    """Always; what is wrong with the command line is said before it is opened.

    :raises UsageError: the options contradict each other, or no file is named.
    :raises NotWritten: the file exists.
    """
    from kvintro.convert.target import check_target
    from kvintro.errors import UsageError

    if args.output is None:
        raise UsageError("convert writes a file, and none is named", "name it: -o FILE")
    if args.compress is not None and args.to == "elf":
        raise UsageError("an ELF file is not compressed", "--compress needs --to kdump")
    check_target(args.output, args.force)
    return True


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.convert import convert_report

    needs_source(args)  # at a prompt nobody asked yet
    # The file is the dump, so the report goes to standard output.
    path, args.output = args.output, None
    with ExitStack() as stack:

        def watch(what: str, total: int) -> Callable[[int], None]:
            bar = stack.enter_context(Bar(total, "page", scale=True))
            bar.at(what)
            return bar.did

        return convert_report(
            kernel,
            path,
            form=args.to,
            compress=args.compress or "zstd",
            level=args.level,
            force=args.force,
            watch=watch,
        )
