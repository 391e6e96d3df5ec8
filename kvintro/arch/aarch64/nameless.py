# SPDX-License-Identifier: LGPL-2.1-or-later
"""aarch64: variables of kernels that name their code only (CONFIG_KALLSYMS_ALL is off).

They are found by code that reads them, or by a string that they point to.
"""

from __future__ import annotations

import struct
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import drgn

from kvintro.errors import NotInDump, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL

_RET = 0xD65F03C0
_LONGEST = 128  # instructions of a function to examine
_CHUNK = 1 << 20
_LARGEST_IMAGE = 1 << 28
_MOST = 8  # names of one register, and pointers to them, in a sane image


def word_read_by(kernel: Kernel, function: str) -> Optional[Tuple[int, int]]:
    """Address and value of the one eight-byte variable that a function reads before its first RET.

    :return: None if the function reads none or several, or if they cannot be read.
    """
    try:
        code = kernel.read(start := kernel.symbol(function), 4 * _LONGEST)
        found = set(addresses_read(start, code))
        if len(found) != 1:
            return None
        address = found.pop()
        return address, _word(kernel, address)
    except (Unavailable, NotInDump):
        return None


def addresses_read(start: int, code: bytes) -> Iterator[int]:
    """Addresses from which code loads eight bytes, if they are made by ADRP, with or without ADD."""
    known: Dict[int, int] = {}
    for at, (word,) in enumerate(struct.iter_unpack("<I", code)):
        target, base = word & 31, word >> 5 & 31
        if word == _RET:
            return
        if word & 0x9F000000 == 0x90000000:  # ADRP
            pages = (word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3
            pages -= (pages & 1 << 20) << 1
            known[target] = (start + 4 * at & ~0xFFF) + (pages << 12) & ALL
        elif word >> 22 == 0x244 and base in known:  # ADD (immediate)
            known[target] = known[base] + (word >> 10 & 0xFFF) & ALL
        elif word >> 22 == 0x3E5:  # LDR (immediate, unsigned offset)
            if base in known:
                yield known[base] + 8 * (word >> 10 & 0xFFF) & ALL
            known.pop(target, None)


def feature_register(kernel: Kernel, name: str, end: int) -> Optional[int]:
    """The value of an ID register that all processors have in common (``struct arm64_ftr_reg``).

    :param end: the end of the kernel's image.
    :return: None if its structure cannot be found or read.
    """
    try:
        register = kernel.prog.type("struct arm64_ftr_reg")
        value, bits = (drgn.offsetof(register, member) for member in ("sys_val", "ftr_bits"))
        data = list(_data(kernel, end))
    except (LookupError, TypeError, Unavailable):
        return None
    texts = _first(data, b"\0SYS_%b\0" % name.encode())
    found = [at for text in texts for at in _first(data, struct.pack("<Q", text + 1))]
    try:
        # KVM has other tables with the same names.
        found = [at for at in found if data[0][0] <= _word(kernel, at + bits) < end]
        return _word(kernel, found[0] + value) if len(found) == 1 else None
    except NotInDump:
        return None


def _data(kernel: Kernel, end: int) -> Iterator[Tuple[int, bytes]]:
    """The image after its code: the ranges that the source contains, with their virtual addresses."""
    start, offset = kernel.symbol("_etext"), kernel.image_offset.value
    parts: List[bytes] = []
    begin = start
    for at in range(start, min(end, start + _LARGEST_IMAGE), _CHUNK):
        size = min(_CHUNK, end - at)
        try:
            parts.append(kernel.read_physical(at - offset & ALL, size))
        except NotInDump:
            yield begin, b"".join(parts)
            parts, begin = [], at + size
    yield begin, b"".join(parts)


def _word(kernel: Kernel, address: int) -> int:
    return int.from_bytes(kernel.read(address & ALL, 8), "little")


def _first(data: Sequence[Tuple[int, bytes]], wanted: bytes) -> List[int]:
    """The first few addresses at which some bytes are."""
    found: List[int] = []
    for start, part in data:
        at = part.find(wanted)
        while at >= 0 and len(found) < _MOST:
            found.append(start + at)
            at = part.find(wanted, at + 1)
    return found
