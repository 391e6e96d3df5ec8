# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kaslr` against a simulation of the kernel's steps, with the memory map and header of each boot."""

from __future__ import annotations

import json
import random
import re
from typing import Any, Dict, List

import pytest

from kvintro.arch.x86_64.boot_params import alignment, image_sizes, unpacking
from kvintro.arch.x86_64.facts import x86_form
from kvintro.arch.x86_64.slots import HIGHEST_MINIMUM, physical_places, region_draws, region_sizes
from kvintro.kernels import Kernel
from kvintro.render import render
from kvintro.reports.kaslr import kaslr
from tests import kaslr_simulation as sim
from tests.conftest import Core
from tests.cores.showing import needs, number, registers, values

BOOTS = 1000
#: The unpacked size that the packed kernel gives (output_len, the last four bytes of the payload).
OUTPUT_LEN = {
    "5.10.251-5": 0x2CB9658,
    "6.1.192-2": 0x32C6E34,
    "6.12.117-1~deb12u1": 0x36E87EC,
    "7.3.4-1~bpo13+1": 0x3B38430,
}
ORACLE_OUTPUT_LEN = {"6.12.117-oracle": 0x14B4BB4}


@pytest.fixture(scope="module")
def rows(kernel: Kernel) -> Dict[str, Any]:
    return {row["key"]: row for row in json.loads(render(kaslr(kernel), "json"))["bases"]}


@pytest.fixture
def rand() -> sim.Rand:
    source = random.Random(20240229)
    return lambda: source.getrandbits(64)


def on(core: Core, rows: Dict[str, Any], key: str) -> Any:
    """The row of a randomised base."""
    if not core.meta["kaslr"]:
        pytest.skip("no KASLR in this boot")
    if key not in rows or rows[key]["state"] == "off":
        pytest.skip(f"{key} is not drawn here")
    return rows[key]


def boot_of(core: Core, kernel: Kernel) -> sim.Boot:
    """The unpacker's input: the header's fields from memory, everything else from the truth."""
    if not core.meta["kaslr"]:
        pytest.skip("no KASLR in this boot")
    if core.meta["efi"]:
        pytest.skip("firmware's memory map, which decided, is in nobody's words")
    output_len = {**OUTPUT_LEN, **ORACLE_OUTPUT_LEN}.get(
        core.meta["release"] if core.meta["oracle"] else core.meta["package_version"]
    )
    if output_len is None:
        pytest.skip(f"the packed kernel of {core.meta['package_version']} is not at hand")
    needs(kernel, "_end")
    header = kernel.read(kernel.symbol("boot_params"), 4096)

    def word(offset: int, size: int = 4) -> int:
        return int.from_bytes(header[offset : offset + size], "little")

    initrd = re.search(r"RAMDISK: \[mem 0x(\w+)-0x(\w+)\]", core.truth("dmesg"))
    assert initrd
    start, end = int(initrd[1], 16), int(initrd[2], 16) + 1
    # kaslr.c:mem_avoid_memmap, for the only form that the lab uses.
    memmap = [
        (int(b) << 20, int(a) << 20) for a, b in re.findall(r"memmap=(\d+)M!(\d+)M", core.truth("cmdline"))
    ]
    return sim.Boot(
        e820=sim.e820_of(core.truth("dmesg")),
        startup_32=word(0x214),
        init_size=word(0x260),
        payload_offset=word(0x248),
        payload_length=word(0x24C),
        output_len=output_len,
        total=kernel.symbol("_end") - kernel.symbol("_text"),
        taken=[(start, end - start), (word(0x228), len(core.truth("cmdline"))), *memmap],
        immovable=sim.srat_of(core.truth("dmesg")),
        mem_limit=1 << (52 if core.meta["levels"] == 5 else 46),
    )


def code_at(core: Core) -> int:
    """The address of the kernel's code in /proc/iomem."""
    found = re.search(r"^ *(\w+)-\w+ : Kernel code", core.truth("iomem"), re.M)
    assert found
    return int(found[1], 16)


def test_the_image_in_its_window(core: Core, kernel: Kernel, rows: Dict[str, Any], rand: sim.Rand) -> None:
    boot = boot_of(core, kernel)
    row = rows["image_virtual"]
    places = {0xFFFF_FFFF_8000_0000 + sim.find_random_virt_addr(boot, lambda n=n: n) for n in range(1024)}  # type: ignore[misc]
    assert row["slots"] == len(places) == sim.virtual_slots(boot)
    reported = {number(row["default"]) + n * row["granularity"] for n in range(row["slots"])}
    assert places == reported
    assert number(row["actual"]) in places
    assert sorted(places)[row["place"]] == number(row["actual"])
    assert {0xFFFF_FFFF_8000_0000 + sim.find_random_virt_addr(boot, rand) for _ in range(BOOTS)} <= reported


def test_the_image_in_its_window_by_the_efi_stub(core: Core, kernel: Kernel, rows: Dict[str, Any]) -> None:
    if not (core.meta["efi"] and core.meta["kaslr"]):
        pytest.skip("not booted by EFI")
    needs(kernel, "_end")
    total = kernel.symbol("_end") - kernel.symbol("_text")
    source = random.Random(1)
    seeds = [0, (1 << 32) - 1, *(source.getrandbits(32) for _ in range(50 * BOOTS))]
    places = {0xFFFF_FFFF_8000_0000 + sim.efi_virt_addr(total, seed) for seed in seeds}
    row = rows["image_virtual"]
    assert row["slots"] == len(places) and row["bound"] == "at most"
    assert number(row["actual"]) in places
    physical = rows["image_physical"]
    assert physical["bound"] == "at most" and physical["default"] is None


def test_the_image_in_physical_memory(
    core: Core, kernel: Kernel, rows: Dict[str, Any], rand: sim.Rand
) -> None:
    boot = boot_of(core, kernel)
    row = rows["image_physical"]
    places = sim.physical_places(boot)
    assert len(set(places)) == len(places)
    if row["bound"] == "at most":
        assert row["slots"] >= len(places)
    else:
        assert row["slots"] == len(places)
    assert number(row["actual"]) == code_at(core)
    assert number(row["default"]) == boot.output
    if not places:
        assert (row["state"], row["displacement"], row["bits"]) == ("off", 0, 0)
        assert code_at(core) == boot.output
        return
    assert row["state"] == "on" and code_at(core) in places
    if not row["bound"]:
        assert places[row["place"]] == code_at(core)
    align, _ = alignment(kernel)
    _, most, _ = image_sizes(kernel)
    unpacker = unpacking(kernel)
    assert most is not None
    found = physical_places(unpacker.ram, unpacker.taken, min(unpacker.load, HIGHEST_MINIMUM), most, align)
    reported = {place for area in found for place in area}
    # `at most` does not subtract places that only an SRAT or an option excludes.
    assert reported >= set(places) and (reported == set(places) or row["bound"] == "at most")
    assert {sim.find_random_phys_addr(boot, rand) for _ in range(BOOTS)} <= reported


def memory_of(core: Core) -> sim.Memory:
    """The input of kernel_randomize_memory(). The kernels of the lab all have CONFIG_ZONE_DEVICE."""
    held = values(core)
    names = [name for name in ("direct_map_physmem_end", "physmem_end") if name in held]
    if not names:
        pytest.skip("this kernel does not say how much it reserved")
    memory = sim.Memory(core.meta["levels"], int.from_bytes(held["max_pfn"][:8], "little"), 64)
    # The size that the kernel itself recorded.
    assert int.from_bytes(held[names[0]][:8], "little") + 1 == memory.size_tb[0] << 40
    return memory


def test_the_memory_regions(core: Core, kernel: Kernel, rows: Dict[str, Any], rand: sim.Rand) -> None:
    keys = ("direct_map", "vmalloc", "vmemmap")
    for key in keys:
        on(core, rows, key)
    memory = memory_of(core)
    bases = [
        int.from_bytes(values(core)[name][:8], "little")
        for name in ("page_offset_base", "vmalloc_base", "vmemmap_base")
    ]
    # The actual places are among them; otherwise no draw would give these bases.
    assert [rows[key]["slots"] for key in keys] == sim.replay(memory, bases)
    assert [number(rows[key]["actual"]) for key in keys] == bases
    chosen = iter([rows[key]["place"] * sim.PUD_SIZE for key in keys])
    assert sim.kernel_randomize_memory(memory, lambda: next(chosen))[0] == bases
    sizes = region_sizes(x86_form(kernel), memory.size_tb[0] << 40, kernel.page_struct_size.value)
    for _ in range(BOOTS):
        drawn, places = sim.kernel_randomize_memory(memory, rand)
        found = region_draws(x86_form(kernel), sizes, drawn)
        assert all(draw.possible for draw in found)
        assert [draw.slots for draw in found] == places


def test_modules(core: Core, kernel: Kernel, rows: Dict[str, Any], rand: sim.Rand) -> None:
    row = on(core, rows, "modules")
    if row["state"] == "unknown":
        assert kernel.code_only
        pytest.skip(row["note"])
    # KASAN in the lab's kernels does not cover vmalloc; the cache was enabled again for good in 6.16.
    series = tuple(int(part) for part in core.meta["release"].split(".")[:2])
    rox = series >= (6, 16)
    space = sim.ModuleSpace(32 * sim.KB if core.meta["oracle"] else 4 * sim.KB, rox)
    areas = {
        int(start, 16) for start in re.findall(r"^0x(ffffffff[c-f]\w+)-", core.truth("vmallocinfo"), re.M)
    }
    for key, text in (("modules", True), ("modules_data", False)):
        assert (key in rows) is (text or rox)
        if key not in rows:
            continue
        row = rows[key]
        places = sim.module_places(space, text)
        assert row["slots"] == len(places)
        # Rounded up: the first place is one step after the start.
        reported = {number(row["default"]) + n * row["granularity"] for n in range(1, row["slots"] + 1)}
        assert set(places) == reported
        assert {sim.first_piece(space, sim.module_start(rand), text) for _ in range(BOOTS)} <= reported
        actual = number(row["actual"])
        assert actual in places
        # From the kernel's own list: the cache keeps its first area, but others may have been freed.
        assert actual in areas if text and rox else actual <= min(areas)


def test_cpu_entry_areas(core: Core, kernel: Kernel, rows: Dict[str, Any], rand: sim.Rand) -> None:
    size = on(core, rows, "cpu_entry_area.0")["granularity"]
    base = 0xFFFF_FE00_0000_1000
    cpus = sorted(int(key.split(".")[1]) for key in rows if key.startswith("cpu_entry_area."))
    actual = [number(rows[f"cpu_entry_area.{cpu}"]["actual"]) for cpu in cpus]
    # QEMU's registers give the addresses of the areas of running CPUs.
    assert all(
        number(rows[f"cpu_entry_area.{cpu}"]["actual"]) == r["GDT"] for cpu, r in registers(core).items()
    )
    assert all((at - base) % size == 0 for at in actual)
    offsets = [(at - base) // size for at in actual]
    for index, cpu in enumerate(cpus[:2]):
        assert rows[f"cpu_entry_area.{cpu}"]["slots"] == sim.cea_places(offsets[:index], size)
    most = (sim.CPU_ENTRY_AREA_MAP_SIZE - sim.PAGE_SIZE) // size
    assert all(0 < offset < most for offset in offsets) and len(set(offsets)) == len(offsets)
    for _ in range(BOOTS):
        drawn: List[int] = sim.init_cea_offsets(len(cpus), size, rand)
        assert all(0 < offset < most for offset in drawn) and len(set(drawn)) == len(drawn)


def test_espfix(kernel: Kernel, rows: Dict[str, Any], rand: sim.Rand) -> None:
    needs(kernel, "espfix_stack")
    if "espfix" not in rows:
        pytest.skip("no espfix here")
    row = rows["espfix"]
    places = {sim.espfix_place(n) for n in range(1 << 18)}
    assert row["slots"] == len(places)
    assert number(row["actual"]) - number(row["default"]) in places
    assert {sim.espfix_place(rand()) for _ in range(BOOTS)} <= places
