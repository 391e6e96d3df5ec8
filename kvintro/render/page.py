# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page frames as text: one paragraph each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, List, Optional, Sequence, Tuple

from kvintro.model import Column
from kvintro.render.text import BOLD, DIM, RED, YELLOW, Line, paint, prose, table_text, wrapped
from kvintro.render.values import value_text

if TYPE_CHECKING:
    from kvintro.queries.pages.owner import PageOwner
    from kvintro.reports.page import KfenceRow, PageReport, PageRow, SlabRow

# Types whose ``private`` is a count or an order that another line shows.
_SHOWN_ELSEWHERE = ("free", "slab", "pgtable", "hugetlb", "hugetlb_free")
_PAD = 12  # columns of a label
_MAPPINGS = (
    Column("pid", "pid", "right"),
    Column("comm", "comm"),
    Column("address", "address"),
    Column("rights", "rights"),
    Column("page", "page", "right"),
    Column("state", ""),
)
_STATES = {
    "unmapped": "nothing is mapped there",
    "no-struct-page": "no struct page",
    "not-in-dump": "its struct page is not in this source",
}


def page_lines(report: PageReport, color: bool, width: int) -> List[str]:
    """One paragraph per page."""
    (table,) = report.tables
    out: List[str] = []
    for row in table.rows:
        if out:
            out.append("")
        out += _page(row, color, width)
    return out


def _page(row: PageRow, color: bool, width: int) -> List[str]:
    if row.state != "page":
        where = row.input if row.pfn is None else f"pfn {row.pfn:x}  physical {row.physical:016x}"
        lines = prose(f"{where}  {_STATES[row.state]}", width, RED, color, "", "  ")
        return lines + _notes(row.notes, color, width)
    head = f"pfn {row.pfn:x}  physical {row.physical:016x}  {row.type}: {row.meaning}"
    out = prose(head, width, BOLD, color, "", "  ")
    for name, text in _facts(row):
        out += wrapped(text, width, f"  {name:{_PAD}}", " " * (2 + _PAD))
    if row.mappings is not None:
        out += _mappings(row, color, width)
    if row.owner is not None:
        out += _owner(row.owner, color, width)
    return out + _notes([f"note: {note}" for note in row.notes], color, width)


def _notes(notes: Sequence[str], color: bool, width: int) -> List[str]:
    return [line for note in notes for line in prose(note, width, YELLOW, color, "  ", "    ")]


def _facts(row: PageRow) -> Iterator[Tuple[str, str]]:
    """(name, text) of each line."""
    direct = "not in the direct map" if row.direct is None else f"direct map {row.direct:016x}"
    yield "struct page", f"{row.page:016x}   {direct}"
    if row.in_dump is False:
        yield "content", "not in this source"
    place = [] if row.node is None else [f"node {row.node}"]
    place += [f"zone {row.zone}"] if row.zone else []
    yield "place", "  ".join([*place, f"section {row.section}"])
    yield "flags", f"{' '.join(row.flags) or 'none'}   ({row.flags_value:016x})"
    if row.head_flags:
        yield "head flags", " ".join(row.head_flags)
    if row.kpageflags:
        yield "kpageflags", " ".join(row.kpageflags)
    mapcount = "not known" if row.mapcount is None else row.mapcount
    yield "counts", f"refcount {row.refcount}  mapcount {mapcount}"
    if row.type == "free":
        yield "free block", f"order {row.order}, from pfn {row.head_pfn:x}"
    elif row.compound:
        yield (
            "compound",
            f"{row.compound}, order {row.order}"
            + (f", head pfn {row.head_pfn:x}" if row.compound == "tail" else ""),
        )
    if row.slab is not None:
        yield from _slab(row.slab)
    if row.kfence is not None:
        yield "KFENCE", _kfence(row.kfence)
    if row.file is not None:
        file = row.file
        name = file.path if file.path else "no name"
        yield (
            "file",
            f"{name}{_offset(file.offset)}  ({file.file_system} {file.device}, inode {file.inode})",
        )
    elif row.mapping is not None:
        name = "anon_vma" if row.mapping & 3 == 1 else "mapping"
        behind = f"{_offset(row.offset)} pages" if row.offset is not None else ""
        yield name, f"{row.mapping & ~3:016x}{behind}"
    if row.swap is not None:
        yield "swap cache", f"swap type {row.swap.type}, offset {row.swap.offset:#x}"
    elif row.private and row.type not in _SHOWN_ELSEWHERE:
        yield "private", f"{row.private:016x}"
    if row.memcg is not None:
        kind = ", memory of the kernel" if row.memcg.kernel else ""
        yield "cgroup", f"{row.memcg.path if row.memcg.path else 'unknown'}{kind}"


def _offset(offset: Optional[int]) -> str:
    return "" if offset is None else f"  offset {offset:#x}"


def _slab(slab: SlabRow) -> Iterator[Tuple[str, str]]:
    cache = slab.cache if slab.cache else "no name"
    count = f"{slab.in_use} of {slab.objects} objects of {value_text(slab.object_size)}"
    yield "slab", f"{cache}: {count} in use or kept for CPUs"
    if slab.object is not None:
        state = {True: "allocated", False: "free", None: ""}[slab.allocated]
        yield "object", f"{slab.object:016x}+{slab.object_offset:#x}  {state}".rstrip()


def _kfence(fence: KfenceRow) -> str:
    if fence.object is None:
        return "guard page"
    if fence.address is None:
        return f"object {fence.object}, {fence.state}"
    cache = fence.cache if fence.cache else "a cache without a name"
    return f"object {fence.object}, {fence.state}: {fence.address:016x}, {value_text(fence.size)} for {cache}"


def _mappings(row: PageRow, color: bool, width: int) -> List[str]:
    if not row.mappings:
        if row.mapped_by is None and not row.mapcount:
            return []  # no process can map pages of this type
        how = f" ({row.mapped_by})" if row.mapped_by else ""
        return wrapped(f"no process{how}", width, f"  {'mapped by':{_PAD}}", " " * (2 + _PAD))
    lines = [
        Line(
            {
                "pid": str(found.pid),
                "comm": found.comm,
                "address": f"{found.address:016x}",
                "rights": found.rights,
                "page": value_text(found.page_size),
                "state": "" if found.state == "mapped" else found.state,
            }
        )
        for found in row.mappings
    ]
    columns = [c for c in _MAPPINGS if c.key != "state" or any(line.cells["state"] for line in lines)]
    body = table_text(columns, lines, color=color, width=max(width - 2 - _PAD, 1) if width else 0)
    heads = [f"  {'mapped by':{_PAD}}", *[" " * (2 + _PAD)] * (len(body) - 1)]
    return [head + text for head, text in zip(heads, body)]


def _owner(owner: PageOwner, color: bool, width: int) -> List[str]:
    who = f"pid {owner.pid}" + (f" ({owner.comm})" if owner.comm else "")
    when = f"{owner.nanoseconds // 10**9}.{owner.nanoseconds % 10**9 // 1000:06d} s"
    state = "allocated" if owner.allocated else "was last allocated"
    text = f"{state} at order {owner.order} by {who} at {when}, gfp {owner.gfp:#x}"
    out = wrapped(text, width, f"  {'owner':{_PAD}}", " " * (2 + _PAD))
    out += [paint(f"  {'':14}{f.symbol or f'{f.address:016x}'}", DIM, color) for f in owner.stack]
    if owner.freed and not owner.allocated:
        out.append(f"  {'':12}freed by")
        out += [paint(f"  {'':14}{f.symbol or f'{f.address:016x}'}", DIM, color) for f in owner.freed]
    return out
