# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page-table dumps as text: the format of /sys/kernel/debug/page_tables, to be compared line by line."""

from __future__ import annotations

from functools import lru_cache
from typing import Iterator, List, Sequence

from kvintro.model import Stream

#: Lines that the kernel prints at most under a heading (arch/x86/mm/dump_pagetables.c:address_markers).
_MAX_LINES = {"ESPfix Area": 16}
_UNITS = "BKMGTPE"


def ptdump_text(stream: Stream) -> Iterator[str]:
    """Headings and lines; ends are exclusive, as the kernel's are. Notes come last, if there are any."""
    marker = None
    count = 0
    for batch in stream:
        out: List[str] = []
        columns = (batch.values[key] for key in ("start", "size", "level", "state", "flags", "marker"))
        for start, size, level, state, flags, under in zip(*columns):
            if under != marker:
                out.extend(_skipped(marker, count))
                out.append(f"---[ {under} ]---\n")
                marker, count = under, 0
            count += 1
            if count > _MAX_LINES.get(under, count):
                continue
            end = start + size & (1 << 64) - 1
            # Of hostile tables there are half a million lines, and this is the fastest way to write one.
            out.append("0x%016x-0x%016x   %s %s\n" % (start, end, _size(size), _rights(level, state, flags)))  # noqa: UP031
        yield "".join(out)
    if marker is not None:
        yield "".join(_skipped(marker, count))
    for note in stream.notes:
        yield f"# {note}\n"


@lru_cache(maxsize=1 << 12)
def _size(size: int) -> str:
    """In the largest unit that leaves no rest."""
    unit = 0
    while not size & 1023 and unit < len(_UNITS) - 1:
        size >>= 10
        unit += 1
    return f"{size:9d}{_UNITS[unit]}"


def _skipped(marker: "str | None", count: int) -> List[str]:
    skipped = count - _MAX_LINES.get(marker or "", count)
    if skipped <= 0:
        return []
    return [f"... {skipped} {'entry' if skipped == 1 else 'entries'} skipped ... \n"]


@lru_cache(maxsize=1 << 12)
def _rights(level: str, state: str, flags: Sequence[str]) -> str:
    """``printk_prot()``."""
    if state == "not-in-dump":
        return f"{'(table not in dump)':30}{level}"
    if state == "over-limit":
        return f"{'(too many tables)':30}{level}"
    if state != "present":
        return f"{'':30}{level}"
    cells = [("RW " if "RW" in flags else "ro ") if name == "RW" else _cell(name, flags) for name in _CELLS]
    return f"{''.join(cells)}{'NX ' if 'NX' in flags else 'x  '}{level}"


_CELLS = ("USR", "RW", "PWT", "PCD", "PSE", "PAT", "GLB")


def _cell(name: str, flags: Sequence[str]) -> str:
    return f"{name} " if name in flags else "    "
