# SPDX-License-Identifier: LGPL-2.1-or-later
"""The address space of arm64 kernels, against their own macros, registers and messages.

A module in the guest printed them in the same boot (``vmcores/guest/tables.c``).
"""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Dict, List

import pytest

from kvintro.arch.aarch64.facts import arm64_facts
from kvintro.cli import main
from kvintro.errors import KvintroError, NotInDump
from kvintro.kernels import Kernel
from kvintro.model import ALL, Placement, Root, Unknown
from kvintro.opening import open_kernel
from kvintro.queries.mapped_by_rights import rights_of
from kvintro.queries.pages.census import page_format
from kvintro.queries.roots import named_root, process_root
from kvintro.queries.translate import Input, Translator
from kvintro.render import render_stream
from kvintro.reports.layout import layout
from kvintro.reports.ptdump import ptdump
from kvintro.reports.translate import translate_stream
from kvintro.source import Request
from kvintro.text import size_text
from tests.conftest import Core
from tests.cores.showing import kallsyms, values

ARCHITECTURES = ("arm64",)
PAGEMAP_PRESENT, PAGEMAP_SWAP, PAGEMAP_PFN = 1 << 63, 1 << 62, (1 << 55) - 1


@pytest.fixture(scope="module")
def macros(core: Core) -> Dict[str, int]:
    """The kernel's macros by name."""
    return core.macros


@pytest.fixture(scope="module")
def registers(core: Core) -> Dict[str, int]:
    """Registers of one processor by name."""
    lines = (line.split() for line in core.truth("system-registers").splitlines())
    return {name: int(value, 16) for name, value in lines}


def test_form(kernel: Kernel, macros: Dict[str, int]) -> None:
    form = arm64_facts(kernel).form
    assert form.page_size == macros["PAGE_SIZE"]
    assert (form.built_bits, form.address_bits) == (macros["VA_BITS"], macros["vabits_actual"])
    assert form.least_bits == macros["VA_BITS_MIN"]
    if form.built_bits == form.address_bits:
        # The other levels are folded at run time.
        assert form.levels == macros["CONFIG_PGTABLE_LEVELS"]
        assert form.entries(form.levels) == macros["PTRS_PER_PGD"]
        assert form.shift(form.levels) == macros["PGDIR_SHIFT"]
    assert form.user.end + 1 == macros["TASK_SIZE_64"]
    assert form.page_size * form.contiguous(1) == macros["CONT_PTE_SIZE"]
    assert (form.contiguous(2) << form.shift(2)) == macros["CONT_PMD_SIZE"]


def test_bounds(kernel: Kernel, macros: Dict[str, int]) -> None:
    facts = arm64_facts(kernel)
    space, form = facts.space, facts.form
    assert form.page_offset == macros["PAGE_OFFSET"]
    assert facts.linear_end.value == macros["PAGE_END"]
    assert facts.memstart.value == macros["memstart_addr"]
    assert (facts.modules.start, facts.modules.end + 1) == (macros["MODULES_VADDR"], macros["MODULES_END"])
    assert (facts.vmalloc.start, facts.vmalloc.end + 1) == (macros["VMALLOC_START"], macros["VMALLOC_END"])
    assert (space.vmemmap_start, space.vmemmap.end + 1) == (macros["VMEMMAP_START"], macros["VMEMMAP_END"])
    assert (space.pci_io.start, space.pci_io.end + 1) == (macros["PCI_IO_START"], macros["PCI_IO_END"])
    assert space.fixaddr_top == macros["FIXADDR_TOP"]
    assert facts.fixmap(whole=False).start == macros["FIXADDR_START"]
    if "FIXADDR_TOT_START" in macros:
        assert facts.fixmap(whole=True).start == macros["FIXADDR_TOT_START"]
    assert kernel.image_offset.value == macros["kimage_voffset"]


def test_root_and_memory_types(core: Core, kernel: Kernel, registers: Dict[str, int]) -> None:
    """In kernel mode, TTBR1_EL1 has swapper_pg_dir, and MAIR_EL1 the value from __cpu_setup."""
    facts = arm64_facts(kernel)
    ttbr = registers["ttbr1_el1"]
    table = (ttbr & (1 << 48) - (1 << 6)) & ~0x3C | (ttbr & 0x3C) << 46
    # With 64K pages, a processor with fewer bits than the kernel uses only the end of that table.
    skipped = table % core.page_size
    assert table - skipped == kernel.root.value
    assert bool(skipped) is (core.page_size == 1 << 16 and facts.form.built_bits != facts.form.address_bits)
    assert 64 - (registers["tcr_el1"] >> 16 & 63) == facts.form.address_bits
    mair = registers["mair_el1"]
    # DDI 0487, MAIR_EL1: 0 nGnRnE, 4 nGnRE, 0xc GRE, 0x44 non-cacheable, 0xbb write-through, 0xff and 0xf0
    # (with tags) cacheable.
    names = {0: "DEVICE/nGnRnE", 4: "DEVICE/nGnRE", 0xC: "DEVICE/GRE", 0x44: "NORMAL-NC", 0xBB: "NORMAL-WT"}
    for index, name in enumerate(facts.form.types):
        byte = mair >> 8 * index & 0xFF
        expected = names.get(byte) or ("NORMAL-TAGGED" if index == 1 else "NORMAL")
        assert name == expected, index


def test_zones_without_types(core: Core, kernel: Kernel) -> None:
    """VMCOREINFO alone gives the same bits of node and zone as the kernel's types."""
    names = list(dict.fromkeys(re.findall(r"^Node \d+, zone +(\w+)", core.truth("zoneinfo"), re.M)))
    if isinstance(open_kernel(Request(core=str(core.path), types="none")).locate("vmemmap"), Unknown):
        pytest.skip("neither VMCOREINFO nor a symbol leads to the nodes, which say where struct pages are")
    typed, bare = page_format(kernel), page_format(open_kernel(Request(core=str(core.path), types="none")))
    for one in (typed, bare):
        assert list(one.zones) == names
    assert (bare.zone_shift, bare.zone_bits, bare.zones) == (typed.zone_shift, typed.zone_bits, typed.zones)


def test_isolation(core: Core, kernel: Kernel) -> None:
    said = re.search(r"detected: Kernel page table isolation", core.truth("dmesg")) is not None
    assert kernel.isolation.value is said


def test_trampoline(core: Core, kernel: Kernel) -> None:
    """The tables that a processor uses in user mode under KPTI."""
    expected = core.truth("ptdump/tramp")
    table = kernel.facts.user_root(kernel.root.value)
    if not kernel.isolation.value:
        assert table is None
        return
    assert table is not None
    text = "".join(render_stream(ptdump(kernel, Root(table, "tramp_pg_dir")), "text"))
    assert lines_of(text) == lines_of(expected)


@pytest.mark.parametrize("name", ["idmap", "reserved"])
def test_other_roots(core: Core, kernel: Kernel, name: str) -> None:
    """The tables for TTBR0 that belong to no process. The identity map has 48 bits on every processor."""
    expected = core.truth(f"ptdump/{name}")
    if not expected:
        pytest.skip(f"{core.name} was taken without tables of {name}")
    text = "".join(render_stream(ptdump(kernel, named_root(kernel, name)), "text"))
    assert lines_of(text) == lines_of(expected)
    assert bool(lines_of(expected)) is (name == "idmap")
    for line in lines_of(expected):
        start = int(line[2:18], 16)
        assert Translator(kernel, root=name).translate(Input("", start, "virtual")).physical == start


def lines_of(text: str) -> List[str]:
    """Lines without headings and without unmapped ranges, whose ends depend on the headings."""
    return [line for line in text.splitlines() if line.startswith("0x") and len(line.split()) > 3]


def pages_of(text: str, size: int) -> Dict[int, str]:
    """Each page that has an entry, with its flags except AF, which the kernel clears to detect use."""
    found = {}
    for line in lines_of(text):
        bounds, _, flags = line.partition("   ")
        start, end = (int(part, 16) for part in bounds.split("-"))
        for address in range(start, end or 1 << 64, size):
            found[address] = " ".join(word for word in flags.split()[1:] if word != "AF")
    return found


def test_processes(core: Core, kernel: Kernel) -> None:
    """The tables of each waiting process, as the kernel prints them."""
    pids = [path.name for path in (core.truth_directory / "proc").iterdir() if (path / "ptdump").exists()]
    if not pids:
        pytest.skip(f"{core.name} was taken without tables of processes")
    size = kernel.form.page_size
    for pid in set(pids) - {core.truth("probe").strip()}:
        expected = core.truth(f"proc/{pid}/ptdump")
        found = "".join(render_stream(ptdump(kernel, process_root(kernel, int(pid))), "text"))
        assert pages_of(found, size) == pages_of(expected, size), pid


def test_pages_of_processes(core: Core, kernel: Kernel) -> None:
    """Every page of /proc/PID/pagemap: PROT_NONE, contiguous and swapped-out ones."""
    form, entries = kernel.form, kernel.entries
    checked = swapped = kept = 0
    roots: Dict[str, int] = {}
    for line in core.truth("pagemap").splitlines():
        pid, virtual, word = line.split()[:3]
        address, entry = int(virtual, 16), int(word, 16)
        if pid not in roots:
            roots[pid] = process_root(kernel, int(pid)).table
        found = kernel.walk(address, roots[pid])
        leaf, level = found.steps[-1].value or 0, found.steps[-1].level
        if not entry & PAGEMAP_PRESENT:
            assert found.physical is None and not form.holds_page(leaf, level), line
            if entry & PAGEMAP_SWAP:
                swap = entries.decode(leaf, level, half="user").swap
                assert swap is not None
                offset = swap.offset if swap.pfn is None else swap.pfn
                assert (swap.type, offset) == (entry & 31, entry >> 5 & (1 << 50) - 1), line
                swapped += 1
            continue
        physical = found.physical
        if physical is None:
            assert entries.decode(leaf, level, half="user").kind == "protnone", line
            physical = form.held_address(leaf, level) | address & (1 << form.shift(level)) - 1
            kept += 1
        assert physical >> form.page_shift == entry & PAGEMAP_PFN, line
        checked += 1
    assert checked > 1000
    assert swapped and kept


def test_signed_pointers(core: Core, kernel: Kernel) -> None:
    """The bits of KERNELPACMASK, except bit 55, can have any value; without the mask, none is accepted."""
    mask = int(kernel.source.vmcoreinfo["NUMBER(KERNELPACMASK)"], 16)
    stext = kernel.number("SYMBOL(_stext)").value
    translator = Translator(kernel)
    for bits in (0x5A5 << 52, 0x123 << 52, 1 << 62):
        pointer = stext ^ (bits & ~(1 << 55) & (mask or ALL))
        found = translator.parse(f"{pointer:x}")
        assert (found.value, found.note) == (
            (stext, "without its signature (PAC)") if mask else (pointer, "")
        ), hex(pointer)


def test_tagged_pointers(core: Core, kernel: Kernel) -> None:
    for line in core.truth("workload").splitlines():
        pid, _, kind, start = line.split()[:4]
        if kind == "mte" and int(start, 16):
            translator = Translator(kernel, pid=int(pid))
            found = translator.parse(f"{int(start, 16) | 0xA << 56:x}")
            assert (found.value, found.note) == (int(start, 16), "without its tag, 0x0a")
            assert translator.translate(found).physical is not None
            return
    pytest.skip(f"{core.name}'s processor has no memory tags")


def test_marked_pointers_in_a_list(core: Core, kernel: Kernel) -> None:
    """A list gives the answers that single pointers get, and these are what the pagemap says."""
    mask = int(kernel.source.vmcoreinfo["NUMBER(KERNELPACMASK)"], 16)
    entries: Dict[int, Dict[int, int]] = {}
    for line in core.truth("pagemap").splitlines():
        pid, virtual, word = line.split()[:3]
        entries.setdefault(int(pid), {})[int(virtual, 16)] = int(word, 16)
    swapped = 0
    for process, found in entries.items():
        gone = [address for address, entry in found.items() if not entry & PAGEMAP_PRESENT][:20]
        addresses = [*list(found)[:: len(found) // 40 + 1], *gone]
        tags = [number * 37 % 255 + 1 for number in range(len(addresses))]
        pointers = [address | tag << 56 for address, tag in zip(addresses, tags)]
        for address, tag, row in zip(addresses, tags, answers(Translator(kernel, pid=process), pointers)):
            # The hardware ignores bits 56 to 63, and bit 55 selects the half.
            assert row["virtual"] == address, row
            assert f"without its tag, 0x{tag:02x}" in str(row["note"])
            present = found[address] & PAGEMAP_PRESENT
            assert row["pfn"] == (found[address] & PAGEMAP_PFN if present else None), row
            assert row["state"] == ("mapped" if present else "unmapped"), row
            swapped += bool(found[address] & PAGEMAP_SWAP)
    assert swapped
    starts = [kernel.number("SYMBOL(_stext)").value, kernel.root.value + kernel.linear_offset.value & ALL]
    bits = (0x5A5 << 52, 0x123 << 52, 1 << 62, 0)
    rows = answers(Translator(kernel), [start ^ bit & ~(1 << 55) for start in starts for bit in bits])
    for number, row in enumerate(rows):
        start, bit = starts[number // len(bits)], bits[number % len(bits)]
        assert row["state"] == ("mapped" if mask or not bit else "non-canonical"), row
        assert row["state"] != "mapped" or row["virtual"] == start


def answers(translator: Translator, pointers: List[int]) -> List[Dict[str, object]]:
    """The rows of a list of pointers, after a comparison with each pointer's own answer."""
    texts = [f"{pointer:x}" for pointer in pointers]
    rows: List[Dict[str, object]] = []
    for batch in translate_stream(translator.kernel, translator, [texts]):
        rows += [dict(zip(batch.values, row)) for row in zip(*batch.values.values())]
    for text, row in zip(texts, rows):
        one = translator.translate(translator.parse(text))
        # A list gives these only where it has to ask for one address at a time.
        left = () if row["walk"] else ("symbol", "in_dump", "note", "walk", "root")
        for field in fields(one):
            assert field.name in left or row[field.name] == getattr(one, field.name), (text, field.name)
    assert len(rows) == len(texts)
    return rows


def test_contiguous_entries(core: Core, kernel: Kernel) -> None:
    """The first entry of every line of the kernel's own dump of a process: those with CON, and the others."""
    form, seen = arm64_facts(kernel).form, set()
    pids = [path.name for path in (core.truth_directory / "proc").iterdir() if (path / "ptdump").exists()]
    for pid in pids:
        translator = Translator(kernel, pid=int(pid))
        for line in lines_of(core.truth(f"proc/{pid}/ptdump")):
            start, level = int(line[2:18], 16), 2 if "BLK" in line else 1
            last = translator.translate(Input("", start, "virtual")).walk[-1]
            contiguous = "CON" in line.split()
            assert ("CONT" in last.flags) == contiguous, (pid, line)
            size = size_text(form.contiguous(level) << form.shift(level)) if contiguous else ""
            assert last.kind != "page" or last.note == (size and f"part of {size} with the contiguous bit")
            seen.add(size)
    assert len(seen) > 1 or not pids


def test_rights_count_each_page_once(core: Core, kernel: Kernel) -> None:
    """The image and modules are inside vmalloc; the kernel's own dump has each address in one line."""
    lines = [line.split() for line in lines_of(core.truth("ptdump/kernel"))]
    bounds = [[int(part, 16) for part in words[0].split("-")] for words in lines if "F" not in words]
    found, problems = rights_of(kernel)
    assert not problems
    assert sum(row.size for row in found) == sum((end or 1 << 64) - start for start, end in bounds)


def test_areas_with_a_physical_address(core: Core, kernel: Kernel) -> None:
    """ioremap() and the image's segments; those of __init are listed after their pages were freed."""
    checked = 0
    for line in core.truth("vmallocinfo").splitlines():
        match = re.match(r"0x(\w+)-0x(\w+) .* phys=0x(\w+)", line)
        if match is None:
            continue
        found = kernel.walk(int(match[1], 16))
        if found.state == "unmapped" and " paging_init" in line:
            continue
        assert found.physical == int(match[3], 16), line
        checked += 1
    assert checked > 5


def test_layout_is_what_the_macros_say(kernel: Kernel, macros: Dict[str, int]) -> None:
    rows = {row.key: row for row in layout(kernel).tables[0].rows if row.key != "hole"}
    bits, least = macros["vabits_actual"], macros["VA_BITS_MIN"]
    assert least <= bits
    modules = "modules_without_kaslr" if rows["modules"].parent else "modules"
    for key, start, end in (
        ("user", 0, macros["TASK_SIZE_64"]),
        ("direct_map", (1 << 64) - (1 << bits), macros["PAGE_END"]),
        (modules, macros["MODULES_VADDR"], macros["MODULES_END"]),
        ("vmalloc", macros["VMALLOC_START"], macros["VMALLOC_END"]),
        ("vmemmap", None, macros["VMEMMAP_END"]),
        ("pci_io", macros["PCI_IO_START"], macros["PCI_IO_END"]),
        ("fixmap", macros["FIXADDR_START"], macros["FIXADDR_TOP"]),
    ):
        row = rows[key]
        assert row.end is not None and row.end + 1 == end, key
        assert start is None or row.start == start, key
    used = rows["vmemmap"].used_start
    frame = min(start for start, _ in kernel.node_spans())
    assert used == macros["vmemmap"] + frame * macros["sizeof_page"] & ALL


def test_layout_covers_all_addresses(kernel: Kernel) -> None:
    rows = [row for row in layout(kernel).tables[0].rows if row.start is not None and not row.parent]
    cursor = 0
    for row in rows:
        assert row.start == cursor, row.key
        assert row.end is not None
        cursor = row.end + 1
    assert cursor == 1 << 64


def test_segments_of_kcore(core: Core, kernel: Kernel) -> None:
    """fs/proc/kcore.c lists the image, vmalloc, modules, RAM and its struct pages."""
    rows = {row.key: row for row in layout(kernel).tables[0].rows}
    said = set()
    for line in core.truth("kcore-phdrs").splitlines():
        if line.startswith("LOAD"):
            fields = line.split()
            first = int(fields[2], 16)
            said.add((first, first + int(fields[5], 16) - 1))
    image = rows["kernel_image"]
    assert image.start is not None and image.end is not None
    # Older kernels do not map the header before _stext.
    header = kernel.number("SYMBOL(_stext)").value - 0x1_0000
    assert said & {(image.start, image.end), (header, image.end)}
    modules = rows["modules_without_kaslr" if rows["modules"].parent else "modules"]
    used = rows["direct_map"]
    for row in (rows["vmalloc"], modules):
        assert row.start is not None and row.end is not None
        assert (int(row.start), int(row.end)) in said
    # It also lists firmware's memory, which is in no node, and splits RAM where firmware reserves some.
    ram = [(start, end) for start, end in said if start < used.end]  # type: ignore[operator]
    assert used.used_start in {start for start, _ in ram} or core.meta["efi"]
    assert max(end for _, end in ram) == used.used_end


def test_kaslr(core: Core, kernel: Kernel) -> None:
    """Whether it was on, according to the command line and the source of the random number."""
    on = core.kaslr
    assert kernel.facts.kaslr.value is on
    draws = {draw.key: draw for region in kernel.regions for draw in region.randomised(kernel)}
    assert draws["image_virtual"].state == ("on" if on else "off")
    assert draws["image_virtual"].note == "" or not on
    # The sizes of ID_AA64MMFR0_EL1 in the manuals of these processors.
    assert arm64_facts(kernel).physical_bits == {"cortex-a72": 44}.get(core.meta["cpu"], 52)
    unknown = {key for key, draw in draws.items() if draw.state == "unknown"}
    # 5.10 names code only, and its module_alloc() is not read.
    unnamed = {"modules"} if kernel.code_only and on else set()
    assert unknown <= ({"image_physical"} if core.meta["efi"] else set()) | unnamed
    linear = draws["direct_map"]
    if linear.state == "on":
        # The offset differs from those without KASLR, and is a multiple of 1 GB.
        assert linear.note == "" and linear.displacement


def test_modules_are_in_their_window(core: Core, kernel: Kernel) -> None:
    """The kernel's variable, the number of pages that it reported, and the modules' real addresses."""
    (draw,) = kernel.regions.modules.randomised(kernel)
    loaded = [int(line.split()[5], 16) for line in core.truth("modules").splitlines()]
    variables = values(core)
    known = [
        int.from_bytes(variables[name][:8], "little")
        for name in ("module_direct_base", "module_plt_base", "module_alloc_base")
        if name in variables
    ]
    base = next((value for value in known if value), None)
    if base is None and kernel.code_only:
        # The variable was found by the code that reads it, except on 5.10.
        base = draw.actual
        if base is None:
            assert draw.state == "unknown"
            return
        assert base <= min(loaded) < base + (16 << 20)
    assert draw.actual == base
    if not kernel.facts.kaslr.value:
        assert (draw.state, draw.slots) == ("off", 1)
        return
    # The first module is at the start; nothing else uses these addresses.
    assert base is not None and base <= min(loaded) < base + (16 << 20)
    assert (draw.state, draw.granularity, draw.note) == ("on", kernel.form.page_size, "")
    # (2 GB - size of the image) / size of a page, of random_bounding_box() and of nothing else.
    pages = re.search(r"(\d+) pages in range for PLT usage", core.truth("dmesg"))
    if pages is not None:
        assert draw.slots == int(pages[1]) + 1
    place = kernel.locate("kernel_image")
    assert isinstance(place, Placement)
    symbols = kallsyms(core)
    start, end = symbols.get("_text", place.range.start), symbols.get("_end", place.range.end + 1)
    assert end - (2 << 30) <= base <= start


def test_the_image_in_physical_memory(core: Core, kernel: Kernel) -> None:
    """EFI chooses in steps of 64 KB, and only if its firmware has random numbers."""
    draws = {draw.key: draw for region in kernel.regions for draw in region.randomised(kernel)}
    draw = draws["image_physical"]
    assert draw.actual is not None
    code = re.search(r"^ *(\w+)-\w+ : Kernel code", core.truth("iomem"), re.M)
    # The resource starts at _text, and before 6.9 at _stext.
    assert code and int(code[1], 16) - draw.actual in (0, 0x1_0000)
    if not kernel.facts.kaslr.value:
        assert draw.state == "off"
    elif draw.actual % (2 << 20) == 0:
        # All other boot loaders align the image like this, and EFI does by chance.
        assert draw.state == ("unknown" if core.meta["efi"] else "off")
    else:
        assert core.meta["efi"] and core.meta["rng"]
        assert (draw.state, draw.granularity, draw.bound, draw.note) == ("on", 64 << 10, "at most", "")
        ram = re.findall(r"^(\w+)-(\w+) : System RAM", core.truth("iomem"), re.M)
        memory = sum(int(end, 16) + 1 - int(start, 16) for start, end in ram)
        assert draw.slots is not None and draw.slots >= memory // (64 << 10)


def test_image_and_linear_map_have_rules(kernel: Kernel) -> None:
    stext = kernel.number("SYMBOL(_stext)").value
    found = kernel.walk(stext)
    assert found.physical == stext - kernel.image_offset.value & ALL
    alias = found.physical + kernel.linear_offset.value & ALL
    assert kernel.walk(alias).physical == found.physical


def test_isolation_is_not_known_without_tables(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(address: int, size: int) -> bytes:
        raise NotInDump(address, size, physical=True)

    bare = kernel.fresh()
    monkeypatch.setattr(bare, "read_physical", nothing)
    with pytest.raises(KvintroError):
        assert bare.isolation


@pytest.mark.parametrize(
    "words",
    [
        "info",
        "layout",
        "kaslr",
        "explain",
        "explain vmalloc",
        "translate _stext",
        "translate phys:0x40210000",
        "identify _stext",
        "aliases 0x40210000",
        "page pfn:0x40210",
        "pages",
        "user 1",
        *("ptdump --root tramp", "ptdump --root idmap", "ptdump --root reserved", "translate --root idmap 0"),
        *(f"show {key}" for key in ("direct_map", "vmalloc", "vmemmap", "kernel_image", "modules", "fixmap")),
        *("show pci_io", "show user", "check", "diff {core}", "report -o {out}"),
    ],
)
def test_commands_end_with_an_answer(
    core: Core, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command ends with an answer, or with one line and a remedy; never with a traceback."""
    arguments = words.format(core=core.path, out=tmp_path / "out.html").split()
    try:
        code = main(["-c", str(core.path), *arguments])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code in (0, 1, 2, 3, 4)
    said = capsys.readouterr().err
    assert "internal error" not in said and "Traceback" not in said
