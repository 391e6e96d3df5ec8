# SPDX-License-Identifier: LGPL-2.1-or-later
"""BTF made by the test: every kind of type is decoded correctly, and invalid data only raises BtfError."""

from __future__ import annotations

import random
import struct
import sys
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List, Optional, Tuple

import drgn
import pytest
from drgn import Qualifiers, TypeKind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvintro.source import btf as btf_module
from kvintro.source.btf import Btf, BtfError, BtfTypes
from tests import made_up_kernel as made_up
from tests.made_up_kernel import BOOL, CHAR, CONST, RESTRICT, SIGNED, VOLATILE, BtfBuilder

X86_64 = drgn.Platform(drgn.Architecture.X86_64)


def types_of(builder: BtfBuilder, base: Optional[BtfTypes] = None) -> BtfTypes:
    prog = base.prog if base else drgn.Program(X86_64)
    return BtfTypes(prog, Btf(builder.build(), base.btf if base else None), base)


def struct_of(types: BtfTypes, name: str) -> drgn.Type:
    found = types.find(TypeKind.STRUCT, name)
    assert found is not None
    return found


def layout(type_: drgn.Type) -> List[Tuple[Optional[str], str, int, Optional[int]]]:
    return [(m.name, m.type.type_name(), m.bit_offset, m.bit_field_size) for m in type_.members or ()]


def test_integers() -> None:
    b = BtfBuilder()
    b.int("int", 4, SIGNED)
    b.int("unsigned int", 4)
    b.int("_Bool", 1, BOOL)
    b.int("unsigned __int128", 16)
    b.add(made_up.FLOAT, "double", 8)
    types = types_of(b)
    found = types.find(TypeKind.INT, "int")
    assert found is not None and (found.name, found.size, found.is_signed) == ("int", 4, True)
    found = types.find(TypeKind.INT, "unsigned int")
    assert found is not None and (found.name, found.size, found.is_signed) == ("unsigned int", 4, False)
    found = types.find(TypeKind.BOOL, "_Bool")
    assert found is not None and found.size == 1
    assert types.find(TypeKind.INT, "_Bool") is None
    found = types.find(TypeKind.INT, "unsigned __int128")
    assert found is not None and found.size == 16
    found = types.find(TypeKind.FLOAT, "double")
    assert found is not None and found.size == 8
    assert types.find(TypeKind.INT, "double") is None
    assert types.find(TypeKind.INT, "nothing") is None


@pytest.mark.parametrize(
    "encoding, signed", [(0, False), (SIGNED, True), (CHAR, False), (SIGNED | CHAR, True)]
)
def test_char_is_what_btf_says(encoding: int, signed: bool) -> None:
    """Kernels are built with -funsigned-char since 6.2 (3bc753c06dd0); pahole flags char accordingly."""
    b = BtfBuilder()
    b.int("char", 1, encoding)
    found = types_of(b).find(TypeKind.INT, "char")
    assert found is not None and found.is_signed == signed


@pytest.mark.parametrize("marked", [False, True])
def test_char_of_an_old_pahole_is_signed(marked: bool) -> None:
    """If pahole does not mark even "signed char", it does not mark char; such kernels are older than 6.2."""
    b = BtfBuilder()
    for name, encoding in (("char", 0), ("signed char", SIGNED * marked), ("unsigned char", 0), ("int", 0)):
        b.int(name, 4 if name == "int" else 1, encoding)
    types = types_of(b)
    signs = {}
    for name in ("char", "signed char", "unsigned char", "int"):
        found = types.find(TypeKind.INT, name)
        assert found is not None
        signs[name] = found.is_signed
    assert signs == {"char": not marked, "signed char": True, "unsigned char": False, "int": False}


def test_structures() -> None:
    b = BtfBuilder()
    int_ = b.int("int", 4, SIGNED)
    anonymous = b.struct("", 8, [("x", int_, 0), ("y", int_, 32)])
    either = b.union("", 8, [("", anonymous, 0), ("both", b.array(int_, 2), 0)])
    b.struct("s", 24, [("first", int_, 0), ("", either, 64), ("next", b.pointer(b.next_id + 1), 128)])
    types = types_of(b)
    found = struct_of(types, "s")
    assert found.size == 24
    assert [(m.name, m.offset) for m in found.members or ()] == [("first", 0), (None, 8), ("next", 16)]
    assert drgn.offsetof(found, "y") == 12
    assert found.member("both").type.type_name() == "int [2]"
    assert found.member("next").type.type_name() == "struct s *"


def test_bit_fields_with_and_without_kind_flag() -> None:
    b = BtfBuilder()
    int_ = b.int("int", 4, SIGNED)
    b.struct("new", 8, [("a", int_, 3 << 24), ("b", int_, 5 << 24 | 3), ("c", int_, 32)], flag=True)
    three, five = b.int("int", 4, SIGNED, bits=3), b.int("int", 4, SIGNED, bits=5, offset=3)
    b.struct("old", 8, [("a", three, 0), ("b", five, 0), ("c", int_, 32)])
    types = types_of(b)
    for name in ("new", "old"):
        assert layout(struct_of(types, name)) == [
            ("a", "int", 0, 3),
            ("b", "int", 3, 5),
            ("c", "int", 32, None),
        ]


def test_flexible_arrays_are_the_last_of_several_in_a_structure() -> None:
    b = BtfBuilder()
    int_ = b.int("int", 4, SIGNED)
    empty = b.array(int_, 0)
    constant = b.add(CONST, "", empty)
    b.struct("flexible", 4, [("n", int_, 0), ("data", empty, 32)])
    b.struct("constant", 4, [("n", int_, 0), ("data", constant, 32)])
    b.struct("middle", 4, [("none", empty, 0), ("n", int_, 0)])
    b.struct("padding", 0, [("x", empty, 0)])
    b.union("either", 4, [("n", int_, 0), ("data", empty, 0)])
    types = types_of(b)
    assert struct_of(types, "flexible").member("data").type.type_name() == "int []"
    data = struct_of(types, "constant").member("data").type
    assert data.length is None and data.qualifiers == Qualifiers.CONST
    assert struct_of(types, "middle").member("none").type.type_name() == "int [0]"
    assert struct_of(types, "padding").member("x").type.type_name() == "int [0]"
    either = types.find(TypeKind.UNION, "either")
    assert either is not None and either.member("data").type.type_name() == "int [0]"


def test_more_than_one_dimension_comes_from_the_table() -> None:
    """BTF flattens them (xa_node.tags is [3][1], lru_gen_folio.nr_pages [4][2][5])."""
    b = BtfBuilder()
    long_ = b.int("long", 8, SIGNED)
    tags = b.array(long_, 3)
    marks = b.union("", 24, [("tags", tags, 0), ("marks", tags, 0)])
    b.struct("xa_node", 24, [("", marks, 0)])
    b.struct("lru_gen_folio", 320, [("nr_pages", b.array(long_, 40), 0)])
    b.struct("lru_gen_mm_walk", 8 * 41, [("nr_pages", b.array(long_, 41), 0)])
    types = types_of(b)
    assert struct_of(types, "xa_node").member("tags").type.type_name() == "long [3][1]"
    assert struct_of(types, "lru_gen_folio").member("nr_pages").type.type_name() == "long [4][2][5]"
    # An unknown product of lengths: it stays flat.
    assert struct_of(types, "lru_gen_mm_walk").member("nr_pages").type.type_name() == "long [41]"


def test_enumerations() -> None:
    b = BtfBuilder()
    b.enum("plain", {"A": 0, "B": 0xFFFFFFFF})
    b.enum("negative", {"C": -1, "D": 1}, signed=True)
    b.enum("", {"ANONYMOUS": 7})
    b.enum("small", {"E": 1}, size=1)
    b.enum("forward", {})
    b.enum64("wide", {"F": 1 << 40})
    b.enum64("wide_negative", {"G": -(1 << 40)}, signed=True)
    types = types_of(b)
    values = {
        name: types.find_constant(name).value_()  # type: ignore[union-attr]
        for name in ("A", "B", "C", "D", "ANONYMOUS", "E", "F", "G")
    }
    assert values == {
        "A": 0, "B": 0xFFFFFFFF, "C": -1, "D": 1, "ANONYMOUS": 7, "E": 1, "F": 1 << 40, "G": -(1 << 40),
    }  # fmt: skip
    assert types.find_constant("plain") is None
    assert types.find_constant("nothing") is None
    anonymous = types.find_constant("ANONYMOUS")
    assert anonymous is not None and anonymous.type_.tag is None
    small, forward = types.find(TypeKind.ENUM, "small"), types.find(TypeKind.ENUM, "forward")
    assert small is not None and small.type.type_name() == "unsigned char"
    assert forward is not None and not forward.is_complete()
    negative = types.find(TypeKind.ENUM, "negative")
    assert negative is not None and negative.type.is_signed


def test_enumerations_of_an_old_pahole_have_no_sign() -> None:
    b = BtfBuilder()
    b.enum("old", {"A": -1})
    found = types_of(b).find_constant("A")
    assert found is not None and found.value_() == -1


def test_typedefs_and_qualifiers() -> None:
    b = BtfBuilder()
    int_ = b.int("int", 4, SIGNED)
    b.add(made_up.TYPEDEF, "nameless_t", b.struct("", 4, [("a", int_, 0)]))
    b.add(made_up.TYPEDEF, "name_t", b.pointer(b.add(CONST, "", b.add(VOLATILE, "", int_))))
    b.add(made_up.TYPEDEF, "restrict_t", b.add(RESTRICT, "", b.pointer(0)))
    b.add(made_up.TYPEDEF, "tagged_t", b.pointer(b.add(made_up.TYPE_TAG, "user", int_)))
    b.add(made_up.DECL_TAG, "a note", int_, 0xFFFFFFFF)
    types = types_of(b)
    nameless = types.find(TypeKind.TYPEDEF, "nameless_t")
    assert (
        nameless is not None
        and nameless.type.tag is None
        and layout(nameless.type) == [("a", "int", 0, None)]
    )
    name = types.find(TypeKind.TYPEDEF, "name_t")
    assert name is not None and name.type.type.qualifiers == Qualifiers.CONST | Qualifiers.VOLATILE
    restrict = types.find(TypeKind.TYPEDEF, "restrict_t")
    assert restrict is not None and restrict.type.type_name() == "void * restrict"
    tagged = types.find(TypeKind.TYPEDEF, "tagged_t")
    assert tagged is not None and tagged.type.type_name() == "int *"


def test_functions_and_variables() -> None:
    b = BtfBuilder()
    int_ = b.int("int", 4, SIGNED)
    b.add(made_up.FUNC, "printf", b.prototype(int_, [("format", b.pointer(int_)), ("", 0)]), vlen=1)
    b.add(made_up.FUNC, "nothing_taken", b.prototype(0, []))
    variable = b.add(made_up.VAR, "counter", int_, 1)
    b.add(made_up.DATASEC, ".data..percpu", 4, variable, 0, 4, vlen=1)
    types = types_of(b)
    printf = types.find_function("printf")
    assert printf is not None and printf.is_variadic
    assert [(p.name, p.type.type_name()) for p in printf.parameters] == [("format", "int *")]
    other = types.find_function("nothing_taken")
    assert other is not None and not other.is_variadic and not other.parameters
    assert types.find_function("counter") is None
    counter = types.find_variable("counter")
    assert counter is not None and counter.type_name() == "int"
    assert types.find_variable("printf") is None


def test_of_several_definitions_the_used_one_is_taken_and_it_is_told() -> None:
    b = BtfBuilder()
    int_ = b.int("int", 4, SIGNED)
    b.struct("walk", 4, [("unused", int_, 0)])
    used = b.struct("walk", 8, [("used", int_, 0)])
    b.struct("user", 8, [("walk", b.pointer(used), 0)])
    # The other one's id occurs everywhere as a number, but not as a reference.
    b.enum("decoy", {"TWO": 2, "DEUX": 2})
    types = types_of(b)
    assert [m.name for m in struct_of(types, "walk").members or ()] == ["used"]
    assert types.ambiguous == {"walk": 2}
    struct_of(types, "user")
    assert "user" not in types.ambiguous


def test_declarations() -> None:
    b = BtfBuilder()
    int_ = b.int("int", 4, SIGNED)
    known, unknown = b.add(made_up.FWD, "known", 0), b.add(made_up.FWD, "unknown", 0, flag=True)
    b.struct("known", 4, [("a", int_, 0)])
    b.struct("user", 16, [("p", b.pointer(known), 0), ("q", b.pointer(unknown), 64)])
    types = types_of(b)
    user = struct_of(types, "user")
    assert user.member("p").type.type.has_member("a")
    assert user.member("q").type.type_name() == "union unknown *"
    assert not user.member("q").type.type.is_complete()


def test_structure_without_a_name_by_its_members() -> None:
    b = BtfBuilder()
    int_ = b.int("int", 4, SIGNED)
    b.struct("", 8, [("seq", int_, 0), ("timekeeper", int_, 32)])
    types = types_of(b)
    found = types.find_anonymous(["seq", "timekeeper"])
    assert found is not None and found.size == 8
    assert types.find_anonymous(["seq"]) is None
    assert types.find_anonymous(["timekeeper", "seq"]) is None


def test_modules_continue_the_kernels_blob() -> None:
    kernel = BtfBuilder()
    int_ = kernel.int("int", 4, SIGNED)
    kernel.struct("shared", 4, [("a", int_, 0)])
    kernel_types = types_of(kernel)
    module = BtfBuilder(kernel_types.btf.end_id, kernel_types.btf.end_string)
    # Its first string is not preceded by a terminator; "a" is in the kernel's strings.
    inner = module.struct("own", 8, [("first", int_, 0)])
    module.types = module.types[:12] + struct.pack("<3I", module.string("own"), int_, 0) + module.types[24:]
    module.enum("", {"a": 5})
    module.add(made_up.VAR, "here", inner, 1)
    types = types_of(module, kernel_types)
    assert layout(struct_of(types, "own")) == [("own", "int", 0, None)]
    assert types.find(TypeKind.STRUCT, "shared") is None
    assert types.make(int_) is kernel_types.make(int_)
    assert types.find_variable("here") is not None
    assert kernel_types.find(TypeKind.STRUCT, "own") is None
    empty = BtfTypes(
        types.prog, Btf(BtfBuilder(kernel_types.btf.end_id, 1).build(), kernel_types.btf), kernel_types
    )
    assert empty.find(TypeKind.STRUCT, "shared") is None


def header(magic: int = 0xEB9F, version: int = 1, size: int = 24, *rest: int) -> bytes:
    return struct.pack("<HBBI4I", magic, version, 0, size, *(rest or (0, 0, 0, 1))) + b"\0"


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "0 bytes"),
        (header()[:20], "20 bytes"),
        (header(0x9FEB), "magic"),
        (header(version=2), "version 2"),
        (header(size=8), "outside"),
        (header(0xEB9F, 1, 24, 0, 12, 0, 1), "outside"),
        (header(0xEB9F, 1, 24, 0, 0, 0, 0xFFFFFFFF), "outside"),
        (header(0xEB9F, 1, 24, 2, 0, 0, 1), "outside"),
        (header(0xEB9F, 1, 24, 0, 0, 0, 0), "begin and end"),
    ],
)
def test_blobs_that_are_none(data: bytes, message: str) -> None:
    with pytest.raises(BtfError, match=message):
        Btf(data)


def test_too_big_a_blob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btf_module, "MAX_BTF_SIZE", 30)
    with pytest.raises(BtfError, match="too many"):
        Btf(BtfBuilder().build() + bytes(30))


@pytest.mark.parametrize("kind", [0, 20, 127])
def test_unknown_kind(kind: int) -> None:
    b = BtfBuilder()
    b.add(kind, "x", 0)
    with pytest.raises(BtfError, match=f"unknown kind {kind}") as caught:
        Btf(b.build())
    assert "newer" in caught.value.remedy


def test_cut_off_type() -> None:
    b = BtfBuilder()
    b.add(made_up.STRUCT, "s", 4, vlen=3)
    with pytest.raises(BtfError, match="cut off"):
        Btf(b.build())


def outside(b: BtfBuilder) -> None:
    b.struct("s", 4, [("a", b.int("long", 8), 0)])


def outside_bits(b: BtfBuilder) -> None:
    b.struct("s", 4, [("a", b.int("int", 4), 8 << 24 | 30)], flag=True)


def of_no_size(b: BtfBuilder) -> None:
    b.struct("s", 4, [("a", 0, 0)])


def of_no_type(b: BtfBuilder) -> None:
    b.struct("s", 4, [("a", 99, 0)])


def empty_name(b: BtfBuilder) -> None:
    int_ = b.int("int", 4)
    b.add(made_up.STRUCT, "s", 4, 4, int_, 0, vlen=1)  # the terminator of "int"


def name_outside(b: BtfBuilder) -> None:
    b.add(made_up.STRUCT, "s", 4, 1 << 20, b.int("int", 4), 0, vlen=1)


def endless_name(b: BtfBuilder) -> None:
    b.struct("s", 4, [("x" * 5000, b.int("int", 4), 0)])


def in_itself(b: BtfBuilder) -> None:
    b.struct("s", 4, [("s", b.next_id, 0)])


def in_its_array(b: BtfBuilder) -> None:
    b.struct("s", 4, [("s", b.next_id + 1, 0)])
    b.array(b.next_id - 1, 1)


def in_its_member(b: BtfBuilder) -> None:
    b.struct("s", 0, [("t", b.next_id + 1, 0)])
    b.struct("t", 0, [("s", b.next_id - 1, 0)])


def without_a_name_in_itself(b: BtfBuilder) -> None:
    b.struct("s", 4, [("", b.next_id, 0)])


def two_to_the_twentieth(b: BtfBuilder) -> None:
    inner = b.int("int", 4)
    for _ in range(20):
        inner = b.union("", 4, [("", inner, 0), ("", inner, 0)])
    b.struct("s", 4, [("", inner, 0)])


def typedef_of_itself(b: BtfBuilder) -> None:
    b.struct("s", 4, [("a", b.next_id + 1, 0)])
    b.add(made_up.TYPEDEF, "loop", b.next_id)


def too_big(b: BtfBuilder) -> None:
    b.struct("s", 1 << 30, [])


@pytest.mark.parametrize(
    "make",
    [
        outside,
        outside_bits,
        of_no_size,
        of_no_type,
        empty_name,
        name_outside,
        endless_name,
        in_itself,
        in_its_array,
        in_its_member,
        without_a_name_in_itself,
        two_to_the_twentieth,
        typedef_of_itself,
        too_big,
    ],
)
def test_structures_that_cannot_be(make: Callable[[BtfBuilder], None]) -> None:
    b = BtfBuilder()
    make(b)
    with pytest.raises(BtfError):
        types_of(b).find(TypeKind.STRUCT, "s")


def pointer_to_itself(b: BtfBuilder) -> int:
    return b.pointer(b.next_id)


def result_of_itself(b: BtfBuilder) -> int:
    return b.prototype(b.next_id, [])


def taking_itself(b: BtfBuilder) -> int:
    pointer = b.pointer(b.next_id + 1)
    return b.prototype(0, [("again", pointer)])


def taking_the_last_twice(b: BtfBuilder) -> int:
    last = b.int("int", 4)
    for _ in range(30):
        pointer = b.pointer(last)
        last = b.prototype(0, [("a", pointer), ("b", pointer)])
    return last


def variable_as_type(b: BtfBuilder) -> int:
    return b.pointer(b.add(made_up.VAR, "v", 0, 1))


@pytest.mark.parametrize(
    "make", [pointer_to_itself, result_of_itself, taking_itself, taking_the_last_twice, variable_as_type]
)
def test_types_that_cannot_be(make: Callable[[BtfBuilder], int]) -> None:
    b = BtfBuilder()
    type_id = make(b)
    with pytest.raises(BtfError):
        types_of(b).make(type_id)


NO_NAMES = ["\x1b[31m", "\x1b]52;c;eA==\x07", "a\nb", "\x7f", "\u202e", "caf\u00e9"]
NO_NAMES += ["=2+5", "1st", "a-b", "a/b", " a", "a ", "a  b", "<b>"]


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("where", ["type", "member", "enumerator", "parameter", "typedef", "int"])
def test_names_are_what_compilers_make(name: str, where: str) -> None:
    """An invalid name damages only its type."""
    b = BtfBuilder()
    int_ = b.int(name if where == "int" else "int", 4, SIGNED)
    other = b.struct("other", 4, [("a", int_ if where != "int" else b.int("long", 4, SIGNED), 0)])
    makers: Dict[str, Callable[[], int]] = {
        "type": lambda: b.struct(name, 4, [("a", int_, 0)]),
        "member": lambda: b.struct("s", 4, [(name, int_, 0)]),
        "enumerator": lambda: b.enum("e", {name: 1}),
        "parameter": lambda: b.prototype(0, [(name, int_)]),
        "typedef": lambda: b.add(made_up.TYPEDEF, name, int_),
        "int": lambda: int_,
    }
    made = makers[where]()
    types = types_of(b)
    with pytest.raises(BtfError, match="is not a name") as refused:
        types.make(made)
    assert "--btf FILE" in refused.value.remedy
    assert [member.name for member in types.make(other).members or ()] == ["a"]


@pytest.mark.parametrize(
    "name",
    ["a", "_", "A9", "foo.isra.0", "foo.llvm.123", "__pfx_x", "a$b", ".data..percpu", "_Z3fooPi", "a" * 511],
)
def test_names_that_compilers_make(name: str) -> None:
    b = BtfBuilder()
    b.struct(name, 4, [(name, b.int("long unsigned int", 4), 0)])
    assert [member.name for member in struct_of(types_of(b), name).members or ()] == [name]


@contextmanager
def calls_at_most(limit: int) -> Iterator[None]:
    """Counts calls of Python functions, which measures cost independently of the machine."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        yield
    finally:
        sys.setprofile(None)
    assert count <= limit


@pytest.mark.parametrize("what", ["types of one name", "pointers to it", "members", "strings", "enumerators"])
def test_a_look_up_does_not_take_longer_on_a_blob_made_for_that(what: str) -> None:
    b = BtfBuilder()
    number = 20_000
    int_ = b.int("int", 4, SIGNED)
    victim = b.struct("victim", 4, [("a", int_, 0)])
    b.struct("victim", 8, [("a", int_, 0)])
    b.enum("e", {"CONSTANT": 1})
    offset = b.string("victim")
    if what == "types of one name":
        b.types += struct.pack("<3I", offset, made_up.STRUCT << 24, 8) * number
    elif what == "pointers to it":
        b.types += struct.pack("<3I", 0, made_up.PTR << 24, victim) * number
    elif what == "members":
        b.types += struct.pack("<3I", 0, made_up.STRUCT << 24 | number, 4)
        b.types += struct.pack("<3I", offset, victim, 0) * number
    elif what == "strings":
        b.strings += b"victim\0" * number
    else:
        b.types += struct.pack("<3I", 0, made_up.ENUM << 24 | number, 4)
        b.types += struct.pack("<2I", offset, 1) * number
    btf = Btf(b.build())
    with calls_at_most(2000):
        found = btf.find(made_up.STRUCT, "victim")
        assert btf.find(made_up.FUNC, "victim") == []
        assert btf.find_enumerator("CONSTANT") is not None
    assert victim in found[:2]


def test_a_structure_among_many_of_its_size() -> None:
    """The search for a structure that contains itself ends, however many candidates there are."""
    b = BtfBuilder()
    last = b.struct("deepest", 8, [])
    for index in range(4):
        last = b.struct(f"s{index}", 8, [(f"m{n}", last, 0) for n in range(1 << 15)])
    with pytest.raises(BtfError, match="too many members"):
        types_of(b).make(last)


def test_references_are_counted_as_one_by_one() -> None:
    """Against another way of counting: one type at a time."""
    btf = Btf(small_blob())
    counts = dict.fromkeys(range(1, btf.end_id), 0)
    for type_id in range(1, btf.end_id):
        kind, _, target, _, _ = btf.record(type_id)
        tail = btf._tail(type_id)
        targets = []
        if kind in (made_up.STRUCT, made_up.UNION):
            targets = list(tail[1::3])
        elif kind == made_up.FUNC_PROTO:
            targets = [target, *tail[1::2]]
        elif kind == made_up.ARRAY:
            targets = [tail[0]]
        elif kind not in (made_up.INT, made_up.ENUM, made_up.ENUM64, made_up.FLOAT, made_up.DATASEC):
            targets = [target]
        for other in targets:
            counts[other] = counts.get(other, 0) + 1
    counts.pop(0)  # void
    assert list(counts.values()) == btf._references.tolist()
    assert sum(counts.values()) > 10


@pytest.mark.parametrize("kind", [made_up.PTR, made_up.TYPEDEF, made_up.INT, made_up.FLOAT, made_up.FUNC])
def test_elements_where_there_can_be_none(kind: int) -> None:
    b = BtfBuilder()
    b.add(kind, "x", 4, *([0] if kind == made_up.INT else []), vlen=3)
    with pytest.raises(BtfError, match="elements"):
        Btf(b.build())


def test_more_strings_than_any_kernel_has() -> None:
    b = BtfBuilder()
    b.strings += b"a" * (17 << 20) + b"\0"
    with pytest.raises(BtfError, match="names are too many"):
        Btf(b.build())


def test_a_thousand_types_of_one_name_end_soon() -> None:
    b = BtfBuilder()
    for _ in range(1000):
        b.struct("s", 0, [])
    b.strings *= 1000  # also the name a thousand times
    assert types_of(b).find(TypeKind.STRUCT, "s") is not None


def small_blob() -> bytes:
    """A blob with one type of each kind."""
    b = BtfBuilder()
    int_ = b.int("int", 4, SIGNED)
    list_head = b.struct("list_head", 16, [("next", b.next_id + 1, 0), ("prev", b.next_id + 1, 64)])
    b.pointer(list_head)
    b.struct("bits", 4, [("a", int_, 3 << 24), ("b", int_, 29 << 24 | 3)], flag=True)
    anonymous = b.union("", 16, [("list", list_head, 0), ("n", b.array(int_, 4), 0)])
    b.struct("outer", 24, [("", anonymous, 0), ("tail", b.array(int_, 0), 192)])
    b.add(made_up.TYPEDEF, "outer_t", b.add(CONST, "", b.add(VOLATILE, "", b.next_id - 1)))
    b.enum("e", {"ONE": 1, "MINUS": -1}, signed=True)
    b.enum64("e64", {"BIG": 1 << 40})
    b.add(made_up.FUNC, "f", b.prototype(int_, [("a", int_), ("", 0)]))
    b.add(made_up.DATASEC, ".data..percpu", 4, b.add(made_up.VAR, "v", int_, 1), 0, 4, vlen=1)
    b.add(made_up.FWD, "elsewhere", 0)
    b.add(made_up.FLOAT, "double", 8)
    b.add(made_up.DECL_TAG, "tag", int_, 0)
    b.add(made_up.TYPE_TAG, "user", int_)
    b.add(RESTRICT, "", b.pointer(0))
    return b.build()


@contextmanager
def only_btf_errors() -> Iterator[None]:
    """Before 0.3, drgn raises errors in making a member's type as plain Exceptions."""
    try:
        yield
    except BtfError:
        pass
    except Exception as e:
        if not str(e).startswith("BtfError: "):
            raise


def use_all_of_it(data: bytes) -> None:
    """Use everything in a blob; any error must be BtfError."""
    try:
        types = BtfTypes(drgn.Program(X86_64), Btf(data))
    except BtfError:
        return
    names = ["list_head", "bits", "outer", "outer_t", "e", "ONE", "BIG", "f", "v", "elsewhere", "int", "a"]
    for name in names:
        for look_up in (types.find_function, types.find_variable, types.find_constant):
            with only_btf_errors():
                look_up(name)
        for kind in (TypeKind.STRUCT, TypeKind.UNION, TypeKind.ENUM, TypeKind.TYPEDEF, TypeKind.INT):
            with only_btf_errors():
                types.find(kind, name)
    for type_id in range(min(len(types.btf) + 2, 200)):
        with only_btf_errors():
            use(types.make(type_id))


def spell(type_: drgn.Type) -> None:
    try:
        type_.type_name()
    except ValueError as e:  # drgn spells no function type without the function
        assert str(e) == "function must have name"


def use(type_: drgn.Type) -> None:
    spell(type_)
    if type_.kind in (TypeKind.STRUCT, TypeKind.UNION):
        type_.has_member("not there")
        for member in type_.members or ():
            spell(member.type)
            _ = member.bit_field_size
    if type_.kind == TypeKind.FUNCTION:
        for parameter in type_.parameters:
            spell(parameter.type)


SMALL = small_blob()
INFOS = [flag << 31 | kind << 24 | vlen for kind in range(1, 20) for vlen in range(3) for flag in (0, 1)]


def test_the_small_blob_is_sound() -> None:
    types = BtfTypes(drgn.Program(X86_64), Btf(SMALL))
    no_types = (made_up.FUNC, made_up.VAR, made_up.DATASEC, made_up.DECL_TAG)
    for type_id in range(1, types.btf.end_id):
        if types.btf.kind(type_id) not in no_types:
            use(types.make(type_id))


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(SMALL) // 4 - 1),
            st.one_of(st.integers(0, 64), st.integers(0, 0xFFFFFFFF), st.sampled_from(INFOS)),
        ),
        max_size=6,
    ),
    st.integers(0, len(SMALL)),
)
def test_a_damaged_blob_is_an_error_and_no_more(changes: List[Tuple[int, int]], cut: int) -> None:
    data = bytearray(SMALL)
    for word, value in changes:
        struct.pack_into("<I", data, 4 * word, value)
    use_all_of_it(bytes(data))
    use_all_of_it(bytes(data[:cut]))


@settings(max_examples=200)
@given(st.binary(max_size=400), st.binary(max_size=60))
def test_a_blob_of_noise_is_an_error_and_no_more(types: bytes, strings: bytes) -> None:
    types = types[: len(types) & ~3]
    use_all_of_it(
        struct.pack("<HBBI4I", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings
    )


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_blob(seed: int) -> None:
    """A blob with every kind of type. The fuzz tests damage a kernel's own BTF."""
    whole = small_blob()
    generator = random.Random(seed)
    for _ in range(20):
        data = bytearray(whole)
        for _ in range(5):
            at = generator.randrange(24, len(data) - 4) & ~3
            struct.pack_into("<I", data, at, generator.randrange(200_000))
        use_all_of_it(bytes(data))
        use_all_of_it(bytes(data[: generator.randrange(len(data))]))
