# SPDX-License-Identifier: LGPL-2.1-or-later
"""A made-up kernel's symbol table and BTF, and a program with both in memory. No kernel is needed."""

from __future__ import annotations

import struct
from typing import Dict, List, Optional, Sequence, Tuple

import drgn

TEXT = 0xFFFFFFFF81000000
TABLES = 0xFFFFFFFF82000000

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(11, 20)
SIGNED, CHAR, BOOL = 1, 2, 4

Member = Tuple[str, int, int]  # name, type, offset in bits; with a kind flag, size in bits << 24 as well


#: BtfBuilder has a method named int.
Number = int


class BtfBuilder:
    """Makes a BTF blob, type by type. Each method returns the id of the type that it adds."""

    def __init__(self, first_id: Number = 1, first_string: Number = 0) -> None:
        self.next_id = first_id
        self.types = b""
        self._first_string = first_string
        self.strings = b"" if first_string else b"\0"

    def string(self, text: str) -> Number:
        """Add a string; return its offset."""
        if not text:
            return 0
        raw = text.encode() + b"\0"
        at = 0 if self.strings.startswith(raw) else self.strings.find(b"\0" + raw) + 1
        if not at and not (self._first_string and self.strings.startswith(raw)):
            at = len(self.strings)
            self.strings += raw
        return self._first_string + at

    def add(
        self, kind: Number, name: str, value: Number, *tail: Number, vlen: Number = 0, flag: bool = False
    ) -> Number:
        """Any type."""
        info = flag << 31 | kind << 24 | vlen
        words = (self.string(name), info, value, *(word & 0xFFFFFFFF for word in tail))
        self.types += struct.pack(f"<{len(words)}I", *words)
        self.next_id += 1
        return self.next_id - 1

    def int(
        self, name: str, size: Number, encoding: Number = 0, bits: Number = 0, offset: Number = 0
    ) -> Number:
        return self.add(INT, name, size, encoding << 24 | offset << 16 | (bits or 8 * size))

    def pointer(self, to: Number) -> Number:
        return self.add(PTR, "", to)

    def array(self, element: Number, length: Number) -> Number:
        return self.add(ARRAY, "", 0, element, 0, length)

    def struct(
        self, name: str, size: Number, members: Sequence[Member], *, kind: Number = STRUCT, flag: bool = False
    ) -> Number:
        tail = [word for member, type_, at in members for word in (self.string(member), type_, at)]
        return self.add(kind, name, size, *tail, vlen=len(members), flag=flag)

    def union(self, name: str, size: Number, members: Sequence[Member]) -> Number:
        return self.struct(name, size, members, kind=UNION)

    def enum(self, name: str, values: Dict[str, Number], *, size: Number = 4, signed: bool = False) -> Number:
        tail = [word for key, value in values.items() for word in (self.string(key), value)]
        return self.add(ENUM, name, size, *tail, vlen=len(values), flag=signed)

    def enum64(self, name: str, values: Dict[str, Number], *, signed: bool = False) -> Number:
        tail = [word for key, value in values.items() for word in (self.string(key), value, value >> 32)]
        return self.add(ENUM64, name, 8, *tail, vlen=len(values), flag=signed)

    def prototype(self, result: Number, parameters: Sequence[Tuple[str, Number]]) -> Number:
        tail = [word for name, type_ in parameters for word in (self.string(name), type_)]
        return self.add(FUNC_PROTO, "", result, *tail, vlen=len(parameters))

    def build(self) -> bytes:
        """The blob."""
        header = struct.pack(
            "<HBBI4I", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return header + self.types + self.strings


class Symbol:
    """A symbol of a made-up kernel."""

    def __init__(self, name: str, address: Number, letter: str = "D") -> None:
        self.name, self.address, self.letter = name, address, letter


# The meaning of each byte of a compressed name: itself, except for two that stand for more.
TOKENS = [bytes([i]) if 32 < i < 127 else b"" for i in range(256)]
TOKENS[0x80], TOKENS[0xFF] = b"init", b"Dvm"


class Tables:
    """kallsyms' tables, as scripts/kallsyms.c lays them out since 6.4.

    :param encoding: "absolute_percpu" (before 6.15), "relative" (6.15) or "place_relative" (7.0).
    :param sequence: whether there is a kallsyms_seqs_of_names (6.2).
    """

    def __init__(
        self, symbols: Sequence[Symbol], encoding: str = "absolute_percpu", *, sequence: bool = True
    ) -> None:
        symbols = sorted(symbols, key=lambda symbol: symbol.address)
        self.symbols: Dict[str, Number] = {"_stext": TEXT}
        self.data = b""
        self._put("num_syms", struct.pack("<I", len(symbols)))
        self._put("names", b"".join(self._compress(s.letter + s.name) for s in symbols))
        self._put("markers", bytes(4 * ((len(symbols) + 255) // 256)))
        table, index = b"", []
        for token in TOKENS:
            index.append(len(table))
            table += token + b"\0"
        self._put("token_table", table)
        self._put("token_index", struct.pack("<256H", *index))
        place = TABLES + len(self.data)
        base = 0 if encoding == "relative" else TEXT
        offsets = []
        for i, symbol in enumerate(symbols):
            if encoding == "place_relative":
                offsets.append(symbol.address - place - 4 * i)
            elif encoding == "relative":
                offsets.append(symbol.address - TEXT)
            else:
                offsets.append(symbol.address if symbol.address < 1 << 31 else base - 1 - symbol.address)
        self._put("offsets", b"".join(struct.pack("<I", offset & 0xFFFFFFFF) for offset in offsets), 4)
        if encoding != "place_relative":
            self._put("relative_base", struct.pack("<Q", TEXT))
        order = sorted(range(len(symbols)), key=lambda i: (symbols[i].name.encode(), i))
        if sequence:
            self._put("seqs_of_names", b"".join(i.to_bytes(3, "big") for i in order), 4)
        self.data += bytes(4096)
        for hidden in ("markers", "seqs_of_names"):
            self.symbols.pop("kallsyms_" + hidden, None)

    def _put(self, name: str, data: bytes, align: Number = 8) -> None:
        self.data += bytes(-len(self.data) % align)
        self.symbols["kallsyms_" + name] = TABLES + len(self.data)
        self.data += data

    @staticmethod
    def _compress(name: str) -> bytes:
        raw = name.encode()
        for i in (0x80, 0xFF):
            raw = raw.replace(TOKENS[i], bytes([i]))
        length = len(raw)
        return (bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])) + raw

    def read(self, address: Number, size: Number) -> bytes:
        """Memory of the tables."""
        start = address - TABLES
        if start < 0 or start + size > len(self.data):
            raise drgn.FaultError("no such memory", address)
        return self.data[start : start + size]


def program(
    segments: Dict[Number, bytes], vmcoreinfo_symbols: Optional[Dict[str, Number]] = None
) -> drgn.Program:
    """A program of a Linux kernel that has only the memory in the segments."""
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    lines: List[str] = [
        "OSRELEASE=6.0.0-made-up",
        "PAGESIZE=4096",
        "KERNELOFFSET=0",
        "SYMBOL(swapper_pg_dir)=1000",
    ]
    lines += [f"SYMBOL({name})={address:x}" for name, address in (vmcoreinfo_symbols or {}).items()]
    prog.set_linux_kernel_custom("\n".join(lines) + "\n", False)

    for start, data in segments.items():

        def read(address: Number, count: Number, offset: Number, physical: bool, data: bytes = data) -> bytes:
            return data[offset : offset + count]

        prog.add_memory_segment(start, len(data), read)
    return prog
