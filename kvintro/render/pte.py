# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decoded entries as text: a paragraph for each."""

from __future__ import annotations

from typing import Any, List

from kvintro.model import Report
from kvintro.render.text import BOLD, paint
from kvintro.render.values import value_text

_KINDS = {
    "empty": "empty: maps nothing",
    "table": "points to a table",
    "page": "maps a page",
    "protnone": "a page that may not be touched now (PROT_NONE or NUMA hint), frame inverted",
    "invalid": "a huge page being split, frame inverted",
    "swap": "not present: a swap entry",
    "not-present": "not present, last frame kept inverted",
}


def pte_lines(report: Report, color: bool, width: int) -> List[str]:
    """A paragraph an entry."""
    (table,) = report.tables
    out: List[str] = []
    for row in table.rows:
        if out:
            out.append("")
        out.append(paint(f"{row.value:016x}  {row.level}  {_KINDS[row.kind]}", BOLD, color))
        out += [f"  {name:10}{text}" for name, text in _facts(row)]
    return out


def _facts(row: Any) -> "List[tuple[str, str]]":
    facts = []
    if row.swap is not None:
        if row.swap.markers:
            facts.append(("marker", ", ".join(row.swap.markers)))
        kind = row.swap.kind or "a swap file or a special type; the kernel's build decides"
        facts.append(("swap", f"type {row.swap.type} ({kind}), offset {row.swap.offset:#x}"))
    if row.physical is not None:
        size = f", {value_text(row.page_size)} page" if row.page_size else ""
        facts.append(("physical", f"{row.physical:016x}  pfn {row.pfn:#x}{size}"))
    if row.flags:
        facts.append(("flags", " ".join(row.flags)))
    if row.memory_type is not None:
        facts.append(("caching", f"{row.memory_type} (PAT index {row.pat}, as Linux programs it)"))
    if row.pkey:
        facts.append(("key", f"protection key {row.pkey}"))
    if row.reserved:
        bits = ", ".join(map(str, row.reserved))
        facts.append(("reserved", f"bits {bits} must be 0: the processor refuses this entry"))
    if row.kind != "empty":
        facts.append(("read as", f"an entry of the {row.half} half"))
    return facts
