# SPDX-License-Identifier: LGPL-2.1-or-later
"""Symbol tables and BTF, found by scanning made-up images with the layouts of real kernels."""

from __future__ import annotations

import random
import struct
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

import drgn
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvintro.source import scan
from kvintro.source.kallsyms import Kallsyms, KallsymsError
from kvintro.types import install
from tests.made_up_kernel import TOKENS, BtfBuilder, program
from tests.timing import allowed

TEXT = 0xFFFFFFFF81000000
RODATA = TEXT + 0x200000
END = RODATA + 0x200000
SYMBOLS: List[Tuple[str, int, str]] = sorted(
    [
        ("_stext", TEXT, "T"),
        ("_text", TEXT, "T"),
        ("init_uts_ns", END - 0x1000, "D"),
        ("init_top_pgt", END - 0x2000, "D"),
        ("a" * 200, TEXT + 0x3333, "t"),
        *((f"function_{i}_{i * 7919 % 1000}", TEXT + 0x100 + 16 * i, "tT"[i % 2]) for i in range(1500)),
    ],
    key=lambda symbol: symbol[1],
)
VMCOREINFO = {"_stext": TEXT, "init_uts_ns": END - 0x1000, "swapper_pg_dir": END - 0x2000}
# Every kind of table that x86-64 kernels have had.
KINDS = [
    "addresses",
    "offsets from the base",
    "offsets first",
    "sequence between",
    "offsets last",
    "place-relative",
]


class Image:
    """A kernel's constants, including a symbol table."""

    def __init__(self, kind: str, seed: int = 1, symbols: List[Tuple[str, int, str]] = SYMBOLS) -> None:
        self.symbols = symbols
        noise = random.Random(seed)
        self.data = bytearray(noise.randbytes(0x10000))
        # Digits in UTF-16, as in the tables of nls, and a token table without an index.
        self.data += "0123456789ABCDEF".encode("utf-16-le") + bytes(64)
        self.data += b"".join(token + b"\0" for token in TOKENS) + noise.randbytes(4096)
        self.align = 4 if kind == "place-relative" else 8
        if kind == "addresses":
            self.put(struct.pack(f"<{len(symbols)}Q", *(address for _, address, _ in symbols)))
        elif kind == "offsets from the base":
            # Without CONFIG_SMP all of them count from the lowest address.
            self.put(struct.pack(f"<{len(symbols)}I", *(address - TEXT for _, address, _ in symbols)))
            self.put(struct.pack("<Q", TEXT))
        elif kind in ("offsets first", "sequence between"):
            self.put_offsets()
        self.put(struct.pack("<I", len(symbols)))
        names = b""
        markers = []
        for i, (name, _, letter) in enumerate(symbols):
            if i % 256 == 0:
                markers.append(len(names))
            names += self.compressed(letter + name)
        self.put(names)
        self.put(struct.pack(f"<{len(markers)}I", *markers))
        if kind == "sequence between":
            self.put(self.sequence())
        self.put(b"".join(token + b"\0" for token in TOKENS))
        starts = [sum(len(token) + 1 for token in TOKENS[:i]) for i in range(256)]
        self.put(struct.pack("<256H", *starts))
        if kind == "offsets last":
            self.put_offsets()
            self.put(self.sequence())
        elif kind == "place-relative":
            self.data += bytes(-len(self.data) % 4)
            place = RODATA + len(self.data)
            offsets = (address - place - 4 * i & 0xFFFFFFFF for i, (_, address, _) in enumerate(symbols))
            self.put(struct.pack(f"<{len(symbols)}I", *offsets))
        self.data += noise.randbytes(0x10000)

    def put(self, data: bytes) -> None:
        self.data += bytes(-len(self.data) % self.align) + data

    def put_offsets(self) -> None:
        # CONFIG_KALLSYMS_ABSOLUTE_PERCPU: negative offsets count from the base.
        self.put(struct.pack(f"<{len(self.symbols)}i", *(TEXT - 1 - a for _, a, _ in self.symbols)))
        self.put(struct.pack("<Q", TEXT))

    def sequence(self) -> bytes:
        order = sorted(range(len(self.symbols)), key=lambda i: (self.symbols[i][0].encode(), i))
        return b"".join(i.to_bytes(3, "big") for i in order)

    @staticmethod
    def compressed(text: str) -> bytes:
        raw = text.encode()
        for i in (0x80, 0xFF):
            raw = raw.replace(TOKENS[i], bytes([i]))
        length = len(raw)
        return (bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])) + raw

    def read(self, address: int, size: int) -> bytes:
        start = address - RODATA
        if start < 0 or start + size > len(self.data):
            raise drgn.FaultError("no such memory", address)
        return bytes(self.data[start : start + size])


def triples(table: Kallsyms) -> List[Tuple[str, int, str]]:
    return [(symbol.name, symbol.address, symbol.type) for symbol in table]


@pytest.mark.parametrize("kind", KINDS)
def test_every_layout(kind: str) -> None:
    image = Image(kind)
    table = scan.find_kallsyms(image.read, VMCOREINFO)
    assert triples(table) == SYMBOLS
    assert table.lookup("function_7_433") == TEXT + 0x100 + 16 * 7
    assert not table.code_only
    assert "scanning" in table.origin


@pytest.mark.parametrize("count", [257, 511, 512, 513, 768, 1025])
@pytest.mark.parametrize("kind", KINDS)
def test_counts_around_the_markers(kind: str, count: int) -> None:
    symbols = SYMBOLS[: count - 2] + [s for s in SYMBOLS if s[0].startswith("init_")]
    image = Image(kind, seed=count, symbols=symbols)
    assert triples(scan.find_kallsyms(image.read, VMCOREINFO)) == symbols


def test_code_only() -> None:
    """Without CONFIG_KALLSYMS_ALL variables have no names, and _stext alone can be compared."""
    symbols = [s for s in SYMBOLS if not s[0].startswith("init_")]
    assert scan.find_kallsyms(Image("offsets first", symbols=symbols).read, VMCOREINFO).code_only


@pytest.mark.parametrize("kind", KINDS)
def test_what_vmcoreinfo_contradicts_is_not_believed(kind: str) -> None:
    for name, address in (("init_uts_ns", END - 0x1008), ("_stext", TEXT + 16), ("function_3_757", TEXT)):
        with pytest.raises(KallsymsError):
            scan.find_kallsyms(Image(kind).read, {**VMCOREINFO, name: address})


def test_values_are_no_addresses() -> None:
    """SYMBOL(mem_section) is the value of the variable; the kernel's symbol of that name is elsewhere."""
    symbols = [*SYMBOLS, ("mem_section", END - 8, "B")]
    image = Image("offsets first", symbols=symbols)
    assert scan.find_kallsyms(image.read, {**VMCOREINFO, "mem_section": 0xFFFF888000000000})


def test_across_pieces_and_holes() -> None:
    """A table across a chunk's border, in memory where only the table's pages can be read."""
    image = Image("offsets first")
    at = image.data.rindex(b"0\x001\x002\0")
    shift = (1 << 20) - at % (1 << 20) - 8 & -8

    def read(address: int, size: int) -> bytes:
        start = address - RODATA - shift
        if start < -4096 or start + size > len(image.data) + 4096:
            raise drgn.FaultError("hole", address)
        return (bytes(4096) + bytes(image.data) + bytes(4096))[start + 4096 : start + 4096 + size]

    assert triples(scan.find_kallsyms(read, VMCOREINFO)) == SYMBOLS


DIGITS = "0123456789".encode("utf-16-le")


def never(address: int, size: int) -> bytes:
    raise drgn.FaultError("nothing here", address)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (never, "not in this source"),
        (lambda address, size: bytes(size), "KALLSYMS is off"),
        (lambda address, size: (DIGITS * (size // 20 + 1))[:size], "no symbol table"),
        (lambda address, size: (b"\0\0\0\0\0\2\0\0" * (size // 8 + 1))[:size], "no symbol table"),
    ],
)
def test_memory_without_a_table(read: Callable[[int, int], bytes], said: str) -> None:
    """Also quickly: a hostile image of the largest size."""
    started = time.process_time()
    symbols = {"_stext": 0xFFFFFFFF80000000, "init_uts_ns": 0xFFFFFFFF84000000}
    with pytest.raises(KallsymsError, match=said):
        scan.find_kallsyms(read, symbols)
    assert time.process_time() - started < allowed(20)


def test_many_places_for_the_number_of_symbols() -> None:
    """Each word before the names may be their number, and 256 names follow each; only some are tried."""
    tried = []
    starts = [sum(len(token) + 1 for token in TOKENS[:i]) for i in range(256)]
    block = struct.pack("<I", 0x140) * 40000 + struct.pack("<II", 0, 2000)
    block += b"".join(token + b"\0" for token in TOKENS)
    block += bytes(-len(block) % 8) + struct.pack("<256H", *starts)
    data = (block + bytes(-len(block) % 8)) * 4

    def read(address: int, size: int) -> bytes:
        if not 0 <= address - TEXT <= len(data) - size:
            raise drgn.FaultError("no such memory", address)
        return data[address - TEXT : address - TEXT + size]

    fit = scan._names_fit

    def counted(*of: Any) -> Any:
        tried.append(of)
        return fit(*of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "_names_fit", counted)
        with pytest.raises(KallsymsError, match="names are not before its tokens"):
            scan.find_kallsyms(read, {"_stext": TEXT, "init_uts_ns": TEXT + len(data) - 8})
    assert 0 < len(tried) <= 5000


@pytest.mark.parametrize("symbols", [{}, {"_stext": 1, "init_uts_ns": 2}, {"_stext": TEXT}])
def test_no_idea_where_to_look(symbols: Dict[str, int]) -> None:
    with pytest.raises(KallsymsError, match="where the kernel's image is"):
        scan.find_kallsyms(never, symbols)


IMAGES = {kind: Image(kind) for kind in KINDS}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_damage(kind: str, data: st.DataObject) -> None:
    """With overwritten tables, kvintro finds none, or one that VMCOREINFO does not contradict."""
    image = Image.__new__(Image)
    image.data = bytearray(IMAGES[kind].data)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0x10000, len(image.data) - 0x10000))
        image.data[at : at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    try:
        table = scan.find_kallsyms(image.read, VMCOREINFO)
    except KallsymsError:
        return
    assert table.lookup("_stext") == TEXT
    assert table.lookup("init_uts_ns") in (None, END - 0x1000)


# BTF


def btf(size_of_page: int = 64) -> bytes:
    builder = BtfBuilder()
    word = builder.int("unsigned long", 8)
    builder.struct("page", size_of_page, [("flags", word, 0)])
    for i in range(4000):
        builder.struct(f"structure_{i}", 8, [(f"member_{i}", word, 0)])
    return builder.build()


def scanned(blobs: List[bytes], sizes: Dict[str, int]) -> Optional[str]:
    """The origin of the types of a program whose only symbols are VMCOREINFO's."""
    data = bytes(0x1234) + bytes(100).join(blobs)
    data += bytes(END - TEXT - len(data))
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    lines = ["OSRELEASE=5.4.0", "PAGESIZE=4096", "KERNELOFFSET=0"]
    lines += [f"SYMBOL({name})={address:x}" for name, address in VMCOREINFO.items()]
    lines += [f"SIZE({name})={size}" for name, size in sizes.items()]
    prog.set_linux_kernel_custom("\n".join(lines) + "\n", False)

    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        return data[offset : offset + count]

    prog.add_memory_segment(TEXT, len(data), read)
    installed = install(prog, modules=False)
    if installed.types:
        assert prog.type("struct page").size == 64
    return installed.types or None


def test_many_large_candidates_for_types() -> None:
    """A small part of an image can be mapped at every address, as BTF of the largest size each time."""
    size = 16 << 20
    head = struct.pack("<HBBI4I", 0xEB9F, 1, 0, 24, 0, size - 26, size - 26, 2)

    def read(address: int, count: int) -> bytes:
        start = (address - TEXT) % size
        return ((head + bytes(count))[start : start + count] if start < 24 else b"").ljust(count, b"\0")

    found = list(scan.find_btf(read, TEXT, TEXT + 60 * size))
    assert 1 < len(found) <= 8


def test_types_without_symbols() -> None:
    assert scanned([btf()], {"page": 64}) == "BTF (found by scanning)"


def test_types_of_another_kernel() -> None:
    assert scanned([btf(56), btf()], {"page": 64}) == "BTF (found by scanning)"
    assert scanned([btf(56)], {"page": 64}) is None
    assert scanned([btf()], {}) is None  # there is nothing to compare it with
    assert scanned([btf()[:-1] + b"x"], {"page": 64}) is None
    assert scanned([btf()[:24]], {"page": 64}) is None


def test_program_helper_is_used() -> None:
    """The made-up program of other tests also has VMCOREINFO, but no image to scan."""
    assert install(program({}), modules=False).symbols == ""
