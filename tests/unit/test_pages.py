# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bulk decoding of struct pages against a plain loop, page by page, on memory made up by the test."""

from __future__ import annotations

import dataclasses
import struct
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, Sequence, Tuple

import drgn
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvintro.model import Address, Table
from kvintro.queries.pages.format import PageFormat, TypeField, _types
from kvintro.queries.pages.meaning import KPF_NAMES, Meaning, kpf_long, kpf_symbols
from kvintro.queries.pages.runs import DANGLING, Decoder, Interned, Runs, cut, expand
from kvintro.render.pages import strip
from kvintro.reports.pages import COLUMNS, CellRow

BASE = 0xFFFFEA0000000000
# Three layouts of real kernels, without the members that are not used.
_OLD = PageFormat(
    size=64,
    base=BASE,
    page_size=4096,
    flags=0,
    compound=8,
    compound_masks=False,
    page_type=48,
    refcount=52,
    mapping=24,
    private=40,
    memcg_data=56,
    slab_cache=24,
    types=TypeField(True, 0xF0000000, 7, {"buddy": 1, "offline": 2, "table": 4, "guard": 8}),
    bits={
        "locked": 0,
        "referenced": 1,
        "uptodate": 2,
        "lru": 4,
        "slab": 9,
        "reserved": 12,
        "head": 16,
        "swapbacked": 19,
        "hwpoison": 22,
    },
    width=24,
    large_order=81,
    large_mapcount=84,
    counts_parts=True,
    large_dtor=(80, 2),
    large_hugetlb=0,
    large_rmappable=0,
    zone_shift=51,
    zone_bits=3,
    node_bits=10,
    zones=("DMA", "DMA32", "Normal", "Movable", "Device"),
    folio_flags=False,
    folio_types=False,
)
_NEW = dataclasses.replace(
    _OLD,
    slab_cache=8,
    types=TypeField(
        False, 0, 24, {"buddy": 0xF0, "offline": 0xF1, "table": 0xF2, "hugetlb": 0xF4, "slab": 0xF5}
    ),
    bits={
        "locked": 0,
        "referenced": 2,
        "uptodate": 3,
        "lru": 5,
        "head": 6,
        "reserved": 13,
        "swapbacked": 17,
        "hwpoison": 21,
    },
    width=25,
    large_order=64,
    large_mapcount=80,
    counts_parts=False,
    large_dtor=None,
    large_rmappable=1 << 9,
    folio_flags=True,
)
_NEWEST = dataclasses.replace(_NEW, compound_masks=True, folio_types=True, size=72, memcg_data=None)
FORMATS = {"bits": _OLD, "bytes": _NEW, "masks": dataclasses.replace(_NEWEST, size=64), "odd size": _NEWEST}


class Block:
    """Struct pages, written field by field."""

    def __init__(self, form: PageFormat, count: int, first: int = 0, place: int = 1) -> None:
        self.form = form
        self.first = first
        self.count = count
        self.data = bytearray(form.size * count)
        for index in range(count):
            self.put(index, place=place)

    def put(
        self,
        index: int,
        *names: str,
        kind: Optional[str] = None,
        mapcount: int = -1,
        refcount: int = 0,
        mapping: int = 0,
        private: int = 0,
        compound: int = 0,
        place: int = 1,
    ) -> None:
        form, at = self.form, index * self.form.size
        flags = form.mask(*names) | place << form.zone_shift
        value = mapcount & 0xFFFFFFFF
        if kind is not None:
            code = form.types.codes[kind]
            value = 0xFFFFFFFF & ~(code << form.types.shift) if form.types.inverted else code << 24
        for offset, content, packed in (
            (form.flags, flags, "<Q"),
            (form.compound, compound, "<Q"),
            (form.mapping, mapping, "<Q"),
            (form.private, private, "<Q"),
            (form.page_type, value, "<I"),
            (form.refcount, refcount, "<i"),
        ):
            struct.pack_into(packed, self.data, at + offset, content)

    def free(self, index: int, order: int) -> None:
        """A block of the buddy allocator."""
        for i in range(index, min(index + (1 << order), self.count)):
            self.put(i)
        self.put(index, kind="buddy", private=order)

    def compound(
        self,
        index: int,
        order: int,
        *names: str,
        kind: Optional[str] = None,
        mapping: int = 0,
        mapped: int = -1,
    ) -> None:
        """A compound page."""
        form = self.form
        self.put(index, "head", *names, kind=kind, refcount=1, mapping=mapping)
        head = form.address(self.first + index)
        value = head | 1
        if form.compound_masks and form.size == 64:
            value = ~((1 << (order + 6)) - 1) & (1 << 64) - 1 | 1
        for i in range(index + 1, min(index + (1 << order), self.count)):
            self.put(i, compound=value)
        at = index * form.size
        # In the second page; a byte of its flags where it lies there.
        assert form.large_mapcount is not None
        self.data[at + form.large_order] = order
        struct.pack_into("<i", self.data, at + form.large_mapcount, mapped)
        if form.large_dtor is not None and kind is None and "hugetlb" in names:
            self.data[at + form.large_dtor[0]] = form.large_dtor[1]

    def decode(self, **options: Any) -> Runs:
        return Decoder(self.form, **options).decode(bytes(self.data), self.first)


def each(runs: Runs, values: Any) -> List[int]:
    """Set a value for each page."""
    return [int(v) for v in numpy.repeat(values, runs.lengths)]


class Plainly:
    """Decodes a block's pages one by one, by the kernel's rules."""

    def __init__(self, block: Block) -> None:
        self.block, self.form, self.count = block, block.form, block.count

    def field(self, index: int, offset: int, size: int) -> int:
        at = index * self.form.size + offset
        return int.from_bytes(self.block.data[at : at + size], "little")

    def flag(self, index: int, name: str) -> bool:
        return bool(self.field(index, self.form.flags, 8) & self.form.mask(name))

    def is_kind(self, index: int, name: str) -> bool:
        types = self.form.types
        code = types.codes.get(name)
        if code is None:
            return False
        value = self.field(index, self.form.page_type, 4)
        if types.inverted:
            return value & (types.base | code << types.shift) == types.base
        return value >> 24 == code

    def is_tail(self, index: int) -> bool:
        return bool(self.field(index, self.form.compound, 8) & 1)

    def head_of(self, index: int) -> Optional[int]:
        value = self.field(index, self.form.compound, 8)
        if not value & 1:
            return index
        value &= ~1
        if self.form.compound_masks and value >> 40 == (1 << 24) - 1:
            value &= self.form.address(self.block.first + index)
        at, rest = divmod(value - self.form.base, self.form.size)
        at -= self.block.first
        return at if not rest and 0 <= at <= index else None

    def free(self) -> List[bool]:
        free = [False] * self.count
        for i in range(self.count):
            if self.is_kind(i, "buddy"):
                free[i] = True
                for k in range(i + 1, min(i + (1 << self.field(i, self.form.private, 8)), self.count)):
                    free[k] = self.field(k, self.form.refcount, 4) == 0
        return free

    def kind(self, head: int) -> str:
        """The type of a page that is neither free nor broken, by its head."""
        mapping = self.field(head, self.form.mapping, 8)
        if self.flag(head, "slab"):
            return "slab"
        for name, kind in (
            ("slab", "slab"),
            ("hugetlb", "hugetlb"),
            ("table", "pgtable"),
            ("offline", "offline"),
        ):
            if self.is_kind(head, name):
                return kind
        if self.flag(head, "reserved"):
            return "reserved"
        if mapping & 3 == 3:
            return "ksm"
        if mapping & 1:
            return "thp" if self.flag(head, "head") else "anon"
        if mapping:
            return "shmem" if self.flag(head, "swapbacked") else "file"
        return "free_cpu" if self.field(head, self.form.refcount, 4) == 0 else "kernel"


def plain(block: Block) -> List[Tuple[str, int]]:
    """(type, kpageflags) of each page, by a loop without runs."""
    pages = Plainly(block)
    free = pages.free()
    out = []
    for i in range(pages.count):
        head = pages.head_of(i)
        if pages.flag(i, "hwpoison"):
            out.append(("hwpoison", 0))
        elif free[i]:
            out.append(("free", 1 << 10))
        elif head is None or (pages.is_tail(i) and (not pages.flag(head, "head") or pages.is_tail(head))):
            out.append(("broken", 0))
        else:
            out.append((pages.kind(head), -1))
    return out


_PIECES = (
    "free",
    "slab",
    "thp",
    "file",
    "kernel",
    "table",
    "anon",
    "shmem",
    "reserved",
    "unused",
    "tail",
    "poison",
)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    """A block of pages filled piece by piece, as an allocator would, and sometimes damaged."""
    form = FORMATS[draw(st.sampled_from(sorted(FORMATS)))]
    block = Block(form, 256, first=draw(st.sampled_from((0, 256, 32768))))
    index = 0
    while index < block.count:
        kind = draw(st.sampled_from(_PIECES))
        order = draw(st.integers(0, 5))
        while index % (1 << order) or index + (1 << order) > block.count:
            order -= 1
        if kind == "free":
            block.free(index, order)
        elif kind in ("slab", "thp", "table", "file") and order:
            slab_flag = ("slab",) if kind == "slab" and "slab" in form.bits else ()
            typed = kind if kind in form.types.codes and kind in ("slab", "table") else None
            block.compound(
                index, order, *slab_flag, kind=typed, mapping={"thp": BASE | 1, "file": BASE}.get(kind, 0)
            )
        else:
            order = 0
            made: Dict[str, Dict[str, Any]] = {
                "anon": {"mapping": BASE | 1, "refcount": 1, "mapcount": 0},
                "thp": {"mapping": BASE | 3, "refcount": 2, "mapcount": 1},
                "file": {"mapping": BASE, "refcount": 1},
                "shmem": {"mapping": BASE, "refcount": 1},
                "table": {"kind": "table", "refcount": 1},
                "unused": {},
                "tail": {"compound": draw(st.sampled_from((BASE | 1, 1, (1 << 64) - 1, BASE + 7 | 1)))},
            }
            names = {"shmem": ("swapbacked",), "reserved": ("reserved",), "poison": ("hwpoison",)}.get(
                kind, ()
            )
            block.put(index, *names, **made.get(kind, {"refcount": 1}))
        index += 1 << order
    return block


@settings(max_examples=200, deadline=None)
@given(blocks())
def test_runs_are_what_a_plain_loop_finds(block: Block) -> None:
    runs = block.decode()
    meaning = Meaning(block.form)
    assert int(runs.lengths.sum()) == block.count
    types = [meaning.type_of(s, h) for s, h in zip(each(runs, runs.states), each(runs, runs.heads))]
    assert types == [kind for kind, _ in plain(block)]
    for kind, state, head in zip(types, each(runs, runs.states), each(runs, runs.heads)):
        assert (kind == "free") == bool(meaning.kpageflags(state, head) & 1 << 10)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.binary(min_size=0, max_size=4096), st.integers(0, 2**32))
def test_anything_decodes(name: str, noise: bytes, seed: int) -> None:
    """Random bytes in place of struct pages can be decoded, and every page counts exactly once."""
    form = FORMATS[name]
    data = bytearray(numpy.random.default_rng(seed).integers(0, 256, 128 * form.size, numpy.uint8).tobytes())
    data[: len(noise)] = noise[: len(data)]
    runs = Decoder(form, peek=lambda pfn: None).decode(bytes(data), 0)
    assert int(runs.lengths.sum()) == 128
    assert runs.starts.tolist() == sorted(set(runs.starts.tolist()))
    meaning = Meaning(form)
    for state, head in zip(runs.states.tolist(), runs.heads.tolist()):
        assert meaning.type_of(state, head)
        kpf_long(meaning.kpageflags(state, head))


@pytest.mark.parametrize(
    "form",
    [_OLD, dataclasses.replace(_OLD, large_dtor=None, large_hugetlb=1 << 6), _NEW],
    ids=["destructor", "flag", "type"],
)
def test_hugetlb(form: PageFormat) -> None:
    """By the destructor's number, later a flag of the second page, then a page type."""
    block = Block(form, 64)
    block.compound(0, 4, *(("hugetlb",) if form.large_dtor else ()), kind=_typed(form))
    block.compound(16, 4)
    if form.large_hugetlb:
        struct.pack_into("<Q", block.data, form.size + form.flags, form.large_hugetlb)
    runs = block.decode()
    meaning = Meaning(form)
    types = [meaning.type_of(s, h) for s, h in zip(each(runs, runs.states), each(runs, runs.heads))]
    assert types[:16] == ["hugetlb"] * 16 and types[16:32] == ["kernel"] * 16


def _typed(form: PageFormat) -> Optional[str]:
    return "hugetlb" if "hugetlb" in form.types.codes else None


def _old_kernel(page: Sequence[str], context: str, flags: Sequence[str], dtors: Sequence[str]) -> Any:
    """The members and enumerators of kernels that decide which page types are macros."""
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    word = prog.int_type("unsigned long", 8, False)

    def struct_of(tag: str, names: Sequence[str], type_: drgn.Type = word) -> drgn.Type:
        members = [drgn.TypeMember(type_, name, 64 * i) for i, name in enumerate(names)]
        return prog.struct_type(tag, 8 * len(members), members)

    def enum_of(tag: str, names: Sequence[str]) -> drgn.Type:
        return prog.enum_type(tag, word, [drgn.TypeEnumerator(name, i) for i, name in enumerate(names)])

    types = {
        "struct page": struct_of("page", page),
        "struct mm_struct": struct_of(
            "mm_struct", ["context"], prog.typedef_type("mm_context_t", struct_of("", [context]))
        ),
        "enum pageflags": enum_of("pageflags", flags),
    }
    if dtors:
        types["enum compound_dtor_id"] = enum_of("compound_dtor_id", dtors)

    def number(key: str) -> Any:
        assert key == "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)"
        return SimpleNamespace(value=~0x80)

    return SimpleNamespace(prog=SimpleNamespace(type=types.__getitem__), number=number)


_DTORS = ("NULL_COMPOUND_DTOR", "COMPOUND_PAGE_DTOR", "HUGETLB_PAGE_DTOR")


@pytest.mark.parametrize(
    "page, context, flags, dtors, table, hugetlb",
    [
        (["mem_cgroup"], "ia32_compat", ["PG_locked"], _DTORS, 8, None),
        (["flags"], "ia32_compat", ["PG_locked"], _DTORS, 8, None),
        (["memcg_data"], "flags", ["PG_locked"], _DTORS, 4, None),
        (["flags"], "flags", ["PG_locked"], _DTORS, 4, None),
        (["flags"], "flags", ["PG_locked"], _DTORS[:2], 4, None),
        (["memcg_data"], "flags", ["PG_locked", "PG_hugetlb"], (), 4, None),
        (["memcg_data"], "flags", ["PG_locked"], (), 4, 16),
    ],
    ids=["5.10", "5.10 without MEMCG", "6.1", "6.1 without MEMCG", "6.1 without HUGETLB", "6.8", "6.9"],
)
def test_page_types_that_are_macros(
    page: List[str],
    context: str,
    flags: List[str],
    dtors: Tuple[str, ...],
    table: int,
    hugetlb: Optional[int],
) -> None:
    """By include/linux/page-flags.h of each: PG_table is 0x400 with PG_kmemcg before it, else 0x200."""
    found = _types(_old_kernel(page, context, flags, dtors))
    assert (found.codes["buddy"], found.codes["table"], found.codes.get("hugetlb")) == (1, table, hugetlb)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_free_blocks(name: str) -> None:
    form = FORMATS[name]
    block = Block(form, 64)
    block.free(0, 3)
    block.free(8, 0)
    block.free(9, 0)
    # A page on a CPU's list is directly after a free block and looks like its tail.
    block.put(10)
    block.free(16, 4)
    runs = block.decode()
    meaning = Meaning(form)
    states = each(runs, runs.states)
    assert [meaning.is_free(s) for s in states[:12]] == [True] * 10 + [False] * 2
    heads = [i for i, s in enumerate(states) if meaning.is_free_head(s)]
    assert heads == [0, 8, 9, 16]
    assert [meaning.order(states[i], 0) for i in heads] == [3, 0, 0, 4]
    assert meaning.type_of(states[10], 0) == "free_cpu"


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_compound_page_beyond_the_block(name: str) -> None:
    """The head of a gigantic page is in another block, and is looked up once."""
    form = FORMATS[name]
    whole = Block(form, 256)
    whole.compound(0, 8, mapping=BASE | 1, mapped=0)
    second = bytes(whole.data[128 * form.size :])
    asked: List[int] = []

    def peek(pfn: int) -> bytes:
        asked.append(pfn)
        return bytes(whole.data[: 2 * form.size])

    decoder = Decoder(form, peek=peek)
    runs = decoder.decode(second, 128)
    decoder.decode(second, 128)
    assert asked == [0]
    assert runs.head_pfns.tolist() == [0]
    meaning = Meaning(form)
    assert meaning.type_of(int(runs.states[0]), int(runs.heads[0])) == "thp"
    assert meaning.order(int(runs.states[0]), int(runs.heads[0])) == 8
    # Without the other block, the type of the tails is unknown.
    alone = Decoder(form).decode(second, 128)
    assert int(alone.states[0]) & DANGLING


def test_zero_pages_are_cut_out() -> None:
    block = Block(_NEW, 64)
    for i in range(64):
        block.put(i, "reserved", refcount=1)
    runs = block.decode(zero=17)
    meaning = Meaning(_NEW)
    kinds = [meaning.type_of(s, 0) for s in each(runs, runs.states)]
    assert kinds == ["reserved"] * 17 + ["zero"] + ["reserved"] * 46


def test_cells_end_runs() -> None:
    runs = Decoder(_NEW).decode(bytes(Block(_NEW, 64).data), 0, every=16)
    assert runs.starts.tolist() == [0, 16, 32, 48]


def test_a_part_of_a_block() -> None:
    block = Block(_NEW, 64, first=64)
    block.free(0, 5)
    runs = block.decode()
    at, lengths = cut(runs, 70, 100)
    assert int(lengths.sum()) == 30
    assert [int(runs.starts[i]) for i in at] == [1, 32]
    assert cut(runs, 0, 64)[1].tolist() == []


@given(st.lists(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=40), max_size=8))
def test_interning(batches: List[List[int]]) -> None:
    interned = Interned()
    known: Dict[int, int] = {}
    for batch in batches:
        ids = interned.ids(numpy.array(batch, numpy.uint64)).tolist()
        for value, number in zip(batch, ids):
            assert known.setdefault(value, number) == number
            assert interned.values[number] == value
    assert len(set(known.values())) == len(known)


def test_interning_has_a_limit() -> None:
    interned = Interned(limit=3)
    ids = interned.ids(numpy.arange(10, dtype=numpy.uint64))
    assert interned.full
    assert sorted(set(ids.tolist())) == [0, 1, 2, 3]


def test_expand() -> None:
    assert expand(numpy.array([3, 9]), numpy.array([2, 1])).tolist() == [3, 4, 9]
    assert expand(numpy.zeros(0, int), numpy.zeros(0, int)).tolist() == []


def test_symbolic_flags() -> None:
    """tools/mm/page-types prints 0x000000000000082c of an ordinary file page like this."""
    assert kpf_symbols(0x82C).startswith("__RU_l_____M")
    assert kpf_long(0x82C) == "referenced,uptodate,lru,mmap"
    assert len(kpf_symbols(0)) == len(KPF_NAMES)


@pytest.mark.parametrize("color", [False, True])
def test_strip(color: bool) -> None:
    cell = 1 << 20
    rows = [CellRow(Address(i * cell), {"free": 200, "slab": 56}) for i in (0, 1, 600, 601)]
    lines = strip(Table("map", COLUMNS["map"], rows), cell, color, 80)
    text = "\n".join(lines)
    assert "1 MB a cell" in lines[0]
    assert "without struct pages" in text
    assert "0000000000000000  " in text and f"{600 // 32 * 32 * cell:016x}  " in text
    assert ("\x1b[" in text) == color
    assert strip(Table("map", COLUMNS["map"], []), cell, color, 80) == []
