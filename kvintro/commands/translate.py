# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro translate``, also ``vtop`` and ``ptov``."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING, Iterator, List, Union

from kvintro.commands import add_addresses, standard_input

if TYPE_CHECKING:
    from kvintro.kernel import Kernel
    from kvintro.model import Report, Stream

HELP = "any of virtual, physical, pfn and struct page to all the others"
EXAMPLES = """\
the value of a number decides what it is, unless --from says so. Kernel addresses are virtual, except in
vmemmap, where they are struct pages. Below the kernel half numbers are physical (vtop: virtual; with --pid:
virtual).
All numbers are hexadecimal.

examples:
  kvintro -c vmcore translate ffffffff81000000 init_task+0x10 1a2b3000
  kvintro -c vmcore vtop --walk ffffc90000004000
  kvintro -c vmcore translate --from pfn 1a2b3
  kvintro -c vmcore vtop --pid 1 7ffd12345000
  kvintro -c vmcore ptov - < addresses         a line for each, as they come
"""

_CHUNK = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    add_addresses(parser, ("virtual", "physical", "pfn", "page"))
    parser.add_argument("--pid", type=int, metavar="PID", help="by the page tables of this process")
    parser.add_argument(
        "--user-half",
        action="store_true",
        help="by the tables that user mode runs on under page-table isolation",
    )
    parser.add_argument("--walk", action="store_true", help="show the entry of each level, decoded")


def run(kernel: Kernel, args: argparse.Namespace) -> Union[Report, Stream]:
    """The report; for a list on standard input a stream."""
    from kvintro.errors import UsageError
    from kvintro.queries.translate import Translator
    from kvintro.reports.translate import translate, translate_stream

    translator = Translator(
        kernel,
        pid=args.pid,
        user=args.user_half,
        form=args.form,
        below={"vtop": "virtual", "ptov": "physical"}.get(args.command),
        plain_virtual=args.command == "vtop",
    )
    if "-" in args.addresses:
        if args.addresses != ["-"]:
            raise UsageError(
                "- stands alone", "put all addresses on standard input, or all on the command line"
            )
        return translate_stream(kernel, translator, _chunks(standard_input()), walk=args.walk)
    report = translate(kernel, translator, args.addresses)
    return dataclasses.replace(report, extra={"walk": True}) if args.walk else report


def _chunks(descriptor: int) -> Iterator[List[str]]:
    """The words on a file, as many at a time as have come: people see answers at once, and pipes are fast."""
    rest = b""
    while True:
        data = os.read(descriptor, _CHUNK)
        head, newline, tail = (rest + data).rpartition(b"\n")
        rest = tail if data else b""
        if len(rest) > _CHUNK:
            # No line is that long; what has no end must not be waited for.
            head, rest = head + newline + rest, b""
        words = (head if data else head + newline + tail).decode("utf-8", "replace").split()
        if words:
            yield words
        if not data:
            return
