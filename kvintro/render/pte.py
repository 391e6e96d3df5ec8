# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decoded entries as text: one paragraph each."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Tuple

from kvintro.render.text import BOLD, pairs_text, prose
from kvintro.render.values import value_text

if TYPE_CHECKING:
    from kvintro.reports.pte import EntryRow, PteReport

_KINDS = {
    "empty": "empty: maps nothing",
    "table": "points to a table",
    "page": "maps a page",
    "protnone": "a page that must fault when it is accessed (PROT_NONE or NUMA hint)",
    "invalid": "a huge page being split",
    "swap": "not present: a swap entry",
    "not-present": "not present, keeps its last frame",
    "reserved": "of a type that this level does not have: the processor refuses it",
}


def pte_lines(report: PteReport, color: bool, width: int) -> List[str]:
    """One paragraph per entry."""
    (table,) = report.tables
    out: List[str] = []
    for row in table.rows:
        if out:
            out.append("")
        kind = _KINDS[row.kind]
        if row.inverted and row.swap is None:
            kind += " inverted" if row.kind == "not-present" else ", frame inverted"
        out += prose(f"{row.value:016x}  {row.level}  {kind}", width, BOLD, color, "", "  ")
        out += pairs_text(_facts(row), width, "  ")
    return out


def _facts(row: EntryRow) -> List[Tuple[str, str]]:
    facts = []
    if row.swap is not None:
        if row.swap.markers:
            facts.append(("marker", ", ".join(row.swap.markers)))
        kind = row.swap.kind or "a swap file or a special type, depending on how the kernel was built"
        facts.append(("swap", f"type {row.swap.type} ({kind}), offset {row.swap.offset:#x}"))
    if row.physical is not None:
        size = f", {value_text(row.page_size)} page" if row.page_size else ""
        if row.contiguous:
            size += f", part of {value_text(row.contiguous)} with the contiguous bit"
        facts.append(("physical", f"{row.physical:016x}  pfn {row.pfn:#x}{size}"))
    if row.flags:
        facts.append(("flags", " ".join(row.flags)))
    if row.memory_type is not None:
        facts.append(("caching", f"{row.memory_type} ({row.memory_source}, as Linux programs it)"))
    if row.pkey:
        facts.append(("key", f"protection key {row.pkey}"))
    if row.reserved:
        bits = ", ".join(map(str, row.reserved))
        facts.append(("reserved", f"bits {bits} must be 0: the processor refuses this entry"))
    if row.kind != "empty":
        facts.append(("read as", f"an entry of the {row.half} half"))
    return facts
