# SPDX-License-Identifier: LGPL-2.1-or-later
"""Page-table dumps as text, in the format of the kernel's own file, for comparison line by line."""

from __future__ import annotations

from typing import Iterator, List, Mapping, Optional

from kvintro.arch import by_name, ptdump_text_of
from kvintro.model import Stream


def ptdump_text(stream: Stream) -> Iterator[str]:
    """Headings and lines, then notes. Ends are exclusive, as in the kernel's file."""
    assert stream.kernel is not None
    text = ptdump_text_of(by_name(stream.kernel.arch))
    most, line = text.most_lines, text.line
    marker = None
    count = 0
    for batch in stream:
        out: List[str] = []
        names = ("start", "size", "level", "state", "flags", "physical", "marker")
        columns = (batch.values.get(key, ()) for key in names)
        for start, size, level, state, flags, physical, under in zip(*columns):
            if under != marker:
                out.extend(_skipped(most, marker, count))
                out.extend(f"---[ {heading} ]---\n" for heading in under.split("; "))
                marker, count = under, 0
            count += 1
            if count <= most.get(under, count):
                out.append(line(start, size, level, state, flags, physical))
        yield "".join(out)
    if marker is not None:
        yield "".join(_skipped(most, marker, count))
    for note in stream.notes:
        yield f"# {note}\n"


def _skipped(most: Mapping[str, int], marker: Optional[str], count: int) -> List[str]:
    skipped = count - most.get(marker or "", count)
    if skipped <= 0:
        return []
    return [f"... {skipped} {'entry' if skipped == 1 else 'entries'} skipped ... \n"]
