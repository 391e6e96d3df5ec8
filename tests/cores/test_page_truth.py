# SPDX-License-Identifier: LGPL-2.1-or-later
"""Single pages and the reverse map against /proc/PID/pagemap, /proc/kpagecount and the workload itself."""

from __future__ import annotations

import gzip
import json
import re
import struct
from collections import Counter, defaultdict
from typing import Any, Dict, Iterator, List, Set, Tuple

import numpy
import pytest

from kvintro.cli import main
from kvintro.errors import Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.queries.pages.meaning import KPF_BUDDY, KPF_NOPAGE, KPF_SWAPCACHE
from kvintro.queries.pages.one import PageLookup, PageState
from kvintro.queries.rmap import ReverseMap, UserMappings, mappings_by_walk
from kvintro.readers.structures import offset_of, pointer_at
from kvintro.render import render
from kvintro.reports.aliases import alias_report
from kvintro.reports.layout import layout
from kvintro.reports.page import PageRow, page_report
from kvintro.source import Request
from tests.conftest import Core
from tests.cores.test_pages_truth import words

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)

PFN = (1 << 55) - 1  # Documentation/admin-guide/mm/pagemap.rst
PRESENT, SWAPPED, FILE = 1 << 63, 1 << 62, 1 << 61


class Truth:
    """What processes reported about their own memory."""

    def __init__(self, core: Core) -> None:
        self.page_size = core.page_size
        self.entries: Dict[Tuple[int, int], int] = {}
        for line in core.truth("pagemap").splitlines():
            pid, address, entry = line.split()
            self.entries[int(pid), int(address, 16)] = int(entry, 16)
        self.pids = {pid for pid, _ in self.entries}
        self.by_pfn: Dict[int, Set[Tuple[int, int]]] = defaultdict(set)
        for place, value in self.entries.items():
            if value & PRESENT:
                self.by_pfn[value & PFN].add(place)
        self.workload: List[Tuple[int, str, str, int, int]] = []
        for line in core.truth("workload").splitlines():
            pid, comm, kind, start, end, *_ = line.split()
            if int(start, 16):
                self.workload.append((int(pid), comm, kind, int(start, 16), int(end, 16)))

    def of(self, kind: str) -> List[Tuple[int, str, int, int]]:
        """(pid, comm, address, page frame) of the pages of one part of the workload."""
        out = []
        for pid, comm, name, start, end in self.workload:
            if name == kind:
                for address in range(start, end, self.page_size):
                    entry = self.entries.get((pid, address), 0)
                    if entry & PRESENT:
                        out.append((pid, comm, address, entry & PFN))
        return out


@pytest.fixture(scope="module")
def truth(core: Core) -> Truth:
    return Truth(core)


@pytest.fixture(scope="module")
def lookup(kernel: Kernel) -> PageLookup:
    if kernel.source.types == "none":
        pytest.skip("nothing in this dump leads to its types")
    return PageLookup(kernel)


@pytest.fixture(scope="module")
def traced(kernel: Kernel, lookup: PageLookup, truth: Truth) -> Dict[int, UserMappings]:
    """The reverse map of every page that the workload has."""
    rmap = ReverseMap(kernel)
    return {pfn: rmap.mappings(lookup.state(pfn)) for pfn in truth.by_pfn}


def online(core: Core, name: str, lookup: PageLookup) -> Iterator[Tuple[PageState, int]]:
    """(page, word) of /proc/kpagecount or /proc/kpagecgroup, of pages that the kernel has.

    These are all pages with a nonzero word, and some of the others.
    """
    values = words(core, name).tolist()
    flags = words(core, "kpageflags").tolist()
    for low, high in lookup.pages.sections.ranges:
        for pfn in range(low, high):
            if flags[pfn] == 1 << KPF_NOPAGE:
                assert values[pfn] == 0
                continue
            if values[pfn] == 0 and pfn % 97:
                continue
            try:
                page = lookup.state(pfn)
            except Unavailable:
                assert values[pfn] == 0  # not online; newer kernels do not have a flag for this
            else:
                yield page, values[pfn]


def places(found: UserMappings, pids: Set[int]) -> Set[Tuple[int, int]]:
    return {(m.pid, int(m.address)) for m in found.found if m.pid in pids}


def test_every_page_traces_back_to_exactly_who_maps_it(
    truth: Truth, lookup: PageLookup, traced: Dict[int, UserMappings]
) -> None:
    assert len(truth.by_pfn) > 1000
    for pfn, expected in truth.by_pfn.items():
        found = traced[pfn]
        assert not found.damaged, found.notes
        if found.way is None:
            # The zero page is not in a reverse map, because it is never reclaimed. Nor is kernel memory that
            # processes map (BPF arenas).
            zero = "reserved" if lookup.pages.zero_unknown else "zero"
            assert lookup.kind(lookup.state(pfn)) in (zero, "kernel")
            continue
        assert places(found, truth.pids) == expected, f"{pfn:x} {found.way}"


def test_looking_through_all_page_tables_finds_the_same(
    kernel: Kernel, truth: Truth, traced: Dict[int, UserMappings]
) -> None:
    pfns, walked = list(truth.by_pfn), {}
    # A search ends after 32,768 places.
    for at in range(0, len(pfns), 4096):
        walked.update(mappings_by_walk(kernel, pfns[at : at + 4096]))
    assert not any(found.damaged for found in walked.values())
    for pfn, expected in truth.by_pfn.items():
        assert places(walked[pfn], truth.pids) == expected
        if traced[pfn].way is not None:
            # All processes, not only those in the truth; also rights and page sizes.
            def said(found: UserMappings) -> Set[Any]:
                return {(m.pid, m.address, m.state, m.rights[:3], m.page_size) for m in found.found}

            assert said(walked[pfn]) == said(traced[pfn])


def test_workload(core: Core, truth: Truth, lookup: PageLookup, traced: Dict[int, UserMappings]) -> None:
    """Each kind of memory has its type, its rights and its sharers."""
    expected = {
        # kind: (types, way, rights of the owner or of a sharer, state)
        "anon": ({"anon"}, "anon_vma", {"rw-p", "r--p"}, "mapped"),
        "prot_none": ({"anon"}, "anon_vma", {"---p"}, "protnone"),
        "read_only": ({"anon"}, "anon_vma", {"r--p"}, "mapped"),
        "user_wx": ({"anon"}, "anon_vma", {"rwxp", "r-xp"}, "mapped"),
        "thp": ({"thp", "anon"}, "anon_vma", {"rw-p", "r--p"}, "mapped"),
        "hugetlb": ({"hugetlb"}, "anon_vma", {"rw-p", "r--p"}, "mapped"),
        "secret": ({"file"}, "i_mmap", {"rw-s"}, "mapped"),
        "memfd": ({"shmem"}, "i_mmap", {"rw-s"}, "mapped"),
        "shared_anon": ({"shmem"}, "i_mmap", {"rw-s"}, "mapped"),
        "cow_broken": ({"anon"}, "anon_vma", {"rw-p"}, "mapped"),
        "locked": ({"anon"}, "anon_vma", {"rw-p", "r--p"}, "mapped"),
    }
    seen = set()
    for kind, (types, way, rights, state) in expected.items():
        for pid, comm, address, pfn in truth.of(kind):
            seen.add(kind)
            page = lookup.state(pfn)
            assert lookup.kind(page) in types, (kind, hex(pfn))
            assert traced[pfn].way == way
            (own,) = [m for m in traced[pfn].found if (m.pid, m.address) == (pid, address)]
            assert own.comm == comm[:15]
            assert own.state == state
            assert own.rights in rights, kind
            assert own.area_start is not None and own.area_end is not None
            assert own.area_start <= address <= own.area_end
            if kind == "hugetlb":
                assert own.page_size == core.huge_size
            if kind == "secret":
                assert lookup.direct_address(pfn) is None
                file = lookup.file(page)
                assert file is not None and file.file_system == "secretmem"
            if kind == "memfd":
                file = lookup.file(page)
                assert file is not None and file.path == "memfd:kvintro"
    assert {"anon", "prot_none", "memfd", "shared_anon", "cow_broken"} <= seen


def _smaps(core: Core, pid: int, address: int) -> Dict[str, int]:
    """Values in /proc/PID/smaps of the area at an address, in KB."""
    inside = False
    found: Dict[str, int] = {}
    for line in core.truth(f"proc/{pid}/smaps").splitlines():
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            inside = int(head[1], 16) <= address < int(head[2], 16)
        elif inside and line.endswith(" kB"):
            name, value = line[:-3].split(":")
            found[name] = int(value)
    return found


def test_huge_pages_are_mapped_whole_or_in_parts(
    core: Core, truth: Truth, lookup: PageLookup, traced: Dict[int, UserMappings]
) -> None:
    """Transparent huge pages: one mapped by a single entry, one whose entry was split, both after a fork."""
    meminfo = core.truth("meminfo")
    if not re.search(r"^AnonHugePages: +[1-9]", meminfo, re.M):
        pytest.skip(f"the guest of {core.name} had no transparent huge pages")
    for kind, page_size in (("thp", core.huge_size), ("thp_split", core.page_size)):
        if kind not in {name for _, _, name, _, _ in truth.workload}:
            pytest.skip(f"{core.name} was taken with a workload that had no {kind}")
        pages = truth.of(kind)
        assert len(pages) == core.huge_size // core.page_size
        pid, _, start, first = pages[0]
        assert _smaps(core, pid, start)["AnonHugePages"] == (page_size >> 10 if kind == "thp" else 0)
        # 4 pages in the middle.
        part = start + core.huge_size // 2, start + core.huge_size // 2 + 4 * core.page_size
        for index, (_, _, address, pfn) in enumerate(pages):
            page = lookup.state(pfn)
            assert pfn == first + index and page.head_pfn == first
            assert lookup.kind(page) == "thp" and len(pages) == 1 << (lookup.order(page) or 0)
            assert lookup.compound(page) == ("tail" if index else "head")
            assert [m.comm for m in traced[pfn].found] == ["kv-memory", "kv-child"]
            for found in traced[pfn].found:
                assert (found.address, found.page_size) == (address, page_size)
                readable = kind == "thp_split" and part[0] <= address < part[1]
                # After the fork, a write always makes a copy; the child's area gives its rights.
                assert found.rights == "r--p"
                area = (int(found.area_start or 0), int(found.area_end or 0) + 1)
                assert (area == part) == readable


def test_pages_are_charged_to_the_cgroup_that_kpagecgroup_names(
    core: Core, truth: Truth, lookup: PageLookup
) -> None:
    """Every page that the kernel reports as charged, and some of the others."""
    if not core.has_truth("kpagecgroup.gz"):
        pytest.skip(f"{core.name} was taken without kpagecgroup: its kernel has no MEMCG, or it is older")
    paths = {}
    for line in core.truth("cgroups").splitlines():
        number, name = line.split()
        paths[int(number)] = name.rstrip("/") or "/"
    named: Set[str] = set()
    tails: Set[bool] = set()
    moved = 0
    flags = words(core, "kpageflags").tolist()
    for page, inode in online(core, "kpagecgroup", lookup):
        pfn = page.pfn
        group = lookup.group(page)
        path = group.path if group is not None else None
        assert group is None or path is not None
        if path is not None and page.head_pfn != pfn:
            # Until 6.5 the kernel looked at the tail of a compound page itself, which is not charged.
            tails.add(inode != 0)
            if inode == 0:
                continue
        if path != paths.get(inode):
            # Free in the dump, or freed before kpageflags was read.
            moved += 1
            assert lookup.kind(page) in ("free", "free_cpu") or flags[pfn] in (0, 1 << KPF_BUDDY), f"{pfn:x}"
            continue
        named.update(filter(None, (path,)))
    assert len(tails) < 2
    # Each CPU frees some pages together (PAGEVEC_SIZE, include/linux/pagevec.h).
    assert moved <= 31 * len(re.findall(r"^processor", core.truth("cpuinfo"), re.M))
    assert "/kvintro/work" in named
    for _, _, _, pfn in truth.of("anon"):
        assert lookup.group(lookup.state(pfn)).path == "/kvintro/work"  # type: ignore[union-attr]


_OWNER = re.compile(
    r"Page allocated via order (\d+), mask (0x[0-9a-f]+)\(.*\), "
    r"pid (-?\d+), tgid (-?\d+) \((.*)\), ts (\d+) ns.*\n"
    r"PFN (\w+) .*\n((?: .*\n)*)"
)


def test_owners_are_those_of_page_owner(core: Core, kernel: Kernel, lookup: PageLookup) -> None:
    """The process and the calls that allocated each page, against /sys/kernel/debug/page_owner."""
    if not core.has_truth("page_owner.gz"):
        pytest.skip(f"{core.name} was booted without page_owner=on, or its kernel has no PAGE_OWNER")
    text = gzip.decompress((core.truth_directory / "page_owner.gz").read_bytes()).decode()
    addresses: Dict[str, Set[int]] = defaultdict(set)
    symbols = gzip.decompress((core.truth_directory / "kallsyms.gz").read_bytes()).decode()
    for line in symbols.splitlines():
        address, _, name, *_ = line.split()
        addresses[name].add(int(address, 16))
    records = list(_OWNER.finditer(text))
    assert len(records) > 2000
    same = 0
    for record in records[::5]:
        order, gfp, pid, tgid, comm, when, pfn, stack = record.groups()
        # It was decimal up to 6.10.
        owner = lookup.owner(lookup.state(int(pfn, 0)))
        assert owner is not None
        if owner.nanoseconds != int(when):
            continue  # allocated again after the file was read
        same += 1
        assert (owner.order, owner.gfp, owner.pid, owner.tgid, owner.comm) == (
            int(order),
            int(gfp, 16),
            int(pid),
            int(tgid),
            comm,
        )
        lines = re.findall(r"^ *(\S+\+0x[0-9a-f]+/0x\S+|0x[0-9a-f]+)(?: .*)?$", stack, re.M)
        assert len(owner.stack) == len(lines) > 0
        last = owner, pfn
        for frame, line in zip(owner.stack, lines):
            if line.startswith("0x"):  # a module's init code is freed after initialisation
                assert int(line, 16) == frame.address and frame.symbol is None
                continue
            name, into = line.split("/")[0].rsplit("+", 1)
            start = int(frame.address) - int(into, 16)
            assert start in addresses[name], line
            if int(into, 16) == 0:
                continue  # a call that never returns is followed by another function
            # If a function has several names, the kernel takes the first, and kvintro the first global one.
            ours, our_into = str(frame.symbol).split(" ")[0].rsplit("+", 1)
            assert our_into == into and start in addresses[ours], (frame.symbol, line)
    assert same > len(records) / 5 * 0.95, (same, len(records))
    # The output: the process, and below it the calls, innermost first.
    owner, pfn = last
    printed = render(page_report(kernel, [f"pfn:{int(pfn, 0):x}"]), "text").partition("  owner")[2]
    assert f"at order {owner.order} by pid {owner.pid} ({owner.comm}) at " in printed.splitlines()[0]
    said = [line.strip() for line in printed.splitlines()[1:]]
    assert said[: len(owner.stack)] == [frame.symbol or f"{frame.address:016x}" for frame in owner.stack]


def test_swapped_pages_lie_in_the_swap_cache_at_the_entries_of_pagemap(
    core: Core, kernel: Kernel, truth: Truth, lookup: PageLookup
) -> None:
    """Pages that were swapped out but are still in memory: the entry that pagemap shows in place of each."""
    cached = {}
    for pfn in numpy.flatnonzero(words(core, "kpageflags") >> KPF_SWAPCACHE & 1).tolist():
        page = lookup.state(pfn)
        place = lookup.swap(page)
        assert place is not None
        cached[place.type, place.offset] = page
    if not cached:
        pytest.skip(f"the guest of {core.name} has nothing in its swap cache")
    (held,) = re.findall(r"^SwapCached: +(\d+) kB", core.truth("meminfo"), re.M)
    assert len(cached) * core.page_size >> 10 == int(held)
    named = {"swapped": 64, "swapped_partly": 12, "swapped_shared": 32}
    seen: Counter[str] = Counter()
    for pid, _, kind, start, end in truth.workload:
        for address in range(start, end, core.page_size) if kind in named else ():
            entry = truth.entries[pid, address]
            if not entry & SWAPPED:
                continue
            page = cached[entry & 31, (entry & PFN) >> 5]
            seen[kind] += 1
            # The content that the workload wrote, which does not depend on struct pages.
            text = f"kvintro {kind.replace('_', '-')} {address:016x}".encode()
            assert kernel.read_physical(page.pfn * core.page_size, len(text)) == text
            assert lookup.kind(page) == "anon" and page.mapcount == 0
            assert page.offset == address // core.page_size
            assert not ReverseMap(kernel).mappings(page).found
            asked = page_report(kernel, [f"{address:x}"], pid=pid).tables[0].rows[0]
            assert asked.state == "unmapped"
            assert f"swap type {entry & 31}, offset {(entry & PFN) >> 5:#x}" in asked.notes[0]
    assert seen == named
    # For shared memory, the file's tree has the entries, and pagemap shows nothing.
    shared = [(start, end) for _, _, kind, start, end in truth.workload if kind == "swapped_memfd"]
    places = {address for start, end in shared for address in range(start, end, core.page_size)}
    for page in cached.values():
        text = kernel.read_physical(page.pfn * core.page_size, 64)
        if b"swapped-memfd" in text:
            assert lookup.kind(page) == "swapcache"
            places.remove(int(text.split()[2].rstrip(b"\0"), 16))
    assert not places


def test_forked_pages_have_both_processes(truth: Truth, traced: Dict[int, UserMappings]) -> None:
    comms: Dict[str, Set[str]] = defaultdict(set)
    for kind in ("anon", "prot_none", "hugetlb", "cow_broken"):
        for _, _, _, pfn in truth.of(kind):
            comms[kind] |= {m.comm for m in traced[pfn].found}
    assert comms["anon"] == comms["prot_none"] == {"kv-memory", "kv-child"}
    assert comms["cow_broken"] == {"kv-child"}
    if truth.of("hugetlb"):
        assert comms["hugetlb"] == {"kv-memory", "kv-child"}
    # The child wrote to the first page of the pair after the fork; the second is still shared.
    cow = truth.of("cow")
    assert [{m.comm for m in traced[pfn].found} for _, _, _, pfn in cow] == [
        {"kv-memory"},
        {"kv-memory", "kv-child"},
    ]


def test_files_are_those_of_maps(core: Core, truth: Truth, lookup: PageLookup) -> None:
    """Name and offset of file pages, against /proc/PID/maps."""
    checked = 0
    for pid in sorted(truth.pids):
        for line in core.truth(f"proc/{pid}/maps").splitlines():
            fields = line.split(None, 5)
            if len(fields) < 6 or not fields[5].startswith("/"):
                continue
            start, end = (int(text, 16) for text in fields[0].split("-"))
            for address in range(start, min(end, start + 64 * core.page_size), core.page_size):
                entry = truth.entries.get((pid, address), 0)
                if not entry & PRESENT or not entry & FILE:
                    continue
                page = lookup.state(entry & PFN)
                file = lookup.file(page)
                assert file is not None
                assert file.inode == int(fields[4])
                assert file.device == fields[3]
                name = fields[5].replace(" (deleted)", "").lstrip("/")
                assert file.path is not None and file.path.lstrip("/") == name
                assert (page.offset or 0) * core.page_size == int(fields[2], 16) + address - start
                checked += 1
    assert checked > 100


def test_mapcounts_are_those_of_kpagecount(core: Core, kernel: Kernel, lookup: PageLookup) -> None:
    probe = int(core.truth("probe"))
    for page, count in online(core, "kpagecount", lookup):
        # Kernels before 6.10 also counted the field of slabs, which has another meaning.
        if lookup.kind(page) in ("slab", "pgtable", "free") and not lookup.form.folio_flags:
            continue
        if page.mapcount != count:
            # The process that read the file keeps running, and may touch a page for the first time: its own,
            # or one of its program, which is then copied.
            file = lookup.file(page)
            its_program = file is not None and (file.path or "").lstrip("/") == "probe"
            its_own = {m.pid for m in ReverseMap(kernel).mappings(page).found} == {probe}
            assert abs((page.mapcount or 0) - count) == 1 and (its_own or its_program), f"{page.pfn:x}"


def test_reports(core: Core, kernel: Kernel, lookup: PageLookup, truth: Truth) -> None:
    pid, comm, address, pfn = truth.of("anon")[0]
    report = page_report(kernel, [f"{address + 8:x}"], pid=pid)
    (row,) = report.tables[0].rows
    assert isinstance(row, PageRow)
    assert (row.pfn, row.type, row.physical) == (pfn, "anon", pfn * core.page_size + 8)
    assert {(m.pid, m.address) for m in row.mappings or ()} >= {(pid, address)}
    assert row.direct is not None and row.page is not None
    # The same page in all notations.
    for text in (f"{pfn * core.page_size:x}", f"pfn:{pfn:x}", f"{row.page:x}", f"{row.direct:x}"):
        (other,) = page_report(kernel, [text]).tables[0].rows
        assert other.pfn == pfn, text
        assert other.mappings == row.mappings
    (searched,) = page_report(kernel, [f"pfn:{pfn:x}"], search=True).tables[0].rows
    assert [(m.pid, m.address) for m in searched.mappings or ()] == [
        (m.pid, m.address) for m in row.mappings or ()
    ]
    document = json.loads(render(report, "json"))
    assert document["schema"] == "kvintro.page/1"
    assert document["pages"][0]["mappings"][0]["comm"] in ("kv-memory", "kv-child")
    text = render(report, "text")
    assert comm in text and f"{address:016x}" in text
    with pytest.raises(UsageError):
        page_report(kernel, ["no_such_symbol_at_all"])


def test_slab_objects(kernel: Kernel, lookup: PageLookup) -> None:
    from drgn.helpers.linux.pid import find_task

    address = int(find_task(kernel.prog, 1).value_())
    (row,) = page_report(kernel, [f"{address + 0x10:x}"]).tables[0].rows
    assert row.type == "slab"
    assert row.slab is not None and row.slab.cache == "task_struct"
    assert row.slab.object == address and row.slab.object_offset == 0x10
    # drgn takes this from the slab's lists, if it can find them.
    assert row.slab.allocated in (True, None)


def test_tables_of_processes_are_page_tables(
    core: Core, kernel: Kernel, lookup: PageLookup, truth: Truth
) -> None:
    from kvintro.readers.processes import find_process, mm_of, root_of

    for pid in sorted(truth.pids)[:3]:
        process = find_process(kernel, pid)
        root = root_of(kernel, mm_of(kernel, process))
        address = next(a for p, a in truth.entries if p == pid)
        for step in kernel.walk(address, root).steps:
            # Until 6.14, the struct pages of tables above these were not marked.
            if step.level <= 2:
                assert lookup.kind(lookup.state(step.entry_address // core.page_size)) == "pgtable"


def test_aliases_list_processes_too(core: Core, kernel: Kernel, truth: Truth, lookup: PageLookup) -> None:
    pid, _, address, pfn = truth.of("shared_anon")[0]
    rows = alias_report(kernel, f"{pfn * core.page_size + 0x123:x}").tables[0].rows
    users = {(row.root.split()[1], int(row.virtual)) for row in rows if row.region == "user"}
    assert users == {(str(p), a + 0x123) for p, a in truth.by_pfn[pfn]}
    assert (str(pid), address + 0x123) in users
    assert any(row.region == "direct_map" for row in rows)


def test_what_is_no_page(kernel: Kernel, lookup: PageLookup) -> None:
    hole = next(row.start for row in layout(kernel).tables[0].rows if row.key in ("guard_hole", "hole"))
    report = page_report(kernel, ["pfn:3ffffffff", f"{hole:x}"])
    assert [row.state for row in report.tables[0].rows] == ["no-struct-page", "unmapped"]
    assert report.negative


@pytest.mark.parametrize(
    "pointer", [None, 0x4141414141414141, 0xFFFF800000000000], ids=["circle", "wild", "hole"]
)
@pytest.mark.parametrize("kind", ["anon", "memfd"])
def test_a_damaged_tree_is_partial(
    core: Core, truth: Truth, lookup: PageLookup, kind: str, pointer: Any
) -> None:
    """A tree with a loop or an invalid pointer ends the search there; earlier results are kept."""
    kernel = open_kernel(Request(core=str(core.path)))
    pfn = truth.of(kind)[0][3]
    mapping = lookup.state(pfn).mapping & ~3
    owner = ("struct anon_vma", "rb_root") if kind == "anon" else ("struct address_space", "i_mmap")
    node = pointer_at(kernel, mapping + offset_of(kernel, *owner))
    links = b"".join(struct.pack("<Q", value) for value in (1, pointer or node, pointer or node))

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        return links[offset : offset + count]

    kernel.prog.add_memory_segment(node, len(links), read, False)
    found = ReverseMap(kernel).mappings(PageLookup(kernel).state(pfn))
    assert found.damaged and found.notes
    assert len(found.found) <= 2
    report = page_report(kernel, [f"pfn:{pfn:x}"])
    assert report.partial
    (row,) = report.tables[0].rows
    assert row.notes


@pytest.mark.parametrize(
    "text, what, remedy",
    [
        ("pfn:zzz", "'zzz' is not a page frame number", "its hex digits, as in pfn:1a2b3"),
        ("pfn:", "'' is not a page frame number", "its hex digits, as in pfn:1a2b3"),
        ("pfn:init_task", "'init_task' is not a page frame number", "its hex digits, as in pfn:1a2b3"),
        ("pfn:fffffffffffff0000", "'fffffffffffff0000' is not a page frame number", "its hex digits"),
        ("phys:1000", "'phys:1000' is not an address", "the hex digits alone, and --from physical"),
        ("Virtual:1000", "'Virtual:1000' is not an address", "the hex digits alone, and --from virtual"),
        ("zzz:1000", "'zzz:1000' is not an address", "hex digits, a symbol, or symbol+offset in hex"),
    ],
)
def test_what_is_no_page_is_said(kernel: Kernel, text: str, what: str, remedy: str) -> None:
    if kernel.source.types == "none":
        pytest.skip("there are no types")
    with pytest.raises(UsageError) as caught:
        page_report(kernel, [text])
    assert (caught.value.what, caught.value.exit_code) == (what, 2)
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("command", ["translate", "identify", "aliases"])
def test_prefixes_that_only_page_has(core: Core, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-c", str(core.path), command, "pfn:100"]) == 2
    what, remedy = capsys.readouterr().err.splitlines()
    assert "'pfn:100' is not an address" in what
    assert "--from pfn" in remedy
