# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of physical memory made by tests: LiME, AVML, ELF without notes, kdumps with other compressions."""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import struct
import zlib
from importlib import import_module
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from kvintro.source.content import Content
from kvintro.source.elf import parse_notes
from kvintro.source.formats import examine
from kvintro.source.formats.kdump import KdumpDump
from kvintro.source.kdump import Kdump
from tests.synthetic import elf_core, packed_notes

#: (first address, content)
Range = Tuple[int, bytes]
Codec = Callable[[bytes], bytes]

AVML_BLOCK = 16 << 20
_STREAM = b"\xff\x06\0\0sNaPpY"
# struct disk_dump_header and struct page_desc, from the first used member on.
_STATUS, _HEADER_AT = 424, 428
_HEADER = struct.Struct("<iiI")  # block_size, sub_hdr_size, bitmap_blocks
_DESCRIPTOR = struct.Struct("<qIIQ")  # offset, size, flags, page_flags
_ZLIB = 1
_SPLIT_AT, _SPLIT_64_AT = (
    12,
    80,
)  # struct kdump_sub_header: split, start_pfn, end_pfn; start_pfn_64, end_pfn_64


def dumped_ranges(path: Path) -> List[Tuple[int, int]]:
    """(first address, one more than the last) of the physical memory in QEMU's dump, without firmware's
    memory at the end of the first 4 GB."""
    with path.open("rb") as file:
        dump = examine(file, str(path))
    if isinstance(dump, KdumpDump):
        ranges = bitmap_ranges(dump.content, dump.kdump)
    else:
        ranges = [(s.paddr, s.paddr + s.filesz) for s in dump.segments]
    return [(start, end) for start, end in ranges if not 0xC0000000 <= start < 1 << 32]


def bitmap_ranges(content: Content, kdump: Kdump) -> List[Tuple[int, int]]:
    """The same of a kdump, in steps of eight pages."""
    assert kdump.layout is not None
    data = content.at(kdump.layout.dumped, kdump.layout.bitmap_size)
    step = 8 * kdump.page
    return [(match.start() * step, match.end() * step) for match in re.finditer(rb"[^\0]+", data)]


def raw(path: Path, ranges: Iterable[Range]) -> None:
    """A file of raw memory, with holes between the ranges."""
    with path.open("wb") as file:
        for first, data in ranges:
            file.seek(first)
            file.write(data)


def lime(ranges: Iterable[Range], magic: bytes = b"EMiL", version: int = 1) -> bytes:
    """Ranges as LiME writes them (and AVML without compression)."""
    out = b""
    for first, data in ranges:
        out += struct.pack("<4sIQQQ", magic, version, first, first + len(data) - 1, 0) + data
    return out


def avml(ranges: Iterable[Range], pack: Codec) -> bytes:
    """Ranges as AVML compresses them: blocks of at most 16 MB, without those of zeros."""
    out: List[bytes] = []
    for first, data in ranges:
        for at in range(0, len(data), AVML_BLOCK):
            block = data[at : at + AVML_BLOCK]
            if block.count(0) == len(block):
                continue
            frames = framed(block, pack)
            out.append(struct.pack("<4sIQQQ", b"AVML", 2, first + at, first + at + len(block) - 1, 0))
            out += [frames, struct.pack("<Q", len(frames))]
    return b"".join(out)


def framed(data: bytes, pack: Codec) -> bytes:
    """snappy's framing format (google/snappy, framing_format.txt); the checksums are zero."""
    out = [_STREAM]
    for at in range(0, len(data), 1 << 16):
        chunk = data[at : at + (1 << 16)]
        packed = pack(chunk)
        kind, body = (0, packed) if len(packed) < len(chunk) else (1, chunk)
        out.append(bytes([kind]) + (len(body) + 4).to_bytes(3, "little") + bytes(4) + body)
    return b"".join(out)


def elf_without_notes(ranges: Iterable[Range], machine: int = 62) -> bytes:
    """As QEMU writes it without the vmcoreinfo device: no virtual addresses, and nothing about the kernel.

    :param machine: ``e_machine``.
    """
    return elf_core([(0, first, data) for first, data in ranges], machine=machine)


def snappy() -> Optional[Codec]:
    """A function that packs one block; None if there is no library for it."""
    try:
        pack = import_module("cramjam").snappy.compress_raw
    except ImportError:
        return None
    return lambda data: bytes(pack(data))


def zstd() -> Optional[Codec]:
    """The same."""
    try:
        pack = import_module("cramjam").zstd.compress
    except ImportError:
        return None
    return lambda data: bytes(pack(data))


def lzo() -> Optional[Codec]:
    """The same, with the library that makedumpfile uses."""
    name = ctypes.util.find_library("lzo2")
    if name is None:
        return None
    library = ctypes.CDLL(name)

    def pack(data: bytes) -> bytes:
        work = ctypes.create_string_buffer(1 << 18)
        out = ctypes.create_string_buffer(len(data) * 2 + 1024)
        size = ctypes.c_size_t(len(out))
        assert library.lzo1x_1_compress(data, ctypes.c_size_t(len(data)), out, ctypes.byref(size), work) == 0
        return out.raw[: size.value]

    return pack


#: The flag of a page in a kdump (diskdump_mod.h:DUMP_DH_COMPRESSED_*) and the function that packs it.
CODECS: Dict[str, Tuple[int, Callable[[], Optional[Codec]]]] = {
    "uncompressed": (0, lambda: lambda data: data),
    "zlib": (_ZLIB, lambda: zlib.compress),
    "lzo": (2, lzo),
    "snappy": (4, snappy),
    "zstd": (0x20, zstd),
}


def packed_again(kdump: Path, target: Path, flag: int, pack: Codec) -> None:
    """A plain kdump with zlib pages, with every page packed in another way."""
    data = kdump.read_bytes()
    block, sub_header, bitmap = _HEADER.unpack_from(data, _HEADER_AT)
    table = (1 + sub_header + bitmap) * block
    second = table - bitmap * block // 2
    count = sum(bin(byte).count("1") for byte in data[second:table])
    known: Dict[bytes, Tuple[int, int, int]] = {}
    descriptors: List[bytes] = []
    pieces: List[bytes] = []
    position = table + count * _DESCRIPTOR.size
    for index in range(count):
        offset, size, flags, page_flags = _DESCRIPTOR.unpack_from(data, table + index * _DESCRIPTOR.size)
        page = data[offset : offset + size]
        if flags & _ZLIB:
            page = zlib.decompress(page)
        if page not in known:
            piece = pack(page)
            fits = len(piece) < len(page)
            known[page] = position, len(piece if fits else page), flag if fits else 0
            pieces.append(piece if fits else page)
            position += len(pieces[-1])
        descriptors.append(_DESCRIPTOR.pack(*known[page], page_flags))
    head = bytearray(data[:table])
    struct.pack_into("<I", head, _STATUS, flag)
    target.write_bytes(bytes(head) + b"".join(descriptors) + b"".join(pieces))


def bitmap_of(kdump: bytes) -> int:
    """The page frames in a plain kdump."""
    block, sub_header, bitmap = _HEADER.unpack_from(kdump, _HEADER_AT)
    table = (1 + sub_header + bitmap) * block
    return int.from_bytes(kdump[table - bitmap * block // 2 : table], "little")


def split(kdump: bytes, bounds: Sequence[int]) -> List[bytes]:
    """A plain kdump as ``makedumpfile --split`` writes it: each file has the frames between two bounds."""
    block, sub_header, bitmap = _HEADER.unpack_from(kdump, _HEADER_AT)
    table = (1 + sub_header + bitmap) * block
    dumped = bitmap_of(kdump)
    parts = []
    for first, behind in zip(bounds, bounds[1:]):
        before = bin(dumped & (1 << first) - 1).count("1")
        count = bin(dumped & (1 << behind) - 1).count("1") - before
        head = bytearray(kdump[:table])
        struct.pack_into("<iQQ", head, block + _SPLIT_AT, 1, first, behind)
        struct.pack_into("<QQ", head, block + _SPLIT_64_AT, first, behind)
        descriptors, pages = b"", bytearray()
        for index in range(before, before + count):
            offset, size, *flags = _DESCRIPTOR.unpack_from(kdump, table + index * _DESCRIPTOR.size)
            at = table + count * _DESCRIPTOR.size + len(pages)
            descriptors += _DESCRIPTOR.pack(at, size, *flags)
            pages += kdump[offset : offset + size]
        parts.append(bytes(head) + descriptors + pages)
    return parts


def kexec_elf(ram: Sequence[Range], note: bytes, page_offset: int, stext: int, text_at: int) -> bytes:
    """Memory as in a kdump kernel's /proc/vmcore, which makedumpfile reads.

    :param page_offset: start of the direct map.
    :param stext: start of the image, which has its own segment; ``text_at`` is its physical address.
    """
    segments = [
        (stext, text_at, data[text_at - first : text_at - first + (48 << 20)])
        for first, data in ram
        if first <= text_at < first + len(data)
    ]
    segments += [(page_offset + first, first, data) for first, data in ram]
    return elf_core(segments, [("CORE", 1, bytes(336)), ("VMCOREINFO", 0, note)])


def flattened(kdump: bytes, record: int = 5000) -> bytes:
    """A plain kdump cut into records, as ``makedumpfile -F`` and QEMU write it."""
    out = [b"makedumpfile".ljust(16, b"\0") + struct.pack(">qq", 1, 1), bytes(4096 - 32)]
    for at in range(0, len(kdump), record):
        piece = kdump[at : at + record]
        out += [struct.pack(">qq", at, len(piece)), piece]
    return b"".join(out) + b"\xff" * 16


# struct kdump_sub_header: offset_vmcoreinfo, size_vmcoreinfo, offset_note, size_note.
_NOTES_AT = 32
_NOTES = struct.Struct("<qQqQ")


def with_pages(kdump: bytes, pages: Mapping[int, Optional[bytes]], vmcoreinfo: bytes) -> bytes:
    """A plain kdump with changed content of some pages, and a changed text of VMCOREINFO.

    :param pages: content by page frame, None to exclude a frame; all must be in the dump.
    """
    block, sub_header, bitmap = _HEADER.unpack_from(kdump, _HEADER_AT)
    table = (1 + sub_header + bitmap) * block
    second = table - bitmap * block // 2
    dumped = bitmap_of(kdump)
    data = bytearray(kdump)
    left_out: List[int] = []
    for frame, content in sorted(pages.items()):
        assert dumped >> frame & 1
        index = bin(dumped & (1 << frame) - 1).count("1")
        if content is None:
            data[second + frame // 8] &= ~(1 << frame % 8)
            left_out.append(index)
            continue
        struct.pack_into("<qIIQ", data, table + index * _DESCRIPTOR.size, len(data), len(content), 0, 0)
        data += content
    for index in reversed(left_out):
        # The descriptors after it move up, and the table keeps its size.
        start, end = table + index * _DESCRIPTOR.size, table + bin(dumped).count("1") * _DESCRIPTOR.size
        data[start:end] = data[start + _DESCRIPTOR.size : end] + bytes(_DESCRIPTOR.size)
    _, _, at, size = _NOTES.unpack_from(kdump, block + _NOTES_AT)
    notes = [
        (name, kind, vmcoreinfo if name == "VMCOREINFO" else bytes(content))
        for name, kind, content in parse_notes(kdump[at : at + size])
    ]
    packed = packed_notes(notes)
    _NOTES.pack_into(
        data, block + _NOTES_AT, len(data) + packed.find(vmcoreinfo), len(vmcoreinfo), len(data), len(packed)
    )
    return bytes(data) + packed
