# SPDX-License-Identifier: LGPL-2.1-or-later
"""`user` against /proc/PID/maps, smaps, status and pagemap."""

from __future__ import annotations

import json
import re
import time
from typing import Any, Dict, Iterator, List, Set, Tuple

import pytest

from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.model import AddressRange
from kvintro.queries.translate import Input, Translator
from kvintro.readers.damage import Damage
from kvintro.readers.lists import list_entries
from kvintro.readers.structures import has_member, offset_of
from kvintro.render import render
from kvintro.reports.show import Selection
from kvintro.reports.user import user
from tests.conftest import Core
from tests.cores.showing import WILD, document, fresh, needs, number, overlay, text_of
from tests.timing import allowed

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)


def pids(core: Core) -> List[int]:
    found = sorted(int(path.name) for path in (core.truth_directory / "proc").glob("[0-9]*"))
    if not found:
        pytest.skip(f"{core.name} was taken without /proc/PID")
    return found


def process(kernel: Kernel, pid: int) -> Any:
    found = json.loads(render(user(kernel, pid, Selection()), "json"))
    assert found["schema"] == "kvintro.user/1"
    return found


def test_maps_line_by_line(core: Core, kernel: Kernel) -> None:
    needs(kernel, "vsyscall_mode")
    for pid in pids(core):
        report = user(kernel, pid, Selection(), maps=True)
        assert not report.partial and not report.notes
        assert text_of(report) == core.truth(f"proc/{pid}/maps").splitlines()


def smaps(core: Core, pid: int) -> Iterator[Tuple[int, Dict[str, int]]]:
    """(start, kB by name) of each area."""
    text = core.truth(f"proc/{pid}/smaps")
    for block in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.M)[1:]:
        numbers = {name: int(value) for name, value in re.findall(r"^(\w+): +(\d+) kB", block, re.M)}
        yield int(block.split("-", 1)[0], 16), numbers


def test_residency(core: Core, kernel: Kernel) -> None:
    needs(kernel, "vsyscall_mode")
    for pid in pids(core):
        rows = {number(row["start"]): row for row in process(kernel, pid)["vmas"]}
        for start, numbers in smaps(core, pid):
            row = rows[start]
            # Huge pages of hugetlbfs are counted separately.
            huge = numbers.get("Private_Hugetlb", 0) + numbers.get("Shared_Hugetlb", 0)
            # The kernel counts poisoned and migrating pages in Rss.
            assert (row["resident"] + row["moving"]) >> 10 == numbers["Rss"] + huge, (pid, row)
            assert row["swapped"] >> 10 == numbers["Swap"]
            assert row["size"] >> 10 == numbers["Size"]
            thp = (
                numbers["AnonHugePages"] + numbers.get("ShmemPmdMapped", 0) + numbers.get("FilePmdMapped", 0)
            )
            # Pages of hugetlbfs that are smaller have many small entries.
            large = thp + (huge if numbers["KernelPageSize"] >= core.huge_size >> 10 else 0)
            assert row["pages"].get(core.huge_name, 0) * core.huge_size >> 10 == large
            assert row["problem"] is None


def test_what_the_workload_mapped(core: Core, kernel: Kernel) -> None:
    found: Dict[int, Any] = {}
    for line in core.truth("workload").splitlines():
        pid_text, _, kind, start_text, end_text, *_ = line.split()
        pid, start, end = int(pid_text), int(start_text, 16), int(end_text, 16)
        if not start:
            continue
        rows = found.setdefault(pid, process(kernel, pid)["vmas"])
        if kind == "thp_split":
            # mprotect() split one area into three.
            within = [row for row in rows if number(row["start"]) < end and number(row["end"]) >= start]
            assert {row["permissions"] for row in within} == {"rw-p", "r--p"}
            assert all(number(a["end"]) + 1 == number(b["start"]) for a, b in zip(within, within[1:]))
            continue
        row = next(row for row in rows if number(row["start"]) <= start and end <= number(row["end"]) + 1)
        rights = {"prot_none": "---p", "read_only": "r--p", "zero_page": "r--p", "user_wx": "rwxp"}
        rights.update(exec_only="--xp", bti="r-xp", prot_none_before_swap="---p")
        assert row["permissions"][:3] == rights.get(kind, "rw-p")[:3]
        if kind == "zero_page":
            # The zero page is mapped, but is not counted.
            assert row["special"] >= core.page_size
        if kind == "prot_none":
            assert row["resident"] == end - start
        if kind == "hugetlb":
            assert row["pages"] == {core.huge_name: 1}
        if kind == "memfd":
            assert row["name"] == "/memfd:kvintro (deleted)"
        if kind in ("swapped", "swapped_shared", "swapped_memfd"):
            within = document(kernel, "user", pid=pid, within=AddressRange(start, end - 1))["vmas"]
            assert len(within) == 1 and within[0]["swapped"] >= end - start
        if kind == "poisoned":
            assert (row["moving"], row["resident"]) == (core.page_size, 3 * core.page_size)


def test_pagemap(core: Core, kernel: Kernel) -> None:
    """Every page that the process's own pagemap shows as present is in an area with that resident size."""
    present: Dict[int, int] = {}
    for line in core.truth("pagemap").splitlines():
        fields = line.split()
        if len(fields) == 3 and int(fields[2], 16) >> 63:
            present[int(fields[0])] = present.get(int(fields[0]), 0) + core.page_size
    assert present
    for pid, size in present.items():
        rows = process(kernel, pid)["vmas"]
        assert sum(row["resident"] + row["special"] for row in rows) == size


def test_entries_that_are_swapped(core: Core, kernel: Kernel) -> None:
    """Every entry with bit 62 in pagemap, in areas without a file, is a swap entry here."""
    swapped: Dict[int, Set[int]] = {}
    for line in core.truth("pagemap").splitlines():
        fields = line.split()
        if len(fields) == 3 and int(fields[2], 16) >> 62 & 1:
            swapped.setdefault(int(fields[0]), set()).add(int(fields[1], 16))
    if not swapped:
        pytest.skip(f"nothing was swapped out in {core.name}")
    for pid, addresses in swapped.items():
        for row in process(kernel, pid)["vmas"]:
            if row["inode"]:
                continue
            inside = [a for a in addresses if number(row["start"]) <= a <= number(row["end"])]
            marked = sum(row["markers"].values())
            assert row["swapped"] + row["moving"] + marked == len(inside) * core.page_size, row


# Documentation/admin-guide/mm/pagemap.rst: in place of a swapped page's frame its type and offset.
_SWAPPED, _GUARD, _UFFD_WP = 1 << 62, 1 << 58, 1 << 57
_MARKED = {"uffd_wp": "uffd-wp", "uffd_poison": "poisoned", "guard": "guard"}


def test_markers(core: Core, kernel: Kernel) -> None:
    """Markers, against the workload's own list, and against pagemap's bits for two of them."""
    lines = [line.split()[:5] for line in core.truth("workload").splitlines()]
    marked = [(int(pid), kind, int(start, 16), int(end, 16)) for pid, _, kind, start, end in lines]
    marked = [line for line in marked if line[1] in _MARKED and line[2]]
    if not marked:
        pytest.skip(f"{core.name} was taken with a workload that has no markers, or its kernel has none")
    entries = {}
    for line in core.truth("pagemap").splitlines():
        number_of, place, value = line.split()
        entries[int(number_of), int(place, 16)] = int(value, 16)
    translators: Dict[int, Translator] = {}
    for pid, kind, start, end in marked:
        row = next(r for r in process(kernel, pid)["vmas"] if number(r["start"]) <= start <= number(r["end"]))
        assert row["markers"] == {_MARKED[kind]: end - start}
        translator = translators.setdefault(pid, Translator(kernel, pid=pid))
        for address in range(start, end, core.page_size):
            pagemap = entries[pid, address]
            assert pagemap & _SWAPPED
            assert (kind == "uffd_wp") == bool(pagemap & _UFFD_WP)
            # 6.14 gave guard regions a bit of their own.
            assert (kind == "guard") or not pagemap & _GUARD
            note = translator.translate(Input("", address, "virtual")).note
            offset = (pagemap & (1 << 55) - 1) >> 5
            assert note is not None
            assert f"marker: {_MARKED[kind]} (swap type {pagemap & 31}, offset {offset:#x})" in note


def test_all(core: Core, kernel: Kernel) -> None:
    report = user(kernel, None, Selection())
    assert not report.partial
    rows = {row.pid: row for row in report.tables[0].rows}
    for pid in pids(core):
        status = dict(re.findall(r"^(\w+):\s+(.*)$", core.truth(f"proc/{pid}/status"), re.M))
        row = rows[pid]
        assert row.comm == status["Name"]
        assert row.size >> 10 == int(status["VmSize"].split()[0])
        huge = int(status["HugetlbPages"].split()[0])
        areas = [numbers for _, numbers in smaps(core, pid)]
        # Swap of an area includes shared memory, and VmSwap does not. Before 6.2, VmSwap and VmRSS lack what
        # each thread has counted by itself.
        said = int(status["VmSwap"].split()[0]), sum(numbers["Swap"] for numbers in areas)
        assert row.swapped >> 10 in said
        rss = sum(numbers["Rss"] for numbers in areas)
        moving = sum(vma["moving"] for vma in process(kernel, pid)["vmas"]) >> 10
        assert (row.resident >> 10) + moving == rss + huge
        assert row.areas == sum(
            1 for line in core.truth(f"proc/{pid}/maps").splitlines() if "vsyscall" not in line
        )
    # Only processes with memory of their own.
    kernel_threads = [pid for pid, ppid in parents(core).items() if 2 in (pid, ppid)]
    assert not set(rows) & set(kernel_threads)
    assert set(rows) <= set(parents(core))


def parents(core: Core) -> Dict[int, int]:
    lines = [line.split() for line in core.truth("proc-list").splitlines() if not line.startswith("#")]
    return {int(fields[0]): int(fields[1]) for fields in lines}


def test_who_is_there_and_who_is_not(core: Core, kernel: Kernel) -> None:
    with pytest.raises(UsageError, match="no process"):
        user(kernel, 999_999, Selection())
    with pytest.raises(UsageError, match="no user memory"):
        user(kernel, 2, Selection())


@pytest.mark.parametrize(
    ("cache", "head", "member"),
    [("task_struct", "init_task", "tasks"), ("kmem_cache", "slab_caches", "list")],
)
def test_no_memory_after_an_object_is_read(
    core: Core, cache: str, head: str, member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/slabinfo has the size of objects. The type can be larger, and the memory after an object can be
    a page that a filter removed."""
    kernel = fresh(core)
    needs(kernel, head)
    structure = f"struct {cache}"
    (line,) = re.findall(rf"^{cache} .*", core.truth("slabinfo"), re.M)
    size = int(line.split()[3])
    ends: Dict[int, int] = {}
    read = kernel.read

    def recorded(address: int, size: int) -> bytes:
        ends[address] = size
        return read(address, size)

    monkeypatch.setattr(kernel, "read", recorded)
    first = kernel.symbol(head) + (offset_of(kernel, structure, member) if head == "init_task" else 0)
    found = list(list_entries(kernel, first, structure, member, Damage(), "list"))
    assert len(found) > 30
    assert all(ends[address] <= size for address, _ in found)


def test_which_structure_the_kernel_has(core: Core, kernel: Kernel) -> None:
    """Both branches run on real cores: older kernels have areas in a list, newer ones in a tree."""
    tree = has_member(kernel, "struct mm_struct", "mm_mt")
    assert tree is not core.truth("release").startswith("5.")


@pytest.mark.parametrize("spoiled", ["a loop", *WILD])
def test_a_damaged_list_of_areas(core: Core, spoiled: str) -> None:
    kernel = fresh(core)
    from kvintro.readers.processes import find_process
    from kvintro.readers.structures import offset_of, pointer_at

    # A process whose tree has nodes below the root, so that a damaged node loses more than an area without
    # pages.
    pid = max(pids(core), key=lambda pid: (len(core.truth(f"proc/{pid}/maps").splitlines()), pid))
    found = find_process(kernel, pid)
    whole = len(user(kernel, pid, Selection()).tables[0].rows)
    if has_member(kernel, "struct mm_struct", "mm_mt"):
        at = (
            found.mm
            + offset_of(kernel, "struct mm_struct", "mm_mt")
            + offset_of(kernel, "struct maple_tree", "ma_root")
        )
        root = pointer_at(kernel, at)
        if root & 3 != 2:
            pytest.skip("its tree is a single entry")
        # The second slot of the root: a child, or an area.
        node = root & ~255
        kind = "ma64" if root >> 3 & 15 == 3 else "mr64"
        inner = "struct maple_arange_64" if kind == "ma64" else "struct maple_range_64"
        victim = node + offset_of(kernel, inner, "slot") + 8
        overlay(kernel, victim, node | 0x1C if spoiled == "a loop" else WILD[spoiled])
    else:
        first = pointer_at(kernel, found.mm + offset_of(kernel, "struct mm_struct", "mmap"))
        offset = offset_of(kernel, "struct vm_area_struct", "vm_next")
        second = pointer_at(kernel, first + offset)
        overlay(kernel, second + offset, first if spoiled == "a loop" else WILD[spoiled])
    started = time.process_time()
    report = user(kernel, pid, Selection())
    assert time.process_time() - started < allowed(10)
    assert len(report.tables[0].rows) < whole
    # A NULL ends the list too early; pages outside any area reveal that.
    assert report.partial or any("mapped outside areas" in note for note in report.notes)


@pytest.mark.parametrize("spoiled", ["a loop", *WILD])
def test_a_damaged_tree_of_a_file(core: Core, spoiled: str) -> None:
    """The tree of shared memory, whose entries show swapped pages."""
    match = re.search(r"^(\d+) \S+ swapped_memfd (\w+)", core.truth("workload"), re.M)
    if not match:
        pytest.skip(f"{core.name} has no shared memory that is swapped out")
    kernel = fresh(core)
    from kvintro.readers.damage import Damage
    from kvintro.readers.processes import find_process, mm_of
    from kvintro.readers.structures import offset_of, pointer_at
    from kvintro.readers.vmas import vmas_of

    pid, start = int(match[1]), int(match[2], 16)
    found = find_process(kernel, pid)
    mapping = next(
        vma.mapping for vma in vmas_of(kernel, found, mm_of(kernel, found), Damage()) if vma.start == start
    )
    head = (
        mapping
        + offset_of(kernel, "struct address_space", "i_pages")
        + offset_of(kernel, "struct xarray", "xa_head")
    )
    node = pointer_at(kernel, head)
    slot = node - 2 + offset_of(kernel, "struct xa_node", "slots") + 8
    # Nodes at the lowest level contain values; with a level above them, their pointers are followed.
    overlay(kernel, node - 2, 6)
    overlay(kernel, slot, node if spoiled == "a loop" else WILD[spoiled] | 2)
    started = time.process_time()
    report = user(kernel, pid, Selection())
    assert time.process_time() - started < allowed(10)
    assert report.partial == (spoiled != "NULL")
    assert start in [row.start for row in report.tables[0].rows]


@pytest.mark.parametrize("spoiled", ["a loop", *WILD])
def test_a_damaged_list_of_processes(core: Core, spoiled: str) -> None:
    kernel = fresh(core)
    from drgn.helpers.linux.list import list_for_each

    tasks = kernel.prog["init_task"].tasks.address_of_()
    nodes = [int(node.value_()) for node in list_for_each(tasks)]
    before = len(user(kernel, None, Selection()).tables[0].rows)
    overlay(kernel, nodes[4], nodes[1] if spoiled == "a loop" else WILD[spoiled])
    report = user(kernel, None, Selection())
    assert report.partial
    assert len(report.tables[0].rows) == before
