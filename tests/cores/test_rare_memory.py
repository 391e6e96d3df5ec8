# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rare kinds of memory: broken by a machine check, KFENCE's, of a device, plugged in, in a balloon.

The guest reported the kind of each page, and the emulator's MMU shows what is mapped.
"""

from __future__ import annotations

import gzip
import json
import re
from typing import Any, Dict, Iterable, Optional, Set

import numpy
import pytest

from kvintro.kernels import Kernel
from kvintro.queries.pages.census import Pages
from kvintro.queries.pages.meaning import KPF_BUDDY, KPF_HWPOISON, KPF_OFFLINE, KPF_PGTABLE
from kvintro.readers.kfence import kfence_pool
from kvintro.readers.structures import size_of
from kvintro.regions import direct_map_reasons, kernel_image
from kvintro.render import render
from kvintro.reports.identify import identify
from kvintro.reports.page import page_report
from kvintro.reports.pages import pages_report
from tests.conftest import Core
from tests.cores.showing import (
    WILD,
    Fence,
    broken_frames,
    document,
    fence_of,
    fresh,
    number,
    overlay,
    values,
)

PAGE = 4096
BLOCK = 128 << 20


@pytest.fixture(scope="module", autouse=True)
def rare(core: Core) -> None:
    """Other guests do not have this memory."""
    if not core.meta.get("rare"):
        pytest.skip("a guest with ordinary memory")


@pytest.fixture(scope="module")
def holes(kernel: Kernel) -> Dict[int, str]:
    """The reason why each page of RAM is missing from the direct map, by address."""
    found: Dict[int, str] = {}
    for row in document(kernel, "direct_map")["holes"]:
        if not row["why"].startswith("no RAM"):
            start = number(row["start"])
            found.update(dict.fromkeys(range(start, start + row["size"], PAGE), row["why"]))
    return found


@pytest.fixture(scope="module")
def emulator(core: Core) -> Dict[int, Optional[str]]:
    """The physical addresses from QEMU's walk; None if unmapped."""
    return {int(virtual, 16): where for virtual, where in json.loads(core.truth("gva2gpa.json")).items()}


@pytest.fixture(scope="module")
def flags(core: Core) -> Any:
    """/proc/kpageflags."""
    return numpy.frombuffer(gzip.decompress((core.truth_directory / "kpageflags.gz").read_bytes()), "<u8")


@pytest.fixture(scope="module")
def fence(core: Core) -> Fence:
    """KFENCE's pool as the guest reported it."""
    found = fence_of(core)
    assert found is not None
    return found


def frames(flags: Any, bit: int) -> Set[int]:
    return set(numpy.flatnonzero(flags & numpy.uint64(1 << bit)).tolist())


def page_rows(kernel: Kernel, frame: int) -> Any:
    (row,) = json.loads(render(page_report(kernel, [f"pfn:{frame:x}"]), "json"))["pages"]
    return row


def test_every_missing_page_has_its_reason(holes: Dict[int, str], emulator: Dict[int, Optional[str]]) -> None:
    """This covers all pages that kvintro or the guest lists, and no page is missing without a reason."""
    reasons = {"hwpoison", "memfd_secret", "KFENCE guard", "KFENCE object, freed"}
    assert set(holes.values()) == reasons
    asked = [address for address in holes if address in emulator]
    assert len(asked) > 250
    assert all(emulator[address] is None for address in asked)


def test_broken_pages(
    core: Core, kernel: Kernel, holes: Dict[int, str], emulator: Dict[int, Optional[str]], flags: Any
) -> None:
    broken = set(broken_frames(core))
    assert len(broken) == 2
    said = re.search(r"^HardwareCorrupted: +(\d+) kB", core.truth("meminfo"), re.M)
    assert said and int(said[1]) == 4 * len(broken)
    assert frames(flags, KPF_HWPOISON) == broken
    assert {int(text, 16) for text in re.findall(r"Memory failure: 0x(\w+):", core.truth("dmesg"))} == broken
    base = int.from_bytes(values(core)["page_offset_base"], "little")
    assert {address for address, why in holes.items() if why == "hwpoison"} == {
        base + f * PAGE for f in broken
    }
    for frame in broken:
        around = [emulator[base + (frame + i) * PAGE] for i in (-1, 0, 1)]
        assert [where is None for where in around] == [False, True, False]
        row = page_rows(kernel, frame)
        assert row["type"] == "hwpoison" and "hwpoison" in row["flags"] and row["direct"] is None
        assert row["notes"] == ["not in the direct map: hwpoison"]
        assert row["mappings"] in ([], None)
    # The process that had one of them has an entry that says so in its place.
    match = re.search(r"^(\d+) \S+ machine_check (\w+)", core.truth("workload"), re.M)
    assert match
    entry = re.search(rf"^{match[1]} {match[2]} (\w+)$", core.truth("pagemap"), re.M)
    assert entry and not int(entry[1], 16) >> 63 and int(entry[1], 16) >> 62


def test_broken_pages_are_told_of_by_every_command(core: Core, kernel: Kernel) -> None:
    for frame in broken_frames(core):
        report = identify(kernel, [hex(frame * PAGE)])
        assert report.negative and not report.partial
        assert report.tables[0].rows[0].note == "not in the direct map: hwpoison"


def test_fence_in_the_direct_map(
    holes: Dict[int, str], fence: Fence, emulator: Dict[int, Optional[str]], core: Core
) -> None:
    assert len(fence.pages) == 2 * (int(core.config["KFENCE_NUM_OBJECTS"]) + 1)
    expected = {"guard": "KFENCE guard", "freed": "KFENCE object, freed"}
    theirs = {at: expected[state] for at, state in fence.pages.items() if state in expected}
    assert {at: why for at, why in holes.items() if "KFENCE" in why} == theirs
    # On a slow machine KFENCE may have used all its objects, so that none is "unused".
    assert {"guard", "freed", "allocated"} <= set(fence.pages.values()) <= {*expected, "allocated", "unused"}
    for address, state in fence.pages.items():
        assert (emulator[address] is None) == (state in expected), hex(address)


def test_fence_by_address(core: Core, kernel: Kernel, fence: Fence) -> None:
    """Each object has its number, state, place and cache, for every address in it."""
    asked = list(fence.objects.items())[:: max(1, len(fence.objects) // 40)]
    for index, (page, first, last, cache) in asked:
        state = fence.pages[page]
        inside = first + (last - first) // 2
        report = identify(kernel, [hex(inside), hex(page + PAGE)])
        rows = report.tables[0].rows
        assert not report.partial and report.notes == ()
        (told,) = (i for i in rows[0].identities if i.kind == "kfence")
        assert (told.start, told.size) == (first, last - first + 1)
        assert told.details == {"object": index, "state": state, "cache": cache, "offset": inside - first}
        assert not [i for i in rows[0].identities if i.kind == "slab_object"]
        assert (rows[0].state == "mapped") == (state == "allocated")
        guard = [i for i in rows[1].identities if i.kind == "kfence"]
        assert rows[1].state == "unmapped" and guard[0].details == {"object": None}
    base = int.from_bytes(values(core)["page_offset_base"], "little")
    for index, (page, first, last, cache) in asked[:10]:
        row = page_rows(kernel, (page - base) // PAGE)
        assert row["slab"] is None and (row["direct"] is None) == (fence.pages[page] == "freed")
        found = row["kfence"]
        assert (found["object"], found["state"], found["cache"]) == (index, fence.pages[page], cache)
        assert (number(found["address"]), found["size"]) == (first, last - first + 1)
    unused = [page for page, state in fence.pages.items() if state == "unused"]
    for page in unused[:5]:
        report = identify(kernel, [hex(page + 8)])
        assert not report.partial and report.notes == () and not report.negative
        assert page_rows(kernel, (page - base) // PAGE)["kfence"]["state"] == "unused"


def test_fence_is_no_slab_cache(core: Core, kernel: Kernel, fence: Fence) -> None:
    report = pages_report(kernel, by="cache")
    objects = sum(state != "guard" for state in fence.pages.values())
    assert f"{objects} pages that look like slabs belong to KFENCE, not to a cache" in report.notes
    known = {line.split()[0] for line in core.truth("slabinfo").splitlines()[2:]}
    assert not [note for note in report.notes if "no name" in note]
    names = {row.name for row in report.tables[0].rows}
    # mm/slab_common.c:slab_show, except for merged caches.
    assert len(names & known) > 50


def test_fence_before_its_table_was_allocated(core: Core, kernel: Kernel) -> None:
    """Before 6.6 ``kfence_metadata`` was the table, not a pointer to it."""
    pool = kfence_pool(kernel)
    assert pool is not None
    size = size_of(kernel, "struct kfence_metadata") * len(pool.objects)
    table = kernel.read(kernel.value("kfence_metadata").value, size)
    older = fresh(core)
    older.prog.add_memory_segment(
        older.symbol("kfence_metadata"),
        size,
        lambda at, count, offset, physical: table[offset : offset + count],
    )
    overlay(older, older.symbol("__kfence_pool"), pool.start)  # here the table overlaps it
    assert kfence_pool(older) == pool


@pytest.mark.parametrize("spoiled", WILD)
def test_damaged_fence(core: Core, spoiled: str, fence: Fence) -> None:
    """Data that is lost is not guessed."""
    kernel = fresh(core)
    overlay(kernel, kernel.symbol("kfence_metadata"), WILD[spoiled])
    found = document(kernel, "direct_map")
    assert found["partial"]
    assert any("the objects of KFENCE's pool cannot be found" in note for note in found["notes"])
    guards = {address for address, state in fence.pages.items() if state == "guard"}
    whys = {row["why"] for row in found["holes"] if number(row["start"]) in guards}
    assert whys == {"unmapped by set_memory_np(), for an unknown user"}
    report = identify(kernel, [hex(min(fence.pages))])
    assert not [i for i in report.tables[0].rows[0].identities if i.kind == "kfence"]


def test_what_debug_pagealloc_takes_out(
    core: Core, kernel: Kernel, flags: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kernel of the lab has it, so the test unmaps pages: one that is free, and one of the init part.

    A page in use, which it would not unmap, is missing for an unknown reason.
    """
    base = kernel.linear_offset.value
    init = next(row for row in document(kernel, "kernel_image")["sections"] if row["name"] == "init")
    start = number(init["physical"])
    free = [pfn * PAGE for pfn in sorted(frames(flags, KPF_BUDDY))]
    used = [pfn * PAGE for pfn in sorted(frames(flags, KPF_PGTABLE))]

    def choose(candidates: Iterable[int], in_use: bool) -> int:
        """Freed memory is free or in use again on this kernel, but under debug_pagealloc it is neither."""
        small = (at for at in candidates if kernel.walk(base + at).steps[-1].level == 1)
        return next(at for at in small if bool(page_rows(kernel, at // PAGE)["refcount"]) is in_use)

    chosen = {
        choose(free, False): "free page (debug_pagealloc)",
        choose(range(start, start + init["size"], PAGE), True): "freed after boot (debug_pagealloc)",
        choose(used, True): "unmapped by set_memory_np(), for an unknown user",
    }
    for on in (True, False):
        without = fresh(core)
        for at in chosen:
            step = kernel.walk(base + at).steps[-1]
            assert step.value is not None
            overlay(without, step.entry_address, step.value & ~1, physical=True)
        monkeypatch.setattr(direct_map_reasons, "debug_pagealloc", lambda kernel, on=on: on)
        found = document(without, "direct_map")["holes"]
        told = {number(row["physical"]): row["why"] for row in found if number(row["physical"]) in chosen}
        assert told == (chosen if on else dict.fromkeys(chosen, list(chosen.values())[-1]))


def test_freed_parts_under_debug_pagealloc(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freed parts are unmapped from the image, with or without page-table isolation."""
    monkeypatch.setattr(kernel_image, "debug_pagealloc", lambda kernel: True)
    rows = {row.name: row for row in kernel_image.sections(kernel)}
    assert rows["init"].expected == "" and rows["init"].problem is None
    assert rows["after init"].problem is None


def test_memory_of_a_device(core: Core, kernel: Kernel, flags: Any) -> None:
    match = re.search(r"^ *(\w+)-(\w+) : namespace0\.0$", core.truth("iomem"), re.M)
    assert match
    first, last = int(match[1], 16) // PAGE, int(match[2], 16) // PAGE
    assert last - first + 1 == (16 << 20) // PAGE
    counted = Pages(kernel).census(first, last + 1).by(lambda group: (group.type, group.zone))
    assert counted[("device", "Device")] > 0 and sum(counted.values()) == last + 1 - first
    assert {kind for kind, _ in counted} == {"device"}
    everywhere = Pages(kernel).census().by(lambda group: group.type)
    assert everywhere["device"] == last + 1 - first
    for frame in (first + 64, last):
        row = page_rows(kernel, frame)
        assert (row["type"], row["zone"]) == ("device", "Device")


def test_plugged_memory(core: Core, kernel: Kernel) -> None:
    """Blocks of memory, against their states in /sys/devices/system/memory."""
    pages = Pages(kernel)
    states: Dict[str, Set[str]] = {}
    for line in core.truth("memory-blocks").splitlines():
        index, state, *zones = line.split()
        start = int(index, 16) * BLOCK // PAGE
        found = pages.census(start, start + BLOCK // PAGE).by(lambda group: (group.type, group.zone))
        if state == "offline":
            assert found == {("offline", ""): BLOCK // PAGE}
            row = page_rows(kernel, start + 5)
            assert row["state"] == "no-struct-page" and "not put online" in row["notes"][0]
        elif zones == ["Movable"]:
            assert {zone for _, zone in found} == {"Movable"}
            assert sum(found.values()) == BLOCK // PAGE
        states.setdefault(state, set()).update(zones)
    assert states["offline"] and "Movable" in states["online"]
    sections = document(kernel, "vmemmap")["sections"]
    count = sum(row["count"] for row in sections if not row["online"])
    assert count == core.truth("memory-blocks").count("offline")


def test_memory_in_a_balloon(core: Core, kernel: Kernel, flags: Any) -> None:
    """Against QEMU's own count of the balloon; the kernel marks each page."""
    whole = core.meta["memory_mb"] + 2 * (BLOCK >> 20) << 20
    given = (whole - core.meta["balloon_leaves"]) // PAGE
    assert given > 1000
    offline = frames(flags, KPF_OFFLINE)
    assert len(offline) == given
    counted = Pages(kernel).census().by(lambda group: (group.type, group.zone != ""))
    assert counted[("offline", True)] == given
    for frame in sorted(offline)[:: given // 5]:
        row = page_rows(kernel, frame)
        assert row["type"] == "offline" and row["state"] == "page"
