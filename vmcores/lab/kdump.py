"""kdump files: put in order, and packed as small as they go.

The format is makedumpfile's, after diskdump: a header block, a sub-header with the notes, two bitmaps
of pages (existing, dumped), one descriptor for each dumped page, and the pages' data.
"""

import struct
import zlib
from pathlib import Path
from typing import Container, Dict, List, Tuple

from lab.common import LabError

HEADER = struct.Struct("<iiII")  # block_size, sub_hdr_size, bitmap_blocks, max_mapnr
HEADER_OFFSET = 428
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
            packer = zlib.compressobj(9, zlib.DEFLATED, 15, 9)
            packed = packer.compress(page) + packer.flush()
            fits = len(packed) < len(page)
            piece = packed if fits else page
            known[page] = (position, len(piece), ZLIB if fits else 0)
            pieces.append(piece)
            position += len(piece)
        descriptors.append(DESCRIPTOR.pack(*known[page], page_flags))
    for pfn in set(dumped) - {pfn for _, pfn in kept}:
        data[second + pfn // 8] &= ~(1 << pfn % 8)
    path.write_bytes(data[:table] + b"".join(descriptors) + b"".join(pieces))
