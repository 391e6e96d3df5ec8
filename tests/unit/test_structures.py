# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists and trees in arbitrary memory: walks end, and keep the entries that they found."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Set, cast

import drgn
from hypothesis import given, settings
from hypothesis import strategies as st

from kvintro.errors import NotInDump
from kvintro.kernels import Claims, Kernel
from kvintro.readers.damage import Damage
from kvintro.readers.index_trees import maple_entries, xarray_entries
from kvintro.readers.lists import chain_entries, list_entries, list_words
from kvintro.readers.structures import near_reader, plain_text, text_at
from kvintro.source import Source

BASE = 0xFFFF_8880_0000_0000
SIZE = 1 << 20


class Memory:
    """A megabyte of kernel memory, with the types that the walks need."""

    def __init__(self) -> None:
        self.data = bytearray(SIZE)
        platform = drgn.Platform(drgn.Architecture.X86_64)
        self.prog = drgn.Program(platform)
        self.prog.add_memory_segment(BASE, SIZE, self._read, False)
        self.prog.register_type_finder("test", self._find, enable_index=0)
        self._types = self._make_types()
        self._source = cast(Source, SimpleNamespace(types="DWARF", live=False))
        self._claims = Claims(self._source)

    def _read(self, address: int, count: int, offset: int, physical: bool) -> bytes:
        return bytes(self.data[offset : offset + count])

    def _find(self, prog: Any, kinds: Any, name: str, filename: Any) -> Any:
        return self._types.get(name)

    def _make_types(self) -> Dict[str, drgn.Type]:
        prog = self.prog
        word = prog.int_type("unsigned long", 8, False)
        member, pointer, array = drgn.TypeMember, prog.pointer_type, prog.array_type

        links = prog.struct_type(
            "list_head",
            16,
            [
                member(lambda: pointer(prog.type("struct list_head")), "next", 0),
                member(lambda: pointer(prog.type("struct list_head")), "prev", 64),
            ],
        )
        node = prog.struct_type(
            "rb_node",
            24,
            [
                member(word, "__rb_parent_color", 0),
                member(lambda: pointer(prog.type("struct rb_node")), "rb_right", 64),
                member(lambda: pointer(prog.type("struct rb_node")), "rb_left", 128),
            ],
        )
        entry = prog.struct_type(
            "entry", 64, [member(word, "number", 0), member(links, "list", 64), member(node, "rb", 192)]
        )
        void = pointer(prog.void_type())
        range_64 = prog.struct_type(
            "maple_range_64",
            256,
            [
                member(word, "parent", 0),
                member(array(word, 15), "pivot", 64),
                member(array(void, 16), "slot", 1024),
            ],
        )
        arange_64 = prog.struct_type(
            "maple_arange_64",
            256,
            [
                member(word, "parent", 0),
                member(array(word, 9), "pivot", 64),
                member(array(void, 10), "slot", 640),
            ],
        )
        maple = prog.struct_type(
            "maple_node",
            256,
            [member(range_64, "mr64", 0), member(arange_64, "ma64", 0), member(array(void, 31), "slot", 64)],
        )
        tree = prog.struct_type("maple_tree", 16, [member(word, "ma_flags", 0), member(void, "ma_root", 64)])
        # As in include/linux/xarray.h, without the members that the walk does not read.
        byte = prog.int_type("unsigned char", 1, False)
        xarray = prog.struct_type("xarray", 16, [member(word, "xa_flags", 0), member(void, "xa_head", 64)])
        xa_node = prog.struct_type(
            "xa_node", 552, [member(byte, "shift", 0), member(array(void, 64), "slots", 320)]
        )
        made = (links, node, entry, range_64, arange_64, maple, tree, xarray, xa_node)
        return {t.tag: t for t in made if t.tag is not None}

    def read(self, address: int, size: int) -> bytes:
        try:
            return bytes(self.prog.read(address, size))
        except (drgn.FaultError, OverflowError, ValueError) as error:
            raise NotInDump(address, size, physical=False) from error

    @property
    def kernel(self) -> Kernel:
        return cast(
            Kernel,
            SimpleNamespace(prog=self.prog, read=self.read, source=self._source, claims=self._claims),
        )

    def runs(self) -> None:
        """Make it the memory of a running kernel."""
        self._claims = Claims(cast(Source, SimpleNamespace(live=True)))

    def put(self, address: int, *words: int) -> None:
        struct.pack_into(f"<{len(words)}Q", self.data, address - BASE, *words)


def entry_at(index: int) -> int:
    return BASE + 0x1000 + 64 * index


def a_chain(count: int) -> Memory:
    """A chain of this many entries, linked by their lists' first pointers, with its head at BASE."""
    memory = Memory()
    for index in range(count):
        following = entry_at(index + 1) + 8 if index + 1 < count else 0
        memory.put(entry_at(index), index, following)
    memory.put(BASE, entry_at(0) + 8 if count else 0)
    return memory


def chained(memory: Memory, damage: Damage, limit: int = 1000) -> List[int]:
    walk = chain_entries(memory.kernel, BASE, "struct entry", "list", damage, "the chain", limit=limit)
    return [int(entry.number.value_()) for _, entry in walk]


def test_chains() -> None:
    for count in (0, 1, 5):
        damage = Damage()
        assert chained(a_chain(count), damage) == list(range(count))
        assert not damage


def test_damaged_chains() -> None:
    """In a circle, into nowhere, into the user half, without end: earlier entries are kept."""
    for target, said in (
        (entry_at(1) + 8, "contains a cycle"),
        (BASE + SIZE + 0x1000, "ends early"),
        (0x1000, "ends early"),
    ):
        memory, damage = a_chain(5), Damage()
        memory.put(entry_at(3) + 8, target)
        assert chained(memory, damage) == [0, 1, 2, 3]
        assert said in damage.notes[0]
    damage = Damage()
    assert len(chained(a_chain(50), damage, limit=10)) == 11
    assert "does not end" in damage.notes[0]


def test_an_entry_is_in_one_list() -> None:
    """If two lists lead to the same entries, the second one ends there, in both directions."""
    other = BASE + 0x100
    for walk, member in ((list_entries, "list"), (chain_entries, "list")):
        memory = a_chain(3)
        # The heads of a list and a chain both begin with the pointer to the first entry.
        first = entry_at(0) + 8
        for head in (BASE, other):
            memory.put(head, first, first)
        damage = Damage()
        once = [address for address, _ in walk(memory.kernel, BASE, "struct entry", member, damage, "it")]
        again = [address for address, _ in walk(memory.kernel, BASE, "struct entry", member, Damage(), "it")]
        assert once and again == once
        damage = Damage()
        assert not list(walk(memory.kernel, other, "struct entry", member, damage, "it"))
        assert "in another list, too" in damage.notes[0]
        memory.runs()
        for head in (BASE, other):
            found = walk(memory.kernel, head, "struct entry", member, Damage(), "it")
            assert [address for address, _ in found] == once


def test_entries_that_overlap() -> None:
    memory, damage = Memory(), Damage()
    for index in range(100):
        memory.put(BASE + 0x1008 + 8 * index, BASE + 0x1008 + 8 * (index + 1))
    memory.put(BASE, BASE + 0x1008)
    assert len(chained(memory, damage)) == 1
    assert "overlaps" in damage.notes[0]
    memory.runs()
    assert len(chained(memory, Damage())) == 101


def a_list(count: int) -> Memory:
    """A list of this many entries, with its head at BASE."""
    memory = Memory()
    nodes = [BASE, *(entry_at(i) + 8 for i in range(count))]
    for i, node in enumerate(nodes):
        memory.put(node, nodes[(i + 1) % len(nodes)], nodes[i - 1])
        if i:
            memory.put(node - 8, i)
    return memory


def walk_list(memory: Memory, limit: int = 1000) -> "tuple[List[int], Damage]":
    damage = Damage()
    entries = list_entries(memory.kernel, BASE, "struct entry", "list", damage, "the list", limit=limit)
    return [int(entry.number.value_()) for _, entry in entries], damage


@given(st.integers(0, 60))
def test_a_whole_list(count: int) -> None:
    found, damage = walk_list(a_list(count))
    assert found == list(range(1, count + 1))
    assert not damage


def test_some_words_of_each_entry() -> None:
    memory, damage = a_list(20), Damage()
    memory.put(entry_at(7) + 8, 0x1000)
    wanted = ("rb", "number", "no_such_member")
    memory.put(entry_at(3) + 24, 0x1234)
    read = near_reader(memory.kernel)
    found = list(
        list_words(memory.kernel, BASE, "struct entry", "list", wanted, damage, "the list", read=read)
    )
    numbers, same = walk_list(memory)
    assert found == [(0x1234 if number == 4 else 0, number, 0) for number in numbers]
    assert damage.notes == same.notes and len(numbers) == 20


def test_near_reads_are_reads() -> None:
    """Within a page, across pages, and in the part of a page that is not in the source."""
    memory = Memory()
    memory.data[:] = bytes(range(251)) * (SIZE // 251) + bytes(SIZE % 251)
    memory.prog.add_memory_segment(BASE + SIZE, 100, lambda *_: b"end" * 34, False)
    read = near_reader(memory.kernel)

    def tried(way: Callable[[int, int], bytes], address: int, size: int) -> object:
        try:
            return way(address, size)
        except NotInDump:
            return None

    places = [
        (0, 8),
        (4090, 6),
        (4090, 7),
        (8192, 4096),
        (50, 5000),
        (4100, 8),
        (SIZE - 4, 8),
        (SIZE - 8, 16),
    ]
    places += [(SIZE, 0), (SIZE, 3), (SIZE + 1, 8), (SIZE + 99, 2), (SIZE + 4096, 8), (-8, 8)]
    for at, size in [*places, *places]:
        assert tried(read, BASE + at, size) == tried(memory.read, BASE + at, size), (at, size)


def test_near_reads_of_a_running_kernel_are_not_kept() -> None:
    memory = Memory()
    for live in (False, True):
        memory._source = cast(Source, SimpleNamespace(live=live))
        read = near_reader(memory.kernel)
        memory.put(BASE, 1)
        assert read(BASE, 1) == b"\1"
        memory.put(BASE, 2)
        assert read(BASE, 1) == (b"\2" if live else b"\1")


words = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 40).map(lambda i: entry_at(i) + 8),
    st.integers(BASE - 64, BASE + SIZE),
    st.sampled_from((0, BASE, BASE + 8, (1 << 64) - 1, (1 << 64) - 8)),
)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 41), st.booleans(), words), min_size=1, max_size=8))
def test_a_spoiled_list_ends(spoiled: "list[tuple[int, bool, int]]") -> None:
    memory = a_list(40)
    for index, backwards, value in spoiled:
        node = BASE if index == 41 else entry_at(index) + 8
        memory.put(node + 8 * backwards, value)
    found, _ = walk_list(memory)
    # Every entry lies in existing memory, and appears once.
    assert len(found) <= SIZE // 8


@given(st.integers(1, 38), words)
def test_one_bad_pointer_costs_nothing(index: int, value: int) -> None:
    memory = a_list(40)
    memory.put(entry_at(index) + 8, value)
    found, damage = walk_list(memory)
    assert set(range(1, 41)) <= set(found) or not damage
    following = entry_at(index + 1) + 8
    assert damage or value == following or BASE <= value < BASE + SIZE


def test_a_list_without_end() -> None:
    memory = a_list(500)
    found, damage = walk_list(memory, limit=100)
    assert len(found) == 100
    assert "does not end" in damage.notes[0]


def test_a_list_that_was_never_set_up() -> None:
    found, damage = walk_list(Memory())
    assert found == [] and not damage


# Maple trees

LEAF, RANGE, ARANGE = 1, 2, 3
ALL = (1 << 64) - 1


def node_at(index: int) -> int:
    return BASE + 0x10000 + 256 * index


def a_maple_tree(entries: "list[tuple[int, int, int]]", fanout: int = 8) -> Memory:
    """A tree of (first, last, pointer), built from the leaves up with the nodes of lib/maple_tree.c."""
    memory = Memory()
    full: List["tuple[int, int]"] = []  # (last index, content)
    cursor = 0
    for first, last, pointer in entries:
        if first > cursor:
            full.append((first - 1, 0))
        full.append((last, pointer))
        cursor = last + 1
    if not full or full[-1][0] != ALL:
        full.append((ALL, 0))
    used = 0
    kind = LEAF
    while True:
        level: List["tuple[int, int]"] = []
        for at in range(0, len(full), fanout):
            part = full[at : at + fanout]
            node, used = node_at(used), used + 1
            pivots, slots = (15, 16) if kind != ARANGE else (9, 10)
            for i, (last, content) in enumerate(part):
                if i < pivots:
                    memory.put(node + 8 + 8 * i, last)
                memory.put(node + 8 + 8 * pivots + 8 * i, content)
            assert len(part) <= slots
            level.append((part[-1][0], node | kind << 3 | 4))
        if len(level) == 1:
            root = level[0][1] & ~4 | 2
            memory.put(BASE, 0, root)
            return memory
        full, kind = level, ARANGE if kind == LEAF else RANGE


def maple(memory: Memory) -> "tuple[list[tuple[int, int, int]], Damage]":
    damage = Damage()
    return list(maple_entries(memory.kernel, BASE, damage, "the tree", limit=1000)), damage


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 50)), max_size=120))
def test_a_whole_maple_tree(gaps: "list[tuple[int, int]]") -> None:
    entries = []
    cursor = 0
    for number, (gap, size) in enumerate(gaps):
        first = cursor + gap
        entries.append((first, first + size - 1, BASE + 0x80000 + 256 * number))
        cursor = first + size
    found, damage = maple(a_maple_tree(entries))
    assert found == entries and not damage


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 31), words), min_size=1, max_size=8))
def test_a_spoiled_maple_tree_ends(spoiled: "list[tuple[int, int, int]]") -> None:
    memory = a_maple_tree([(i * 10 + 1, i * 10 + 5, BASE + 0x80000 + 256 * i) for i in range(40)])
    for index, word, value in spoiled:
        memory.put(node_at(index) + 8 * word, value)
    seen: Set[int] = set()
    for first, last, _ in maple(memory)[0]:
        assert 0 <= first <= last <= ALL
        seen.add(first)
    assert len(seen) <= 1000 * 31


# Strings


def test_strings() -> None:
    memory = Memory()
    memory.data[0:12] = b"plain\0behind"
    assert text_at(memory.kernel, BASE) == "plain"
    memory.data[0x100:0x104] = b"\xff\x1b\n\0"
    assert text_at(memory.kernel, BASE + 0x100) == "\\xff\x1b\n"
    # Up to the end of memory, and up to the limit.
    memory.data[SIZE - 4 :] = b"last"
    assert text_at(memory.kernel, BASE + SIZE - 4) == "last"
    memory.data[0x2000:0x4000] = b"a" * 0x2000
    assert len(text_at(memory.kernel, BASE + 0x2000, 5000)) == 5000
    assert plain_text(b"comm\0\0\0junk") == "comm"


def test_damage_is_told_once_with_a_count() -> None:
    damage = Damage()
    assert not damage and damage.notes == []
    for number in range(3):
        damage.add("a list ends early", f"after {number}")
    assert damage and damage.notes == ["a list ends early (3 times): after 0"]
    for number in range(40):
        damage.add(f"trouble {number}")
    assert len(damage.notes) == 21


def an_xarray(entries: "dict[int, int]") -> Memory:
    """An array of entries by index, in nodes of 64 slots as in lib/xarray.c."""
    memory = Memory()
    count = 0

    def build(low: int, shift: int) -> int:
        nonlocal count
        at = BASE + 0x1000 + 576 * count
        count += 1
        memory.data[at - BASE] = shift
        for slot in range(64):
            first = low + (slot << shift)
            inside = [index for index in entries if first <= index < first + (1 << shift)]
            if inside:
                memory.put(at + 40 + 8 * slot, build(first, shift - 6) if shift else entries[first])
        return at | 2

    if set(entries) == {0}:
        memory.put(BASE + 8, entries[0])
    elif entries:
        shift = 0
        while max(entries) >> shift + 6:
            shift += 6
        memory.put(BASE + 8, build(0, shift))
    return memory


def xarray(memory: Memory) -> "tuple[list[tuple[int, int, int]], Damage]":
    damage = Damage()
    return list(xarray_entries(memory.kernel, BASE, damage, "the array", limit=1000)), damage


@given(st.dictionaries(st.integers(0, 100_000), st.integers(0, 1 << 40), max_size=20))
def test_a_whole_xarray(chosen: "dict[int, int]") -> None:
    # Values have bit 0 set (xa_mk_value).
    entries = {index: value << 1 | 1 for index, value in chosen.items()}
    found, damage = xarray(an_xarray(entries))
    assert found == [(index, index, entry) for index, entry in sorted(entries.items())]
    assert not damage


def test_a_large_entry_of_an_xarray() -> None:
    """Four pages together: the other slots refer to the first (xa_mk_sibling): slot * 4 + 2 (internal)."""
    memory = an_xarray({8: 0x71, 100: 0x73})
    inner = int(memory.kernel.read(BASE + 0x1000 + 40, 8)[::-1].hex(), 16) & ~2
    memory.put(inner + 40 + 8 * 9, *[8 << 2 | 2] * 3)
    found, damage = xarray(memory)
    assert found == [(index, index, 0x71) for index in (8, 9, 10, 11)] + [(100, 100, 0x73)]
    assert not damage


@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, (1 << 64) - 1)), min_size=1, max_size=5))
@settings(max_examples=50)
def test_a_spoiled_xarray_ends(spoiled: "list[tuple[int, int]]") -> None:
    memory = an_xarray({index * 70: 0x11 for index in range(60)})
    for word, value in spoiled:
        memory.put(BASE + 0x1000 + 8 * word, value)
    for first, last, _ in xarray(memory)[0]:
        assert first <= last


def test_an_xarray_that_is_a_circle() -> None:
    memory = an_xarray({0: 0x11, 5000: 0x13})
    memory.put(BASE + 0x1000 + 40 + 16, BASE + 0x1000 | 2)
    found, damage = xarray(memory)
    assert found == [(0, 0, 0x11), (5000, 5000, 0x13)]
    assert "cycle" in damage.notes[0]
