"""kdump files: put in order, and packed as small as they go.

The format is makedumpfile's, after diskdump: a header block, a sub-header with the notes, two bitmaps
of pages (existing, dumped), one descriptor for each dumped page, and the pages' data.
"""

import hashlib
import mmap
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Container, Dict, Iterable, List, Tuple

from lab.common import LabError

HEADER = struct.Struct("<iiII")  # block_size, sub_hdr_size, bitmap_blocks, max_mapnr
HEADER_OFFSET = 428
STATUS_OFFSET = 424
#: phys_base, dump_level, split, start and end pfn, VMCOREINFO's place and size, the notes' place and size,
#: eraseinfo's place and size, start and end pfn and max_mapnr in 64 bits.
SUB_HEADER = struct.Struct("<QiiQQQQQQQQQQQ")
PT_LOAD, PT_NOTE = 1, 4
DESCRIPTOR = struct.Struct("<qIIQ")  # offset, size, flags, page_flags
ZLIB = 1


def unflatten(source: Path, target: Path) -> None:
    """Put a flattened kdump in order, as `makedumpfile -R` does.

    QEMU before 8.2 writes only the flattened form: after a header of 4096 bytes, pieces with their
    offset and size as big-endian words, until a negative offset.
    """
    with source.open("rb") as flat, target.open("wb") as out:
        if not flat.read(4096).startswith(b"makedumpfile"):
            raise LabError(f"{source.name} is not a flattened dump")
        while True:
            header = flat.read(16)
            if len(header) != 16:
                raise LabError(f"{source.name} is cut short")
            offset, size = struct.unpack(">qq", header)
            if offset < 0:
                return
            out.seek(offset)
            out.write(flat.read(size))


def from_elf(source: Path, target: Path, version: str, machine: str, text: bytes = b"") -> None:
    """Write an ordered kdump with all pages of a QEMU ELF dump.

    :param version: /proc/version of the kernel.
    :param machine: what `uname -m` says there.
    :param text: VMCOREINFO's, if the ELF file has no note of it.
    """
    with source.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as elf:
        segments = _segments(elf)
        notes = b"".join(elf[at : at + size] for kind, at, _, size in segments if kind == PT_NOTE)
        if text:
            notes += struct.pack("<3I", 11, len(text), 0) + b"VMCOREINFO\0\0" + text + bytes(-len(text) % 4)
        found = re.search(rb"VMCOREINFO\0\0", notes)
        if not found:
            raise LabError(f"{source.name} has no VMCOREINFO")
        # 12 bytes of header before the name: name size, size of what follows it, type.
        (length,) = struct.unpack_from("<I", notes, found.start() - 8)
        info = notes[found.end() : found.end() + length].decode(errors="replace")
        fields = dict(line.split("=", 1) for line in info.splitlines() if "=" in line)
        block = int(fields["PAGESIZE"])
        loads = sorted((where, at, size) for kind, at, where, size in segments if kind == PT_LOAD)
        last = max(where + size for where, _, size in loads) // block
        pages = [at + off for where, at, size in loads for off in range(0, size, block)]
        bitmap = bytearray(-(-last // (8 * block)) * block)
        for where, _, size in loads:
            for pfn in range(where // block, (where + size) // block):
                bitmap[pfn // 8] |= 1 << pfn % 8
        sub_header = SUB_HEADER.pack(
            *(0, 0, 0, 0, last),
            *(block + SUB_HEADER.size + found.end(), length, block + SUB_HEADER.size, len(notes)),
            *(0, 0, 0, last, last),
        )
        sub_blocks = -(-(SUB_HEADER.size + len(notes)) // block)
        bitmap_blocks = 2 * len(bitmap) // block
        build = version[version.find("#") :].strip()
        names = ("Linux", "(none)", fields["OSRELEASE"], build, machine, "(none)")
        uts = b"".join(name.encode()[:64].ljust(65, b"\0") for name in names)
        header = b"KDUMP   " + struct.pack("<i", 6) + uts
        header = header.ljust(STATUS_OFFSET, b"\0") + struct.pack(
            "<IiiIIIIIii", ZLIB, block, sub_blocks, bitmap_blocks, last, 0, 0, 0, 0, 1
        )
        with target.open("wb") as out:
            out.write(header.ljust(block, b"\0"))
            out.write((sub_header + notes).ljust(sub_blocks * block, b"\0"))
            out.write(bitmap * 2)
            _write_pages(out, (elf[at : at + block] for at in pages), len(pages))


def _segments(elf: "mmap.mmap") -> List[Tuple[int, int, int, int]]:
    """Of each program header: type, offset in the file, physical address, size in the file."""
    (first,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    headers = (struct.unpack_from("<IIQQQQ", elf, first + number * size) for number in range(count))
    return [(kind, at, physical, length) for kind, _, at, _, physical, length in headers]


def _pack(page: bytes) -> Tuple[bytes, int]:
    """A page compressed with zlib, and its flags; the page itself where compression does not help."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9)
    packed = packer.compress(page) + packer.flush()
    return (packed, ZLIB) if len(packed) < len(page) else (page, 0)


def _write_pages(out: BinaryIO, pages: Iterable[bytes], count: int) -> None:
    """Write the descriptors of all pages, then the data; equal pages are stored once."""
    known: Dict[bytes, bytes] = {}
    table = out.tell()
    position = table + count * DESCRIPTOR.size
    descriptors: List[bytes] = []
    out.seek(position)
    for page in pages:
        key = hashlib.sha256(page).digest()
        if key not in known:
            piece, flags = _pack(page)
            known[key] = DESCRIPTOR.pack(position, len(piece), flags, 0)
            position += out.write(piece)
        descriptors.append(known[key])
    out.seek(table)
    out.write(b"".join(descriptors))


def repack(path: Path, left_out: Container[int] = ()) -> None:
    """Compress every page of an ordered kdump as hard as zlib can, equal pages once.

    QEMU uses zlib's fastest level; this makes a smaller file that any reader takes. Pages whose
    numbers are in left_out exist but are not in the dump, as when makedumpfile filters.
    """
    data = bytearray(path.read_bytes())
    if not data.startswith(b"KDUMP   "):
        raise LabError(f"{path.name} is not a kdump")
    block, sub_header, bitmap, _ = HEADER.unpack_from(data, HEADER_OFFSET)
    # Both bitmaps have the same length; the second says which pages have a descriptor.
    second = (1 + sub_header) * block + bitmap * block // 2
    table = (1 + sub_header + bitmap) * block
    dumped = [8 * i + bit for i, byte in enumerate(data[second:table]) for bit in range(8) if byte >> bit & 1]
    kept = [(index, pfn) for index, pfn in enumerate(dumped) if pfn not in left_out]
    known: Dict[bytes, Tuple[int, int, int]] = {}
    descriptors: List[bytes] = []
    pieces: List[bytes] = []
    position = table + len(kept) * DESCRIPTOR.size
    for index, _ in kept:
        offset, size, flags, page_flags = DESCRIPTOR.unpack_from(data, table + index * DESCRIPTOR.size)
        page = bytes(data[offset : offset + size])
        if flags & ZLIB:
            page = zlib.decompress(page)
        if page not in known:
            piece, packed = _pack(page)
            known[page] = (position, len(piece), packed)
            pieces.append(piece)
            position += len(piece)
        descriptors.append(DESCRIPTOR.pack(*known[page], page_flags))
    for pfn in set(dumped) - {pfn for _, pfn in kept}:
        data[second + pfn // 8] &= ~(1 << pfn % 8)
    path.write_bytes(data[:table] + b"".join(descriptors) + b"".join(pieces))
