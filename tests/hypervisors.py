# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory in the formats of other hypervisors, made from the formats' documents and from other readers.

VMware: crash's vmware_vmss.h and vmware_guestdump.c, volatility's vmware.py. VirtualBox: DBGFCoreWrite.cpp
and dbgfcorefmt.h. Xen: docs/misc/dump-core-format.txt, docs/specs/libxl-migration-stream.pandoc and
libxc-migration-stream.pandoc. Cloud Hypervisor: vm-migration/src/protocol.rs.
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import List, Mapping, Optional, Sequence, Tuple

PAGE = 4096
#: (first address, content)
Range = Tuple[int, bytes]
#: First page frame of the machine, first page of the file, number of pages.
Region = Tuple[int, int, int]


def number(name: str, value: int, *indices: int, size: int = 4) -> bytes:
    """A VMware tag with a number."""
    flags = len(indices) << 6 | size
    head = bytes([flags, len(name)]) + name.encode() + struct.pack(f"<{len(indices)}I", *indices)
    return head + value.to_bytes(size, "little")


def block(
    name: str, data: bytes, *indices: int, wide: bool = True, padding: int = 0, packed: bool = False
) -> bytes:
    """A VMware tag with a block, optionally packed."""
    flags = len(indices) << 6 | (62 if packed else 63)
    head = bytes([flags, len(name)]) + name.encode() + struct.pack(f"<{len(indices)}I", *indices)
    stored = zlib.compress(data, 1) if packed else data
    return (
        head
        + struct.pack("<QQH" if wide else "<IIH", len(stored), len(data), padding)
        + bytes(padding)
        + stored
    )


def vmware_state(
    regions: Sequence[Region],
    memory: bytes = b"",
    *,
    mark: int = 0xBED2BED2,
    padding: int = 0,
    packed: bool = False,
    more: bytes = b"",
    groups: Optional[Mapping[str, bytes]] = None,
) -> bytes:
    """A .vmss or .vmsn.

    :param memory: the memory in it, if it is not in a separate file.
    :param more: tags before those of the memory.
    :param groups: other groups and their tags.
    """
    wide = mark & 0xF != 0
    tags = more + number("align_mask", 0xFFFF, 0) + number("regionsCount", len(regions))
    for index, (frame, page, size) in enumerate(regions):
        tags += number("regionPPN", frame, index) + number("regionPageNum", page, index)
        tags += number("regionSize", size, index)
    if memory:
        tags += block("Memory", memory, 0, 0, wide=wide, padding=padding, packed=packed)
    tags += number("hotSet", 7, 1, 2, size=1) + b"\0\0"
    all_groups = {
        "Checkpoint": number("fileversion", 4) + b"\0\0",
        **(groups or {}),
        "memory": tags,
        "timeTracker": bytes(16),
    }
    head = struct.pack("<III", mark, 8, len(all_groups))
    at = 12 + 80 * len(all_groups)
    table, body = b"", b""
    for name, data in all_groups.items():
        table += struct.pack("<64sQQ", name.encode(), at + len(body), len(data))
        body += data
    return head + table + body


#: struct QEMUCPUState (QEMU's target/i386/arch_dump.c), from ``rax`` on; VMware's names.
_REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", *(f"r{n}" for n in range(8, 16)))
#: Its segments in VMware's numbers (crash's vmware_vmss.h).
_SEGMENTS = (1, 3, 0, 4, 5, 2, 6, 7)


def vmware_cpus(states: Sequence[bytes]) -> bytes:
    """VMware's group ``cpu``, from the note that QEMU writes for each CPU."""
    tags = number("cpu:numVCPUs", len(states))
    for cpu, state in enumerate(states):
        values = struct.unpack_from("<18Q", state, 8)
        for name, value in zip((*_REGISTERS, "rip"), values):
            tags += number(name, value, cpu, size=8)
        tags += number("eflags", values[17], cpu)
        at = 8 + 8 * len(values)
        parts = [struct.unpack_from("<I12xQ", state, at + 24 * index) for index in range(10)]
        for segment, (selector, base) in zip(_SEGMENTS, parts):
            tags += number("S", selector, cpu, segment) + number("S.base64", base, cpu, segment, size=8)
        _, base = parts[9]
        tags += number("IDTR", base & 0xFFFFFFFF, cpu, 1) + number("IDTR", base >> 32, cpu, 2)
        for index, value in enumerate(struct.unpack_from("<5Q", state, at + 240)):
            tags += number("CR64", value, cpu, index, size=8)
    return tags + b"\0\0"


def debug_guest(version: int, pages: int, holes: Sequence[Tuple[int, int]], cpus: int = 1) -> bytes:
    """VMware's debug.guest; holes as first page and number of pages."""
    at, form = {1: (21, "<QIII4I"), 6: (23, "<QQII4Q"), 7: (16, "<QQII4Q")}.get(version, (22, "<QQII4Q"))
    words: List[int] = [word for hole in holes for word in hole]
    last = (pages + sum(size for _, size in holes)) * PAGE - 1
    head = struct.pack("<IIBB", version, cpus, 1, 0).ljust(at, b"\0")
    head += struct.pack(form, last, pages, 0, len(holes), *words, *[0] * (4 - len(words)))
    # crash requires the state of each CPU, and a page.
    return head + bytes(cpus * (4 + 24 + 80 + 8 + 42 + 168 + 65 + PAGE))


def virtualbox_core(
    ranges: Sequence[Range], devices: Sequence[Tuple[int, int]] = (), *, version: int = 0
) -> bytes:
    """A core of VirtualBox; ``devices`` are ranges without bytes.

    :param version: ELF's version, which VirtualBox leaves 0.
    """
    core = struct.pack("<IIIIII", 0xC01AC0DE, 0x00010003, 24, 7 << 24 | 14, 161095, 1)
    notes = struct.pack("<III", 6, len(core), 0xB00) + b"VBCORE\0\0" + core
    cpu = bytes(1000)
    notes += struct.pack("<III", 5, len(cpu), 0xB01) + b"VBCPU\0\0\0" + cpu
    count = 1 + len(ranges) + len(devices)
    at = 64 + 56 * count
    headers = struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), len(notes), 0)
    at += len(notes)
    body = b""
    entries = [(first, data, len(data)) for first, data in ranges] + [
        (first, b"", size) for first, size in devices
    ]
    for first, data, size in sorted(entries):
        headers += struct.pack("<IIQQQQQQ", 1, 0, at + len(body), 0, first, len(data), size, 0)
        body += data
    ident = b"\x7fELF\2\1" + bytes([version, 0]) + bytes(8)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return head + headers + notes + body


def pages_of(ranges: Sequence[Range]) -> List[Tuple[int, bytes]]:
    """The pages of ranges, by frame."""
    return [
        ((first + at) // PAGE, data[at : at + PAGE])
        for first, data in ranges
        for at in range(0, len(data), PAGE)
    ]


def xen_core(
    pages: Sequence[Tuple[int, bytes]], *, mark: int = 0xF00FEBEE, frames: str = ".xen_pfn"
) -> bytes:
    """A core of `xl dump-core`: pages by frame, None for an invalid entry."""
    note = struct.pack("<III", 4, 32, 0x2000001) + b"Xen\0"
    note += struct.pack("<4Q", mark, 1, len(pages), PAGE)
    note += struct.pack("<III", 4, 1264, 0x2000002) + b"Xen\0" + struct.pack("<2Q", 4, 17).ljust(1264, b"\0")
    table = b"".join(struct.pack("<Q", frame) for frame, _ in pages)
    if frames == ".xen_p2m":
        table = b"".join(struct.pack("<QQ", frame, frame + 1000) for frame, _ in pages)
    parts = {".note.Xen": note, ".xen_prstatus": bytes(5168), frames: table}
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (".shstrtab", *parts, ".xen_pages"))
    count = len(parts) + 3
    at = 64 + 64 * count
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", names.index(b".shstrtab"), 3, 0, 0, at, len(names), 0, 0, 0, 0)
    body = names.ljust(len(names) + -len(names) % PAGE, b"\0")
    everything = {**parts, ".xen_pages": b"".join(data for _, data in pages)}
    for name, data in everything.items():
        start = at + len(body)
        where = names.index(name.encode() + b"\0")
        sections += struct.pack("<IIQQQQIIQQ", where, 1, 0, 0, start, len(data), 0, 0, 8, 0)
        body += data
    head = b"\x7fELF\2\1\1".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 0, 64, 0, 64, 0, 0, 64, count, 1)
    return head + sections + body


def xen_record(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def libxc_stream(
    batches: Sequence[Sequence[Tuple[int, bytes]]], *, version: int = 3, guest: int = 2, end: bool = True
) -> bytes:
    """libxc's stream: batches of pages; a page without content has a type without content."""
    out = [b"\xff" * 8 + b"XENF" + struct.pack(">IHHI", version, 0, 0, 0)]
    out.append(struct.pack("<IHHII", guest, 12, 0, 4, 17))
    out.append(xen_record(9, b"\1") if version == 3 else b"")
    for batch in batches:
        words = b"".join(struct.pack("<Q", frame | (0 if data else 0xF << 60)) for frame, data in batch)
        out.append(
            xen_record(1, struct.pack("<II", len(batch), 0) + words + b"".join(data for _, data in batch))
        )
    out.append(xen_record(7, bytes(300)) + xen_record(0x80000005, b"x" * 9))
    return b"".join(out) + (xen_record(0, b"") + bytes(4000) if end else b"")


def xl_save(stream: bytes, *, needed: int = 3) -> bytes:
    """libxc's stream with xl's header and the guest's configuration."""
    config = json.dumps({"c_info": {"name": "lab"}}).encode() + b"\0"
    more = struct.pack("<I", len(config)) + config
    head = (
        b"Xen saved domain, xl format\n \0 \r" + struct.pack("<IIII", 0x01020304, needed, 0, len(more)) + more
    )
    if needed & 2:
        head += (
            struct.pack(">QII", 0x4C6962786C466D74, 2, 0) + xen_record(2, b"/local\0") + xen_record(1, b"")
        )
    return head + stream


def cloud_hypervisor_state(ranges: Sequence[Tuple[int, int]], form: str) -> bytes:
    """Cloud Hypervisor's state.json, with the memory manager's state as JSON in a string or in bytes."""
    table = {"memory_ranges": {"data": [{"gpa": first, "length": size} for first, size in ranges]}}
    inner = json.dumps({**table, "boot_ram": sum(size for _, size in ranges), "next_memory_slot": 2})
    state = {"text": {"state": inner}, "bytes": {"snapshot": list(inner.encode())}, "plain": table}[form]
    cpu = {"id": "cpu", "snapshot_data": {"state": json.dumps({"gpa": 1, "length": [1, 2, 3]})}}
    memory = {"id": "memory-manager", "snapshots": {}, "snapshot_data": state}
    return json.dumps(
        {"snapshots": {"cpu-manager": cpu, "memory-manager": memory}, "snapshot_data": None}
    ).encode()
