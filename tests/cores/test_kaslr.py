# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kaslr` against the variables, symbols and registers of each boot."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

from kvintro.arch.x86_64.slots import REGION_ALIGN
from kvintro.kernels import Kernel
from kvintro.render import render
from kvintro.reports.kaslr import kaslr
from tests.conftest import Core
from tests.cores.showing import kallsyms, needs, number, ptdump, registers, values

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)

TB = 1 << 40
BASES = {"direct_map": "page_offset_base", "vmalloc": "vmalloc_base", "vmemmap": "vmemmap_base"}


@pytest.fixture(scope="module")
def document(kernel: Kernel) -> Any:
    found = json.loads(render(kaslr(kernel), "json"))
    assert found["schema"] == "kvintro.kaslr/1"
    return found


@pytest.fixture(scope="module")
def rows(document: Any) -> Dict[str, Any]:
    return {row["key"]: row for row in document["bases"]}


def word(core: Core, name: str) -> int:
    return int.from_bytes(values(core)[name][:8], "little")


def of_x86(core: Core) -> None:
    if core.architecture != "amd64":
        pytest.skip("this is about bases that only x86-64 has")


def test_on_or_off(core: Core, document: Any) -> None:
    assert document["enabled"] is core.kaslr


def test_memory_bases(core: Core, rows: Dict[str, Any], kernel: Kernel) -> None:
    needs(kernel, "page_offset_base")
    of_x86(core)
    for key, variable in BASES.items():
        assert number(rows[key]["actual"]) == word(core, variable)
        assert number(rows[key]["default"]) + rows[key]["displacement"] == number(rows[key]["actual"])
        if rows[key]["displacement"]:
            assert number(rows[key]["actual"]) % REGION_ALIGN == 0
            assert rows[key]["state"] != "off"


def test_the_image(core: Core, rows: Dict[str, Any], kernel: Kernel) -> None:
    needs(kernel, "_end")
    of_x86(core)
    symbols = kallsyms(core, "_text")
    assert number(rows["image_virtual"]["actual"]) == symbols["_text"]
    code = re.search(r"^ *(\w+)-\w+ : Kernel code", core.truth("iomem"), re.M)
    assert code and number(rows["image_physical"]["actual"]) == int(code[1], 16)
    for key in ("image_virtual", "image_physical"):
        row = rows[key]
        if row["displacement"] is None:
            assert core.meta["efi"] and key == "image_physical" and row["default"] is None
        elif core.kaslr and row["displacement"]:
            assert row["state"] == "on" and row["slots"] > 1
            # The actual place is one of the slots.
            assert row["displacement"] % row["granularity"] == 0
            if key == "image_virtual":
                assert 0 <= row["displacement"] // row["granularity"] < row["slots"]
        elif core.kaslr:
            # KASLR was on, but there was nothing to choose from.
            assert (key, row["state"], row["slots"]) == ("image_physical", "off", 0)
            assert "stayed" in row["note"]
        else:
            assert (row["state"], row["displacement"], row["bits"]) == ("off", 0, 0)
            assert "nokaslr" in core.meta["cmdline"] and "nokaslr" in row["note"]


def test_the_image_of_arm64(core: Core, rows: Dict[str, Any]) -> None:
    """The kernel's macros, and a place in the middle half of vmalloc (kernel/pi/kaslr_early.c of 6.12)."""
    if core.architecture != "arm64":
        pytest.skip("test_the_image is for x86-64")
    lines = (line.split() for line in core.truth("layout").splitlines())
    macros = {fields[0]: int(fields[1], 16) for fields in lines if len(fields) == 2}
    virtual, physical = rows["image_virtual"], rows["image_physical"]
    assert number(virtual["actual"]) == kallsyms(core, "_text")["_text"]
    assert number(virtual["default"]) == macros["KIMAGE_VADDR"]
    code = re.search(r"^ *(\w+)-\w+ : Kernel code", core.truth("iomem"), re.M)
    assert code and number(physical["actual"]) == int(code[1], 16)
    assert (physical["state"], physical["slots"]) == ("off", 1) or core.meta["efi"]
    whole = macros["VMALLOC_END"] - macros["KIMAGE_VADDR"]
    if virtual["state"] == "on" and core.meta["release"].startswith("6.12."):
        assert whole // 4 <= virtual["displacement"] < whole // 4 * 3
        assert virtual["slots"] == -(-whole // 2 // (2 << 20))


def test_the_image_of_riscv64(core: Core, rows: Dict[str, Any]) -> None:
    """The number that the device tree had, modulo the number of slots, is the slot (mm/init.c:setup_vm)."""
    if core.architecture != "riscv64":
        pytest.skip("test_the_image is for x86-64")
    virtual, physical = rows["image_virtual"], rows["image_physical"]
    assert number(virtual["actual"]) == kallsyms(core, "_start")["_start"]
    code = re.search(r"^ *(\w+)-\w+ : Kernel image", core.truth("iomem"), re.M)
    before = kallsyms(core, "_text")["_text"] - number(virtual["actual"])
    assert code and number(physical["actual"]) + before == int(code[1], 16)
    assert (physical["state"], physical["slots"]) == ("off", 1)
    if not core.kaslr:
        assert (virtual["state"], virtual["displacement"], virtual["bits"]) == ("off", 0, 0)
        assert core.meta["oracle"] is ("nokaslr" in virtual["note"])
        return
    assert (virtual["state"], virtual["granularity"]) == ("on", 2 << 20)
    assert int(core.meta["kaslr_seed"], 16) % virtual["slots"] * (2 << 20) == virtual["displacement"]


def test_the_image_fits_into_its_slots(core: Core, rows: Dict[str, Any]) -> None:
    """1 + (1 GB - 16 MB - image) / 2 MB, with an image at least as large as its symbols span."""
    row = rows["image_virtual"]
    of_x86(core)
    if row["state"] != "on":
        pytest.skip("no KASLR in this boot")
    symbols = kallsyms(core, "_text", "_end")
    least = symbols["_end"] - symbols["_text"]
    most = 1 + ((1 << 30) - (16 << 20) - least) // (2 << 20)
    assert most - 12 <= row["slots"] <= most


def test_modules(core: Core, rows: Dict[str, Any], kernel: Kernel) -> None:
    needs(kernel, "execmem_info")
    of_x86(core)
    row = rows["modules"]
    variables = values(core)
    if "module_load_offset" in variables:
        start = 0xFFFF_FFFF_C000_0000 + word(core, "module_load_offset")
    else:
        start = word(core, "execmem_info")
    if not core.kaslr:
        assert (row["state"], number(row["actual"])) == ("off", start)
        return
    # Rounded up to the alignment of the first piece; data does not have such an alignment.
    assert 0 <= number(row["actual"]) - start < row["granularity"]
    assert number(rows.get("modules_data", row)["actual"]) - start < (32 << 10)
    modules = [int(line.split()[5], 16) for line in core.truth("modules").splitlines()]
    assert not modules or start <= min(modules)
    assert row["slots"] * row["granularity"] == 4 << 20 and 0 < row["displacement"] <= 4 << 20
    assert row["bits"] == math.log2(row["slots"])


def test_cpu_entry_areas(core: Core, rows: Dict[str, Any], kernel: Kernel) -> None:
    """The processors' GDT registers contain the start of each area."""
    needs(kernel, "_cea_offset")
    of_x86(core)
    for cpu, held in registers(core).items():
        row = rows[f"cpu_entry_area.{cpu}"]
        assert number(row["actual"]) == held["GDT"]
        if row["state"] == "on":
            assert row["bits"] == round(math.log2(row["slots"]), 2) > 20


def test_espfix(core: Core, rows: Dict[str, Any], kernel: Kernel) -> None:
    needs(kernel, "espfix_stack")
    if "espfix" not in rows:
        pytest.skip("no espfix here")
    line = ptdump(core, "ESPfix Area")[0]
    assert number(rows["espfix"]["actual"]) & ~0xFFFF_FFFF == line.start & ~0xFFFF_FFFF
    assert rows["espfix"]["bits"] == 17


def test_kasan_leaves_the_memory_bases_where_they_are(
    core: Core, rows: Dict[str, Any], kernel: Kernel
) -> None:
    needs(kernel, "_end")
    of_x86(core)
    if not core.meta["oracle"]:
        pytest.skip("no KASAN here")
    for key in BASES:
        assert rows[key]["state"] == "off" and "KASAN" in rows[key]["note"]
    assert rows["image_virtual"]["state"] == "on"


def test_entropy_of_the_regions(core: Core, rows: Dict[str, Any]) -> None:
    """The three regions share the free space below cpu_entry_area, one after the other."""
    of_x86(core)
    if rows["direct_map"]["state"] != "on":
        pytest.skip("memory is not randomised, or the kernel does not say how much it reserved")
    # These kernels have ZONE_DEVICE, so that the direct map is never made smaller: mm.rst's sizes.
    levels = core.meta["levels"]
    reserved = 64 * TB + 32 * TB + TB if levels == 4 else 4096 * TB + 12800 * TB + 64 * TB
    start = 0xFFFF_8880_0000_0000 if levels == 4 else 0xFF11_0000_0000_0000
    free = 0xFFFF_FE00_0000_0000 - start - reserved
    used = 0
    for index, key in enumerate(BASES):
        row = rows[key]
        share = (free - used) // (3 - index)
        assert row["slots"] == share // REGION_ALIGN + 1
        assert row["bits"] == round(math.log2(row["slots"]), 2)
        assert row["note"] == "", "what came out is one of the places"
        size = (64, 32, 1)[index] * TB if levels == 4 else (4096, 12800, 64)[index] * TB
        drawn = number(row["actual"]) - start
        assert 0 <= drawn <= share
        used += drawn
        start = -(-(number(row["actual"]) + size + 1) // REGION_ALIGN) * REGION_ALIGN


def test_nothing_is_left_unsaid(core: Core, document: Any) -> None:
    for row in document["bases"]:
        if row["state"] == "unknown":
            assert row["note"] and row["bits"] is None
        if row["state"] == "on":
            assert row["provenance"] and row["computed"]
    assert document["partial"] is any(row["state"] == "unknown" for row in document["bases"])


def test_a_command_loads_no_slow_library_in_vain() -> None:
    """drgn's helpers and hashlib each take as long to load as most of kvintro."""
    core = Path(__file__).resolve().parents[2] / "vmcores/debian-6.12/core.kdump"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "kvintro", "-c", str(core), "kaslr"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "kvintro.reports.kaslr" in loaded
    assert not loaded & {"drgn.helpers.linux", "hashlib", "kvintro.regions.explained"}
