# SPDX-License-Identifier: LGPL-2.1-or-later
"""Symbol tables made by the test, in every encoding that kernels have had, and damaged ones."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, Tuple

import drgn
import pytest
from drgn import SymbolBinding, SymbolKind
from hypothesis import given, settings
from hypothesis import strategies as st

from kvintro.source import kallsyms as kallsyms_module
from kvintro.source.kallsyms import Kallsyms, KallsymsError, vmcoreinfo_symbols
from tests import made_up_kernel
from tests.made_up_kernel import TABLES, TEXT, Symbol, Tables

LONG = "x" * 300
SYMBOLS = [
    Symbol("_stext", TEXT, "T"),
    Symbol("_text", TEXT, "T"),
    Symbol("__do_start", TEXT + 0x100, "t"),
    Symbol("start", TEXT + 0x100, "T"),
    Symbol("twice", TEXT + 0x200, "t"),
    Symbol("twice", TEXT + 0x300, "T"),
    Symbol("vm_area", TEXT + 0x400, "D"),  # has one token for type and name
    Symbol("init_mm", TEXT + 0x500, "D"),
    Symbol("weak", TEXT + 0x600, "W"),
    Symbol("unique", TEXT + 0x700, "u"),
    Symbol(LONG, TEXT + 0x800, "d"),
    Symbol("suffixed.llvm.12345", TEXT + 0x900, "t"),
    Symbol("suffixed", TEXT + 0xA00, "t"),
    Symbol("_sdata", TEXT + 0x100000, "D"),
    Symbol("big", TEXT + 0x100010, "d"),
    Symbol("_edata", TEXT + 0x200000, "D"),
    Symbol("last_of_rodata", TEXT + 0x300000, "D"),
    Symbol("_end", TEXT + 0x400000, "B"),
]
PER_CPU = [Symbol("__per_cpu_start", 0, "A"), Symbol("cpu_number", 0x1000, "A")]
ENCODINGS = ["absolute_percpu", "relative", "place_relative"]


def all_symbols(encoding: str) -> List[Symbol]:
    return SYMBOLS + (PER_CPU if encoding == "absolute_percpu" else [])


@pytest.fixture(params=[(e, s) for e in ENCODINGS for s in (True, False)], ids=str)
def tables(request: pytest.FixtureRequest) -> Tables:
    encoding, sequence = request.param
    return Tables(all_symbols(encoding), encoding, sequence=sequence)


@pytest.fixture
def kallsyms(tables: Tables) -> Kallsyms:
    return Kallsyms.from_memory(tables.read, tables.symbols)


def test_names_and_addresses(kallsyms: Kallsyms) -> None:
    assert kallsyms.lookup("start") == TEXT + 0x100
    assert kallsyms.lookup("init_mm") == TEXT + 0x500
    assert kallsyms.lookup("vm_area") == TEXT + 0x400
    assert kallsyms.lookup(LONG) == TEXT + 0x800
    assert kallsyms.lookup("suffixed") == TEXT + 0xA00
    for absent in ("", "st", "startt", "zzz", "Start", "nöt"):
        assert kallsyms.lookup(absent) is None
    assert {(s.name, s.address, s.type) for s in kallsyms} >= {(s.name, s.address, s.letter) for s in SYMBOLS}


def test_global_symbols_come_first(kallsyms: Kallsyms) -> None:
    assert [(s.address, s.type) for s in kallsyms.lookup_all("twice")] == [
        (TEXT + 0x300, "T"),
        (TEXT + 0x200, "t"),
    ]
    assert kallsyms.lookup("twice") == TEXT + 0x300


def test_sizes_reach_to_the_next_address(kallsyms: Kallsyms) -> None:
    def size(name: str) -> int:
        symbol = kallsyms.lookup_symbol(name)
        assert symbol is not None
        return symbol.size

    assert size("_stext") == size("_text") == size("start") == 0x100
    assert size("big") == 0xFFFF0  # .data has no unnamed objects
    assert size("last_of_rodata") == 0  # other sections do
    assert size("_end") == 0


def test_names_of_addresses(kallsyms: Kallsyms) -> None:
    def name(address: int) -> str:
        symbol = kallsyms.by_address(address)
        return symbol.name if symbol else ""

    assert name(TEXT + 0x110) == "start"
    assert name(TEXT + 0x1FF) == "start"
    assert name(TEXT + 5) == "_stext"
    assert name(TEXT + 0x150000) == "big"
    assert name(TEXT - 1) == ""
    assert name(TEXT + 0x300010) == ""
    assert name(TEXT + 0x400000) == "_end"
    assert name(TEXT + 0x400001) == ""
    assert name((1 << 64) - 1) == ""
    # NULL is not a per-CPU variable.
    assert name(0) == name(0x1000) == ""


def test_drgns_finder(kallsyms: Kallsyms) -> None:
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    prog.register_symbol_finder("kallsyms", kallsyms.find, enable_index=0)
    symbol = prog.symbol("start")
    assert (symbol.address, symbol.size) == (TEXT + 0x100, 0x100)
    assert (symbol.binding, symbol.kind) == (SymbolBinding.GLOBAL, SymbolKind.FUNC)
    assert prog.symbol("weak").binding == SymbolBinding.WEAK
    assert prog.symbol("unique").binding == SymbolBinding.UNIQUE
    assert prog.symbol("big").binding == SymbolBinding.UNKNOWN
    assert prog.symbol("big").kind == SymbolKind.OBJECT
    assert prog.symbol(TEXT + 0x101).name == "start"
    assert {s.name for s in prog.symbols(TEXT)} == {"_text", "_stext"}
    assert len(prog.symbols("twice")) == 2
    assert len(prog.symbols()) == len(kallsyms)
    with pytest.raises(LookupError):
        prog.symbol("absent")
    with pytest.raises(LookupError):
        prog.symbol(0)
    assert kallsyms.find(prog, "twice", TEXT + 0x210, True)[0].address == TEXT + 0x200
    assert kallsyms.find(prog, "start", TEXT, False) == []


def test_kernels_before_6_0_are_told_apart() -> None:
    tables = Tables(SYMBOLS)
    del tables.symbols["kallsyms_num_syms"]
    with pytest.raises(KallsymsError, match=r"no kallsyms_num_syms.*6\.0") as caught:
        Kallsyms.from_memory(tables.read, tables.symbols)
    assert "-s" in caught.value.remedy


def test_vmcoreinfo() -> None:
    text = (
        "OSRELEASE=6\nSYMBOL(_stext)=ffffffff81000000\nSYMBOL(x)=nonsense\nNUMBER(SYMBOL(y))=1\nSYMBOL(z)="
        + "f" * 40
    )
    assert vmcoreinfo_symbols(text) == {"_stext": TEXT}


@pytest.mark.parametrize("name", list(Tables(SYMBOLS).symbols))
@pytest.mark.parametrize("address", [1, TABLES - 4096, TABLES + 64, TABLES + 100_000, (1 << 64) - 2])
def test_wrong_addresses(name: str, address: int) -> None:
    tables = Tables(SYMBOLS)
    tables.symbols[name] = address
    with pytest.raises(KallsymsError):
        Kallsyms.from_memory(tables.read, tables.symbols)


PRISTINE = Tables(all_symbols("absolute_percpu"))


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, len(PRISTINE.data) - 1), st.binary(min_size=1, max_size=4)), max_size=8
    ),
    st.integers(TEXT, TEXT + (1 << 23)),
)
def test_a_damaged_table_is_an_error_and_no_more(changes: List[Tuple[int, bytes]], address: int) -> None:
    data = bytearray(PRISTINE.data)
    for at, piece in changes:
        data[at : at + len(piece)] = piece

    def read(start: int, size: int) -> bytes:
        PRISTINE.read(start, size)
        return bytes(data[start - TABLES : start - TABLES + size])

    try:
        kallsyms = Kallsyms.from_memory(read, PRISTINE.symbols)
        for name in ("start", "absent", "init_mm", "twice"):
            kallsyms.lookup_all(name)
        kallsyms.by_address(address)
        list(kallsyms)
    except KallsymsError:
        pass


def test_many_symbols_at_one_address_do_not_take_for_ever() -> None:
    tables = Tables([Symbol("_stext", TEXT, "T"), *(Symbol(f"s{i}", TEXT + 16) for i in range(20_000))])
    assert len(list(Kallsyms.from_memory(tables.read, tables.symbols))) == 20_001


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("token", [b"init", b"y" * 250])
@pytest.mark.parametrize("length", [511, 1000, 1500, 5000])
def test_a_name_longer_than_any(
    length: int, token: bytes, sequence: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is compressed, it is never truncated, because a part of a name is another name."""
    tokens = list(made_up_kernel.TOKENS)
    tokens[0x80] = token
    monkeypatch.setattr(made_up_kernel, "TOKENS", tokens)
    name = "y" * length
    tables = Tables([Symbol("_stext", TEXT, "T"), Symbol(name, TEXT + 16, "T")], sequence=sequence)
    if length <= 1000:
        assert Kallsyms.from_memory(tables.read, tables.symbols).lookup(name) == TEXT + 16
    else:
        with pytest.raises(KallsymsError):
            Kallsyms.from_memory(tables.read, tables.symbols).lookup(name)


def test_all_names_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes stand for long names: the limit applies to the uncompressed size of all names."""
    monkeypatch.setattr(kallsyms_module, "_MAX_EXPANDED", 10_000)
    few = [Symbol("_stext", TEXT, "T"), *(Symbol(f"s{i:0>99}", TEXT + 16 * i) for i in range(1, 101))]
    tables = Tables(few, sequence=False)
    with pytest.raises(KallsymsError, match="names have more than"):
        Kallsyms.from_memory(tables.read, tables.symbols)
    fewer = Tables(few[:90], sequence=False)
    assert len(Kallsyms.from_memory(fewer.read, fewer.symbols)) == 90


def test_many_symbols_of_one_name_and_a_suffix() -> None:
    """A look-up skips the same names with a suffix, up to a limit."""
    number = 40_000
    many = [Symbol("_stext", TEXT, "T"), *(Symbol(f"a.{i}", TEXT + 16 * i) for i in range(1, number))]
    tables = Tables(many)
    table = Kallsyms.from_memory(tables.read, tables.symbols)
    seen = []
    name = table._table._sorted_name  # type: ignore[attr-defined]
    table._table._sorted_name = lambda place: (seen.append(place), name(place))[1]  # type: ignore
    assert table.lookup("a") is None
    assert len(seen) < number / 2


def write(path: Path, lines: Dict[str, str]) -> str:
    path.write_text("".join(f"{address} {symbol}\n" for symbol, address in lines.items()))
    return str(path)


def test_proc_kallsyms(tmp_path: Path) -> None:
    path = write(
        tmp_path / "kallsyms",
        {
            "A __per_cpu_start": "0" * 16,
            "T _text": "ffffffff81000000",
            "T start": "ffffffff81000100",
            "d end": "ffffffff81000200",
            "t of_module\t[loop]": "ffffffffc0000000",
        },
    )
    kallsyms = Kallsyms.from_proc(path)
    assert len(kallsyms) == 4
    assert kallsyms.lookup("start") == TEXT + 0x100
    assert kallsyms.lookup("of_module") is None
    symbol = kallsyms.by_address(TEXT + 0x180)
    assert symbol is not None and (symbol.name, symbol.size) == ("start", 0x100)
    assert kallsyms.origin == path


@pytest.mark.parametrize(
    "content, what, remedy",
    [
        ("", "empty", "-s"),
        ("0000000000000000 T _text\n0000000000000000 T start\n", "kptr_restrict", "sysctl"),
        ("what is this\n", "empty", "-s"),
    ],
)
def test_proc_kallsyms_that_shows_nothing(tmp_path: Path, content: str, what: str, remedy: str) -> None:
    (tmp_path / "kallsyms").write_text(content)
    with pytest.raises(KallsymsError, match=what) as caught:
        Kallsyms.from_proc(str(tmp_path / "kallsyms"))
    assert remedy in caught.value.remedy


def test_no_proc_kallsyms(tmp_path: Path) -> None:
    with pytest.raises(KallsymsError, match="No such file"):
        Kallsyms.from_proc(str(tmp_path / "none"))
