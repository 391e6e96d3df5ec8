# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory whose pages are in a file in any order, with an index of 12 bytes per page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, List, Tuple

from kvintro.source.content import Content
from kvintro.source.physical import PAGE, Extent
from kvintro.source.stream import Block, Index, Pages, StreamMemory

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

#: Page numbers have 32 bits, and the last number is not used.
MAX_FRAME = (1 << 32) - 2
# Ranges are separate if at least this many pages between them are missing.
_NEAR = 500
_MAX_RANGES = 1 << 16


def scattered(content: Content, index: Index, *, complete: bool) -> StreamMemory:
    """Memory with a settled index, whose keys are page frame numbers and whose places are file offsets."""
    end = (int(index.keys[-1]) + 1) * PAGE if len(index.keys) else 0
    pages = Pages(content, index, [Block("memory", end)], stride=PAGE)
    return StreamMemory(
        pages, [Extent(start, size, start) for start, size in _ranges(index.keys)], complete=complete
    )


def _ranges(frames: NDArray[numpy.uint32]) -> Iterator[Tuple[int, int]]:
    """First address and size of each range; a few missing pages do not split a range."""
    import numpy

    if not len(frames):
        return
    wide = frames.astype(numpy.int64)
    borders = numpy.flatnonzero(numpy.diff(wide) > _NEAR) + 1
    if len(borders) >= _MAX_RANGES:
        borders = borders[:0]
    starts: List[int] = wide[numpy.r_[0, borders]].tolist()
    ends: List[int] = (wide[numpy.r_[borders - 1, len(wide) - 1]] + 1).tolist()
    for start, end in zip(starts, ends):
        yield start * PAGE, (end - start) * PAGE


def add_frames(index: Index, frames: NDArray[numpy.uint64], places: NDArray[numpy.uint64]) -> None:
    """Add pages by their frame numbers; those that cannot be memory are ignored."""
    import numpy

    good = frames <= MAX_FRAME
    index.add_run(frames[good].astype(numpy.uint32), places[good])
