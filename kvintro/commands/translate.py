# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro translate``, also ``vtop`` and ``ptov``."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING, Iterator, List, Union

from kvintro.commands import add_addresses, process, standard_input

if TYPE_CHECKING:
    from kvintro.kernels import Kernel
    from kvintro.model import Report, Stream

HELP = "translate between virtual addresses, physical addresses, pfns and struct pages"
EXAMPLES = """\
numbers are hexadecimal. Without --from, a number's kind is inferred from its value: a number in the memory
map (vmemmap) is a struct page, any other number in the kernel half is a virtual address, and a number below
the kernel half is a physical address (a virtual one for vtop and with --pid).

examples:
  kvintro -c vmcore translate ffffffff81000000 init_task+0x10 1a2b3000
  kvintro -c vmcore vtop --walk ffffc90000004000
  kvintro -c vmcore translate --from pfn 1a2b3
  kvintro -c vmcore vtop --pid 1 7ffd12345000
  kvintro -c vmcore ptov - < addresses         one line for each, as they arrive
"""

_CHUNK = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's own options."""
    add_addresses(parser, ("virtual", "physical", "pfn", "page"))
    parser.add_argument("--pid", type=process, metavar="PID", help="use the page tables of this process")
    parser.add_argument(
        "--user-half",
        action="store_true",
        help="use the tables that user mode runs on under page-table isolation",
    )
    parser.add_argument(
        "--root",
        choices=("kernel", "user", "efi", "tramp", "idmap", "reserved"),
        help="use these tables, as in ptdump --root",
    )
    parser.add_argument("--walk", action="store_true", help="show and decode the entry at each level")


def run(kernel: Kernel, args: argparse.Namespace) -> Union[Report, Stream]:
    """The report; for a list on standard input a stream."""
    from kvintro.errors import UsageError
    from kvintro.queries.translate import Translator
    from kvintro.reports.translate import translate, translate_stream

    if args.root is not None and (args.pid is not None or args.user_half):
        raise UsageError("--root names other tables than --pid and --user-half", "omit --root")
    translator = Translator(
        kernel,
        pid=args.pid,
        user=args.user_half,
        root=args.root,
        form=args.form,
        below={"vtop": "virtual", "ptov": "physical"}.get(args.command),
        plain_virtual=args.command == "vtop",
    )
    if "-" in args.addresses:
        if args.addresses != ["-"]:
            raise UsageError(
                "- cannot be combined with other addresses",
                "put all addresses on standard input, or all on the command line",
            )
        return translate_stream(kernel, translator, _chunks(standard_input()), walk=args.walk)
    report = translate(kernel, translator, args.addresses)
    return dataclasses.replace(report, extra={"walk": True}) if args.walk else report


def _chunks(descriptor: int) -> Iterator[List[str]]:
    """Yield the words of a file as soon as they arrive, so that people see answers at once.

    All words that have arrived come in one list, so that long pipes are fast.
    """
    rest = b""
    while True:
        data = os.read(descriptor, _CHUNK)
        head, newline, tail = (rest + data).rpartition(b"\n")
        rest = tail if data else b""
        if len(rest) > _CHUNK:
            # No valid line is that long, and an endless one would fill memory.
            head, rest = head + newline + rest, b""
        words = (head if data else head + newline + tail).decode("utf-8", "replace").split()
        if words:
            yield words
        if not data:
            return
