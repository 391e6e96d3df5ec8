#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write the output of every command on terminals of several widths.

    python -m tests.captures DIRECTORY CORE...    writes DIRECTORY/CORE/WIDTH/COMMAND.txt for looking at
    python -m tests.captures --color DIRECTORY CORE...    the same with colours

``tests/cores/test_terminal.py`` checks the same texts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator, List, Tuple, Union

from kvintro.commands import load_command
from kvintro.kernels import Kernel
from kvintro.model import Report, Stream
from kvintro.opening import open_kernel
from kvintro.parser import parse
from kvintro.render import render, render_stream
from kvintro.source import Request
from tests.cores.test_schema import LINES as ASKED

WIDTHS = (60, 80, 100, 120, 200)
#: Every command: those of the schemas' tests, and more with other tables.
LINES: List[List[str]] = [
    *(line for line in ASKED if line[0] != "report"),
    ["layout", "--map"],
    ["explain", "--all"],
    ["translate", "schedule+0x10"],
    ["identify", "schedule", "jiffies"],
    ["show", "vmalloc", "--table", "by_caller"],
    ["show", "user", "--pid", "1"],
    *(["pages", "--by", by] for by in ("order", "flags", "cache", "free")),
]


def found(kernel: Kernel, line: List[str]) -> Tuple[Union[Report, Stream], str]:
    """A command's report, and its output format."""
    args = parse(["-c", "x", *line])
    return load_command(args.command).run(kernel, args), args.format


def text_of(result: Union[Report, Stream], form: str, width: int, *, color: bool = False) -> str:
    """The text that a terminal of this width shows."""
    if isinstance(result, Stream):
        return "".join(render_stream(result, form))
    return render(result, form, color=color, width=width)


def captures(kernel: Kernel, *, color: bool = False) -> Iterator[Tuple[str, int, str]]:
    """Yield (command, width, text) of every command at every width."""
    for line in LINES:
        try:
            result, form = found(kernel, line)
        except Exception as error:
            yield " ".join(line), 0, repr(error)
            continue
        for width in WIDTHS:
            yield " ".join(line), width, text_of(result, form, width, color=color)


def main() -> None:
    """Write all files."""
    arguments = sys.argv[1:]
    color = arguments[:1] == ["--color"]
    directory, *cores = arguments[color:]
    for core in cores:
        kernel = open_kernel(Request(core=core))
        for command, width, text in captures(kernel, color=color):
            place = Path(directory) / Path(core).parent.name / str(width)
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{command.replace(' ', '_')}.txt").write_text(f"$ kvintro {command}\n{text}")


if __name__ == "__main__":
    main()
