# SPDX-License-Identifier: LGPL-2.1-or-later
"""kvintro.types.install() on a made-up kernel: an image, a module, and errors in them."""

from __future__ import annotations

import struct
from typing import Any, Callable, Dict, List, Tuple

import drgn
import pytest

from kvintro.source import loaded_modules
from kvintro.types import install
from tests import made_up_kernel as made_up
from tests.made_up_kernel import SIGNED, TABLES, TEXT, BtfBuilder, Symbol, Tables, program

BTF = 0xFFFFFFFF82800000
DATA = 0xFFFFFFFF83000000
MODULE = 0xFFFFFFFFC0000000
# Offsets in DATA.
(
    MODULES,
    BTF_MODULES,
    COUNTER,
    INIT_TASK,
    STRUCT_MODULE,
    MOD_KALLSYMS,
    SYMTAB,
    STRTAB,
    MODULE_ENTRY,
    STRUCT_BTF,
) = (DATA + offset for offset in (0, 0x20, 0x40, 0x50, 0x100, 0x200, 0x300, 0x400, 0x500, 0x600))
MODULE_BTF = DATA + 0x800


class MadeUp:
    """The memory of the kernel, which tests change before they use it."""

    def __init__(self) -> None:
        self.btf = BtfBuilder()
        self._types()
        self.image_btf = self.btf.build()
        self.module_btf = self._module_types()
        self.symbols = [
            Symbol("_stext", TEXT, "T"),
            Symbol("_text", TEXT, "T"),
            Symbol("do_it", TEXT + 0x100, "T"),
            Symbol("_etext", TEXT + 0x200, "T"),
            Symbol("__start_BTF", BTF, "R"),
            Symbol("__stop_BTF", BTF + len(self.image_btf), "R"),
            Symbol("modules", MODULES, "d"),
            Symbol("btf_modules", BTF_MODULES, "d"),
            Symbol("per_cpu_counter", COUNTER),
            Symbol("init_task", INIT_TASK),
            Symbol("pfn_mapped", INIT_TASK + 16),
            Symbol("untyped", DATA + 0xF0),
            Symbol("_end", DATA + 0x10000, "B"),
        ]
        self.data = bytearray(0x2000)
        self._module()

    def _types(self) -> None:
        b = self.btf
        int_, char = b.int("int", 4, SIGNED), b.int("char", 1)
        u16 = b.int("unsigned short", 2)
        u32, u64 = b.int("unsigned int", 4), b.int("unsigned long", 8)
        string, name = b.pointer(char), b.array(char, 56)
        list_head = b.struct("list_head", 16, [("next", b.next_id + 1, 0), ("prev", b.next_id + 1, 64)])
        b.pointer(list_head)
        symbol = b.struct(
            "elf64_sym",
            24,
            [("st_name", u32, 0), ("st_info", char, 32), ("st_other", char, 40), ("st_shndx", u16, 48),
             ("st_value", u64, 64), ("st_size", u64, 128)],
        )  # fmt: skip
        kallsyms = b.struct(
            "mod_kallsyms",
            32,
            [("symtab", b.pointer(symbol), 0), ("num_symtab", u32, 64), ("strtab", string, 128)],
        )
        memory = b.struct("module_memory", 16, [("base", b.pointer(0), 0), ("size", u32, 64)])
        self.module = b.struct(
            "module",
            128,
            [("list", list_head, 0), ("name", name, 128), ("mem", b.array(memory, 2), 576),
             ("kallsyms", b.pointer(kallsyms), 832)],
        )  # fmt: skip
        btf = b.struct(
            "btf",
            96,
            [("data", b.pointer(0), 0), ("data_size", u32, 64), ("start_id", u32, 96),
             ("start_str_off", u32, 128), ("name", name, 192)],
        )  # fmt: skip
        b.struct(
            "btf_module",
            32,
            [("list", list_head, 0), ("module", b.pointer(self.module), 128), ("btf", b.pointer(btf), 192)],
        )
        b.struct("task_struct", 8, [("pid", int_, 0)])
        b.struct("range", 16, [("start", u64, 0), ("end", u64, 64)])
        b.enum("color", {"RED": 3})
        b.add(made_up.VAR, "per_cpu_counter", int_, 1)
        b.add(made_up.FUNC, "do_it", b.prototype(int_, [("what", int_)]), vlen=1)

    def _module_types(self) -> bytes:
        b = BtfBuilder(self.btf.next_id, len(self.btf.strings))
        own = b.struct("own_thing", 4, [("x", 1, 0)])
        b.add(made_up.FUNC, "own_function", b.prototype(0, [("thing", b.pointer(own))]), vlen=1)
        b.enum("", {"OWN_CONSTANT": 9})
        return b.build()

    def put(self, address: int, data: bytes) -> None:
        self.data[address - DATA : address - DATA + len(data)] = data

    def _module(self) -> None:
        self.put(MODULES, struct.pack("<2Q", STRUCT_MODULE, STRUCT_MODULE))
        self.put(BTF_MODULES, struct.pack("<2Q", MODULE_ENTRY, MODULE_ENTRY))
        self.put(COUNTER, struct.pack("<i", 42))
        self.put(INIT_TASK, struct.pack("<i", 7))
        table = b"\0"
        symbols = bytes(24)
        for name, info, section, value, size in (
            ("own_function", 0x12, 1, MODULE + 0x10, 0x20),
            ("own_data", 0x01, 2, MODULE + 0x1000, 8),
            ("a_file", 0x04, 1, 0, 0),
            ("undefined", 0x12, 0, MODULE, 8),
        ):
            symbols += struct.pack("<IBBHQQ", len(table), info, 0, section, value, size)
            table += name.encode() + b"\0"
        self.put(SYMTAB, symbols)
        self.put(STRTAB, table)
        self.put(MOD_KALLSYMS, struct.pack("<QQQ", SYMTAB, len(symbols) // 24, STRTAB))
        ranges = struct.pack("<QQQQ", MODULE, 0x1000, MODULE + 0x1000, 0x1000)
        self.put(STRUCT_MODULE, struct.pack("<2Q56s32sQ", MODULES, MODULES, b"loop", ranges, MOD_KALLSYMS))
        self.put(MODULE_ENTRY, struct.pack("<4Q", BTF_MODULES, BTF_MODULES, STRUCT_MODULE, STRUCT_BTF))
        self.put(
            STRUCT_BTF,
            struct.pack(
                "<QIIQ56s", MODULE_BTF, len(self.module_btf), self.btf.next_id, len(self.btf.strings), b"loop"
            ),
        )
        self.put(MODULE_BTF, self.module_btf)

    def program(self, without: Tuple[int, ...] = ()) -> drgn.Program:
        tables = Tables(self.symbols)
        segments: Dict[int, bytes] = {TABLES: tables.data, BTF: self.image_btf, DATA: bytes(self.data)}
        return program({k: v for k, v in segments.items() if k not in without}, tables.symbols)


def test_everything_is_there() -> None:
    prog = MadeUp().program()
    done = install(prog)
    assert (done.symbols, done.types) == ("kallsyms", "BTF")
    assert done.symbols_missing is None and done.types_missing is None
    assert done.symbol_count == 13 and done.type_count > 20
    assert prog.type("struct task_struct").size == 8
    assert prog["init_task"].pid.value_() == 7
    assert prog["per_cpu_counter"].value_() == 42
    assert prog["RED"].value_() == 3
    assert prog["do_it"].address_ == TEXT + 0x100
    assert prog["pfn_mapped"].type_.type_name() == "struct range [9]"
    assert prog.symbol(TEXT + 0x110).name == "do_it"
    assert prog.main_module().address_range == (TEXT, DATA + 0x10000)
    for absent in ("untyped", "_etext", "nothing"):
        with pytest.raises(KeyError):
            prog[absent]
    with pytest.raises(LookupError):
        prog.type("struct nothing")
    # Each look-up asks for one kind of object, and ignores others with the same name.
    with pytest.raises(LookupError):
        prog.function("per_cpu_counter")
    with pytest.raises(LookupError):
        prog.variable("RED")
    assert done.notes == []


def test_modules() -> None:
    prog = MadeUp().program()
    done = install(prog)
    assert prog.type("struct own_thing").size == 4
    assert prog["OWN_CONSTANT"].value_() == 9
    assert prog["own_function"].address_ == MODULE + 0x10
    assert prog.symbol("own_data").address == MODULE + 0x1000
    assert prog.symbol(MODULE + 0x2F).name == "own_function"
    assert len(prog.symbols("own_data")) == 1
    for nowhere in (MODULE + 0x30, MODULE + 0x5000):
        with pytest.raises(LookupError):
            prog.symbol(nowhere)
    for none in ("a_file", "undefined"):
        with pytest.raises(LookupError):
            prog.symbol(none)
    assert len(prog.symbols()) == 15
    assert done.modules is not None
    assert [(m.name, m.ranges) for m in done.modules.modules()] == [
        ("loop", [(MODULE, MODULE + 0x1000), (MODULE + 0x1000, MODULE + 0x2000)])
    ]
    assert done.notes == []


def test_without_modules() -> None:
    prog = MadeUp().program()
    install(prog, modules=False)
    with pytest.raises(LookupError):
        prog.type("struct own_thing")
    with pytest.raises(LookupError):
        prog.symbol("own_data")


def test_modules_are_not_read_before_they_are_needed() -> None:
    kernel = MadeUp()
    kernel.put(MODULES, bytes(16))
    prog = kernel.program()
    done = install(prog)
    _ = prog["init_task"].pid, prog.type("struct range"), prog.symbol("do_it")
    assert done.notes == []
    with pytest.raises(LookupError):
        prog.symbol("own_data")
    assert done.notes


@pytest.mark.parametrize(
    "address, data, problem",
    [
        (MODULES, struct.pack("<Q", 0), "list of struct module"),
        (MODULES, struct.pack("<Q", DATA + (1 << 20)), "list of struct module"),
        (STRUCT_MODULE, struct.pack("<Q", STRUCT_MODULE), "contains a cycle"),
        (STRUCT_MODULE + 104, struct.pack("<Q", 0), "symbols of module loop"),
        (MOD_KALLSYMS, struct.pack("<Q", 0), "symbols of module loop"),
        (MOD_KALLSYMS + 8, struct.pack("<I", 0xFFFFFFFF), "symbols of module loop: 4294967295 symbols"),
        (SYMTAB + 24, struct.pack("<I", 0xFFFFFFFF), "far outside"),
        (SYMTAB + 24, struct.pack("<I", 0x10000), "symbols of module loop"),
        (MOD_KALLSYMS + 16, struct.pack("<Q", 0), "symbols of module loop"),
        (BTF_MODULES, struct.pack("<Q", 0), "list of struct btf_module"),
        (STRUCT_BTF, struct.pack("<Q", 0), "BTF of module loop"),
        (STRUCT_BTF + 8, struct.pack("<I", 0xFFFFFFFF), "BTF of module loop: it cannot have"),
        (STRUCT_BTF + 8, struct.pack("<I", 30), "BTF of loop"),
        (STRUCT_BTF + 12, struct.pack("<I", 1), "a BTF that is not the kernel's"),
        (MODULE_BTF, b"nonsense", "BTF of loop: wrong magic number"),
    ],
)
def test_damaged_modules_are_told_and_the_image_still_works(address: int, data: bytes, problem: str) -> None:
    kernel = MadeUp()
    kernel.put(address, data)
    prog = kernel.program()
    done = install(prog)
    look_ups: List[Callable[[], Any]] = [lambda: prog.symbol("nothing"), lambda: prog.type("struct nothing")]
    for look_up in look_ups:
        with pytest.raises(LookupError):
            look_up()
    assert any(problem in note for note in done.notes), done.notes
    assert prog["init_task"].pid.value_() == 7


def test_all_modules_together_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_modules, "_MAX_BYTES", 100)
    prog = MadeUp().program()
    done = install(prog)
    with pytest.raises(LookupError):
        prog.symbol("own_data")
    assert any("too large" in note for note in done.notes)


def test_without_vmcoreinfo() -> None:
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    done = install(prog)
    assert done.symbols_missing is not None and "VMCOREINFO" in done.symbols_missing.reason
    assert done.types_missing is not None and "without symbols" in done.types_missing.reason
    assert "--btf" in done.types_missing.remedy
    assert (done.symbols, done.types, done.symbol_count, done.type_count) == ("", "", 0, 0)


def test_symbols_that_are_not_in_the_dump() -> None:
    done = install(MadeUp().program(without=(TABLES,)))
    assert done.symbols_missing is not None and "not in the source" in done.symbols_missing.reason


def test_types_that_are_not_in_the_dump() -> None:
    prog = MadeUp().program(without=(BTF,))
    done = install(prog)
    assert done.symbols == "kallsyms"
    assert done.types_missing is not None and "not in the source" in done.types_missing.reason
    assert prog.symbol("do_it").address == TEXT + 0x100


def test_a_kernel_without_btf() -> None:
    kernel = MadeUp()
    kernel.symbols = [s for s in kernel.symbols if "BTF" not in s.name]
    done = install(kernel.program())
    assert done.types_missing is not None and "CONFIG_DEBUG_INFO_BTF" in done.types_missing.reason


def test_btf_of_no_size() -> None:
    kernel = MadeUp()
    for symbol in kernel.symbols:
        if symbol.name == "__stop_BTF":
            symbol.address = BTF
    done = install(kernel.program())
    assert done.types_missing is not None and "0 bytes" in done.types_missing.reason


def test_btf_of_a_file() -> None:
    kernel = MadeUp()
    prog = kernel.program(without=(BTF,))
    done = install(prog, btf=kernel.image_btf)
    assert done.types == "BTF (file)"
    assert prog["init_task"].pid.value_() == 7


def test_btf_of_a_file_that_is_none() -> None:
    done = install(MadeUp().program(), btf=b"nonsense")
    assert done.types == "" and done.types_missing is not None
    assert "8 bytes" in done.types_missing.reason and done.types_missing.remedy


def test_symbols_only() -> None:
    prog = MadeUp().program()
    done = install(prog, types=False)
    assert done.symbols == "kallsyms" and done.types == ""
    assert prog.symbol("do_it").address == TEXT + 0x100
    with pytest.raises(LookupError):
        prog.type("struct task_struct")


def test_a_type_of_several_definitions_is_told() -> None:
    kernel = MadeUp()
    kernel.btf.struct("task_struct", 16, [("other", 1, 0)])
    kernel.image_btf = kernel.btf.build()
    for symbol in kernel.symbols:
        if symbol.name == "__stop_BTF":
            symbol.address = BTF + len(kernel.image_btf)
    prog = kernel.program()
    done = install(prog, modules=False)
    prog.type("struct task_struct")
    assert done.notes == ["task_struct has 2 definitions; the most used one is chosen"]
