# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page frames as text: a paragraph for each."""

from __future__ import annotations

from typing import Any, Iterator, List, Optional, Tuple

from kvintro.model import Report
from kvintro.render.text import BOLD, DIM, RED, YELLOW, paint
from kvintro.render.values import value_text

# Where the word is a count or an order that is said already.
_COUNTED_ELSEWHERE = ("free", "slab", "pgtable", "hugetlb", "hugetlb_free")
_STATES = {
    "unmapped": "no memory is there",
    "no-struct-page": "no struct page",
    "not-in-dump": "its struct page is not in this source",
}


def page_lines(report: Report, color: bool, width: int) -> List[str]:
    """A paragraph a page."""
    (table,) = report.tables
    out: List[str] = []
    for row in table.rows:
        if out:
            out.append("")
        out += _page(row, color)
    return out


def _page(row: Any, color: bool) -> List[str]:
    if row.state != "page":
        where = row.input if row.pfn is None else f"pfn {row.pfn:x}  physical {row.physical:016x}"
        lines = [paint(f"{where}  {_STATES[row.state]}", RED, color)]
        return lines + [paint(f"  {note}", YELLOW, color) for note in row.notes]
    out = [paint(f"pfn {row.pfn:x}  physical {row.physical:016x}  {row.type}: {row.meaning}", BOLD, color)]
    out += [f"  {name:12}{text}" for name, text in _facts(row)]
    if row.mappings is not None:
        out += _mappings(row, color)
    if row.owner is not None:
        out += _owner(row.owner, color)
    out += [paint(f"  note: {note}", YELLOW, color) for note in row.notes]
    return out


def _facts(row: Any) -> Iterator[Tuple[str, str]]:
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
    elif row.private and row.type not in _COUNTED_ELSEWHERE:
        yield "private", f"{row.private:016x}"
    if row.memcg is not None:
        kind = ", memory of the kernel" if row.memcg.kernel else ""
        yield "cgroup", f"{row.memcg.path if row.memcg.path else 'unknown'}{kind}"


def _offset(offset: Optional[int]) -> str:
    return "" if offset is None else f"  offset {offset:#x}"


def _slab(slab: Any) -> Iterator[Tuple[str, str]]:
    cache = slab.cache if slab.cache else "no name"
    count = f"{slab.in_use} of {slab.objects} objects of {value_text(slab.object_size)}"
    yield "slab", f"{cache}: {count} in use or kept for CPUs"
    if slab.object is not None:
        state = {True: "allocated", False: "free", None: ""}[slab.allocated]
        yield "object", f"{slab.object:016x}+{slab.object_offset:#x}  {state}".rstrip()


def _kfence(fence: Any) -> str:
    if fence.object is None:
        return "guard page"
    if fence.address is None:
        return f"object {fence.object}, {fence.state}"
    cache = fence.cache if fence.cache else "a cache without a name"
    return f"object {fence.object}, {fence.state}: {fence.address:016x}, {value_text(fence.size)} for {cache}"


def _mappings(row: Any, color: bool) -> List[str]:
    if not row.mappings:
        if row.mapped_by is None and not row.mapcount:
            return []  # of a kind that no process could map
        how = f" ({row.mapped_by})" if row.mapped_by else ""
        return [f"  {'mapped by':12}no process{how}"]
    out = [
        f"  {'mapped by':12}{paint('pid      comm             address           rights  page', DIM, color)}"
    ]
    for found in row.mappings:
        state = "" if found.state == "mapped" else f"  {found.state}"
        out.append(
            f"  {'':12}{found.pid:<8} {found.comm:<16} {found.address:016x}  {found.rights:<6}"
            f"  {value_text(found.page_size)}{state}"
        )
    return out


def _owner(owner: Any, color: bool) -> List[str]:
    who = f"pid {owner.pid}" + (f" ({owner.comm})" if owner.comm else "")
    when = f"{owner.nanoseconds // 10**9}.{owner.nanoseconds % 10**9 // 1000:06d} s"
    state = "allocated" if owner.allocated else "was last allocated"
    out = [f"  {'owner':12}{state} at order {owner.order} by {who} at {when}, gfp {owner.gfp:#x}"]
    out += [paint(f"  {'':14}{f.symbol or f'{f.address:016x}'}", DIM, color) for f in owner.stack]
    if owner.freed and not owner.allocated:
        out.append(f"  {'':12}freed by")
        out += [paint(f"  {'':14}{f.symbol or f'{f.address:016x}'}", DIM, color) for f in owner.freed]
    return out
