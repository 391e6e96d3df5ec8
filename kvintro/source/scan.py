# SPDX-License-Identifier: LGPL-2.1-or-later
"""Searches the kernel's image for its symbol table and its types, if nothing points to them.

The VMCOREINFO of kernels before 6.0 does not say where the tables of kallsyms are. They are constants in
.rodata, in the order of scripts/kallsyms.c:write_src(). One of them can be recognised by itself: names
contain every digit, and in kallsyms_token_table each digit stands for itself. The other tables are found
relative to that one, and each is checked against its neighbours. The result is accepted only if it agrees
with the addresses in VMCOREINFO.
"""

from __future__ import annotations

import re
import struct
from itertools import islice
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from kvintro.arch.form import SMALLEST_PAGE
from kvintro.model import ALL
from kvintro.source.kallsyms import READ_ERRORS, Kallsyms, KallsymsError, Reader

__all__ = ("find_btf", "find_kallsyms", "image_of", "in_image", "pieces")

_PAGE = SMALLEST_PAGE
_CHUNK = 1 << 20
_MAX_IMAGE = 1 << 30  # on all architectures
_DIGITS = b"".join(bytes((digit, 0)) for digit in b"0123456789")
# UTF-16 digits look the same (the nls tables contain some), so a few candidates are normal. Each costs a
# read; no kernel has more than this many. There is only one token table, and one table of markers.
_MAX_CANDIDATES = 64
_MAX_TABLES = 4
# Possible places of the number of symbols: those where a word agrees with the markers. There is hardly ever
# more than the right one, and each costs a walk over 256 names.
_MAX_PLACES = 256
_TOKENS = 256
_MAX_TOKEN_TABLE = 1 << 16  # its index has 16 bits; real tables have a kilobyte
_MAX_SYMBOLS = 1 << 21
_MAX_NAMES = 32 << 20  # bytes; 250,000 symbols have 3.2 million
_MARKED = 256  # symbols per marker
_MAX_NAME_SIZE = 513  # KSYM_NAME_LEN, and two bytes of length before it
# 0, and a second word from 512 to 256 * 513, so that pages of zeros do not match.
_MARKERS = re.compile(rb"\0\0\0\0(?=.[\2-\xff]\0\0|..[\1\2]\0)", re.DOTALL)
_REMEDY = "name the vmlinux with -s"

_BTF_HEADER = b"\x9f\xeb\x01\x00\x18\0\0\0\0\0\0\0"  # magic, version 1, no flags, hdr_len, type_off
# Both end with a zero, so bytes.find() would take ten times as long on zeros.
_DIGITS_PATTERN, _BTF_PATTERN = re.compile(re.escape(_DIGITS)), re.compile(re.escape(_BTF_HEADER))
_MIN_BTF = 1 << 16  # the kernel's own has megabytes; smaller blobs belong to BPF programs
_MAX_BTF = 64 << 20
_MAX_BTF_IN_ALL = 128 << 20  # total of all candidates; each must be parsed to see whether it is the kernel's


def in_image(address: int, symbols: Mapping[str, int]) -> bool:
    """Whether an address can be in the kernel's image. Nothing else lies that close to the image's start.

    :param symbols: VMCOREINFO's symbols.
    """
    return 0 <= address - symbols.get("_stext", ALL) < _MAX_IMAGE


def image_of(symbols: Mapping[str, int]) -> Tuple[int, int]:
    """The part of the kernel's image that holds its constants, from VMCOREINFO's symbols.

    .rodata is between the code, which begins with _stext, and .data, which contains init_uts_ns and the
    root of the page tables (vmlinux.lds.S).

    :return: the first address, and the end, exclusive.
    :raises KallsymsError: VMCOREINFO does not have such symbols.
    """
    start = symbols.get("_stext", 0)
    inside = [address for address in symbols.values() if in_image(address, symbols)]
    end = max(inside, default=0)
    if not start >> 63 or start >= end:
        raise KallsymsError("VMCOREINFO's symbols do not show where the kernel's image is", _REMEDY)
    return start, end


def pieces(read: Reader, start: int, end: int, overlap: int = 0) -> Iterator[Tuple[int, bytes]]:
    """Memory in large pieces, without parts that cannot be read.

    :param end: address, exclusive.
    :param overlap: bytes of the preceding piece to repeat at the start of each one, if they are adjacent.
    :return: address and content of each piece.
    """
    tail = b""
    following = start
    for chunk in range(start, end, _CHUNK):
        for address, data in _readable(read, chunk, min(chunk + _CHUNK, end)):
            if address != following:
                tail = b""
            yield address - len(tail), tail + data
            following = address + len(data)
            tail = (tail + data)[-overlap:] if overlap else b""


def _readable(read: Reader, start: int, end: int) -> Iterator[Tuple[int, bytes]]:
    """The parts that can be read, down to single pages: sections and filtered dumps leave holes."""
    try:
        yield start, read(start, end - start)
    except READ_ERRORS:
        middle = (start + end) // 2 & -_PAGE
        if start < middle < end:
            yield from _readable(read, start, middle)
            yield from _readable(read, middle, end)


def _read_from(read: Reader, start: int, size: int) -> bytes:
    """As much memory as can be read from ``start`` on."""
    found = b""
    for address, data in _readable(read, start, start + size):
        if address != start + len(found):
            break
        found += data
    return found


def _read_to(read: Reader, end: int, size: int) -> bytes:
    """As much memory as can be read up to ``end``."""
    found: List[bytes] = []
    start = end
    for address, data in reversed(list(_readable(read, end - size, end))):
        if address + len(data) != start:
            break
        found.append(data)
        start = address
    return b"".join(reversed(found))


# The symbol table


class _Tokens(NamedTuple):
    """Addresses of kallsyms_token_table and kallsyms_token_index."""

    table: int
    index_at: int


class _Names(NamedTuple):
    """Addresses of kallsyms_num_syms and kallsyms_names, and the number of symbols."""

    num_syms: int
    names: int
    number: int


def find_kallsyms(read: Reader, symbols: Mapping[str, int]) -> Kallsyms:
    """Find a kernel's symbol table in its image.

    :param read: reads virtual memory.
    :param symbols: VMCOREINFO's symbols.
    :raises KallsymsError: there is none, or the one found contradicts VMCOREINFO.
    """
    start, end = image_of(symbols)
    problem = ""
    for tokens in islice(_candidates(read, start, end), _MAX_TABLES):
        names = _find_names(read, tokens.table)
        if names is None:
            problem = "its names are not before its tokens"
            continue
        try:
            return _decode(read, symbols, tokens, names)
        except KallsymsError as error:
            problem = error.what
    read_bytes = sum(len(data) for _, data in pieces(read, start, end))
    if problem:
        raise KallsymsError(f"invalid symbol table in the kernel's image: {problem}", _REMEDY)
    if read_bytes < end - start:
        missing = (end - start - read_bytes) >> 10
        raise KallsymsError(
            f"no symbol table was found; {missing} KB of the image are not in this source", _REMEDY
        )
    raise KallsymsError("no symbol table was found in the kernel's image (CONFIG_KALLSYMS is off?)", _REMEDY)


def _candidates(read: Reader, start: int, end: int) -> Iterator[_Tokens]:
    """Token tables that agree with the index after them."""
    left = _MAX_CANDIDATES
    seen = 0
    for address, data in pieces(read, start, end, overlap=len(_DIGITS) - 1):
        for found in _DIGITS_PATTERN.finditer(data):
            if not left:
                break
            if address + found.start() > seen:
                seen = address + found.start()
                left -= 1
                tokens = _tokens_around(read, seen)
                if tokens is not None:
                    yield tokens


def _tokens_around(read: Reader, zero: int) -> Optional[_Tokens]:
    """The token table that has the token of the character ``0`` at address ``zero``.

    The table has the texts of 256 tokens, each with a NUL at its end. The index follows and has the offset of
    each. It is aligned to 8 bytes; since 6.15, to the size of its words.
    """
    data = _read_from(read, zero, _MAX_TOKEN_TABLE + 8 + 2 * _TOKENS)
    at = 0
    for _ in range(ord("0"), _TOKENS):
        at = data.find(b"\0", at) + 1
        if not at:
            return None
    for index_at in sorted({zero + at + align - 1 & -align for align in (2, 4, 8)}):
        raw = data[index_at - zero : index_at - zero + 2 * _TOKENS]
        if len(raw) != 2 * _TOKENS:
            break
        index = struct.unpack(f"<{_TOKENS}H", raw)
        table = zero - index[ord("0")]
        if index[0] == 0 and _starts(read, table, zero + at - table) == index:
            return _Tokens(table, index_at)
    return None


def _starts(read: Reader, table: int, size: int) -> Optional[Tuple[int, ...]]:
    """Offsets of the 256 texts in a table."""
    try:
        texts = read(table, size)
    except READ_ERRORS:
        return None
    starts = [0]
    for _ in range(_TOKENS - 1):
        starts.append(texts.find(b"\0", starts[-1]) + 1)
        if not starts[-1]:
            return None
    return tuple(starts)


def _find_names(read: Reader, table: int) -> Optional[_Names]:
    """The names before a token table. Their markers are between the two."""
    for place, markers in islice(_find_markers(read, table), _MAX_TABLES):
        # The last marker points to the first of 1 to 256 names, followed by less than 8 bytes of padding.
        first = (place & -8) - (markers[-1] + _MARKED * _MAX_NAME_SIZE + 16 & -8)
        data = _read_to(read, place, place - first)
        first = place - len(data)
        for at, number_at, count in islice(_numbers(data, first, markers), _MAX_PLACES):
            if _names_fit(data, at, markers, count):
                return _Names(first + number_at, first + at, count)
    return None


def _numbers(data: bytes, first: int, markers: List[int]) -> Iterator[Tuple[int, int, int]]:
    """(start of the names, place of their number before them, that number), for all that the markers allow.

    Before 6.15 each table is aligned to 8 bytes; since then, to the size of its words.

    :param first: the address of the data.
    """
    low, high = _MARKED * (len(markers) - 1), _MARKED * len(markers)
    for at in range(-first % 4 + 4, len(data) - markers[-1], 4):
        number_at = at - 4
        count = int.from_bytes(data[number_at:at], "little")
        if count == 0 and at >= 8 and (first + at) % 8 == 0:
            number_at = at - 8
            count = int.from_bytes(data[number_at : at - 4], "little")
        if low < count <= high:
            yield at, number_at, count


def _find_markers(read: Reader, table: int) -> Iterator[Tuple[int, List[int]]]:
    """Candidates for kallsyms_markers: the offsets of every 256th name, which are words ascending from 0.

    They end where the token table begins; or, in 6.2 and 6.3 and in stable kernels with that backport, where
    kallsyms_seqs_of_names begins, which has 3 bytes for each symbol. The candidate nearest to the token table
    comes first.
    """
    data = _read_to(read, table, (_MAX_SYMBOLS // _MARKED * 4 + 3 * _MAX_SYMBOLS + _PAGE) & -_PAGE)
    place = table - len(data)
    for match in reversed(list(_MARKERS.finditer(data))):
        at = match.start()
        if (place + at) % 4:
            continue
        markers = [0]
        for behind in range(at + 4, len(data) - 3, 4):
            word = int.from_bytes(data[behind : behind + 4], "little")
            if not 2 * _MARKED <= word - markers[-1] <= _MARKED * _MAX_NAME_SIZE:
                break
            markers.append(word)
        # The last one may be one too many, if the data after the markers looks like another marker.
        for found in (markers, markers[:-1]):
            gap = len(data) - at - 4 * len(found)
            low, high = 3 * _MARKED * (len(found) - 1), 3 * _MARKED * len(found) + 16
            if len(found) > 1 and found[-1] <= _MAX_NAMES and (gap < 8 or low < gap <= high):
                yield place + at, found


def _names_fit(data: bytes, start: int, markers: List[int], count: int) -> bool:
    """Whether names begin at ``start``: 256 of them end at the second marker, and all at the table's end."""

    def skip(at: int, names: int) -> int:
        for _ in range(names):
            if at >= len(data):
                return -1
            length = data[at]
            if length & 0x80:  # since 6.1
                if at + 1 >= len(data):
                    return -1
                at += 1
                length = length & 0x7F | data[at] << 7
            at += length + 1
        return at

    if skip(start, _MARKED) != start + markers[1]:
        return False
    end = skip(start + markers[-1], count - _MARKED * (len(markers) - 1))
    return len(data) - 8 < end <= len(data)


def _decode(read: Reader, symbols: Mapping[str, int], tokens: _Tokens, names: _Names) -> Kallsyms:
    """The symbol table, with the place and encoding of its addresses that fits.

    :raises KallsymsError: none fits.
    """
    found = {
        "_stext": symbols["_stext"],
        "kallsyms_num_syms": names.num_syms,
        "kallsyms_names": names.names,
        "kallsyms_token_table": tokens.table,
        "kallsyms_token_index": tokens.index_at,
    }
    problem = "its addresses are neither before its names nor after its tokens"
    for places in _address_places(read, symbols["_stext"], tokens, names):
        try:
            table = Kallsyms.from_memory(read, {**found, **places}, origin="kallsyms (found by scanning)")
            check(table, symbols)
            return table
        except KallsymsError as error:
            problem = error.what
    raise KallsymsError(problem)


def _address_places(read: Reader, stext: int, tokens: _Tokens, names: _Names) -> Iterator[Dict[str, int]]:
    """Possible places of the addresses: before the number of symbols, or after the tokens (since 6.4).

    They are offsets and their base; or offsets from their own places (7.0); or addresses (before 4.6, and in
    kernels without CONFIG_KALLSYMS_BASE_RELATIVE). The base is the lowest address, which is not above _stext.
    """

    def word(address: int) -> int:
        try:
            return int.from_bytes(read(address, 8), "little")
        except READ_ERRORS:
            return 0

    size = 4 * names.number
    before = names.num_syms - 8
    if _is_base(word(before), stext):
        yield {"kallsyms_offsets": before - size & -8, "kallsyms_relative_base": before}
    behind = tokens.index_at + 2 * _TOKENS + 3 & -4
    base = behind + size + 7 & -8
    if _is_base(word(base), stext):
        yield {"kallsyms_offsets": behind, "kallsyms_relative_base": base}
    if word(names.num_syms - 8) >= stext:
        yield {"kallsyms_addresses": names.num_syms - 8 * names.number}
    yield {"kallsyms_offsets": behind}


def _is_base(address: int, stext: int) -> bool:
    """Whether an address can be the lowest of the image."""
    return 0 <= stext - address < _MAX_IMAGE


def check(table: Kallsyms, symbols: Mapping[str, int]) -> None:
    """Compare a symbol table with the symbols in VMCOREINFO.

    :raises KallsymsError: a symbol has different addresses.
    """
    for name, address in symbols.items():
        # An address outside the image is the value of a variable, not its place (mem_section, vmemmap).
        if not in_image(address, symbols):
            continue
        known = [symbol.address for symbol in table.lookup_all(name)]
        if known and address not in known:
            raise KallsymsError(f"it has {name} at {known[0]:016x}, VMCOREINFO at {address:016x}")


# The types


def find_btf(read: Reader, start: int, end: int) -> Iterator[bytes]:
    """Candidates for the kernel's BTF in its image: a valid header, and strings that begin and end with NUL.

    :param read: reads virtual memory.
    :param start: first address to search.
    :param end: end of the search, exclusive.
    """
    left, bytes_left = _MAX_CANDIDATES, _MAX_BTF_IN_ALL
    for address, data in pieces(read, start, end, overlap=len(_BTF_HEADER) - 1):
        for found in _BTF_PATTERN.finditer(data):
            if not left or bytes_left <= 0:
                return
            left -= 1
            blob = _btf_at(read, address + found.start())
            if blob is not None:
                bytes_left -= len(blob)
                yield blob


def _btf_at(read: Reader, address: int) -> Optional[bytes]:
    try:
        type_len, str_off, str_len = struct.unpack("<III", read(address + 12, 12))
        size = 24 + str_off + str_len
        if str_off < type_len or not _MIN_BTF <= size <= _MAX_BTF:
            return None
        data = read(address, size)
    except READ_ERRORS:
        return None
    return data if data[24 + str_off] == 0 and data[-1] == 0 else None
