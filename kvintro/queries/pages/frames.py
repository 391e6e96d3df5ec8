# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sets of page frames, stored as runs: a machine has millions of frames, but few runs.

:func:`memory_of` is the set that a source has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Iterable, Iterator, List, Tuple

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.source.physical import Held

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

    I64 = NDArray[numpy.int64]
    Bools = NDArray[numpy.bool_]

# A file of a few bytes can claim any amount of memory. No dump compresses better than this.
_FREE, _MEMORY_TO_FILE, _LEFT_OUT_TO_FILE = 16 << 20, 1024, 1 << 14
_MOST = 1 << 48  # maximum number of bytes of a source without a file
_MAX_RUNS = 1 << 25  # every other frame of 256 GB
_BATCH = 1 << 20


class Frames:
    """A set of page frames.

    :ivar starts: first frame of each run, ascending.
    :ivar ends: last frame of each run, plus one. A run ends before the next one starts.
    """

    def __init__(self, starts: I64, ends: I64) -> None:
        self.starts = starts
        self.ends = ends

    @classmethod
    def of(cls, runs: Iterable[Tuple[int, int]]) -> Frames:
        """Make a set of runs in any order, which may overlap or be empty.

        :param runs: first frame of each, and last frame plus one.
        :raises Unavailable: there are too many runs for a real machine.
        """
        import numpy

        found = cls(numpy.zeros(0, numpy.int64), numpy.zeros(0, numpy.int64))
        batch: List[Tuple[int, int]] = []
        for run in runs:
            batch.append(run)
            if len(batch) == _BATCH:
                found, batch = found | cls._merged(batch), []
                if len(found) > _MAX_RUNS:
                    raise Unavailable("its memory is in too many pieces")
        return found | cls._merged(batch)

    @classmethod
    def _merged(cls, runs: List[Tuple[int, int]]) -> Frames:
        import numpy

        pairs = numpy.array([run for run in runs if run[0] < run[1]], numpy.int64).reshape(-1, 2)
        pairs = pairs[numpy.argsort(pairs[:, 0], kind="stable")]
        ends = numpy.maximum.accumulate(pairs[:, 1]) if len(pairs) else pairs[:, 1]
        apart = numpy.flatnonzero(pairs[1:, 0] > ends[:-1])
        bounds = numpy.r_[apart, len(pairs) - 1] if len(pairs) else apart
        return cls(pairs[numpy.r_[0, apart + 1][: len(bounds)], 0], ends[bounds])

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def count(self) -> int:
        """Number of frames."""
        return int((self.ends - self.starts).sum())

    @property
    def end(self) -> int:
        """Highest frame plus one; 0 for an empty set."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        """Yield the first frame of each run, and its last frame plus one, in ascending order."""
        return zip(self.starts.tolist(), self.ends.tolist())

    def below(self, points: I64) -> I64:
        """For each point, the number of frames of the set that are lower."""
        import numpy

        if not len(self):
            return numpy.zeros(len(points), numpy.int64)
        sizes = self.ends - self.starts
        at = numpy.maximum(numpy.searchsorted(self.starts, points, side="right") - 1, 0)
        inside = numpy.clip(points - self.starts[at], 0, sizes[at])
        found: I64 = numpy.cumsum(sizes)[at] - sizes[at] + inside
        return found

    def __or__(self, other: Frames) -> Frames:
        return self._with(other, lambda mine, theirs: mine | theirs)

    def __and__(self, other: Frames) -> Frames:
        return self._with(other, lambda mine, theirs: mine & theirs)

    def __sub__(self, other: Frames) -> Frames:
        return self._with(other, lambda mine, theirs: mine & ~theirs)

    def _with(self, other: Frames, rule: Callable[[Bools, Bools], Bools]) -> Frames:
        """The frames for which a rule holds; its arguments are membership in this set and in the other."""
        import numpy

        points = numpy.concatenate((self.starts, self.ends, other.starts, other.ends))
        order = numpy.argsort(points, kind="stable")
        points = points[order]
        inside = []
        for mine in (True, False):
            steps = numpy.zeros(len(points), numpy.int64)
            count, at = (len(self), 0) if mine else (len(other), 2 * len(self))
            steps[at : at + count] = 1
            steps[at + count : at + 2 * count] = -1
            inside.append(numpy.cumsum(steps[order]) > 0)
        # At each point, only the last step counts.
        last = numpy.flatnonzero(numpy.r_[points[1:] != points[:-1], True]) if len(points) else order
        holds = rule(inside[0][last], inside[1][last])
        changes = numpy.flatnonzero(numpy.diff(numpy.r_[False, holds].astype(numpy.int8)))
        found = points[last][changes]
        return Frames(found[0::2], found[1::2])

    def parts(self, size: int) -> Iterator[int]:
        """Multiples of ``size`` at which a block of ``size`` frames contains frames of the set."""
        behind = 0
        for first, end in self:
            for part in range(max(behind, first // size), (end - 1) // size + 1):
                yield part * size
                behind = part + 1

    def bits(self, first: int, count: int) -> NDArray[numpy.uint8]:
        """Bitmap of the frames from ``first`` on; the lowest bit of a byte is first.

        :param count: a multiple of 8.
        """
        import numpy

        low = int(numpy.searchsorted(self.ends, first, side="right"))
        high = int(numpy.searchsorted(self.starts, first + count, side="left"))
        steps = numpy.zeros(count + 1, numpy.int8)
        steps[numpy.maximum(self.starts[low:high] - first, 0)] = 1
        steps[numpy.minimum(self.ends[low:high] - first, count)] = -1
        return numpy.packbits(numpy.cumsum(steps[:-1], dtype=numpy.int8) > 0, bitorder="little")


class Memory:
    """Page frames of a machine.

    :ivar there: page frames that the source has completely.
    :ivar left_out: page frames that were left out when the source was made.
    """

    def __init__(self, held: Iterable[Held], page_size: int) -> None:
        there: List[Tuple[int, int]] = []
        left_out: List[Tuple[int, int]] = []
        for start, end, is_there in held:
            if is_there:
                there.append((-(-start // page_size), end // page_size))
            else:
                left_out.append((start // page_size, -(-end // page_size)))
        self.there = Frames.of(there)
        self.left_out = Frames.of(left_out) - self.there


def memory_of(kernel: Kernel) -> Memory:
    """Return the page frames that a source has.

    :raises Unavailable: the source does not say, or claims more than its file can hold.
    """
    source, page = kernel.source, kernel.form.page_size
    if source.held is None:
        raise Unavailable(
            f"the memory ranges of {source.label} are not known", "name the dump on the command line: -c DUMP"
        )
    memory = Memory(source.held(), page)
    if not memory.there.count:
        raise Unavailable(f"{source.label} does not contain its memory ranges")
    for frames, ratio in ((memory.there, _MEMORY_TO_FILE), (memory.left_out, _LEFT_OUT_TO_FILE)):
        most = _FREE + ratio * source.real if source.kind == "core" else _MOST
        if frames.count * page > most or frames.end * page > 1 << 52:
            raise Unavailable(f"{source.label} claims more memory than a file of its size can have")
    return memory
