# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory against drgn's own reads and objects, the kernel's pagemap, and texts that processes wrote."""

from __future__ import annotations

import gzip
import json
import re
from typing import Dict, Iterator, List, Tuple

import drgn
import pytest

from kvintro.errors import NotInDump, UsageError
from kvintro.kernels import Kernel
from kvintro.queries.members import Member, Members, inferred_type, type_named
from kvintro.queries.memory import MemoryWord, Space, Words
from kvintro.reports.read import raw, read
from tests.conftest import Core
from tests.cores.showing import needs

ARCHITECTURES = ("amd64", "arm64", "riscv64")
ONE_OF_EACH_SERIES = ("amd64", "arm64")


@pytest.fixture
def typed(kernel: Kernel) -> Kernel:
    if kernel.source.types == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its types")
    needs(kernel, "init_task")
    return kernel


@pytest.fixture
def named(typed: Kernel) -> Kernel:
    """A kernel whose variables have names."""
    if typed.code_only:
        pytest.skip("this kernel names its code only (CONFIG_KALLSYMS_ALL is off)")
    return typed


def words(kernel: Kernel, text: str, size: int = 128) -> List[MemoryWord]:
    rows = read(kernel, text, size=size).tables[0].rows
    return [row for row in rows if isinstance(row, MemoryWord)]


def members(kernel: Kernel, text: str, type_name: str) -> Dict[str, Member]:
    rows = read(kernel, text, type_name=type_name).tables[0].rows
    return {row.name: row for row in rows if isinstance(row, Member) and row.label}


def test_words_are_what_drgn_reads(typed: Kernel) -> None:
    start = typed.symbol("init_task") + 3
    expected: bytes = typed.prog.read(start, 1021)
    found = words(typed, f"{start:x}", 1021)
    assert b"".join(int(w.value or 0).to_bytes(w.size, typed.form.byte_order) for w in found) == expected
    assert [w.address for w in found] == list(range(start, start + 1021, 8))
    assert b"".join(raw(typed, f"{start:x}", size=1021).pieces) == expected


def test_physical_memory_is_that_of_the_symbol(typed: Kernel) -> None:
    physical = typed.walk(typed.symbol("init_task")).physical
    report = read(typed, "init_task", size=64, physical=True)
    assert report.extra["address"] == physical and report.extra["space"] == "physical"
    values = [row.value for row in report.tables[0].rows if isinstance(row, MemoryWord)]
    assert values == [typed.prog.read_u64(typed.symbol("init_task") + 8 * n) for n in range(8)]


def _written(core: Core) -> Iterator[Tuple[int, int, int]]:
    """(pid, start, end) of the areas whose pages contain a text that names them (vmcores/guest/process.h)."""
    for line in core.truth("workload").splitlines():
        found = re.match(r"(\d+) \S+ (?:anon|read_only|prot_none|thp) ([0-9a-f]+) ([0-9a-f]+) ", line)
        if found:
            yield int(found[1]), int(found[2], 16), int(found[3], 16)


def test_memory_of_a_process_is_what_it_wrote(core: Core, typed: Kernel) -> None:
    page = typed.form.page_size
    compared = 0
    for pid, start, end in _written(core):
        space = Space(typed, pid=pid)
        for address in range(start, end, page)[:16]:
            try:
                found = space.read(address, 64)
            except NotInDump:
                continue  # makedumpfile excluded user memory
            assert re.match(rb"kvintro \S+ %016x\0" % address, found)
            compared += 1
    if core.meta.get("left_out") is None:
        assert compared > 20


def test_memory_of_a_process_is_where_its_pagemap_says(core: Core, typed: Kernel) -> None:
    spaces: Dict[int, Space] = {}
    lines = [line.split() for line in core.truth("pagemap").splitlines()]
    compared = 0
    for pid, address, entry in [(int(p), int(a, 16), int(e, 16)) for p, a, e in lines][::29]:
        if not entry >> 63 or not (frame := entry & (1 << 55) - 1) > 0:
            continue
        space = spaces.setdefault(pid, Space(typed, pid=pid))
        try:
            expected = typed.prog.read(frame << typed.page_shift, typed.form.page_size, True)
        except drgn.FaultError:
            continue  # not in this dump
        assert space.read(address, typed.form.page_size) == expected
        compared += 1
    assert compared > 20 or core.meta.get("left_out")


def test_members_are_what_drgn_says(named: Kernel) -> None:
    task = named.prog["init_task"]
    found = members(named, "init_task", "struct task_struct")
    checked = 0
    for name, member in found.items():
        # Elements of arrays are compared at the places of their arrays.
        theirs = task
        for part in re.findall(r"\w+|\[\d+\]", name):
            theirs = theirs[int(part[1:-1])] if part[0] == "[" else theirs.member_(part)
        assert theirs.bit_field_size_ == member.bit_size
        if member.bit_size is None:
            assert theirs.address_ == member.address, name
        if member.number is not None:
            assert int(theirs.value_()) == member.number, name
            checked += 1
    assert checked > 150
    assert found["comm"].value == '"swapper/0"'
    assert found["tasks.next"].points_to == "struct list_head"
    assert found["group_leader"].identity is not None and found["group_leader"].identity.kind == "task"


def test_each_word_has_the_name_of_the_kernels_own_table(core: Core, named: Kernel) -> None:
    """Function pointers in a table, against /proc/kallsyms of the same boot."""
    names: Dict[int, List[str]] = {}
    path = core.truth_directory / "kallsyms.gz"
    if not path.exists():
        pytest.skip(f"{core.name} was taken without kallsyms.gz")
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        address, _, name = line.split()[:3]
        names.setdefault(int(address, 16), []).append(name)
    compared = 0
    for word in words(named, "sys_call_table", 512):
        if word.value in names:
            assert word.identity is not None and word.identity.kind == "symbol"
            assert word.identity.details["name"] in names[word.value]
            compared += 1
    assert compared > 20 or core.meta.get("kallsyms_sampled")


def test_the_type_of_an_object_is_told_by_its_slab_cache(named: Kernel) -> None:
    task = next(t for t in drgn.helpers.linux.pid.for_each_task(named.prog) if t.pid.value_() == 2)
    words_ = Words(Space(named))
    inside = words_.space.parse(f"{task.value_() + 0x18:x}")
    assert inferred_type(named, words_.identifier.identify(inside).identities) == (
        "struct task_struct",
        task.value_(),
    )


def test_what_cannot_be_read_is_said_word_by_word(core: Core, typed: Kernel) -> None:
    """The emulator's MMU shows which words are not mapped."""
    known = json.loads(core.truth("gva2gpa.json"))
    holes = [int(v, 16) for v, p in known.items() if not str(p).startswith("0x")]
    hole = next((v for v in holes if v in typed.form.kernel and not v % typed.form.page_size), None)
    if hole is None:
        pytest.skip(f"all that the emulator was asked of {core.name} is mapped")
    report = read(typed, f"{hole:x}", size=16)
    assert report.negative and not report.partial
    assert {(word.value, word.state) for word in words(typed, f"{hole:x}")} == {(None, "unmapped")}
    with pytest.raises(NotInDump):
        list(raw(typed, f"{hole:x}", size=16).pieces)


def test_usage(typed: Kernel) -> None:
    for wrong in ("struct no_such_thing", "1", "struct (", "void"):
        with pytest.raises(UsageError):
            type_named(typed, wrong)
    with pytest.raises(UsageError, match="does not belong to a process"):
        Space(typed, pid=1, physical=True)
    assert Members(Words(Space(typed))).of(type_named(typed, "list_head"), typed.symbol("init_task"))
