# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro read``: memory as words or as a type, and what each value is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvintro.commands import process

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "memory at an address: each word with what it is, the members of a type, or the bytes themselves"
EXAMPLES = """\
a word is eight bytes in the kernel's byte order. Each is described as kvintro identify
describes it, most specific description first.

examples:
  kvintro -c vmcore read init_task --size 256
  kvintro -c vmcore read init_task --type 'struct task_struct'
  kvintro -c vmcore read ffff8da401258040 --type 'struct list_head [4]'
  kvintro -c vmcore read --phys 1a2b3000               physical memory
  kvintro -c vmcore read --pid 1 7ffd12345000          memory of a process
  kvintro -c vmcore read linux_banner --size 80 --raw -o banner.bin
"""


def size(text: str) -> int:
    """A number of bytes: decimal, or hex with 0x.

    :raises argparse.ArgumentTypeError: it is none, or not positive.
    """
    try:
        found = int(text, 0)
    except ValueError:
        found = 0
    if found <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of bytes")
    return found


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument(
        "address", metavar="ADDR", help="hex with or without 0x, symbol or symbol+offset; where to begin"
    )
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument(
        "--size", type=size, metavar="N", help="how many bytes, in decimal, or in hex with 0x (default: 128)"
    )
    how_much.add_argument(
        "--type",
        metavar="TYPE",
        help="show the members of this type: 'struct task_struct', 'struct list_head [4]', pid_t",
    )
    parser.add_argument("--raw", action="store_true", help="write the bytes themselves; give -o FILE")
    parser.add_argument("--phys", action="store_true", help="ADDR is a physical address")
    parser.add_argument("--pid", type=process, metavar="PID", help="read the memory of this process")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report, or the bytes."""
    from kvintro.reports.read import raw, read

    asked = {"size": args.size, "type_name": args.type, "pid": args.pid, "physical": args.phys}
    return raw(kernel, args.address, **asked) if args.raw else read(kernel, args.address, **asked)
