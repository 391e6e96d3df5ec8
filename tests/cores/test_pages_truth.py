# SPDX-License-Identifier: LGPL-2.1-or-later
"""The census of pages against what each kernel reported about its own pages in the same boot.

The kernel wrote these files one after the other and was then stopped. Only pages that it allocated and freed
meanwhile, in order to read the files, may differ; each such difference has its reason below.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from functools import cache
from typing import Any, Dict, List, Tuple

import numpy
import pytest

from kvintro.errors import NotInDump, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Unknown
from kvintro.opening import open_kernel
from kvintro.queries.pages import levels
from kvintro.queries.pages.census import PageCensus, Pages
from kvintro.queries.pages.meaning import (
    KPF_ANON,
    KPF_BUDDY,
    KPF_COMPOUND_TAIL,
    KPF_IDLE,
    KPF_KSM,
    KPF_MMAP,
    KPF_NOPAGE,
    KPF_SLAB,
    KPF_ZERO_PAGE,
    kpf_long,
)
from kvintro.queries.pages.zones import zone_facts
from kvintro.readers.structures import number, struct_at, text_at
from kvintro.render import render
from kvintro.reports.pages import BREAKDOWNS, pages_report, parse_range
from kvintro.source import Request
from tests.conftest import Core

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)

BUDDY, SLAB, MMAP, ANON, KSM = (1 << bit for bit in (KPF_BUDDY, KPF_SLAB, KPF_MMAP, KPF_ANON, KPF_KSM))
RESERVED = 1 << 32
# REFERENCED, LRU and ACTIVE (include/uapi/linux/kernel-page-flags.h).
LISTED = 1 << 2 | 1 << 5 | 1 << 6
# Flags that may change when a page is written, unmapped, or freed and allocated again: up to COMPOUND_TAIL,
# PGTABLE, and from MLOCKED to OWNER_PRIVATE. HUGE, HWPOISON, NOPAGE, KSM, THP, OFFLINE, ZERO_PAGE and
# RESERVED are not among these.
EVERYDAY = (1 << 17) - 1 | 1 << 26 | 0x1F << 33
#: How much the lists of CPUs may be filled or emptied at once: batches, doubled CONFIG_PCP_BATCH_SCALE_MAX
#: times (mm/page_alloc.c:nr_pcp_alloc and nr_pcp_free; its default since 6.7).
_SCALE = 1 << 5
#: Pages that a CPU collects before it puts them on a list of reclaim (PAGEVEC_SIZE, include/linux/pagevec.h).
_COLLECTED = 31
#: The program that writes the truth has a few pages, and touches the last ones after it has written
#: everything.
_OF_PROGRAM = 8
OTHERWISE = "used otherwise since"
TAKEN = "taken from a CPU's list since"
GIVEN = "given back or taken since"
COLLECTED = "put on its list or looked at by reclaim since: each CPU collects some pages first (mm/swap.c)"
PROGRAM = "a page of the program that wrote the truth, first touched afterwards"
SLAB_MOVED = "a slab made or given back since"
FREE = "went between a CPU's list and the free blocks"


def zoneinfo(core: Core) -> Dict[Tuple[int, str], str]:
    """The blocks of /proc/zoneinfo by node and zone."""
    found = {}
    for block in re.split(r"(?=^Node )", core.truth("zoneinfo"), flags=re.M):
        match = re.match(r"Node (\d+), zone +(\w+)", block)
        if match:
            found[int(match[1]), match[2]] = block
    return found


def numbers_of(block: str, name: str) -> List[int]:
    """The values of each CPU in a block of zoneinfo."""
    return [int(value) for value in re.findall(rf"{name}: +(\d+)", block)]


def lists(core: Core, *zones: Tuple[int, str]) -> int:
    """The number of pages that the lists of all CPUs take from free blocks of zones, or return to them, at
    once.

    By the kernel's own batches; of all zones if none is named.
    """
    blocks = zoneinfo(core)
    return _SCALE * sum(sum(numbers_of(blocks[zone], "batch")) for zone in zones or blocks)


def cpus(core: Core) -> int:
    """The number of CPUs of the guest."""
    return len(re.findall(r"^processor", core.truth("cpuinfo"), re.M))


@pytest.fixture(scope="module", params=("auto", "none"), ids=("types", "no-types"))
def reader(request: pytest.FixtureRequest, core: Core, kernel: Kernel) -> Kernel:
    """The core with its types, and without them: then VMCOREINFO distinguishes pages."""
    if request.param == "none":
        bare = open_kernel(Request(core=str(core.path), types="none"))
        if isinstance(bare.locate("vmemmap"), Unknown):
            pytest.skip(
                "neither VMCOREINFO nor a symbol leads to the nodes, which say where struct pages are"
            )
        return bare
    if kernel.source.types == "none":
        pytest.skip("nothing in this dump leads to its types")
    return kernel


@pytest.fixture(scope="module")
def pages(reader: Kernel) -> Pages:
    """All struct pages."""
    return Pages(reader)


@pytest.fixture(scope="module")
def census(pages: Pages) -> PageCensus:
    """All of them counted."""
    return pages.census()


def words(core: Core, name: str) -> "numpy.ndarray[Any, Any]":
    """/proc/kpageflags or /proc/kpagecount."""
    core.truth(f"{name}.gz")
    data = gzip.decompress((core.truth_directory / f"{name}.gz").read_bytes())
    return numpy.frombuffer(data, "<u8")


@pytest.fixture(scope="module")
def ours(pages: Pages) -> "Tuple[numpy.ndarray[Any, Any], List[str]]":
    """kvintro's flags of each page, as in /proc/kpageflags, and its type."""
    nothing = 1 << KPF_NOPAGE if pages.form.tells_nopage else 0
    nothing &= ~pages.form.unknown_flags
    flags = numpy.full(pages.sections.end, nothing, numpy.uint64)
    types = ["nopage"] * pages.sections.end
    for piece in pages.reader.pieces(pages.sections):
        assert piece.state == "read"
        runs = pages.decoder.decode(piece.data, piece.first, online=piece.online)
        each = zip(runs.starts, runs.lengths, runs.states.tolist(), runs.heads.tolist())
        for start, length, state, head in each:
            first = piece.first + int(start)
            flags[first : first + length] = pages.meaning.kpageflags(state, head)
            kind = pages.meaning.type_of(state, head)
            types[first : first + length] = [kind] * int(length)
    return flags, types


def _without_mistake(truth: "numpy.ndarray[Any, Any]") -> "Tuple[numpy.ndarray[Any, Any], int]":
    """The kernel's words, and the bits in them that cannot be compared.

    From 6.10 until a later fix, fs/proc/page.c tests `mapping & PAGE_MAPPING_KSM`, which is also true for
    other anonymous pages, so it reports all of them as KSM's. kvintro shows the true type.
    """
    anonymous = truth[truth & numpy.uint64(ANON) != 0]
    mistaken = bool(len(anonymous)) and bool((anonymous & numpy.uint64(KSM) != 0).all())
    return (truth & ~numpy.uint64(KSM), KSM) if mistaken else (truth, 0)


def _reason(truth: int, mine: int, kind: str) -> str:
    """Why a page may differ; empty for no reason.

    :param kind: kvintro's type of the page.
    """
    change = truth ^ mine
    if change & ~(LISTED | 1 << KPF_IDLE) == 0:
        return COLLECTED
    if change & ~(LISTED | MMAP) == 0 and mine & MMAP:
        return PROGRAM
    if {truth, mine} == {0, BUDDY}:
        return FREE
    if truth == 0 and kind not in ("free", "free_cpu"):
        return TAKEN
    if truth == BUDDY or kind in ("free", "free_cpu"):
        return GIVEN
    if {truth & ~SLAB & 0xFFFF, mine & ~SLAB & 0xFFFF} <= {0, BUDDY, 1 << 15} and change & SLAB:
        return SLAB_MOVED
    if change & ~EVERYDAY == 0:
        return OTHERWISE
    return ""


def test_every_page_is_as_proc_kpageflags_says(
    core: Core, pages: Pages, ours: "Tuple[numpy.ndarray[Any, Any], List[str]]"
) -> None:
    truth = words(core, "kpageflags")
    mine = ours[0]
    # Flags that are reported as unknown are not compared; all others are.
    truth = truth & ~numpy.uint64(pages.form.unknown_flags)
    if pages.zero_unknown:
        # The zero pages are reported as unknown; their other flags are known.
        truth = truth & ~numpy.uint64(1 << KPF_ZERO_PAGE)
    # The kernel's file ends with a section, ours with memory. Up to 5.10 there are struct pages for the rest.
    behind = {0, 1 << KPF_NOPAGE & ~pages.form.unknown_flags, RESERVED}
    assert set(numpy.unique(truth[len(mine) :]).tolist()) <= behind
    truth, mistaken = _without_mistake(truth[: len(mine)])
    mine = mine & ~numpy.uint64(mistaken)
    reasons: Counter[str] = Counter()
    before = -1
    for pfn in numpy.flatnonzero(mine != truth).tolist():
        reason = _reason(int(truth[pfn]), int(mine[pfn]), ours[1][pfn])
        assert reason, f"{pfn:x}: kernel {kpf_long(int(truth[pfn]))}; we {kpf_long(int(mine[pfn]))}"
        # A huge page that is locked meanwhile changes as a whole.
        tail = (int(truth[pfn]) & int(mine[pfn])) >> KPF_COMPOUND_TAIL & 1
        reasons[reason] += not (tail and before == pfn - 1)
        before = pfn
    # Few pages changed; a misread flag would affect thousands.
    batches = sum(reasons.pop(name, 0) for name in (FREE, GIVEN, TAKEN))
    assert batches <= lists(core), (batches, reasons)
    assert reasons.pop(PROGRAM, 0) <= _OF_PROGRAM, reasons
    assert reasons.pop(COLLECTED, 0) <= _COLLECTED * cpus(core), reasons
    assert reasons.pop(SLAB_MOVED, 0) <= _COLLECTED * cpus(core), reasons
    assert reasons.pop(OTHERWISE, 0) <= _OF_PROGRAM, reasons
    assert not reasons


def test_census_adds_up_to_the_same_classes(
    core: Core, census: PageCensus, ours: "Tuple[numpy.ndarray[Any, Any], List[str]]"
) -> None:
    """Counting in bulk and page by page gives the same result."""
    flags, types = ours
    assert census.by(lambda g: g.type) == Counter(t for t in types if t != "nopage")
    there = Counter(f for f, t in zip(flags.tolist(), types) if t != "nopage")
    assert census.by(lambda g: g.kpageflags) == there
    assert sum(census.groups.values()) == census.total
    # 7.x shows page frames that do not exist as 0; no kernel shows those of devices, or those not put online.
    hidden = sum(n for g, n in census.groups.items() if g.node is None or g.type == "device")
    assert census.total - hidden <= int((words(core, "kpageflags") != 1 << KPF_NOPAGE).sum())
    assert not census.limited
    cells: Counter[str] = Counter()
    for cell in census.cells:
        cells.update(census.cell_types(cell))
    assert cells == census.by(lambda g: g.type)


def test_types_follow_from_the_kernels_flags(
    core: Core, ours: "Tuple[numpy.ndarray[Any, Any], List[str]]"
) -> None:
    """kvintro's type of each page, against the kernel's bits, by an independent rule."""
    truth = words(core, "kpageflags").tolist()
    moved = 0
    for flags, kind in zip(truth, ours[1]):
        if kind in ("nopage", "device"):
            continue  # the kernel does not show these
        names = set(kpf_long(int(flags)).split(","))
        expected = {
            "free": "buddy" in names,
            "slab": "slab" in names,
            "pgtable": "pgtable" in names,
            # VMCOREINFO does not name page tables; the others do not exist, or the kernel does not show them.
            "unnamed_type": "pgtable" in names,
            "offline": "offline" in names or flags in (0, 1 << KPF_NOPAGE),
            "hugetlb": "huge" in names and "mmap" in names,
            "thp": {"thp", "anonymous"} <= names,
            "anon": "anonymous" in names and not names & {"huge", "thp", "slab"},
            "reserved": "reserved" in names and "zero_page" not in names,
            "zero": "zero_page" in names,
        }
        if kind in expected:
            moved += not expected[kind]
        else:
            moved += any(v for k, v in expected.items() if k not in ("hugetlb", "anon", "offline"))
            moved += "offline" in names
    # At most as many as may differ in their flags, for the same reasons.
    assert moved <= lists(core) + 2 * _COLLECTED * cpus(core) + 2 * _OF_PROGRAM


@cache
def left_out_by_kpageflags(flags: int, level: int) -> bool:
    """The levels as in makedumpfile's manual, by the kernel's own flags of a page."""
    names = set(kpf_long(flags).split(","))
    anonymous = "anonymous" in names and "slab" not in names
    cache = bool(names & {"lru", "swapcache"}) and not anonymous
    if "buddy" in names:
        return bool(level & levels.FREE)
    if cache and (level & levels.CACHE_PRIVATE or (level & levels.CACHE and "private" not in names)):
        return True
    if (anonymous or "huge" in names) and level & levels.USER:
        return True
    return bool(names & {"hwpoison", "offline"})


@pytest.mark.parametrize("level", [levels.CACHE, levels.CACHE_PRIVATE, levels.USER, levels.FREE, 31])
def test_what_a_level_leaves_out(
    core: Core, reader: Kernel, pages: Pages, ours: "Tuple[numpy.ndarray[Any, Any], List[str]]", level: int
) -> None:
    """Compare page by page all pages that did not change between the truth and the dump."""
    mine, types = ours
    shared = ~numpy.uint64(pages.form.unknown_flags | 1 << KPF_ZERO_PAGE)
    truth, mistaken = _without_mistake(words(core, "kpageflags"))
    end = min(len(truth), len(mine))
    same = (truth[:end] ^ mine[:end]) & shared & ~numpy.uint64(mistaken) == 0
    found = numpy.zeros(len(mine) + 1, bool)
    for frames in levels.left_out(reader, level, levels.unwatched).values():
        for first, behind in frames:
            found[first:behind] = True
    head, same_head = 0, False
    tail = 1 << KPF_COMPOUND_TAIL
    compared: Counter[bool] = Counter()
    for pfn, flags in enumerate(truth[:end].tolist()):
        # Before 6.10 a tail shows its own flags; the whole compound page is left out.
        if not flags & tail:
            head, same_head = flags, bool(same[pfn])
        if same[pfn] and same_head and types[pfn] not in ("offline", "uninitialised", "nopage", "device"):
            expected = left_out_by_kpageflags(flags | head, level)
            assert bool(found[pfn]) is expected, f"{pfn:x}: {kpf_long(flags | head)}"
            compared[expected] += 1
    # Machines with larger pages have fewer.
    pages_of_4k = core.page_size >> 12
    assert compared[True] * pages_of_4k > 300 and compared[False] * pages_of_4k > 5000, compared


def test_free_blocks_are_those_of_buddyinfo(core: Core, census: PageCensus) -> None:
    blocks: Dict[Tuple[int, str], Counter[int]] = {}
    for group, count in census.groups.items():
        if group.type == "free" and group.first and group.node is not None:
            blocks.setdefault((group.node, group.zone), Counter())[group.order] += count
    for line in core.truth("buddyinfo").splitlines():
        match = re.match(r"Node (\d+), zone +(\w+) +([\d ]+)", line)
        assert match
        truth = [int(n) for n in match[3].split()]
        zone = int(match[1]), match[2]
        mine = blocks.pop(zone, Counter())
        pages = sum(n << order for order, n in enumerate(truth))
        found = sum(n << order for order, n in mine.items())
        # The CPUs' lists are drained into the free blocks from time to time.
        assert abs(pages - found) <= lists(core, zone), line
        # A page taken from the largest block leaves a block of every order below it: 11 for each CPU.
        assert sum(abs(mine[order] - n) for order, n in enumerate(truth)) <= 11 * cpus(core), line
    assert not blocks


#: Caches that grew after slabinfo in older cores (later cores read it again at the very end): inodes of files
#: in /proc that were read, and buffers for files with long records.
_READ_SINCE = {"proc_inode_cache": 3, "kmalloc-cg-8k": 1}
#: Objects that KASAN's quarantine (mm/kasan/quarantine.c) held and returned: names of files, buffers.
_QUARANTINED = {"names_cache", "kmalloc-4k"}


def test_slab_caches_have_what_slabinfo_says(
    core: Core, kernel: Kernel, pages: Pages, census: PageCensus
) -> None:
    if pages.form.slab_cache is None:
        assert not census.caches and pages.form.lacks
        return
    mine: Dict[str, Tuple[int, int]] = {}
    for address, use in census.caches.items():
        name = text_at(kernel, number(struct_at(kernel, "struct kmem_cache", address), "name"))
        mine[name] = use.objects, use.slabs
        assert 0 <= use.in_use <= use.objects
    # Read last, nothing moved since but what waited to be freed (the struct file by which it was read is,
    # by RCU) or what an interrupt took: a slab. Read earlier, what did has its name.
    moved = []
    last = core.has_truth("slabinfo-last")
    if not last and core.directory.parent.name == "built":
        pytest.skip(f"{core.name} was built without slabinfo-last: build it again")
    for line in core.truth("slabinfo-last" if last else "slabinfo").splitlines()[2:]:
        name, _, objects, *_, slabs, _ = line.split()
        found = mine.pop(name, (0, 0))
        if last:
            if found != (int(objects), int(slabs)):
                assert abs(int(slabs) - found[1]) == 1, name
                assert (int(objects) - found[0]) * int(slabs) == int(objects) * (int(slabs) - found[1]), name
                moved.append(name)
        elif name in _READ_SINCE:
            assert 0 <= found[1] - int(slabs) <= _READ_SINCE[name], name
        elif name in _QUARANTINED and kernel.find_symbol("kasan_quarantine_reduce") is not None:
            assert found[1] < int(slabs), name
        else:
            assert found == (int(objects), int(slabs)), name
    assert not mine
    assert len(moved) <= 2, moved


def test_zones_are_those_of_zoneinfo(core: Core, pages: Pages, census: PageCensus) -> None:
    try:
        facts = zone_facts(pages.kernel, pages.form)
    except Unavailable as error:
        assert "no types, and VMCOREINFO has no OFFSET(zone." in error.what
        facts = {}
    counted = census.by(lambda g: (g.node, g.zone))
    free = Counter[Any]()
    for group, count in census.groups.items():
        if group.type == "free":
            free[group.node, group.zone] += count
    for (node, zone), block in zoneinfo(core).items():
        numbers = {
            name: int(value)
            for name, value in re.findall(
                r"^ +(?:pages )?(free|spanned|present|managed) +(\d+)$", block, re.M
            )
        }
        if not numbers["spanned"]:
            assert (node, zone) not in facts
            continue
        if not pages.form.lacks:
            fact = facts[node, zone]
            assert (fact.spanned, fact.present, fact.managed) == tuple(
                numbers[k] for k in ("spanned", "present", "managed")
            )
        # Page frames come in steps of 2 MB, whether they are memory or not.
        assert counted[node, zone] >= numbers["present"]
        # Counts that the CPUs have not yet added (mm/vmstat.c:zone_page_state) also differ.
        slack = sum(numbers_of(block, "vm stats threshold"))
        assert abs(free[node, zone] - numbers["free"]) <= lists(core, (node, zone)) + slack


def test_other_kinds_are_as_meminfo_says(core: Core, census: PageCensus) -> None:
    meminfo = {name: int(value) for name, value in re.findall(r"^(\S+): +(\d+)", core.truth("meminfo"), re.M)}
    kinds, kb = census.by(lambda g: g.type), core.page_size >> 10
    # meminfo sums the nodes' counters, without the counts that the CPUs have not yet added.
    more = (kinds["anon"] + kinds["thp"] + kinds["ksm"]) * kb - meminfo["AnonPages"]
    # Anonymous pages that only the swap cache has are no longer AnonPages.
    # That is at most what zoneinfo calls the threshold, of each CPU and node.
    slack = kb * sum(sum(numbers_of(block, "vm stats threshold")) for block in zoneinfo(core).values())
    assert -slack <= more <= slack + meminfo["SwapCached"]
    assert abs(kinds["shmem"] * kb - meminfo["Shmem"]) <= slack
    # Hugetlb sums all sizes, and the other lines are about the usual one only.
    assert (kinds["hugetlb"] + kinds["hugetlb_free"]) * kb == meminfo["Hugetlb"]
    unusual = meminfo["Hugetlb"] - meminfo["HugePages_Total"] * meminfo["Hugepagesize"]
    assert 0 <= kinds["hugetlb_free"] * kb - meminfo["HugePages_Free"] * meminfo["Hugepagesize"] <= unusual
    # PageTables excludes those of the kernel itself.
    assert (kinds["pgtable"] + kinds["unnamed_type"]) * kb >= meminfo["PageTables"] - 64 * kb


def test_report(reader: Kernel, pages: Pages, census: PageCensus) -> None:
    document = json.loads(render(pages_report(reader), "json"))
    assert document["schema"] == "kvintro.pages/1"
    assert document["total"] == sum(document["by_type"].values())
    # Memory that was not put online does not belong to a zone yet.
    placed = document["total"] - census.by(lambda g: g.node)[None]
    assert placed == sum(document["by_zone"].values()) == sum(document["by_node"].values())
    assert document["by_type"] == census.by(lambda g: g.type)
    assert document["rate"] > 0
    assert document["partial"] is (reader.code_only or bool(pages.form.lacks))
    assert set(pages.form.lacks) <= set(document["notes"])
    assert {row["type"]: row["pages"] for row in document["types"]} == document["by_type"]
    covered = sum(sum(cell["types"].values()) for cell in document["map"])
    assert covered == document["total"]
    assert sum(row["pages"] for row in document["flags"]) == document["total"]


@pytest.mark.parametrize("by", BREAKDOWNS)
def test_every_breakdown_renders(reader: Kernel, pages: Pages, by: str) -> None:
    if by == "cache" and pages.form.lacks:
        with pytest.raises(Unavailable, match="the slab cache of a page"):
            pages_report(reader, by=by)
        return
    report = pages_report(reader, by=by, top=3)
    assert len(report.tables[0].rows) <= 3
    for form in ("text", "csv", "json"):
        assert render(report, form, color=form == "text", width=100)


def test_a_part_is_a_part(reader: Kernel, pages: Pages, census: PageCensus) -> None:
    """Halves add up to the whole, cut anywhere."""
    cut = pages.sections.ranges[0][0] + 0x4321
    halves = Counter[Any]()
    for where in ((0, cut), (cut, 1 << 52)):
        report = pages_report(reader, where=where)
        halves.update(report.extra["by_type"])
    assert halves == census.by(lambda g: g.type)
    assert parse_range("1000-2001", 12) == (1, 3)
    assert parse_range("0x1000+0x1000", 12) == (1, 2)


def test_a_compressed_dump_says_the_same(core: Core, pages: Pages, census: PageCensus) -> None:
    compressed = core.directory / "core.kdump"
    if core.path == compressed or not compressed.exists():
        pytest.skip("this core comes in one format")
    types = "none" if pages.form.lacks else "auto"
    found = Pages(open_kernel(Request(core=str(compressed), types=types))).census()
    assert found.groups == census.groups
    assert found.caches == census.caches


def test_struct_pages_that_are_missing_are_counted_as_missing(
    core: Core, reader: Kernel, pages: Pages, census: PageCensus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing struct pages are not decoded, and no others are lost."""
    gone, lost = set(), set()
    (first, _), (low, high) = pages.sections.ranges[0], pages.sections.ranges[-1]
    whole_page = core.page_size
    for pfn in (first + 0x1000, first + 0x1000 + whole_page // 64, low + (high - low) // 4 * 3):
        physical = reader.walk(pages.form.address(pfn)).physical
        assert physical is not None
        gone.add(physical & -whole_page)
        # A struct page may be in two pages.
        page, size = pages.form.address(pfn) & -whole_page, pages.form.size
        near = range(pfn - whole_page // size - 1, pfn + whole_page // size + 2)
        lost |= {at for at in near if page - size < pages.form.address(at) < page + whole_page}
    whole = reader.read_physical

    def read(address: int, size: int) -> bytes:
        if any(address < page + whole_page and page < address + size for page in gone):
            raise NotInDump(address, size, physical=True)
        return whole(address, size)

    monkeypatch.setattr(reader, "read_physical", read)
    found = Pages(reader).census()
    assert found.missing == len(lost)
    assert found.total == census.total
    kinds, before = found.by(lambda g: g.type), census.by(lambda g: g.type)
    assert kinds["not_in_dump"] == found.missing
    assert sum(kinds.values()) == census.total
    # Tails of a free block whose head is missing are no longer known to be free.
    assert sum(abs(kinds[k] - before[k]) for k in before) <= found.missing + 3 * 1024
    report = pages_report(reader)
    assert report.partial
    assert any("not in this source" in note for note in report.notes)
