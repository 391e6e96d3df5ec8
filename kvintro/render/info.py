# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dump is as text: facts in two columns, then what each command can do."""

from __future__ import annotations

from typing import Any, List

from kvintro.model import Report, Table
from kvintro.render.text import DIM, GREEN, RED, YELLOW, paint
from kvintro.render.values import value_text

_STATES = {"works": GREEN, "partly": YELLOW, "cannot": RED}
_SWITCHES = ("kaslr", "pti")


def info_lines(report: Report, color: bool, width: int) -> List[str]:
    """Facts, then commands."""
    facts, kernels, commands = report.tables
    pad = max(len(row.title) for row in facts.rows)
    out: List[str] = []
    for row in facts.rows:
        if row.value is None:
            text = paint(f"not known: {row.reason or ''}", DIM, color)
        else:
            text = _value(row)
            if row.provenance and row.key not in ("complete", "panic"):
                text += paint(f"   ({row.provenance})", DIM, color)
        out.append(f"{row.title:{pad}}  {text}")
    if len(kernels.rows) > 1:
        out += ["", f"{kernels.title}:", *_kernel_lines(kernels, color)]
    out += ["", f"{commands.title}:"]
    pad = max(len(row.name) for row in commands.rows)
    for row in commands.rows:
        line = f"  {row.name:{pad}}  {paint(f'{row.state:6}', _STATES[row.state], color)}"
        out.append((line + (f"  {row.reason}" if row.reason else "")).rstrip())
    return out


def _kernel_lines(kernels: Table, color: bool) -> List[str]:
    return [
        f"  VMCOREINFO at {'?' if row.vmcoreinfo_at is None else f'{row.vmcoreinfo_at:#x}':<12}  "
        f"{row.release}, {row.paging_levels} levels, "
        f"image moved by {'?' if row.moved_by is None else value_text(row.moved_by)}"
        + (paint("  (shown)", GREEN, color) if row.shown else "")
        for row in kernels.rows
    ]


def _value(row: Any) -> str:
    if row.key == "panic" and row.value == "":
        return "none"
    if isinstance(row.value, bool):
        yes, no = ("on", "off") if row.key in _SWITCHES else ("yes", "NO")
        return yes if row.value else no
    return value_text(row.value)
