# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entries of the table of variables, on types made by the test; and the shipped table."""

from __future__ import annotations

import re
from typing import Dict, List, Optional, Sequence

import drgn
import pytest
from drgn import FindObjectFlags, TypeKindSet

from kvintro.arch import architectures
from kvintro.source._variable_table import SHAPES, TYPES
from kvintro.source.btf import Btf, BtfTypes
from kvintro.source.kallsyms import KallsymsSymbol
from kvintro.source.variables import VariableTypes, types_on
from tests.made_up_kernel import SIGNED, TYPEDEF, BtfBuilder

ADDRESS = 0xFFFFFFFF83000000


@pytest.fixture(scope="module")
def types() -> BtfTypes:
    b = BtfBuilder()
    int_, long_ = b.int("int", 4, SIGNED), b.int("unsigned long", 8)
    b.int("char", 1)
    b.struct("small", 8, [("a", long_, 0)])
    b.struct("big", 64, [("a", b.array(long_, 8), 0)])
    b.struct("", 16, [("seq", long_, 0), ("timekeeper", long_, 64)])
    b.add(TYPEDEF, "u64", long_)
    b.enum("", {"EMULATE": 0, "XONLY": 1})
    b.enum("level", {"LEVELS": 6})
    b.add(7, "incomplete", 0)
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    result = BtfTypes(prog, Btf(b.build()))

    def find_type(
        prog: drgn.Program, kinds: TypeKindSet, name: str, filename: Optional[str]
    ) -> Optional[drgn.Type]:
        return next((t for kind in kinds for t in [result.find(kind, name)] if t is not None), None)

    def find_object(
        prog: drgn.Program, name: str, flags: FindObjectFlags, filename: Optional[str]
    ) -> Optional[drgn.Object]:
        return result.find_constant(name)

    prog.register_type_finder("btf", find_type, enable_index=0)
    prog.register_object_finder("btf", find_object, enable_index=0)
    assert int_
    return result


def find(types: BtfTypes, entries: Sequence[str], *rooms: int, padded: bool = False) -> Optional[str]:
    """Type and place of a variable with these entries, if its symbols have this much space."""
    symbols = [KallsymsSymbol("x", ADDRESS + 0x1000 * i, room, "D") for i, room in enumerate(rooms)]
    table = {"x": tuple(entries)}
    found = VariableTypes(types.prog, types.find_anonymous, padded=padded, table=table).find("x", symbols)
    if found is None:
        return None
    at = (found.address_ - ADDRESS) // 0x1000
    return str(found.type_.type_name()) + (f" @{at}" if at else "")


@pytest.mark.parametrize(
    "entries, room, expected",
    [
        (["unsigned long"], 8, "unsigned long"),
        (["unsigned long"], 64, "unsigned long"),
        (["unsigned long"], 4, None),  # a type that has grown since, or another object of the same name
        (["unsigned long"], 0, "unsigned long"),  # space unknown
        (["struct small *"], 8, "struct small *"),
        (["struct unknown"], 64, None),
        (["struct incomplete"], 64, None),
        (["struct unknown", "struct small"], 8, "struct small"),
        (["no type at all"], 8, None),
        # The type that fills the space.
        (["struct small", "struct big"], 64, "struct big"),
        (["struct big", "struct small"], 16, "struct small"),
        (["unsigned long", "u64"], 8, "unsigned long"),
        (["void **", "void *[4]"], 32, "void *[4]"),
        (["void **", "void *[4]"], 8, "void **"),
        (["unsigned long[3]", "unsigned long[4]"], 32, "unsigned long [4]"),
        (["unsigned long[4]", "unsigned long[3]"], 24, "unsigned long [3]"),
        # An array that leaves much space belongs to another kernel.
        (["unsigned long[3]"], 88, "unsigned long [3]"),
        (["unsigned long[3]"], 96, None),
        (["unsigned long[3]!"], 960, "unsigned long [3]"),
        (["unsigned long[3]!"], 16, None),
        (["unsigned long[3]", "unsigned long[]"], 96, "unsigned long [12]"),
        # Lengths.
        (["unsigned long[]"], 30, "unsigned long [3]"),
        (["unsigned long[]"], 7, None),
        (["unsigned long[]"], 0, None),
        (["unsigned long[][2]"], 48, "unsigned long [3][2]"),
        (["char[?]"], 5000, "char []"),
        (["unsigned long[LEVELS]"], 48, "unsigned long [6]"),
        (["unsigned long[LEVELS]"], 40, None),
        (["unsigned long[NO_LEVELS]"], 48, None),
        (["unsigned long[big.a]"], 100, "unsigned long [8]"),
        (["unsigned long[big.b]"], 100, None),
        (["unsigned long[small.a]"], 100, None),
        (["unsigned long[unknown.a]"], 100, None),
        # Types without a name.
        (["typeof(XONLY)"], 4, "enum <anonymous>"),
        (["typeof(NOTHING)"], 4, None),
        (["struct{seq,timekeeper}"], 16, "struct <anonymous>"),
        (["struct{seq,nothing}"], 16, None),
        # Conditions.
        (["u64 if small.a", "struct small"], 8, "u64"),
        (["u64 if not small.a", "struct small"], 8, "struct small"),
        (["u64 if small.b", "struct small"], 8, "struct small"),
        (["u64 if not small.b"], 8, "u64"),
        (["u64 if not unknown.b"], 8, None),
        ([], 8, None),
    ],
)
def test_entries(types: BtfTypes, entries: List[str], room: int, expected: Optional[str]) -> None:
    assert find(types, entries, room) == expected


@pytest.mark.parametrize(
    "entries, room, expected",
    [
        (["unsigned long[4]", "unsigned long[]"], 64, "unsigned long [4]"),
        (["unsigned long[4]", "unsigned long[]"], 32, "unsigned long [4]"),
        (["unsigned long[4]", "unsigned long[]"], 128, "unsigned long []"),
        (["unsigned long[]"], 64, "unsigned long []"),
        (["unsigned long"], 64, "unsigned long"),
    ],
)
def test_behind_a_red_zone_the_room_says_no_length(
    types: BtfTypes, entries: List[str], room: int, expected: str
) -> None:
    assert find(types, entries, room, padded=True) == expected


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "filled, room, expected",
    [
        (24, 24, "struct small [3]"),
        (16, 64, "struct small [2]"),
        (17, 64, "struct small [3]"),
        (0, 64, None),
        (24, 0, None),
    ],
)
def test_an_array_ends_where_padding_begins(
    types: BtfTypes, filled: int, room: int, expected: Optional[str], padded: bool
) -> None:
    # After KASAN's red zone, an object without a symbol may follow.
    data = (b"\x01" * filled).ljust(56, b"\0") + b"\x01" * 8
    types.prog.add_memory_segment(
        ADDRESS, len(data), lambda at, count, offset, physical: data[offset : offset + count]
    )
    assert find(types, ["struct small[]~"], room, padded=padded) == expected


def test_of_several_symbols_the_first_with_room(types: BtfTypes) -> None:
    assert find(types, ["struct big"], 8, 64, 64) == "struct big @1"
    assert find(types, ["struct big", "struct small"], 8, 64) == "struct small"
    assert find(types, ["struct big"], 8, 8) is None
    assert find(types, ["struct big"]) is None


def test_names_that_are_not_in_the_table(types: BtfTypes) -> None:
    symbol = KallsymsSymbol("nothing_of_that_name", ADDRESS, 8, "D")
    assert VariableTypes(types.prog, types.find_anonymous).find(symbol.name, [symbol]) is None


# Variables that the layers above and drgn's helpers require.
NEEDED: Dict[str, str] = {
    "page_offset_base": "unsigned long",
    "vmalloc_base": "unsigned long",
    "vmemmap_base": "unsigned long",
    "init_mm": "struct mm_struct",
    "init_top_pgt": "pgd_t[]",
    "modules": "struct list_head",
    "btf_modules": "struct list_head",
    "vmap_nodes": "struct vmap_node *",
    "vmap_area_list": "struct list_head",
    "mem_section": "struct mem_section **",
    "node_data": "struct pglist_data *[]",
    "init_task": "struct task_struct",
    "vsyscall_mode": "typeof(XONLY)",
    "kasan_early_shadow_pte": "pte_t[]",
}


@pytest.mark.parametrize("name", NEEDED)
def test_the_table_has_what_is_needed(name: str) -> None:
    assert NEEDED[name] in TYPES[name]


def test_the_table_is_well_formed() -> None:
    assert len(TYPES) > 200
    for name, entries in TYPES.items():
        assert re.fullmatch(r"\w+", name)
        assert entries and len(set(entries)) == len(entries)
        for entry in entries:
            assert not re.search(r"<anonymous>|\s{2}|\d{2}\.\d", entry), entry
    for member, shapes in SHAPES.items():
        assert re.fullmatch(r"\w+\.\w+", member)
        assert all(len(lengths) > 1 for lengths in shapes)


def test_variables_of_one_architecture() -> None:
    tables = {arch.name: types_on(arch) for arch in architectures()}
    assert tables["aarch64"]["memstart_addr"] == ("s64",) and "memstart_addr" not in tables["x86-64"]
    assert all(table.items() >= types_on(None).items() == TYPES.items() for table in tables.values())
