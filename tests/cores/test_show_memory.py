# SPDX-License-Identifier: LGPL-2.1-or-later
"""`show` of kernel_image, direct_map, vmemmap, kasan_shadow and efi against /proc/iomem, /proc/meminfo,
/proc/zoneinfo, the boot messages, the kernel's own page-table dump and EFI's runtime map."""

from __future__ import annotations

import gzip
import json
import re
import struct
from typing import Any, Dict, List, Set, Tuple

import pytest

from kvintro.kernels import Kernel
from kvintro.model import AddressRange, Asked, Located, Placement
from kvintro.regions import Region
from kvintro.render import render
from kvintro.reports.show import Selection, show
from tests.conftest import Core
from tests.cores.showing import (
    all_symbols,
    clean,
    document,
    fresh,
    kallsyms,
    merged,
    needs,
    number,
    overlay,
    ptdump,
    ptdump_in,
)

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)

PAGE = 4096


def iomem(core: Core) -> List[Tuple[int, int, str]]:
    """(start, end inclusive, name)."""
    found = []
    for line in core.truth("iomem").splitlines():
        match = re.match(r" *(\w+)-(\w+) : (.*)", line)
        assert match
        found.append((int(match[1], 16), int(match[2], 16), match[3]))
    return found


def test_a_region_of_ones_own(core: Core) -> None:
    """A region without contents of its own shows what the page tables map in it."""

    class Toy(Region):
        key, name, macro = "toy", "toy", "TOY"

        def locate(self, kernel: Kernel) -> Located:
            found = kernel.locate("kernel_image")
            assert isinstance(found, Placement)
            return Placement(found.used or found.range, "a test")

    kernel = fresh(core)
    kernel.__dict__["regions"] = (*kernel.regions, Toy())
    found = document(kernel, "toy")
    image = document(kernel, "kernel_image")
    assert (
        found["totals"]["mapped"] == image["totals"]["mapped"] == sum(row["size"] for row in found["ranges"])
    )
    assert {row["rights"] for row in found["ranges"]} == {"r-x", "r--", "rw-"}


# The image


@pytest.fixture(scope="module")
def image(kernel: Kernel) -> Any:
    return document(kernel, "kernel_image")


def test_where_iomem_has_the_image(core: Core, image: Any, kernel: Kernel) -> None:
    needs(kernel, "__end_rodata")
    parts = {row["name"]: row for row in image["sections"]}
    if core.architecture == "arm64":
        # arch/arm64/kernel/setup.c: from _text, which has a header of 64 KB, to __init_begin; _sdata to _end.
        (code,) = ((start, end) for start, end, name in iomem(core) if name == "Kernel code")
        (data,) = ((start, end) for start, end, name in iomem(core) if name == "Kernel data")
        rodata, offset = parts["rodata"], number(parts["data"]["start"]) - number(parts["data"]["physical"])
        assert code[0] == number(parts["text"]["physical"]) - (64 << 10)
        assert code[1] == number(rodata["physical"]) + rodata["size"] - 1
        assert data == (number(parts["data"]["physical"]), number(image["region"]["end"]) - offset)
        return
    names = {"Kernel code": "text", "Kernel rodata": "rodata", "Kernel data": "data", "Kernel bss": "bss"}
    seen = 0
    for start, end, name in iomem(core):
        if name in names:
            row = parts[names[name]]
            assert number(row["physical"]) == start
            # setup.c ends the bss at __bss_stop, rodata at __end_rodata and so on; all ends are exclusive.
            size = row["size"] + (
                parts.get("unused decrypted bss", {"size": 0})["size"] if "bss" in name else 0
            )
            assert number(row["physical"]) + size - 1 == end
            seen += 1
    assert seen == 4


def test_what_was_freed(core: Core, image: Any, kernel: Kernel) -> None:
    """The kernel logs at boot which parts of itself it frees."""
    needs(kernel, "__init_begin", "__end_rodata")
    said = dict(
        re.findall(r"Freeing unused (?:kernel image \()?([^)]+?)\)? memory: (\d+)K", core.truth("dmesg"))
    )
    names = {
        "decrypted": "unused decrypted bss",
        "initmem": "init",
        "kernel": "init",  # arm64
        "text/rodata gap": "gap after text",
        "rodata/data gap": "gap after rodata",
    }
    freed: Dict[str, int] = {}
    for row in image["sections"]:
        if row["freed"]:
            # riscv64 has code and data of init in two parts.
            name = "init" if row["name"].startswith("init ") else row["name"]
            freed[name] = freed.get(name, 0) + (row["size"] >> 10)
    assert {names[what]: int(size) for what, size in said.items()} == freed


def test_write_protected(core: Core, image: Any) -> None:
    if core.architecture != "amd64":
        pytest.skip("this kernel does not log what it protects")
    said = re.search(r"Write protecting the kernel read-only data: (\d+)k", core.truth("dmesg"))
    assert said
    symbols = kallsyms(core, "__end_rodata_hpage_align", "_text")
    assert int(said[1]) << 10 == symbols["__end_rodata_hpage_align"] - symbols["_text"]
    parts = {row["name"]: row for row in image["sections"]}
    assert set(parts["text"]["rights"]) == {"r-x"} and set(parts["rodata"]["rights"]) == {"r--"}


def test_rights_against_what_they_should_be(core: Core, image: Any, kernel: Kernel) -> None:
    needs(kernel, "__end_rodata")
    clean(image)
    assert image["notes"] == []
    for row in image["sections"]:
        if row["freed"] and row["name"] != "unused decrypted bss":
            # x86-64 unmaps them under isolation.
            unmapped = core.architecture == "arm64" or core.isolation
            assert bool(row["mapped"]) is not unmapped


def test_image_against_ptdump(core: Core, image: Any) -> None:
    """Rights by address: the kernel's own dump and kvintro's rows agree."""
    theirs = merged((line.start, line.end, line.rights) for line in ptdump_in(core, image))
    for row in image["sections"]:
        start, end = number(row["start"]), number(row["end"]) + 1
        low, high = start & -core.page_size, -(-end // core.page_size) * core.page_size
        met = {rights for a, b, rights in theirs if a < high and low < b}
        assert met == set(row["rights"])
        covered = sum(min(b, high) - max(a, low) for a, b, _ in theirs if a < high and low < b)
        assert covered == row["mapped"]
    assert sum(b - a for a, b, _ in theirs) == image["totals"]["mapped"]


# The direct map


@pytest.fixture(scope="module")
def direct(kernel: Kernel) -> Any:
    return document(kernel, "direct_map")


def test_direct_map_counts(core: Core, direct: Any, kernel: Kernel) -> None:
    """DirectMap4k, 2M and 1G are direct_pages_count; the page tables must give the same numbers."""
    needs(kernel, "direct_pages_count")
    if core.architecture != "amd64":
        pytest.skip("this kernel does not count the pages of the direct map")
    assert direct["notes"] == [] and direct["partial"] is False
    said = {
        name: int(size)
        for name, size in re.findall(r"^DirectMap(\w+): +(\d+) kB", core.truth("meminfo"), re.M)
    }
    totals = direct["totals"]
    split = totals["blocks_split_in_image"] - totals.get("blocks_split_by_hwpoison", 0)
    assert said["4k"] == (totals["pages_of_4K"] + 512 * split) * 4
    assert said["2M"] == (totals["pages_of_2M"] - split) * 2048
    assert said.get("1G", 0) == totals["pages_of_1G"] << 20


def test_ram_is_what_iomem_says(core: Core, direct: Any, kernel: Kernel) -> None:
    needs(kernel, "iomem_resource")
    theirs = [(start, end) for start, end, name in iomem(core) if name == "System RAM"]
    assert [(number(row["physical"]), number(row["physical_end"])) for row in direct["ram"]] == theirs
    for row in direct["ram"]:
        each = {f"{core.page_size >> 10}K": core.page_size, core.huge_name: core.huge_size, "1G": 1 << 30}
        assert sum(each[name] * count for name, count in row["pages"].items()) >= row["mapped"]


def test_secret_memory_left_the_map(core: Core, direct: Any, kernel: Kernel) -> None:
    """memfd_secret's pages are not mapped, according to the frames in the process's own pagemap."""
    needs(kernel, "iomem_resource")
    match = re.search(r"^(\d+) \S+ secret (\w+) (\w+)", core.truth("workload"), re.M)
    if not match or int(match[2], 16) == 0:
        pytest.skip("this kernel has no memfd_secret")
    pid, start, end = match[1], int(match[2], 16), int(match[3], 16)
    frames: Set[int] = set()
    for line in core.truth("pagemap").splitlines():
        fields = line.split()
        if fields[0] == pid and start <= int(fields[1], 16) < end:
            frames.add((int(fields[2], 16) & (1 << 55) - 1) * core.page_size)
    assert len(frames) == (end - start) // core.page_size
    ours: Set[int] = set()
    for row in direct["holes"]:
        if row["why"] == "memfd_secret":
            ours.update(range(number(row["physical"]), number(row["physical"]) + row["size"], core.page_size))
    assert ours == frames


def test_holes_outside_ram_are_named(core: Core, direct: Any) -> None:
    top = [(start, end, name) for start, end, name in iomem(core)]
    for row in direct["holes"]:
        if row["why"].startswith("no RAM") and row["resource"]:
            low = number(row["physical"])
            assert any(
                start <= low and low + row["size"] - 1 <= end and name == row["resource"]
                for start, end, name in top
            )


def test_direct_map_against_ptdump(core: Core, direct: Any) -> None:
    theirs = merged((line.start, line.end, line.rights) for line in ptdump_in(core, direct))
    ours = merged((number(row["start"]), number(row["end"]) + 1, row["rights"]) for row in direct["runs"])
    assert ours == theirs
    first = ours[0][0]
    holes = sum(row["size"] for row in direct["holes"] if number(row["start"]) > first)
    whole = ours[-1][1] - first
    assert holes == whole - sum(b - a for a, b, _ in ours)


def test_every_split_has_a_reason(core: Core, direct: Any) -> None:
    small: Set[int] = set()
    for row in direct["runs"]:
        if row["page_size"] == f"{core.page_size >> 10}K":
            first, last = (number(row[key]) // core.huge_size for key in ("start", "end"))
            small.update(range(first, last + 1))
    assert sum(row["blocks"] for row in direct["splits"]) == len(small)
    assert all(row["why"] for row in direct["splits"])


# struct pages


def test_vmemmap(core: Core, kernel: Kernel) -> None:
    found = clean(document(kernel, "vmemmap"))
    assert found["notes"] == []
    zones: Dict[Tuple[int, str], Dict[str, int]] = {}
    for block in re.split(r"^Node ", core.truth("zoneinfo"), flags=re.M)[1:]:
        head = re.match(r"(\d+), zone +(\w+)", block)
        assert head
        numbers = {
            name: int(value)
            for name, value in re.findall(r"^ +(spanned|present|start_pfn:?) +(\d+)", block, re.M)
        }
        zones[int(head[1]), head[2]] = numbers
    ours = {(row["node"], row["zone"]): row for row in found["zones"]}
    # mm/vmstat.c:zoneinfo_show_print: the file does not give the start of a zone without present pages.
    theirs = {key: z for key, z in zones.items() if z["spanned"]}
    assert set(ours) == set(theirs)
    for key, zone in theirs.items():
        assert ours[key]["spanned"] == zone["spanned"] and ours[key]["present"] == zone["present"]
        if zone["present"]:
            assert number(ours[key]["physical"]) == zone["start_pfn:"] * core.page_size
    ram_end = max(end for _, end, name in iomem(core) if name == "System RAM")
    assert number(found["sections"][-1]["physical_end"]) >= ram_end
    # Memory that was plugged in but not put online has sections, but does not belong to a zone.
    section = 1 << int(kernel.source.vmcoreinfo["NUMBER(SECTION_SIZE_BITS)"])
    online = found["totals"]["online"] * section
    assert online - section < max(
        (z["start_pfn:"] + z["spanned"]) * core.page_size for z in theirs.values() if z["present"]
    )
    assert online >= sum(zone["present"] for zone in theirs.values()) * core.page_size


def test_huge_pages_give_struct_pages_back(core: Core, kernel: Kernel) -> None:
    """Of the eight pages of struct pages of a 2 MB huge page, all but the first are freed
    (Documentation/mm/vmemmap_dedup.rst), if the boot option asks for it."""
    totals = document(kernel, "vmemmap")["totals"]
    asked = "hugetlb_free_vmemmap=on" in core.truth("cmdline")
    huge = re.search(r"^HugePages_Total: +(\d+)", core.truth("meminfo"), re.M)
    count = int(huge[1]) if huge and asked else 0
    assert count or not asked
    assert totals["saved_by_hugetlb"] == count * 7 * PAGE
    assert totals["memory_spent"] == totals["mapped"] - totals["saved_by_hugetlb"]


def test_vmemmap_against_ptdump(core: Core, kernel: Kernel) -> None:
    found = document(kernel, "vmemmap")
    assert sum(line.end - line.start for line in ptdump_in(core, found)) == found["totals"]["mapped"]


def test_a_damaged_section_table(core: Core, kernel: Kernel) -> None:
    needs(kernel, "mem_section")
    kernel = fresh(core)
    table = kernel.value("mem_section").value
    overlay(kernel, table, 0xDEAD_0000_0000_0000)
    report = show(kernel, "vmemmap", Asked(), Selection())
    assert report.partial and report.notes


# KASAN


def test_shadow_against_ptdump(core: Core, kernel: Kernel) -> None:
    needs(kernel, "kasan_early_shadow_pte")
    found = document(kernel, "kasan_shadow")
    lines = ptdump_in(core, found)
    theirs = merged((line.start, line.end, line.rights) for line in lines if line.rights == "rw-")
    ours = merged((number(row["start"]), number(row["end"]) + 1, row["rights"]) for row in found["real"])
    # Shadow with its own memory is writable, and the shared page of zeros is not.
    assert ours == theirs
    assert found["totals"]["shared_zero_page"] == sum(
        line.end - line.start for line in lines if line.rights == "r--"
    )


def test_shadow_bytes(core: Core, kernel: Kernel) -> None:
    needs(kernel, "kasan_early_shadow_pte")
    document(kernel, "kasan_shadow")
    base = kernel.linear_offset.value
    flags = gzip.decompress((core.truth_directory / "kpageflags.gz").read_bytes())
    words = struct.unpack(f"<{len(flags) // 8}Q", flags)
    buddy, slab = 1 << 10, 1 << 7  # include/uapi/linux/kernel-page-flags.h
    free = [pfn for pfn, word in enumerate(words) if word & buddy][5:400:40]
    in_use = [pfn for pfn, word in enumerate(words) if word & slab][5:400:40]
    told = 0
    for pfn in free:
        start = base + (pfn << 12)
        for row in document(kernel, "kasan_shadow", within=AddressRange(start, start + PAGE - 1))["bytes"]:
            told += row["byte"] == "ff" and row["size"] == PAGE
    # Pages that were never allocated since boot are not poisoned yet.
    assert told
    meanings: Set[str] = set()
    for pfn in in_use:
        start = base + (pfn << 12)
        rows = document(kernel, "kasan_shadow", within=AddressRange(start, start + PAGE - 1))["bytes"]
        assert sum(row["size"] for row in rows) == PAGE
        meanings.update(row["meaning"] for row in rows)
    assert "may be used" in meanings and any("slab" in meaning for meaning in meanings)


def test_shadow_of_global_variables(core: Core, kernel: Kernel) -> None:
    """The compiler puts a redzone after each global variable; the next symbol starts at its end."""
    document(kernel, "kasan_shadow")
    start = kallsyms(core, "_sdata")["_sdata"]
    within = AddressRange(start, start + (256 << 10) - 1)
    rows = document(kernel, "kasan_shadow", within=within)["bytes"]
    assert number(rows[0]["start"]) == within.start and number(rows[-1]["end"]) == within.end
    starts = {address for _, address in all_symbols(core, whole=True)}
    redzones = [row for row in rows if row["meaning"] == "redzone of a global variable"]
    followed = sum(number(row["end"]) + 1 in starts for row in redzones)
    # Some variables that follow have no name: compound literals and, on arm64 more often, strings.
    named = 0.9 if core.architecture == "amd64" else 0.75
    assert len(redzones) > 100 and followed > named * len(redzones)
    for before, row in zip(rows, rows[1:]):
        assert number(before["end"]) + 1 == number(row["start"])


# EFI


def test_efi_runtime_map(core: Core, kernel: Kernel) -> None:
    needs(kernel, "efi_mm")
    if kernel.regions.named("efi") is None:
        pytest.skip("EFI has no part of the kernel's half")
    if not core.meta["efi"]:
        report = show(kernel, "efi", Asked(), Selection())
        assert report.negative
        assert json.loads(render(report, "json"))["region"]["reason"] in (
            "not booted by EFI",
            "CONFIG_EFI is off",
        )
        return
    found = clean(document(kernel, "efi"))
    theirs = set()
    for line in core.truth("efi-runtime-map").splitlines():
        if not line.startswith("#"):
            attribute, pages, physical, kind, virtual = (int(field, 16) for field in line.split())
            theirs.add((attribute, pages, physical, kind, virtual))
    ours = {
        (row["attribute"], row["pages"], number(row["physical"]), row["type"], number(row["start"]))
        for row in found["descriptors"]
        if "RUNTIME" in row["attributes"]
    }
    assert ours == theirs


def test_efi_against_ptdump(core: Core, kernel: Kernel) -> None:
    if not core.meta["efi"]:
        pytest.skip("not booted by EFI")
    if kernel.regions.named("efi") is None:
        pytest.skip("EFI has no part of the kernel's half")
    found = document(kernel, "efi")
    theirs = merged(
        (line.start, line.end, line.rights) for line in ptdump(core, "EFI Runtime Services", "ptdump/efi")
    )
    ours = merged((number(row["start"]), number(row["end"]) + 1, row["rights"]) for row in found["ranges"])
    assert ours == theirs
