# SPDX-License-Identifier: LGPL-2.1-or-later
"""A command, a region, a check and an output format for kvintro. Entry points in pyproject.toml name them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from kvintro.extensions import (
    AddedCheck,
    AddedCommand,
    AddedFormat,
    AddressRange,
    Column,
    Kernel,
    Located,
    Placement,
    Region,
    Report,
    Table,
    Verdict,
)


@dataclass(frozen=True)
class GreetingRow:
    """A row of the command's table."""

    name: str
    release: str


class Hello:
    """A command: ``kvintro hello``."""

    interface = 1
    help = "greet, and name the kernel's release"

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the options."""
        parser.add_argument("--name", default="world", help="whom to greet")

    def run(self, kernel: Kernel, args: argparse.Namespace) -> Report:
        """Ask the kernel."""
        row = GreetingRow(args.name, kernel.identity.release or "unknown")
        columns = (Column("name", "name"), Column("release", "release"))
        return Report("hello", kernel.identity, (Table("greetings", columns, [row]),), head=["Hello"])


class ErrorPointers(Region):
    """A region: the addresses that stand for errors (include/linux/err.h:IS_ERR_VALUE)."""

    interface = 1
    key = "error_pointers"
    name = "error pointers"
    macro = "MAX_ERRNO"
    row = 900

    def locate(self, kernel: Kernel) -> Located:
        """The last 4,095 addresses, on every kernel."""
        end = (1 << 64) - 1
        return Placement(AddressRange(end - 4094, end), "constant", default_start=end - 4094)


class EvenLevels:
    """A check: whether there are 4 levels of page tables. It is an example, and nothing is wrong with 5."""

    interface = 1
    title = "page tables have an even number of levels"

    def judge(self, kernel: Kernel) -> Verdict:
        """Apply it."""
        levels = kernel.levels
        if levels.value % 2:
            return Verdict("", unknown=f"{levels.value} levels: this rule is an example")
        return Verdict(f"{levels.value} levels ({levels.provenance})", compared=1)


class Markdown:
    """An output format: the tables of a report in Markdown."""

    interface = 1

    def render(self, report: Report) -> str:
        """The report in this format."""
        lines = []
        for table in report.tables:
            lines.append("| " + " | ".join(column.title for column in table.columns) + " |")
            lines.append("|" + "---|" * len(table.columns))
            for row in table.rows:
                values = (str(getattr(row, column.key, "")) for column in table.columns)
                lines.append("| " + " | ".join(value.replace("|", "\\|") for value in values) + " |")
        return "\n".join(lines)


HELLO: AddedCommand = Hello()
ERROR_POINTERS = ErrorPointers()
EVEN_LEVELS: AddedCheck = EvenLevels()
MARKDOWN: AddedFormat = Markdown()
