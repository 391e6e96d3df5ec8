# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layout of every core against what that kernel reported about itself in the same boot."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pytest

from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.render import render
from kvintro.reports.layout import layout
from tests.conftest import Core
from tests.cores.showing import broken_frames, fence_of, needs
from tests.regions import REGIONS

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)

PAGE = 4096


@pytest.fixture(scope="module")
def document(kernel: Kernel) -> Any:
    """``layout --json``."""
    return json.loads(render(layout(kernel), "json"))


@pytest.fixture(scope="module")
def rows(document: Any) -> Dict[str, Any]:
    """The regions by key; holes, which share one key, are omitted."""
    if document["kernel"]["symbols"] == "none":
        pytest.skip("this kernel's VMCOREINFO does not lead to its symbols, and most bounds are variables")
    return {row["key"]: row for row in document["regions"] if row["key"] != "hole"}


@pytest.fixture(scope="module")
def values(core: Core, kernel: Kernel) -> Dict[str, int]:
    """The kernel's variables as the guest itself read them from its /proc/kcore."""
    needs(kernel, "max_pfn")
    found = {}
    for line in core.truth("values").splitlines():
        fields = line.split()
        if len(fields) == 4 and not line.startswith("#") and not fields[3].startswith("bytes:"):
            found[fields[0]] = int(fields[3], 0)
    assert found
    return found


@pytest.fixture(scope="module")
def config(core: Core) -> Dict[str, str]:
    """The kernel's configuration."""
    return core.config


def number(text: Optional[str]) -> int:
    assert text is not None
    return int(text, 16)


def test_rows_partition_the_address_space(document: Any) -> None:
    placed = [row for row in document["regions"] if row["start"] is not None and not row["parent"]]
    following = 0
    for row in placed:
        assert number(row["start"]) == following
        following = number(row["end"]) + 1
        assert following - number(row["start"]) == row["size"]
    assert following == 1 << 64
    for row in document["regions"]:
        assert (row["start"] is None) == (row["state"] != "present")


def test_every_row_of_mm_rst_is_there(core: Core, rows: Dict[str, Any]) -> None:
    if core.architecture == "amd64":
        assert set(rows) >= set(REGIONS)
    for row in rows.values():
        if row["state"] != "present":
            assert row["reason"]


def test_identity(core: Core, document: Any) -> None:
    kernel = document["kernel"]
    assert kernel["release"] == core.truth("release").strip()
    # The options of QEMU and the boot loader.
    assert kernel["paging_levels"] == core.levels
    assert kernel["kaslr"] is core.kaslr
    assert kernel["pti"] is core.isolation


@pytest.mark.parametrize(
    ("key", "variable"),
    [("direct_map", "page_offset_base"), ("vmalloc", "vmalloc_base"), ("vmemmap", "vmemmap_base")],
)
def test_bases(
    core: Core, rows: Dict[str, Any], values: Dict[str, int], key: str, variable: str, kernel: Kernel
) -> None:
    needs(kernel, "page_offset_base")
    if core.architecture != "amd64":
        pytest.skip("the tests of the architecture compare them with the kernel's macros or numbers")
    assert number(rows[key]["start"]) == values[variable]


def test_displacements(core: Core, rows: Dict[str, Any], config: Dict[str, str]) -> None:
    for key in ("direct_map", "vmalloc", "vmemmap", "kernel_image"):
        row = rows[key]
        if row["default_start"] is None:
            assert core.architecture != "amd64" and key != "kernel_image"  # they do not move
            continue
        base = number(row["used_start"] or row["start"] if key == "kernel_image" else row["start"])
        # arm64 before 6.9 does not map the 64 KB before _stext. KERNELOFFSET is that of _text.
        header = 0x1_0000 if "starts at _stext" in (row["note"] or "") else 0
        assert base - header - number(row["default_start"]) == row["slide"]
        # KASAN switches off the randomisation of the memory bases, but not that of the image.
        moved = core.kaslr and (key == "kernel_image" or "KASAN" not in config)
        if not moved:
            assert row["slide"] == 0
        elif key == "direct_map":
            assert row["slide"] % (1 << 30) == 0


def test_the_image(core: Core, rows: Dict[str, Any], kernel: Kernel) -> None:
    needs(kernel, "_end")
    symbols = {name: place for place, name in (line.split()[::2] for line in kallsyms(core))}
    row = rows["kernel_image"]
    # riscv64 has its boot header before the text.
    first = symbols["_start" if core.architecture == "riscv64" else "_text"]
    assert number(row["used_start"] or row["start"]) == int(first, 16)
    # cleanup_highmap keeps the image up to the next 2 MB.
    assert 0 <= number(row["used_end"] or row["end"]) + 1 - int(symbols["_end"], 16) < 4 << 20


def kallsyms(core: Core) -> Iterator[str]:
    if core.has_truth("kallsyms.gz"):
        text = gzip.decompress((core.truth_directory / "kallsyms.gz").read_bytes()).decode()
    else:
        text = core.truth("kallsyms")
    # Symbols of modules come last, followed by the module's name.
    return (line for line in text.splitlines() if len(line.split()) == 3)


def segments(core: Core) -> List[Tuple[int, int, int]]:
    """(virtual, physical, size) of the PT_LOADs of /proc/kcore."""
    lines = [line.split() for line in core.truth("kcore-phdrs").splitlines()]
    return [(int(f[2], 16), int(f[3], 16), int(f[5], 16)) for f in lines if f[0] == "LOAD"]


def test_what_kcore_says(core: Core, rows: Dict[str, Any], kernel: Kernel) -> None:
    needs(kernel, "page_offset_base")
    if core.architecture == "arm64":
        pytest.skip("test_aarch64 does this")
    loads = {virtual: size for virtual, _, size in segments(core)}
    vmalloc = number(rows["vmalloc"]["start"])
    # The kernel's VMALLOC_END is inclusive, and kclist_add takes the difference, which is one byte too short.
    inclusive = core.architecture == "amd64"
    assert vmalloc + loads[vmalloc] - (not inclusive) == number(rows["vmalloc"]["end"])
    modules = number(rows["modules"]["start"])
    assert modules + loads[modules] - 1 == number(rows["modules"]["end"])
    symbols = {name: place for place, name in (line.split()[::2] for line in kallsyms(core))}
    assert int(symbols["_text"], 16) in loads
    for virtual, physical, size in segments(core):
        inside = [
            r for r in rows.values() if r["start"] and number(r["start"]) <= virtual <= number(r["end"])
        ]
        assert len(inside) == 1
        if inside[0]["key"] == "direct_map":
            assert virtual - physical == number(inside[0]["start"]) - core.ram_base
            assert virtual + size - 1 <= number(inside[0]["used_end"])


def test_ram_is_within_the_used_direct_map(core: Core, rows: Dict[str, Any]) -> None:
    row = rows["direct_map"]
    used = number(row["used_end"]) - number(row["used_start"] or row["start"]) + 1
    ends = [
        int(match[1], 16) + 1
        for match in re.finditer(r"^[0-9a-f]+-([0-9a-f]+) : System RAM", core.truth("iomem"), re.M)
    ]
    # Some firmware has memory of its own before RAM, which the node has too.
    starts = [int(frame) for frame in re.findall(r"start_pfn: +(\d+)", core.truth("zoneinfo"))]
    assert max(ends) - min(core.ram_base, *(frame * core.page_size for frame in starts if frame)) == used


def direct_map_kilobytes(core: Core) -> Dict[str, int]:
    found = re.findall(r"DirectMap(4k|2M|1G):\s+(\d+) kB", core.truth("meminfo"))
    return {name.upper(): int(value) for name, value in found}


def secret_pages(core: Core) -> int:
    """Pages that memfd_secret took out of the direct map, according to the workload."""
    if not core.has_truth("workload"):
        return 0
    pages = 0
    for line in core.truth("workload").splitlines():
        fields = line.split()
        if fields[2] == "secret":
            pages += (int(fields[4], 16) - int(fields[3], 16)) // PAGE
    return pages


def image_splits(kernel: Kernel, rows: Dict[str, Any]) -> int:
    """2 MB blocks of the image that are mapped by a table of 4K pages."""
    row = rows["kernel_image"]
    walks = (kernel.walk(a) for a in range(number(row["used_start"]), number(row["used_end"]), 2 << 20))
    return sum(walk.steps[-1].level == 1 for walk in walks)


def test_direct_map_pages(core: Core, kernel: Kernel, rows: Dict[str, Any]) -> None:
    """Against DirectMap4k, DirectMap2M and DirectMap1G of /proc/meminfo, to the page.

    The kernel's counters differ from the direct map in three ways. Pages that are taken out still count
    (set_direct_map_invalid_noflush and others only clear bits of their entries). Splitting a large page of
    the image counts as well, because arch/x86/mm/pat/set_memory.c:__split_large_page asks for the physical
    address only. And splitting one for a broken page does not, as set_mce_nospec's address has none.
    """
    said = direct_map_kilobytes(core)
    if core.architecture != "amd64":
        pytest.skip("this kernel does not count the pages of the direct map")
    leaves = {"4K": 0, "2M": 0, "1G": 0, **rows["direct_map"]["leaves"]}
    splits = image_splits(kernel, rows)
    broken = broken_frames(core)
    gone = secret_pages(core) + len(broken)
    fence = fence_of(core)
    if fence is not None:
        gone += sum(state in ("guard", "freed") for state in fence.pages.values())
    assert leaves["1G"] * (1 << 20) == said["1G"]
    uncounted = [
        count
        for count in range(len({frame >> 9 for frame in broken}) + 1)
        if (leaves["2M"] - splits + count) * 2048 == said["2M"]
    ]
    assert len(uncounted) == 1
    assert (leaves["4K"] + 512 * (splits - uncounted[0]) + gone) * 4 == said["4K"]
    assert rows["direct_map"]["mapped"] == (sum(said.values()) << 10) - gone * PAGE


def test_presence_follows_the_configuration(
    core: Core, rows: Dict[str, Any], config: Dict[str, str], kernel: Kernel
) -> None:
    needs(kernel, "efi_mm", "vsyscall_mode")

    def present(key: str) -> bool:
        assert rows[key]["state"] in ("present", "absent")
        return bool(rows[key]["state"] == "present")

    assert present("kasan_shadow") == ("KASAN" in config)
    if core.architecture != "amd64":
        return
    assert present("espfix") == ("X86_ESPFIX64" in config)
    assert present("ldt_remap") == ("MODIFY_LDT_SYSCALL" in config and core.meta["pti"])
    assert present("efi") == core.meta["efi"]
    asked = re.findall(r"\bvsyscall=(\w+)", core.truth("cmdline"))
    off = asked[-1] == "none" if asked else "LEGACY_VSYSCALL_NONE" in config
    assert present("vsyscall") == ("X86_VSYSCALL_EMULATION" in config and not off)


def test_ldt_of_each_process(core: Core, kernel: Kernel, rows: Dict[str, Any]) -> None:
    """The workload lists the number of LDT entries of each process; each slot maps as much as they need."""
    if "ldt_remap" not in rows:
        pytest.skip("only x86-64 has LDTs")
    if not core.isolation:
        assert rows["ldt_remap"]["state"] == "absent"
        return
    entries: Dict[int, int] = {}
    for line in core.truth("workload").splitlines():
        fields = line.split()
        if fields[2] == "ldt":
            highest = int(fields[fields.index("entry") + 1]) + 1
            entries[int(fields[0])] = max(entries.get(int(fields[0]), 0), highest)
    assert entries
    found = {root.owner for root in next(r for r in kernel.regions if r.key == "ldt_remap").roots(kernel)}
    # The process that writes the truth may have a small LDT of its own, for espfix.
    probe = int(core.truth("probe"))
    if f"pid {probe}" in found:
        entries[probe] = 1
    assert found == {f"pid {pid}" for pid in entries}
    assert rows["ldt_remap"]["roots"] == len(entries)
    assert rows["ldt_remap"]["mapped"] == sum(-(-n * 8 // PAGE) * PAGE for n in entries.values())


def test_vmalloc_areas_lie_in_it(core: Core, rows: Dict[str, Any]) -> None:
    start, end = number(rows["vmalloc"]["start"]), number(rows["vmalloc"]["end"])
    low, high = number(rows["modules"]["start"]), number(rows["modules"]["end"])
    total = 0
    for first, last in re.findall(r"^0x([0-9a-f]+)-0x([0-9a-f]+)", core.truth("vmallocinfo"), re.M):
        area = int(first, 16), int(last, 16) - 1
        in_vmalloc = start <= area[0] and area[1] <= end
        # mm/kasan/shadow.c:kasan_alloc_module_shadow allocates areas of vmalloc inside the shadow.
        shadow = (
            rows["kasan_shadow"]["start"]
            and number(rows["kasan_shadow"]["start"]) <= area[0] < 0xFFFFFC << 40
        )
        bpf = "bpf_jit" in rows and rows["bpf_jit"]["start"] and area[1] <= number(rows["bpf_jit"]["end"])
        assert in_vmalloc or shadow or bpf or (low <= area[0] and area[1] <= high)
        total += (area[1] - area[0] + 1) * in_vmalloc
    assert 0 < rows["vmalloc"]["mapped"] <= total


def test_modules_lie_in_their_region(core: Core, rows: Dict[str, Any]) -> None:
    start, end = number(rows["modules"]["start"]), number(rows["modules"]["end"])
    addresses = [int(line.split()[5], 16) for line in core.truth("modules").splitlines()]
    assert addresses
    assert all(start <= address <= end for address in addresses)


def test_struct_pages_cover_ram(core: Core, rows: Dict[str, Any], values: Dict[str, int]) -> None:
    row = rows["vmemmap"]
    start = number(row["used_start"] or row["start"])
    size = number(row["used_end"]) + 1 - start
    assert size % (values["max_pfn"] - core.ram_base // core.page_size) == 0
    for virtual, _, length in segments(core):
        if number(row["start"]) <= virtual <= number(row["end"]):
            # /proc/kcore rounds its segments of the map to pages.
            assert virtual + length <= start + -(-size // core.page_size) * core.page_size


def test_efi_runtime_map(core: Core, rows: Dict[str, Any], kernel: Kernel) -> None:
    """/sys/firmware/efi/runtime-map: the virtual address of each descriptor, and its number of pages."""
    needs(kernel, "efi_mm")
    if "efi" not in rows:
        pytest.skip("EFI has no part of the kernel's half")
    if not core.meta["efi"]:
        assert rows["efi"]["state"] == "absent"
        return
    start, end = number(rows["efi"]["start"]), number(rows["efi"]["end"])
    pages = 0
    head, *lines = core.truth("efi-runtime-map").splitlines()
    for line in lines:
        entry = dict(zip(head.lstrip("# ").split(), (int(field, 16) for field in line.split())))
        virtual, count = entry["virt_addr"], entry["num_pages"]
        assert start <= virtual
        assert virtual + count * PAGE - 1 <= end
        pages += count
    assert rows["efi"]["mapped"] == pages * PAGE


# The first markers come late: the dump omits the guard hole and then advances by one marker per line
# (arch/x86/mm/dump_pagetables.c:note_page), so LDT remap and Low Kernel Mapping come after their places.
MARKERS = {
    "vmalloc() Area": "vmalloc",
    "Vmemmap": "vmemmap",
    "KASAN shadow": "kasan_shadow",
    "CPU entry Area": "cpu_entry_area",
    "ESPfix Area": "espfix",
    "EFI Runtime Services": "efi",
    "High Kernel Mapping": "kernel_image",
    "Modules": "modules",
    "Fixmap Area": "fixmap",
    # arm64
    "Linear Mapping start": "direct_map",
    "Modules start": "modules_without_kaslr",
    "vmalloc() area": "vmalloc",
    "vmemmap start": "vmemmap",
    "PCI I/O start": "pci_io",
    # riscv64
    "Linear mapping": "direct_map",
    "Modules/BPF mapping": "modules",
    "Kernel mapping": "kernel_image",
}


def ptdump_sections(text: str) -> Dict[str, List[Tuple[int, int, bool]]]:
    """(start, end exclusive, mapped) of the lines under each marker of a ptdump file."""
    found: Dict[str, List[Tuple[int, int, bool]]] = {}
    current = found.setdefault("", [])  # 5.10 on arm64 has no heading before the first lines
    for line in text.splitlines():
        marker = re.match(r"---\[ (.*) \]---", line)
        if marker:
            current = found.setdefault(marker[1], [])
            continue
        match = re.match(r"0x([0-9a-f]+)-0x([0-9a-f]+)\s+\S+\s(.*)", line)
        if match:
            # A mapped line has rights; an unmapped one has blanks there. F (arm64): the processor faults.
            # V: that of riscv64 does not.
            flags = set(match[3].split())
            mapped = bool(flags & {"RW", "ro", "V"}) and "F" not in flags
            current.append((int(match[1], 16), int(match[2], 16) or 1 << 64, mapped))
    return found


def has_alias(core: Core, kernel: Kernel, address: int) -> bool:
    """Whether the direct map has an address of the image's data, by the kernel's own dump.

    On arm64 that of 7.3 does not.
    """
    if core.architecture != "arm64":
        return True
    alias = address - kernel.image_offset.value + kernel.linear_offset.value & ALL
    lines = ptdump_sections(core.truth("ptdump/kernel"))["Linear Mapping start"]
    return any(start <= alias < end for start, end, mapped in lines if mapped)


def test_ptdump_markers(core: Core, rows: Dict[str, Any]) -> None:
    """The start of each area in the kernel's own dump of its tables."""
    sections = ptdump_sections(core.truth("ptdump/kernel"))
    checked = 0
    for marker, key in MARKERS.items():
        if not sections.get(marker) or key not in rows or rows[key]["start"] is None:
            continue
        first, start = sections[marker][0][0], number(rows[key]["start"])
        # riscv64 prints only what is mapped. arm64's VMEMMAP_START is for all addresses that the kernel was
        # built for: with fewer bits it is in vmalloc, and its heading comes at the next line.
        late = core.architecture == "riscv64" or (key == "vmemmap" and core.has_fewer_bits)
        assert start <= first if late else first == start, marker
        assert first <= number(rows[key]["end"])
        checked += 1
    assert checked >= 4


def test_ptdump_mapped_bytes(core: Core, rows: Dict[str, Any]) -> None:
    """Bytes mapped in each region, as the kernel's dump counts them."""
    sections = ptdump_sections(core.truth("ptdump/kernel"))
    lines = [line for section in sections.values() for line in section]
    for key in (
        "direct_map",
        "vmalloc",
        "vmemmap",
        "kasan_shadow",
        "cpu_entry_area",
        "kernel_image",
        "modules",
        "fixmap",
        "pci_io",
    ):
        row = rows.get(key)
        if row is None or row["start"] is None:
            continue
        start, end = number(row["start"]), number(row["end"]) + 1
        said = sum(max(0, min(end, e) - max(start, s)) for s, e, mapped in lines if mapped)
        assert row["mapped"] == said, key


def test_text_and_csv_say_the_same(kernel: Kernel, document: Any) -> None:
    report = layout(kernel)
    text = render(report, "text")
    table = [line.split() for line in render(report, "csv").splitlines()[1:]]
    assert len(table) == len(document["regions"])
    for row in document["regions"]:
        if row["start"] is not None:
            assert f"{row['start'][2:]}  {row['end'][2:]}" in text
            assert row["start"] in render(report, "csv")


def test_what_a_process_maps(core: Core, kernel: Kernel) -> None:
    """``--pid`` against the process's own pagemap: bit 63 says that a page is present."""
    if kernel.source.types == "none":
        pytest.skip("processes cannot be found without types")
    pages: Dict[Tuple[int, int], int] = {}
    for line in core.truth("pagemap").splitlines():
        if not line.startswith("#"):
            number, place, entry = line.split()
            pages[int(number), int(place, 16)] = int(entry, 16) >> 63
    present = {
        pid: sum(there for (p, _), there in pages.items() if p == pid) for pid in {p for p, _ in pages}
    }
    for pid in present:
        # pagemap reports PROT_NONE pages as present; the hardware and kvintro do not.
        hidden = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ---p", core.truth(f"proc/{pid}/maps"), re.M)
        for first, last in hidden:
            inside = range(int(first, 16), int(last, 16), core.page_size)
            present[pid] -= sum(pages.get((pid, address), 0) for address in inside)
    assert present
    for pid, count in present.items():
        found = json.loads(render(layout(kernel, pid=pid), "json"))["regions"][0]
        assert (found["key"], found["mapped"]) == ("user", count * core.page_size), pid
