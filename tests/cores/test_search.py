# SPDX-License-Identifier: LGPL-2.1-or-later
"""Matches in memory, against Python's own search of all memory, and texts that processes wrote."""

from __future__ import annotations

import re
from typing import List, Set

import pytest

from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.queries.memory import Space
from kvintro.queries.search import (
    Pattern,
    Search,
    pointer_pattern,
    runs_of,
    value_pattern,
)
from kvintro.reports.search import Question, search
from tests.conftest import Core
from tests.cores.conftest import Range
from tests.cores.showing import needs

ARCHITECTURES = ("amd64", "arm64", "riscv64")
ONE_OF_EACH_SERIES = ("amd64", "arm64")


@pytest.fixture
def typed(kernel: Kernel) -> Kernel:
    if kernel.source.types == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its types")
    needs(kernel, "init_task")
    return kernel


def _everywhere(memory: List[Range], data: bytes) -> Set[int]:
    """Physical addresses of all matches of some bytes."""
    return {start + m.start() for start, content in memory for m in re.finditer(re.escape(data), content)}


def _physical(kernel: Kernel, pattern: Pattern, *, physical: bool) -> List[int]:
    """Physical addresses of a pattern in all readable pages."""
    space = Space(kernel, physical=physical)
    runs, gaps, _ = runs_of(space, [])
    places = [match.address for match in Search(space, pattern, runs, gaps).matches()]
    return sorted(places if physical else [kernel.walk(place).physical or 0 for place in places])


def test_all_places_are_found_once(typed: Kernel, memory: List[Range]) -> None:
    value = typed.symbol("init_task")
    data = value.to_bytes(8, typed.form.byte_order)
    expected = sorted(_everywhere(memory, data))
    assert len(expected) > 10
    assert _physical(typed, value_pattern(typed, value, False), physical=False) == expected
    assert _physical(typed, pointer_pattern(value, 1), physical=True) == [p for p in expected if p % 8 == 0]


@pytest.mark.parametrize("name", ["anon", "none"])
def test_a_process_has_what_it_wrote(core: Core, typed: Kernel, name: str) -> None:
    """Also in pages that it then made inaccessible (PROT_NONE)."""
    kind = "prot_none" if name == "none" else name
    areas = re.findall(rf"^(\d+) \S+ {kind} ([0-9a-f]+) ([0-9a-f]+) ", core.truth("workload"), re.M)
    if core.meta.get("left_out"):
        pytest.skip(f"memory of processes was left out of {core.name}")
    pid, start, end = int(areas[0][0]), int(areas[0][1], 16), int(areas[0][2], 16)
    report = search(typed, Question(string=f"kvintro {name} "), pid=pid)
    assert [row.address for row in report.tables[0].rows] == list(range(start, end, typed.form.page_size))
    if typed.code_only:
        pytest.skip("identify does not lead from memory to its page on a kernel without names of variables")
    everywhere = search(typed, Question(string=f"kvintro {name} {start:016x}"))
    things = [thing for row in everywhere.tables[0].rows for thing in row.identities]
    # Some of these pages can be in freed parts of the image that page tables still map.
    assert any(
        thing.kind == "page" and pid in thing.details["pids"] and thing.details["type"] == "anon"
        for thing in things
    ), things


def test_pointers_to_an_object(typed: Kernel) -> None:
    """The idle task is the leader of its own group, so it points to itself."""
    task = typed.prog["init_task"]
    size = task.type_.size
    report = search(typed, Question(to="init_task", size=size), regions=["kernel_image"])
    found = {row.address: row.value for row in report.tables[0].rows}
    leader = task.group_leader
    assert found[leader.address_] == leader.value_() == task.address_
    assert all(task.address_ <= (value or 0) < task.address_ + size for value in found.values())


def test_it_stops_at_the_limit(typed: Kernel) -> None:
    report = search(typed, Question(to="init_task"), limit=3)
    assert len(report.tables[0].rows) == 3 and not report.extra["complete"]
    assert any("stopped after 3" in note for note in report.notes)


def test_usage(typed: Kernel) -> None:
    wrong = (
        Question(),
        Question("init_task", string="x"),
        Question(string=""),
        Question(regex="("),
        Question("init_task", size=4),
        Question("no_such_symbol"),
    )
    for question in wrong:
        with pytest.raises(UsageError):
            search(typed, question)
    with pytest.raises(UsageError, match="regions"):
        search(typed, Question("init_task"), regions=["vmalloc"], physical=True)
