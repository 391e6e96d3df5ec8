# SPDX-License-Identifier: LGPL-2.1-or-later
"""A census in several processes is the census of one, and fails if one of them ends."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
from typing import Any, Dict, List

import pytest

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.queries.pages.census import PageCensus, Pages
from kvintro.queries.pages.jobs import census_in_jobs, usual_jobs
from kvintro.reports.pages import pages_report

ARCHITECTURES = ("amd64", "arm64")
SHIPPED_ONLY = ("arm64",)


def plain(census: PageCensus) -> Dict[str, Any]:
    """A census in a form that can be compared."""
    found = {f.name: getattr(census, f.name) for f in dataclasses.fields(census)}
    return {**found, "cells": {cell: row.tolist() for cell, row in census.cells.items()}}


@pytest.mark.parametrize("where", [(0, 1 << 52), (0x1234, 0x8765)])
def test_processes_count_what_one_counts(kernel: Kernel, where: "tuple[int, int]") -> None:
    ticks: List[int] = []
    found = census_in_jobs(Pages(kernel), 2, *where, cells=64, progress=ticks.append)
    alone = Pages(kernel).census(*where, cells=64)
    assert plain(found) == plain(alone)
    assert sum(ticks) >= alone.total


def test_the_report_is_the_same(kernel: Kernel) -> None:
    one, two = (pages_report(kernel, jobs=jobs) for jobs in (1, 2))
    assert (one.tables, one.notes, one.partial) == (two.tables, two.notes, two.partial)
    assert usual_jobs(Pages(kernel)) == 1


@pytest.mark.parametrize("started", [0, 1])
def test_one_process_counts_if_there_cannot_be_more(
    kernel: Kernel, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages, fork, calls = Pages(kernel), os.fork, []
    if len(pages.sections.ranges) < 2:
        pytest.skip("the machine has a single section of memory")

    def limited() -> int:
        calls.append(1)
        if len(calls) > started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    assert plain(census_in_jobs(pages, 2)) == plain(Pages(kernel).census())
    assert len(calls) == started + 1
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # none is left


def test_a_process_that_ends_makes_the_census_fail(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(kernel)
    if len(pages.sections.ranges) < 2:
        pytest.skip("the machine has a single section of memory")
    census, parent = Pages.census, os.getpid()

    def killed(self: Pages, *arguments: Any, share: "tuple[int, int]", **words: Any) -> PageCensus:
        assert os.getpid() != parent
        if share[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return census(self, *arguments, share=share, **words)

    monkeypatch.setattr(Pages, "census", killed)
    with pytest.raises(Unavailable, match=r"ended by itself \(signal 9\)") as error:
        census_in_jobs(pages, 2)
    assert error.value.remedy == "count with --jobs 1"
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)  # none is left


def test_a_process_that_cannot_read_says_why(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = Pages(kernel)
    if len(pages.sections.ranges) < 2:
        pytest.skip("the machine has a single section of memory")

    def refused(*_: Any, **__: Any) -> PageCensus:
        raise Unavailable("the section is gone")

    monkeypatch.setattr(Pages, "census", refused)
    with pytest.raises(Unavailable, match="the section is gone"):
        census_in_jobs(pages, 2)


_LIMITED = """
import json, os
from kvintro.queries.pages.jobs import _work
from kvintro.source import sandbox

def limits(tell):
    import socket
    lines = open("/proc/self/status").read().splitlines()
    try:
        socket.socket()
    except PermissionError:
        return {"socket": "refused", "seccomp": [line for line in lines if line.startswith("Seccomp:")]}
    return {"socket": "made"}

sandbox.enter([])
read, write = os.pipe()
if os.fork() == 0:
    _work(write, limits)
os.close(write)
print(os.fdopen(read).read())
"""


def test_the_sandbox_holds_in_the_processes() -> None:
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, check=True, text=True)
    found = json.loads(done.stdout)
    if found["socket"] == "made":
        pytest.skip("this system does not limit system calls")
    assert found == {"socket": "refused", "seccomp": ["Seccomp:\t2"]}
