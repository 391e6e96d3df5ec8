# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts page frames in several processes: for dumps whose pages must be unpacked, which takes longest.

The processes are forks, so they have the limits of this one (:mod:`kvintro.source.sandbox`). Each reads every
N-th section, and answers in JSON. A process that ends without an answer makes the census fail.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import threading
import time
from collections import Counter
from typing import Any, Callable, Dict, Iterator, List, NoReturn, Optional, Tuple

from kvintro.errors import KvintroError, Unavailable
from kvintro.queries.pages.census import CacheUse, Group, PageCensus, Pages, Progress
from kvintro.queries.pages.excluded import ExclusionCounter

_EVERY = 0.1  # seconds between two reports of progress
_AT_ONCE = 1 << 16
_LARGE = 1 << 19  # page frames; fewer are counted in a fraction of a second


def usual_jobs(pages: Pages) -> int:
    """How many processes count, if nobody says: several if the dump is large and its pages are packed."""
    source = pages.kernel.source
    packed = source.kind == "core" and "kdump" in source.format
    # A fork lacks the other threads, which may hold locks.
    alone = threading.active_count() == 1
    return len(os.sched_getaffinity(0)) if packed and alone and pages.sections.total >= _LARGE else 1


def census_in_jobs(
    pages: Pages,
    jobs: int,
    low: int = 0,
    high: int = 1 << 52,
    *,
    cells: int = 1024,
    progress: Progress = lambda pages: None,
    counter: Optional[ExclusionCounter] = None,
) -> PageCensus:
    """As :meth:`Pages.census`, which is used if one process is enough.

    :param jobs: maximum number of processes.
    :param counter: counts what the dump lacks, too.
    :raises Unavailable: a process ended before it had counted all of its pages.
    """
    sections = pages.sections.clip(low, high)
    jobs = min(jobs, len(sections.ranges))
    if jobs <= 1 or sections.total > pages.page_limit:
        also = counter.add if counter is not None else lambda piece, runs: None
        return pages.census(low, high, cells=cells, progress=progress, also=also)
    counted = pages.empty_census(low, high, cells)
    pages.fence, pages.decoder  # noqa: B018  read once, before there are several processes
    workers: List[_Worker] = []
    try:
        for first in range(jobs):
            try:
                workers.append(_Worker(pages, low, high, cells, (first, jobs), counter))
            except OSError:  # there cannot be more processes
                return census_in_jobs(pages, 1, low, high, cells=cells, progress=progress, counter=counter)
        for answer in _answers(workers, progress):
            _add(counted, answer["census"])
            if counter is not None:
                counter.merge(answer["excluded"])
    finally:
        for worker in workers:
            worker.end()
    return counted


class _Worker:
    """A process that counts some of the sections.

    :param share: number of its first section, and the distance to the next.
    """

    def __init__(
        self,
        pages: Pages,
        low: int,
        high: int,
        cells: int,
        share: Tuple[int, int],
        counter: Optional[ExclusionCounter],
    ) -> None:
        self.data = b""
        self.answered = False
        self.fd, out = os.pipe()
        try:
            self._pid: Optional[int] = os.fork()
        except OSError:
            os.close(self.fd)
            os.close(out)
            raise
        if self._pid == 0:
            _work(out, lambda tell: _count(pages, low, high, cells, share, counter, tell))
        os.close(out)

    def status(self) -> str:
        """Wait for its end, and say how it ended."""
        assert self._pid is not None
        _, status = os.waitpid(self._pid, 0)
        self._pid = None
        code = os.waitstatus_to_exitcode(status)
        return f"signal {-code}" if code < 0 else f"exit status {code}"

    def end(self) -> None:
        """End it if it still runs."""
        os.close(self.fd)
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            self.status()


def _work(out: int, count: Callable[[Progress], object]) -> NoReturn:
    """The whole life of a worker."""
    code = 1
    try:
        waiting, last = 0, time.monotonic()

        def tell(done: int) -> None:
            nonlocal waiting, last
            waiting += done
            if time.monotonic() - last >= _EVERY:
                _send(out, {"did": waiting})
                waiting, last = 0, time.monotonic()

        try:
            answer = count(tell)
        except KvintroError as error:
            answer = {"error": error.what}
        if waiting:
            _send(out, {"did": waiting})
        _send(out, answer)
        code = 0
    except BaseException:
        pass
    os._exit(code)


def _send(out: int, message: object) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(out, data) :]


def _answers(workers: List[_Worker], progress: Progress) -> Iterator[Dict[str, Any]]:
    """The answer of each worker, when it comes."""
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.fd, selectors.EVENT_READ, worker)
        while selector.get_map():
            for key, _ in selector.select():
                worker = key.data
                data = os.read(worker.fd, _AT_ONCE)
                if not data:
                    selector.unregister(worker.fd)
                    if not worker.answered:
                        raise Unavailable(
                            f"a process that counted pages ended by itself ({worker.status()})",
                            "count with --jobs 1",
                        )
                *lines, worker.data = (worker.data + data).split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    if "did" in message:
                        progress(message["did"])
                    elif "error" in message:
                        raise Unavailable(message["error"])
                    else:
                        worker.answered = True
                        yield message


def _count(
    pages: Pages,
    low: int,
    high: int,
    cells: int,
    share: Tuple[int, int],
    counter: Optional[ExclusionCounter],
    tell: Progress,
) -> Dict[str, Any]:
    """Count a worker's share; in that process."""
    also = counter.add if counter is not None else lambda piece, runs: None
    found = pages.census(low, high, cells=cells, progress=tell, also=also, share=share)
    return {
        "census": {
            "sums": [found.unmapped, found.missing, found.fenced],
            "limited": found.limited,
            "counts_objects": found.counts_objects,
            "groups": [
                [g.type, g.node, g.zone, g.order, g.first, g.kpageflags, n] for g, n in found.groups.items()
            ],
            "caches": [[at, u.slabs, u.pages, u.objects, u.in_use] for at, u in found.caches.items()],
            "cells": [[cell, row.tolist()] for cell, row in found.cells.items()],
        },
        "excluded": None if counter is None else counter.state(),
    }


def _add(counted: PageCensus, found: Dict[str, Any]) -> None:
    """Add a worker's counts."""
    import numpy

    unmapped, missing, fenced = found["sums"]
    counted.unmapped += unmapped
    counted.missing += missing
    counted.fenced += fenced
    counted.limited |= found["limited"]
    counted.counts_objects &= found["counts_objects"]
    groups: Counter[Group] = counted.groups
    for *members, pages in found["groups"]:
        groups[Group(*members)] += pages
    for address, *sums in found["caches"]:
        known = counted.caches[address]
        counted.caches[address] = CacheUse(
            *(a + b for a, b in zip((known.slabs, known.pages, known.objects, known.in_use), sums))
        )
    for cell, row in found["cells"]:
        more = numpy.array(row, numpy.int64)
        counted.cells[cell] = counted.cells[cell] + more if cell in counted.cells else more
