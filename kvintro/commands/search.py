# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro search``: where a value, a string or a pointer is in memory."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Iterable, Iterator, Tuple

from kvintro.commands import Bar, process
from kvintro.commands.read import size

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report

HELP = "where a value, a string or a pointer into a range is in memory, and what contains each match"
EXAMPLES = """\
all memory of the kernel is searched, each page once. Memory that is not in the dump is counted.

examples:
  kvintro -c vmcore search ffff8da401258040             a value, at any address
  kvintro -c vmcore search --to ffff8da401258040 --size 192   who points to this object
  kvintro -c vmcore search --string 'secret' --phys
  kvintro -c vmcore search --regex 'Linux version [0-9.]+' --in kernel_image
  kvintro -c vmcore search --string PATH= --pid 1       memory of a process
"""


def count(text: str) -> int:
    """A positive number.

    :raises argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not 0 < int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 1000000")
    return int(text)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    parser.add_argument("value", nargs="?", metavar="VALUE", help="eight bytes: a number in hex, or a symbol")
    parser.add_argument("--string", metavar="S", help="the bytes of this text in UTF-8")
    parser.add_argument("--regex", metavar="R", help="bytes that match this regular expression of PCRE2")
    parser.add_argument(
        "--to", metavar="ADDR", help="aligned words that point to ADDR, or into --size N bytes"
    )
    parser.add_argument(
        "--size", type=size, metavar="N", help="with --to: bytes of the range, in decimal, or in hex with 0x"
    )
    parser.add_argument(
        "--in", dest="regions", metavar="REGIONS", help="search these regions only, as in vmalloc,modules"
    )
    parser.add_argument("--phys", action="store_true", help="search physical memory")
    parser.add_argument("--pid", type=process, metavar="PID", help="search the memory of this process")
    parser.add_argument("--aligned", action="store_true", help="only at multiples of eight")
    parser.add_argument("--limit", type=count, metavar="N", help="stop after N places (default: 100)")


def run(kernel: Kernel, args: argparse.Namespace) -> Report:
    """The report."""
    from kvintro.reports.search import Question, search

    return search(
        kernel,
        Question(args.value, args.string, args.regex, args.to, args.size, args.aligned),
        regions=args.regions.split(",") if args.regions else (),
        pid=args.pid,
        physical=args.phys,
        limit=args.limit or 100,
        watch=_watched,
    )


def _watched(chunks: Iterable[Tuple[int, int]], size: int) -> Iterator[Tuple[int, int]]:
    """The chunks, and a bar meanwhile."""
    with Bar(size, "byte", scale=True) as bar:
        bar.at("searching")
        for start, end in chunks:
            yield start, end
            bar.did(end - start + 1)
