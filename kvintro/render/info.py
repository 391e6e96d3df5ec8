# SPDX-License-Identifier: LGPL-2.1-or-later
"""``info`` as text: facts in two columns, then what each command can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

from kvintro.model import Table
from kvintro.render.text import DIM, GREEN, RED, YELLOW, columns_of, paint, prose, wrapped
from kvintro.render.values import value_text

if TYPE_CHECKING:
    from kvintro.reports.info import FactRow, InfoReport, KernelRow

_STATES = {"works": GREEN, "partly": YELLOW, "cannot": RED}
_SWITCHES = ("kaslr", "pti")


def info_lines(report: InfoReport, color: bool, width: int) -> List[str]:
    """Facts, then commands."""
    facts, kernels, commands = report.tables
    pad = max(len(row.title) for row in facts.rows)
    out: List[str] = []
    for row in facts.rows:
        if row.value is None:
            value, aside = "", f"not known: {row.reason or ''}"
        else:
            value, aside = _value(row), ""
            if row.provenance and row.key not in ("complete", "panic"):
                aside = f"({row.provenance})"
        out += _fact_lines(f"{row.title:{pad}}", value, aside, color, width)
    if len(kernels.rows) > 1:
        out += ["", f"{kernels.title}:", *_kernel_lines(kernels, color, width)]
    if commands.rows:
        out += ["", f"{commands.title}:"]
    pad = max((len(row.name) for row in commands.rows), default=0)
    for command in commands.rows:
        state = paint(f"{command.state:6}", _STATES[command.state], color)
        indent = " " * (2 + pad + 2 + 6 + 2)
        first, *rest = wrapped(command.reason or "", width, indent)
        out.append(f"  {command.name:{pad}}  {state}  {first[len(indent) :]}".rstrip())
        out += rest
    return out


def _fact_lines(title: str, value: str, aside: str, color: bool, width: int) -> List[str]:
    """A fact, followed by its origin in grey, which gets its own line if there is no room."""
    indent = " " * (columns_of(title) + 2)
    lines = wrapped(value, width, f"{title}  ", indent)
    if width and max(map(columns_of, lines)) > width:
        lines = [title.rstrip(), *wrapped(value, width, " " * 4)]
    if aside:
        gap = 3 if value else 0
        if not width or columns_of(lines[-1]) + gap + columns_of(aside) <= width:
            lines[-1] += " " * gap + paint(aside, DIM, color)
        elif not value:
            first, *rest = wrapped(aside, width, indent)
            lines = [f"{title}  {paint(first[len(indent) :], DIM, color)}"]
            lines += [paint(line, DIM, color) for line in rest]
        else:
            lines += prose(aside, width, DIM, color, indent)
    return lines


def _kernel_lines(kernels: Table[KernelRow], color: bool, width: int) -> List[str]:
    lines = [
        f"VMCOREINFO at {'?' if row.vmcoreinfo_at is None else f'{row.vmcoreinfo_at:#x}':<12}  "
        f"{row.release}, {row.paging_levels} levels, "
        f"image moved by {'?' if row.moved_by is None else value_text(row.moved_by)}"
        + ("  (shown)" if row.shown else "")
        for row in kernels.rows
    ]
    return [
        text
        for line, row in zip(lines, kernels.rows)
        for text in prose(line, width, GREEN if row.shown else "", color, "  ", "    ")
    ]


def _value(row: FactRow) -> str:
    if row.key == "panic" and row.value == "":
        return "none"
    if isinstance(row.value, bool):
        yes, no = ("on", "off") if row.key in _SWITCHES else ("yes", "NO")
        return yes if row.value else no
    return value_text(row.value)
