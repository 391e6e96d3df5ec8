# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel against itself: quiet where nothing is wrong, each rule found broken where a test breaks it."""

from __future__ import annotations

import dataclasses
import re
import struct
from typing import Callable, Dict, List, Optional, Tuple

import numpy
import pytest

from kvintro.arch.x86_64 import ALL, NX, PTI_USER_ROOT_BIT, RW, USER
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.model import Placement
from kvintro.paging import walk
from kvintro.queries.audit import CHECKS, frames, lists, running
from kvintro.queries.modules import module_memory
from kvintro.queries.pages.census import FrameTypes, Pages
from kvintro.readers.mapped import View
from kvintro.readers.processes import each_mm, mm_of, root_of
from kvintro.readers.structures import Damage
from kvintro.regions.vmalloc import AreaRow, Areas
from kvintro.reports.check import check
from kvintro.source.elf import Segment
from tests.conftest import Core
from tests.cores.showing import needs

RULES = {rule.key: rule for rule in CHECKS}


class Patched(Kernel):
    """A kernel with some page-table entries and variables changed."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.source)
        self.patches: Dict[int, int] = {}
        self.variables: Dict[int, int] = {}

    def read_physical(self, address: int, size: int) -> bytes:
        data = bytearray(super().read_physical(address, size))
        for at, value in self.patches.items():
            if address <= at < address + size:
                struct.pack_into("<Q", data, at - address, value)
        return bytes(data)

    def read(self, address: int, size: int) -> bytes:
        if address in self.variables:
            return self.variables[address].to_bytes(8, "little")[:size]
        return super().read(address, size)

    def afresh(self) -> Patched:
        """The same with nothing kept of what was read before the changes."""
        other = Patched(self)
        other.patches, other.variables = self.patches, self.variables
        return other

    def change(self, virtual: int, *, add: int = 0, take: int = 0, root: Optional[int] = None) -> None:
        """Change the last entry on the way to an address; rights are added on the whole way."""
        steps = walk(
            self.read_physical, self.geometry, self.root.value if root is None else root, virtual
        ).steps
        for step in steps[:-1]:
            assert step.value is not None
            self.patches[step.entry_address] = (step.value | add & ~NX) & ~(take & NX)
        last = steps[-1]
        assert last.value is not None
        self.patches[last.entry_address] = (last.value | add) & ~take

    def put(self, virtual: int, value: int) -> None:
        """Set the last entry on the way to an address."""
        self.patches[self.walk(virtual).steps[-1].entry_address] = value


#: Rules that need variables, and cannot be answered where those have no names.
NAMELESS = {
    *("overlap", "strays", "efi_wx", "rodata_ro", "text_ro", "data_nx", "pti_user_half", "contents"),
    *("mapped_pages", "proc_iomem", "proc_modules", "kaslr", "vmcoreinfo", "tables"),
}


def states(kernel: Kernel, *keys: str) -> Dict[str, str]:
    return {key: RULES[key].verdict(kernel).state for key in keys}


def symbol(kernel: Kernel, name: str) -> int:
    try:
        return kernel.symbol(name)
    except Unavailable as error:
        pytest.skip(error.what)


def test_a_healthy_kernel_has_no_defect(core: Core, kernel: Kernel) -> None:
    """Every core of the matrix: what is not as it should be is what its boot asked for."""
    report = check(kernel)
    findings, rules = (table.rows for table in report.tables)
    assert not [row for row in findings if row.severity == "defect"]
    assert not report.negative
    # The kernel's code is left out of this dump, and nothing of what is asked needs it.
    unknown = {row.key for row in rules if row.state == "unknown"}
    assert unknown <= (NAMELESS if kernel.code_only else set())
    assert report.partial == bool(unknown)
    warned = {row.rule for row in findings if row.severity == "warning"}
    expected = set()
    if not core.meta["kaslr"]:
        expected.add("kaslr")
    if not core.meta["pti"]:
        expected.add("pti")
    assert warned == expected


def test_an_image_that_stayed_where_it_was_loaded_is_noticed(core: Core, kernel: Kernel) -> None:
    """KASLR is on and found no place in physical memory; /proc/iomem has the code at 16 MB."""
    code = re.search(r"^ *(\w+)-\w+ : Kernel code", core.truth("iomem"), re.M)
    assert code
    stayed = core.meta["kaslr"] and int(code[1], 16) == 16 << 20
    findings, _ = (table.rows for table in check(kernel).tables)
    told = [row.what for row in findings if row.rule == "kaslr" and "image, physical" in row.what]
    assert bool(told) is bool(stayed or not core.meta["kaslr"])


def test_a_kernel_that_checked_itself_passes(core: Core, kernel: Kernel) -> None:
    """CONFIG_DEBUG_WX says so at boot, of the kernel's tables and of those for user mode."""
    if "Checked W+X mappings: passed" not in core.truth("dmesg"):
        pytest.skip("built without CONFIG_DEBUG_WX")
    assert states(kernel, "wx") == {"wx": "ok"}


# What breaks each rule, and others with it.


def _vmalloc_page(kernel: Kernel) -> int:
    """An address of an area that has pages of its own."""
    return int(next(row.start for row in _rows(kernel) if row.kind == "vmalloc" and row.pages and row.mapped))


def _rows(kernel: Kernel) -> List[AreaRow]:
    place = kernel.locate("vmalloc")
    assert isinstance(place, Placement)
    return Areas(kernel, place.range, Damage()).rows()


def _frame_of(kernel: Kernel, kind: str) -> int:
    types = FrameTypes(Pages(kernel))
    frames = numpy.arange(1 << 10, 96 << 8, dtype=numpy.uint64)
    return int(frames[types.are(frames, kind)][0])


def _empty_slot(kernel: Kernel) -> Tuple[int, int]:
    """(address of an entry, first address that it maps) of a root entry that belongs to no region."""
    geometry = kernel.geometry
    placed = [found.range for region in kernel.regions for found in [kernel.locate(region)]
              if isinstance(found, Placement)]  # fmt: skip
    for index in range(511, 256, -1):
        start = geometry.sign_extend(index << geometry.pgdir_shift)
        end = start + (1 << geometry.pgdir_shift) - 1
        entry = kernel.root.value + 8 * index
        free = not any(part.start <= end and start <= part.end for part in placed)
        if free and kernel.read_physical(entry, 8) == bytes(8):
            return entry, start
    pytest.skip("every entry of the root is some region's")


def _entry(kernel: Kernel, address: int) -> int:
    index = kernel.geometry.index(address, kernel.geometry.levels)
    return int.from_bytes(kernel.read_physical(kernel.root.value + 8 * index, 8), "little")


def _text(k: Patched) -> None:
    k.change(k.symbol("_text") + 0x1000, add=RW)


def _rodata_alias(k: Patched) -> None:
    physical = k.walk(k.symbol("__start_rodata")).physical
    assert physical is not None
    k.change(k.page_offset_base.value + physical, add=RW)


def _firmware(k: Patched) -> None:
    region = k.regions.efi
    found = k.locate(region)
    if not isinstance(found, Placement):
        pytest.skip(found.reason)
    (root,) = region.roots(k)
    view = View.of(k, found.range.start, found.range.end, root.table)
    at = next(low for low, _, key in view.parts(found.range.start, found.range.end) if key & 1)
    k.change(at, add=RW, take=NX, root=root.table)


def _module_text(k: Patched) -> None:
    pieces = [piece for piece in module_memory(k) if piece.kind in ("text", "core")]
    if not pieces:
        pytest.skip("no module is loaded")
    k.change(pieces[0].start, add=RW)


def _user_half(k: Patched) -> None:
    if not k.pti.value:
        pytest.skip("page-table isolation is off")
    # The user half gets the entry that has the direct map.
    base = k.page_offset_base.value
    index = k.geometry.index(base, k.geometry.levels)
    k.patches[(k.root.value | PTI_USER_ROOT_BIT) + 8 * index] = _entry(k, base)


def _process_root(k: Patched) -> None:
    process = next(iter(each_mm(k, Damage())))
    base = k.page_offset_base.value
    index = k.geometry.index(base, k.geometry.levels)
    k.patches[root_of(k, mm_of(k, process)) + 8 * index] = _entry(k, base) ^ 0x1000


def _other_frame(k: Patched) -> None:
    at = k.page_offset_base.value + (32 << 20)
    last = k.walk(at).steps[-1]
    assert last.value is not None
    k.patches[last.entry_address] = last.value ^ 1 << 25


def _stray(k: Patched) -> None:
    entry, _ = _empty_slot(k)
    k.patches[entry] = _entry(k, _vmalloc_page(k))


def _free_table(k: Patched) -> None:
    entry, _ = _empty_slot(k)
    k.patches[entry] = _frame_of(k, "free") << 12 | 0x63


def _free_page(k: Patched) -> None:
    k.put(_vmalloc_page(k), _frame_of(k, "free") << 12 | NX | 0x63)


def _overlap(k: Patched) -> None:
    k.variables[symbol(k, "vmalloc_base")] = k.page_offset_base.value


def _phys_base(k: Patched) -> None:
    k.variables[symbol(k, "phys_base")] = k.phys_base.value + 0x200000 & ALL


BREAKS: Dict[str, Callable[[Patched], None]] = {
    "overlap": _overlap,
    "vmcoreinfo": _phys_base,
    "linear": _other_frame,
    "strays": _stray,
    "wx": _text,
    "efi_wx": _firmware,
    "text_ro": _text,
    "rodata_ro": _rodata_alias,
    "data_nx": lambda k: k.change(k.symbol("init_task"), take=NX),
    "direct_map_nx": lambda k: k.change(k.page_offset_base.value + (32 << 20), take=NX),
    "region_rights": lambda k: k.change(_vmalloc_page(k), take=NX),
    "module_rights": _module_text,
    "user_bit": lambda k: k.change(k.symbol("init_task"), add=USER),
    "pti_user_half": _user_half,
    "process_roots": _process_root,
    "contents": lambda k: k.put(_vmalloc_page(k), 0),
    "table_pages": _free_table,
    "mapped_pages": _free_page,
}
#: Broken by tests of their own, below and in test_broken_tables.py.
ELSEWHERE = {"kaslr", "pti", "tables", "vmap_areas", "vmap_strays"}


def test_every_rule_is_broken_somewhere() -> None:
    of_files = {rule.key for rule in CHECKS if rule.live}
    assert {rule.key for rule in CHECKS} == {*BREAKS, *ELSEWHERE, *of_files}
    assert of_files == {*FILES, "proc_kcore"}


@pytest.mark.parametrize("rule", BREAKS)
def test_a_broken_rule_is_found(kernel: Kernel, rule: str) -> None:
    patched = Patched(kernel)
    symbol(patched, "_text")
    BREAKS[rule](patched)
    verdict = RULES[rule].verdict(patched.afresh())
    if kernel.code_only and rule in NAMELESS:
        assert verdict.state == "unknown" or all(f.severity == "defect" for f in verdict.findings)
        return
    assert verdict.state == "failed", verdict
    assert all(finding.severity == "defect" for finding in verdict.findings)


def test_a_defect_is_a_negative_answer(kernel: Kernel) -> None:
    patched = Patched(kernel)
    address = symbol(patched, "_text") + 0x1000
    _text(patched)
    report = check(patched)
    assert report.negative
    # What was found counts for more than what could not be asked.
    assert not report.partial
    findings = [row for row in report.tables[0].rows if row.rule == "wx"]
    assert any(row.start <= address <= row.end for row in findings)
    assert next(row.severity for row in report.tables[0].rows) == "defect"
    state = {row.key: row.state for row in report.tables[1].rows}
    rodata = "unknown" if kernel.code_only else "ok"
    assert (state["wx"], state["text_ro"], state["rodata_ro"]) == ("failed", "failed", rodata)


def test_a_user_bit_counts_only_if_all_levels_have_it(kernel: Kernel) -> None:
    last = kernel.walk(symbol(kernel, "init_task")).steps[-1]
    assert last.value is not None
    one_level = Patched(kernel)
    one_level.patches[last.entry_address] = last.value | USER
    assert states(one_level, "user_bit") == {"user_bit": "ok"}


def test_a_user_table_must_be_marked_as_one(kernel: Kernel) -> None:
    patched = Patched(kernel)
    process = next(iter(each_mm(kernel, Damage())))
    root = root_of(kernel, mm_of(kernel, process))
    start = next(low for low, _, key in kernel.tree(root).ranges(0, kernel.geometry.user.end) if key & 1)
    step = kernel.walk(start, root).steps[-2]
    assert step.value is not None
    if step.level == 1:
        pytest.skip("the first page of the first process is large")
    mask = kernel.geometry.pfn_mask
    patched.patches[step.entry_address] = step.value & ~mask | _frame_of(kernel, "kernel") << 12
    assert states(patched, "table_pages") == {"table_pages": "failed"}


def test_areas_against_each_other(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    symbol(kernel, "_text")
    rows = _rows(kernel)
    mapped = next(row for row in rows if row.mapped and row.kind == "vmalloc")

    def with_rows(changed: List[AreaRow]) -> Dict[str, str]:
        monkeypatch.setattr(lists.Areas, "rows", lambda self: changed)
        return states(kernel, "vmap_areas", "vmap_strays")

    longer = dataclasses.replace(mapped, end=type(mapped.end)(mapped.end + (1 << 40)))
    assert with_rows([*rows, longer])["vmap_areas"] == "failed"
    moved = dataclasses.replace(mapped, start=type(mapped.start)(kernel.page_offset_base.value))
    assert with_rows([*rows, moved])["vmap_areas"] == "failed"
    without = [row for row in rows if row is not mapped]
    assert with_rows(without) == {"vmap_areas": "ok", "vmap_strays": "failed"}


# The running kernel's files: here those that the same boot had.

FILES = {
    "proc_iomem": "iomem",
    "proc_meminfo": "meminfo",
    "proc_modules": "modules",
    "proc_vmallocinfo": "vmallocinfo",
}


@pytest.mark.parametrize("rule", FILES)
def test_files_of_proc(core: Core, kernel: Kernel, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = core.truth(FILES[rule]).splitlines()
    symbol(kernel, "_text")
    monkeypatch.setattr(running, "_read", lambda path: lines)
    verdict = RULES[rule].verdict(kernel)
    if kernel.code_only and rule in {*NAMELESS, "proc_meminfo"}:
        assert verdict.state == "unknown"
        return
    assert verdict.state == "ok", verdict
    if rule == "proc_meminfo":
        changed = [re.sub(r"^(DirectMap4k: +)", r"\g<1>9", line) for line in lines]
    else:
        changed = lines[:3] + lines[4:]
    assert changed != lines
    monkeypatch.setattr(running, "_read", lambda path: changed)
    assert RULES[rule].verdict(kernel).state == "failed"


def test_hidden_addresses_of_vmallocinfo(core: Core, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["0x000000001234abcd-0x00000000abcd1234" + line[37:]
             for line in core.truth("vmallocinfo").splitlines()]  # fmt: skip
    symbol(kernel, "_text")
    monkeypatch.setattr(running, "_read", lambda path: lines)
    verdict = RULES["proc_vmallocinfo"].verdict(kernel)
    assert verdict.state == "ok", verdict
    assert "hides" in verdict.detail
    monkeypatch.setattr(running, "_read", lambda path: lines[1:])
    assert RULES["proc_vmallocinfo"].verdict(kernel).state == "failed"


def test_segments_of_kcore(core: Core, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    needs(kernel, "page_offset_base")
    segments = []
    for line in core.truth("kcore-phdrs").splitlines():
        words = line.split()
        if words and words[0] == "LOAD":
            segments.append(Segment(*(int(word, 16) for word in words[1:6])))
    symbol(kernel, "_text")
    if not segments:
        pytest.skip("the file has another form")
    source = dataclasses.replace(kernel.source, segments=segments)
    assert states(Kernel(source), "proc_kcore", "vmcoreinfo") == {"proc_kcore": "ok", "vmcoreinfo": "ok"}
    wrong = dataclasses.replace(
        kernel.source, segments=[s._replace(vaddr=s.vaddr + 0x1000 & ALL) for s in segments]
    )
    found = states(Kernel(wrong), "proc_kcore", "vmcoreinfo")
    assert found == {"proc_kcore": "failed", "vmcoreinfo": "failed"}


def test_pages_come_in_pieces(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many addresses are looked up together, all are."""
    symbol(kernel, "_text")
    patched = Patched(kernel)
    _free_page(patched)
    whole = frames.free_pages(patched.afresh())
    monkeypatch.setattr(frames, "_AT_ONCE", 101)
    assert frames.free_pages(patched.afresh()) == whole
