# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests saved by QEMU and libvirt, as the tests write them: from the formats' documents and QEMU's sources
(docs/devel/migration, migration/ram.c, docs/interop/qcow2.rst; libvirt's qemu_saveimage.h), not from kvintro.
"""

from __future__ import annotations

import struct
import zlib
from typing import Dict, List, Optional, Sequence, Tuple

PAGE = 4096
ZERO, MEM_SIZE, PLAIN, EOS, CONTINUE, XBZRLE, PACKED, FLUSH = 2, 4, 8, 16, 32, 64, 256, 512
Blocks = Sequence[Tuple[str, int]]
#: (block, page, kind, content before, content)
Record = Tuple[str, int, int, bytes, bytes]


def text(name: str) -> bytes:
    data = name.encode()
    return bytes([len(data)]) + data


def uleb(number: int) -> bytes:
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80, number >> 7])


def delta(before: bytes, after: bytes) -> bytes:
    """The changed parts of a page, each after the length of the unchanged part before it."""
    out, at, end = b"", 0, len(after)
    while before[at:] != after[at:]:
        start = next(i for i in range(at, end) if before[i] != after[i])
        stop = next((i for i in range(start, end) if before[i] == after[i]), end)
        out += uleb(start - at) + uleb(stop - start) + after[start:stop]
        at = stop
    return out


def record(of: Record, last: str) -> bytes:
    """A page; ``last`` is the block of the page before."""
    block, page, kind, before, after = of
    word = page * PAGE | kind | (CONTINUE if block == last else 0)
    head = struct.pack(">Q", word) + (b"" if block == last else text(block))
    if kind == ZERO:
        return head + after[:1]
    if kind == PLAIN:
        return head + after
    if kind == PACKED:
        body = zlib.compress(after)
        return head + struct.pack(">I", len(body)) + body
    body = delta(before, after)
    return head + struct.pack(">BH", 1, len(body)) + body


def configuration(machine: str, capabilities: Sequence[str] = ()) -> bytes:
    out = b"\x07" + struct.pack(">I", len(machine)) + machine.encode()
    if capabilities:
        out += b"\x05" + text("configuration/capabilities") + struct.pack(">I", 1)
        out += struct.pack(">I", len(capabilities)) + b"".join(map(text, capabilities))
    return out


def clock(low: int, high: int) -> bytes:
    """The section of the clock, with the memory below and above 4 GB in its 128 bytes."""
    cmos = bytearray(128)
    cmos[0x34:0x36] = (low - (16 << 20) >> 16).to_bytes(2, "little")
    cmos[0x5B:0x5E] = (high >> 16).to_bytes(3, "little")
    return b"\x04" + struct.pack(">I", 9) + text("mc146818rtc") + struct.pack(">II", 0, 3) + bytes(cmos)


def stream(
    blocks: Blocks,
    records: Sequence[Record],
    *,
    machine: Optional[str] = "pc-i440fx-7.2",
    capabilities: Sequence[str] = (),
    between: bytes = b"",
    tail: bytes = b"",
    parts: int = 3,
) -> bytes:
    """A stream, in ``parts`` sections of RAM.

    :param machine: None as before machine type 2.4, where streams have neither a configuration nor footers.
    :param between: data before the last section of RAM.
    :param tail: data after RAM.
    """
    footer = b"" if machine is None else b"\x7e" + struct.pack(">I", 2)
    out = b"QEVM" + struct.pack(">I", 3) + (b"" if machine is None else configuration(machine, capabilities))
    out += b"\x01" + struct.pack(">I", 2) + text("ram") + struct.pack(">II", 0, 4)
    out += struct.pack(">Q", sum(size for _, size in blocks) | MEM_SIZE)
    out += b"".join(text(name) + struct.pack(">Q", size) for name, size in blocks)
    out += struct.pack(">Q", EOS) + footer
    pieces = [out]
    each = -(-len(records) // parts) or 1
    for number in range(parts):
        if number == parts - 1:
            pieces.append(between)
        pieces.append(bytes([3 if number == parts - 1 else 2]) + struct.pack(">I", 2))
        last = ""
        for of in records[number * each : (number + 1) * each]:
            pieces.append(record(of, last))
            last = of[0]
        pieces.append(struct.pack(">Q", EOS) + footer)
    return b"".join([*pieces, tail, b"\0"])


def mapped(name: str, size: int, pages: Dict[int, bytes], at: int = 0) -> bytes:
    """A stream whose pages have fixed places (mapped-ram), of one block.

    :param at: offset of the stream in the file.
    """
    head = b"QEVM" + struct.pack(">I", 3) + configuration("pc-i440fx-9.0", ["mapped-ram"])
    head += b"\x01" + struct.pack(">I", 2) + text("ram") + struct.pack(">II", 0, 4)
    head += struct.pack(">Q", size | MEM_SIZE) + text(name) + struct.pack(">Q", size)
    bitmap_at = at + len(head) + 28
    count = size // PAGE
    bitmap = bytearray(-(-count // 64) * 8)
    for page in pages:
        bitmap[page // 8] |= 1 << page % 8
    pages_at = -(-(bitmap_at + len(bitmap)) // (1 << 20)) * (1 << 20)
    body = bytearray(size)
    for page, data in pages.items():
        body[page * PAGE : (page + 1) * PAGE] = data
    head += struct.pack(">IQQQ", 1, PAGE, bitmap_at, pages_at) + bytes(bitmap)
    end = struct.pack(">Q", EOS) + b"\x7e" + struct.pack(">I", 2)
    end += b"\x03" + struct.pack(">I", 2) + struct.pack(">Q", EOS) + b"\x7e" + struct.pack(">I", 2)
    return head.ljust(pages_at - at, b"\0") + bytes(body) + end + b"\0"


def libvirt(
    body: bytes, form: int, *, order: str = "<", mark: bytes = b"LibvirtQemudSave", room: int = 3000
) -> bytes:
    """libvirt's header, the guest's XML in ``room`` bytes, and the stream, which is already packed."""
    xml = b"<domain type='kvm'><name>lab guest</name></domain>\0"
    head = mark + struct.pack(order + "IIIII", 2, room, 1, form, len(xml)) + bytes(56)
    return head + xml.ljust(room, b"\0") + body


def qcow2(
    states: Sequence[Tuple[str, bytes]],
    *,
    bits: int = 16,
    extended: bool = False,
    disk: int = 1 << 30,
    flags: int = 0,
    backwards: bool = False,
) -> bytes:
    """A disk image of zeros with snapshots of these names, each with the state of a guest.

    :param backwards: write the clusters of each state in descending order.
    """
    cluster, entry = 1 << bits, 16 if extended else 8
    per_table = cluster // entry
    out = bytearray(2 * cluster)
    entries: List[bytes] = []

    def added(data: bytes) -> int:
        out.extend(bytes(-len(out) % cluster))
        at = len(out)
        out.extend(data)
        return at

    for number, (name, state) in enumerate(states):
        clusters = [state[at : at + cluster] for at in range(0, len(state), cluster)]
        order = range(len(clusters))
        places: Dict[int, int] = {}
        for index in reversed(order) if backwards else order:
            if any(clusters[index]):
                places[index] = added(clusters[index])
        first = -(-disk // (per_table * cluster))
        tables = [0] * first
        for start in range(0, len(clusters), per_table):
            words = [places.get(index, 0) for index in range(start, start + per_table)]
            table = b"".join(
                struct.pack(">Q", word | (1 << 63 if word else 0)) + bytes(entry - 8) for word in words
            )
            tables.append(added(table) | 1 << 63)
        l1 = added(b"".join(struct.pack(">Q", table) for table in tables))
        ident = str(number + 1)
        data = struct.pack(">QIHHIIQII", l1, len(tables), len(ident), len(name), 0, 0, 0, 0, 24)
        data += struct.pack(">QQQ", len(state), disk, 0) + ident.encode() + name.encode()
        entries.append(data + bytes(-len(data) % 8))
    table_at = added(b"".join(entries))
    head = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 3, 0, 0, bits, disk, 0, 0, 0, 0, 0, len(states), table_at
    )
    head += struct.pack(">QQQII", flags | (16 if extended else 0), 0, 0, 4, 104)
    out[: len(head)] = head
    return bytes(out)
