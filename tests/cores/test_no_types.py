# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels without types: what VMCOREINFO, symbols and page tables still provide, and what is refused.

Such a kernel was built without CONFIG_DEBUG_INFO_BTF, and no vmlinux is given. The tests make every core one:
by ``--types none``, by removing BTF, and also by removing names of variables. They compare each with the same
core read with types, and with the truth. The census itself is compared with
/proc/kpageflags in test_pages_truth.py.
"""

from __future__ import annotations

import re
from typing import Any, Dict, Iterator, Tuple

import pytest

from kvintro.arch.x86_64.facts import x86_facts
from kvintro.commands import run_command
from kvintro.delivery import exit_code
from kvintro.errors import KvintroError, NotInDump, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Absent, Placement, Report
from kvintro.opening import kernel_of, open_kernel
from kvintro.parser import parse
from kvintro.queries.pages.census import Pages
from kvintro.queries.pages.meaning import TOGETHER
from kvintro.queries.ptdump import dump_of
from kvintro.queries.roots import kernel_root
from kvintro.render import render, render_stream
from kvintro.source import Request
from kvintro.source import installed as types
from kvintro.source.btf import BtfError
from tests.codeonly import open_code_only
from tests.conftest import Core
from tests.cores.showing import document

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

NO_BTF = "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF is off)"


@pytest.fixture(scope="module", params=("asked for", "no BTF", "no BTF, code only"))
def bare(request: pytest.FixtureRequest, core: Core) -> Iterator[Kernel]:
    """The core without types."""

    def none(prog: Any, kallsyms: Any) -> Any:
        raise BtfError(NO_BTF)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(types, "_find_btf", none)
        if request.param == "asked for":
            found = open_kernel(Request(core=str(core.path), types="none"))
        elif request.param == "no BTF":
            found = open_kernel(Request(core=str(core.path)))
        else:
            found = open_code_only(str(core.path), patch)
    assert found.source.types == "none"
    yield found


@pytest.fixture(scope="module")
def typed(kernel: Kernel) -> Kernel:
    """The same core with types."""
    if kernel.source.types == "none":
        pytest.skip("nothing in this dump leads to its types")
    return kernel


#: Each command with its allowed exit statuses: 0 is a complete answer, 1 the answer "no", 4 a partial answer,
#: 3 a refusal that names what is missing.
COMMANDS: Dict[str, Tuple[int, ...]] = {
    "info": (0,),
    "layout": (0, 4),
    "explain vmalloc": (0, 4),
    "explain efi": (0, 4),
    "kaslr": (0, 4),
    "translate ffffffff81000000": (0, 1),
    "translate --walk 1000000": (0,),
    "translate --pid 1 400000": (3,),
    "pte 8000000000000067": (0,),
    "ptdump": (0,),
    "ptdump --pid 1": (3,),
    "aliases 1000000": (0, 4),
    "identify ffffffff81000000": (1, 4),
    "pages": (4,),
    "pages --by zone": (4,),
    "pages --by order": (4,),
    "pages --by flags": (4,),
    "pages --by free": (4,),
    "pages --by cache": (3,),
    "page 1000000": (4,),
    "page --search 1000000": (4,),
    "check": (4,),
    "user 1": (4,),
    "show vmalloc": (4,),
    "show modules": (1, 4),
    "show vmemmap": (4,),
    "show fixmap": (4,),
    "show cpu_entry_area": (4,),
    "show direct_map": (4,),
    "show kernel_image": (0, 4),
    "show efi": (1, 4),
    "show ldt_remap": (1, 4),
    "show user": (4,),
    "show espfix": (0, 1, 4),
    "show kasan_shadow": (0, 1, 4),
    "show vsyscall": (0, 1, 4),
}


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command(bare: Kernel, words: str) -> None:
    """A command fails only by refusing in one line; a partial answer says what is missing."""
    text = ""
    try:
        report = run_command(bare, parse(words.split()))
        if isinstance(report, Report):
            text = render(report, "json")
            assert render(report, "text", width=100)
        else:
            assert "".join(render_stream(report, "text"))
        code = exit_code(report)
    except KvintroError as error:
        assert COMMANDS[words] == (3,), (words, error.what)
        assert re.search(r"without types|nothing says|no types", error.what)
        assert error.remedy
        return
    assert code in COMMANDS[words], words
    # An explanation is partial if the layout that it uses is partial.
    if code == 4 and not words.startswith("explain"):
        said = re.findall(r"without types|no types|VMCOREINFO has no|cannot be found|not known", text)
        assert said, words


def test_the_census_is_that_by_types(core: Core, typed: Kernel, bare: Kernel) -> None:
    """Every page has the same type, node, zone, order and flags, as far as they are reported."""
    whole, part = Pages(typed), Pages(bare)
    known = ~part.form.unknown_flags
    zero = part.zero_unknown
    together = {name: into for into, names in TOGETHER.items() for name in names}
    if "kmemcg" in whole.form.types.codes:
        # Up to 5.10, memory charged to a cgroup has its own type, which VMCOREINFO does not name either.
        together["kernel"] = "unnamed_type"
    named = set(part.form.types.codes) & {"unaccepted"}

    def key(group: Any) -> Tuple[Any, ...]:
        kind = group.type
        if kind in together and kind not in named and together[kind] in claimed:
            kind = together[kind]
        if zero and kind in ("zero", "reserved", "thp", "anon", "kernel", "file"):
            kind = "zero or other"
        flags = group.kpageflags & known & ~(1 << 24 | 1 << 22 if zero else 0)
        return kind, group.node, group.zone, group.order, group.first, flags

    ours, theirs = part.census(), whole.census()
    claimed = set(ours.by(lambda group: group.type)) | {"unnamed_type"}
    assert "kernel_or_reserved" not in claimed
    assert part.form.zones == whole.form.zones
    assert ours.by(key) == theirs.by(key)
    assert (ours.total, ours.holes, ours.unmapped) == (theirs.total, theirs.holes, theirs.unmapped)
    assert part.sections == whole.sections


def test_free_blocks_are_those_of_buddyinfo(core: Core, bare: Kernel) -> None:
    report = run_command(bare, parse(["pages", "--by", "free"]))
    assert isinstance(report, Report)
    mine = {(row.node, row.zone): row for row in report.tables[0].rows}
    for line in core.truth("buddyinfo").splitlines():
        match = re.match(r"Node (\d+), zone +(\w+) +([\d ]+)", line)
        assert match
        truth = [int(n) for n in match[3].split()]
        row = mine.get((int(match[1]), match[2]))
        blocks = row.blocks if row else [0] * len(truth)
        assert len(blocks) == len(truth)
        assert sum(abs(a - b) for a, b in zip(blocks, truth)) <= 24, line


def test_vmalloc_areas_are_those_of_vmallocinfo(core: Core, bare: Kernel) -> None:
    """Bounds of every area in use up to 6.8, where there is one list; later the reason why there are none."""
    found = document(bare, "vmalloc")
    assert found["partial"]
    if found["region"]["state"] == "unknown":
        pytest.skip(f"where the region lies is not known: {found['region']['reason']}")
    if "OFFSET(vmap_area.list)" not in bare.source.vmcoreinfo:
        assert "VMCOREINFO has no OFFSET(vmap_area.list)" in found["region"]["reason"]
        assert found["ranges"] and "areas" not in found
        return
    lines = core.truth("vmallocinfo").splitlines()
    used = [line.split()[0] for line in lines if not line.endswith("unpurged vm_area")]
    ours = [f"{row['start']}-0x{int(row['end'], 16) + 1:016x}" for row in found["areas"]]
    assert ours == used
    assert {row["kind"] for row in found["areas"]} == {"unknown"}
    assert sum(row["mapped"] for row in found["areas"]) == found["totals"]["mapped"]


def test_a_damaged_list_of_areas(bare: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the list does not end properly, only the page tables are shown."""
    if "OFFSET(vmap_area.list)" not in bare.source.vmcoreinfo:
        pytest.skip("VMCOREINFO has no list of areas")
    if not isinstance(bare.locate("vmalloc"), Placement):
        pytest.skip("where the region lies is not known")
    head = bare.number("SYMBOL(vmap_area_list)").value
    links = bare.number("OFFSET(vmap_area.list)").value
    first = int.from_bytes(bare.read(head, 8), "little")
    whole = bare.read

    def read(address: int, size: int) -> bytes:
        data = whole(address, size)
        return b"\x11" * size if address == first - links + 8 else data

    monkeypatch.setattr(bare, "read", read)
    found = document(bare, "vmalloc")
    assert "ends cannot be read" in found["region"]["reason"]
    assert found["ranges"] and found["partial"]


def test_where_the_fixmap_is(typed: Kernel, bare: Kernel) -> None:
    """The range contains the slots that the types give, and is not reported as the start."""
    exact, room = typed.locate("fixmap"), bare.locate("fixmap")
    assert isinstance(exact, Placement) and isinstance(room, Placement)
    assert room.range.start <= exact.range.start and room.range.end == exact.range.end
    assert "cannot be read without types" in room.note
    dump = dump_of(bare, kernel_root(bare))
    assert not any(name == "Fixmap Area" for _, name in dump.headings)
    assert any(text.startswith("Fixmap Area") for text in dump.missing)


def test_where_firmware_is(core: Core, typed: Kernel, bare: Kernel) -> None:
    """The tables of ``efi_mm`` equal those found with types; without EFI there are none."""
    one, two = typed.locate("efi"), bare.locate("efi")
    if bare.code_only and core.meta["efi"]:
        # Without its name, efi_mm cannot be found.
        assert not isinstance(two, (Absent, Placement))
        return
    assert two == one
    if isinstance(one, Placement):
        assert typed.regions.efi.roots(typed) == bare.regions.efi.roots(bare)


def test_parts_of_sections(core: Core, typed: Kernel, bare: Kernel) -> None:
    """The same number of 2 MB parts have struct pages as with types."""

    def parts(kernel: Kernel) -> Tuple[int, ...]:
        rows = document(kernel, "vmemmap")["sections"]
        return tuple(sum(row[key] for row in rows) for key in ("count", "subsections", "mapped"))

    assert parts(bare) == parts(typed) != (0, 0, 0)


def test_sections_whose_form_does_not_agree(bare: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the bitmaps contradict the end of memory, sections count as a whole, with a note."""
    spans = bare.node_spans()
    moved = [(first, end - 512) for first, end in spans]
    if any(end % 32768 == 0 and first == 0 for first, end in moved):
        pytest.skip("its memory ends with a section then")
    monkeypatch.setattr(bare, "node_spans", lambda: moved)
    pages = Pages(bare)
    assert "sections count as a whole" in pages.sections.whole
    assert all((high - low) % pages.sections.pages_per_section == 0 for low, high in pages.sections.ranges)


def test_reserved_pages_that_cannot_be_told(bare: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the struct pages of the kernel's text, one type covers pages that the flag separates."""
    before = Pages(bare).census().by(lambda group: group.type)
    whole = bare.read
    base = Pages(bare).form.address(0)
    at = (
        base
        + ((bare.text.value - 0xFFFFFFFF80000000 + x86_facts(bare).phys_base.value) % (1 << 64) >> 12) * 64
    )

    def read(address: int, size: int) -> bytes:
        if address == at:
            raise NotInDump(address, size, physical=False)
        return whole(address, size)

    monkeypatch.setattr(bare, "read", read)
    pages = Pages(bare)
    found = pages.census().by(lambda group: group.type)
    assert not found["reserved"] and not found["kernel"]
    assert found["kernel_or_reserved"] == before["reserved"] + before["kernel"]
    assert any("reserved pages cannot be distinguished" in lack for lack in pages.form.lacks)


@pytest.mark.parametrize(
    "key",
    [
        "OFFSET(page.flags)",
        "OFFSET(page._refcount)",
        "OFFSET(page._mapcount)",
        "OFFSET(page.private)",
        "SIZE(page)",
        "NUMBER(PG_lru)",
        "NUMBER(PG_head_mask)",
        "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",
        "SIZE(zone)",
        "OFFSET(pglist_data.nr_zones)",
        "OFFSET(mem_section.section_mem_map)",
    ],
)
def test_a_key_that_is_missing_is_named(bare: Kernel, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(bare.source.vmcoreinfo, key)
    # Facts are cached.
    fresh = kernel_of(bare.source)
    with pytest.raises(Unavailable, match=re.escape(key)):
        _ = Pages(fresh).sections


def test_a_mark_for_hugetlb_is_needed_if_there_are_any(bare: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("PAGE_HUGETLB_MAPCOUNT_VALUE", "PG_hugetlb", "HUGETLB_PAGE_DTOR")
    for key in keys:
        monkeypatch.delitem(bare.source.vmcoreinfo, f"NUMBER({key})", raising=False)
    with pytest.raises(Unavailable, match="HUGETLB"):
        Pages(kernel_of(bare.source))
