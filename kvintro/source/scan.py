# SPDX-License-Identifier: LGPL-2.1-or-later
"""What nothing leads to is looked for in the kernel's image: its symbol table, and its types.

Kernels before 6.0 do not say in VMCOREINFO where kallsyms lies. All its tables are constants in .rodata, one
after another as scripts/kallsyms.c:write_src() puts them, and one of them can be told anywhere: every digit
occurs in names, and what stands for a digit in kallsyms_token_table is the digit itself. The other tables
follow from that one, each checked by what it says of its neighbours; and what comes out is believed when it
gives the symbols whose addresses VMCOREINFO does have.
"""

from __future__ import annotations

import re
import struct
from itertools import islice
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from kvintro.source.kallsyms import READ_ERRORS, Kallsyms, KallsymsError, Reader

__all__ = ("find_btf", "find_kallsyms", "image_of", "in_image", "pieces")

_PAGE = 4096
_CHUNK = 1 << 20
_START_KERNEL_MAP = 0xFFFFFFFF80000000
_MAX_IMAGE = 1 << 30  # KERNEL_IMAGE_SIZE at most
_DIGITS = b"".join(bytes((digit, 0)) for digit in b"0123456789")
# UTF-16 digits look the same (there are some in the tables of nls), so a few candidates are normal. Each
# costs a read; more than this many is no kernel. Of token tables and their markers there is one.
_MAX_CANDIDATES = 64
_MAX_TABLES = 4
# Places where the number of symbols may be, that is where a word fits the markers. Beside the right one there
# is hardly ever another, and each costs a walk over 256 names.
_MAX_PLACES = 256
_TOKENS = 256
_MAX_TOKEN_TABLE = 1 << 16  # as its index has 16 bits; real ones have a kilobyte
_MAX_SYMBOLS = 1 << 21
_MAX_NAMES = 32 << 20  # bytes; 250,000 symbols have 3.2 million
_MARKED = 256  # symbols to a marker
_MAX_NAME_SIZE = 513  # KSYM_NAME_LEN, and a length of two bytes before it
# 0, and a second word from 512 to 256 * 513, which pages of zeros do not have.
_MARKERS = re.compile(rb"\0\0\0\0(?=.[\2-\xff]\0\0|..[\1\2]\0)", re.DOTALL)
_REMEDY = "name the vmlinux with -s"

_BTF_HEADER = b"\x9f\xeb\x01\x00\x18\0\0\0\0\0\0\0"  # magic, version 1, no flags, hdr_len, type_off
# Both end with a zero, for which bytes.find() takes ten times as long in memory of zeros.
_DIGITS_PATTERN, _BTF_PATTERN = re.compile(re.escape(_DIGITS)), re.compile(re.escape(_BTF_HEADER))
_MIN_BTF = 1 << 16  # the kernel's own has megabytes; what is smaller belongs to a BPF program
_MAX_BTF = 64 << 20
_MAX_BTF_IN_ALL = 128 << 20  # of all candidates; each has to be parsed to be told from the kernel's


def in_image(address: int) -> bool:
    """Whether an address can be one in a kernel's image."""
    return _START_KERNEL_MAP <= address < _START_KERNEL_MAP + _MAX_IMAGE


def image_of(symbols: Mapping[str, int]) -> Tuple[int, int]:
    """The part of the kernel's image that holds its constants, from VMCOREINFO's symbols.

    .rodata lies between the code, which begins with _stext, and .data, which has init_uts_ns and the root of
    the page tables (arch/x86/kernel/vmlinux.lds.S).

    :return: the first address, and the one behind the last.
    :raises KallsymsError: VMCOREINFO does not have such symbols.
    """
    start = symbols.get("_stext", 0)
    inside = [address for address in symbols.values() if in_image(address)]
    end = max(inside, default=0)
    if not _START_KERNEL_MAP <= start < end:
        raise KallsymsError("VMCOREINFO's symbols do not tell where the kernel's image lies", _REMEDY)
    return start, end


def pieces(read: Reader, start: int, end: int, overlap: int = 0) -> Iterator[Tuple[int, bytes]]:
    """Memory in big pieces, without what cannot be read.

    :param overlap: so many bytes of the piece before are at the beginning of each, where nothing is between.
    :return: address and content of each.
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
    """The parts that can be read, down to pages: there are holes between sections, and in filtered dumps."""
    try:
        yield start, read(start, end - start)
    except READ_ERRORS:
        middle = (start + end) // 2 & -_PAGE
        if start < middle < end:
            yield from _readable(read, start, middle)
            yield from _readable(read, middle, end)


def _read_from(read: Reader, start: int, size: int) -> bytes:
    """As much of some memory as can be read from its beginning."""
    found = b""
    for address, data in _readable(read, start, start + size):
        if address != start + len(found):
            break
        found += data
    return found


def _read_to(read: Reader, end: int, size: int) -> bytes:
    """As much of some memory as can be read up to its end."""
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
    """Where kallsyms_token_table and kallsyms_token_index lie."""

    table: int
    index_at: int


class _Names(NamedTuple):
    """Where kallsyms_num_syms and kallsyms_names lie, and how many symbols there are."""

    num_syms: int
    names: int
    number: int


def find_kallsyms(read: Reader, symbols: Mapping[str, int]) -> Kallsyms:
    """Find a kernel's symbol table in its image.

    :param read: reads virtual memory.
    :param symbols: VMCOREINFO's symbols.
    :raises KallsymsError: there is none, or what looks like one does not fit VMCOREINFO.
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
        raise KallsymsError(
            f"what looks like the symbol table in the kernel's image is none: {problem}", _REMEDY
        )
    if read_bytes < end - start:
        missing = (end - start - read_bytes) >> 10
        raise KallsymsError(f"no symbol table was found; {missing} KB of the image are not here", _REMEDY)
    raise KallsymsError("no symbol table was found in the kernel's image (CONFIG_KALLSYMS is off?)", _REMEDY)


def _candidates(read: Reader, start: int, end: int) -> Iterator[_Tokens]:
    """Token tables that agree with the index behind them."""
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
    """The token table in which the token of the character ``0`` lies there.

    The texts of 256 tokens end with a NUL each; the index follows and says where each begins. It is aligned
    to 8, or since 6.15 as its words are.
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
    """Where each of 256 texts in a table begins."""
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
    """The names that lie before a token table, and before their own markers."""
    for place, markers in islice(_find_markers(read, table), _MAX_TABLES):
        # What follows the last marker are the names of 1 to 256 symbols, and less than 8 bytes to align.
        first = (place & -8) - (markers[-1] + _MARKED * _MAX_NAME_SIZE + 16 & -8)
        data = _read_to(read, place, place - first)
        first = place - len(data)
        for at, number_at, count in islice(_numbers(data, first, markers), _MAX_PLACES):
            if _names_fit(data, at, markers, count):
                return _Names(first + number_at, first + at, count)
    return None


def _numbers(data: bytes, first: int, markers: List[int]) -> Iterator[Tuple[int, int, int]]:
    """(where names may begin, where their number before them lies, that number), by what the markers allow.

    Each table is aligned to 8 until 6.15, then as its words are.

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
    """What may be kallsyms_markers: where in the names every 256th begins, so words from 0 upwards.

    They end where the token table begins; or, from 6.2 to 6.3 and in stable kernels that took it over, where
    kallsyms_seqs_of_names begins, which has 3 bytes for each symbol. The nearest one comes first.
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
        # One too many, if what follows them looks like another.
        for found in (markers, markers[:-1]):
            gap = len(data) - at - 4 * len(found)
            low, high = 3 * _MARKED * (len(found) - 1), 3 * _MARKED * len(found) + 16
            if len(found) > 1 and found[-1] <= _MAX_NAMES and (gap < 8 or low < gap <= high):
                yield place + at, found


def _names_fit(data: bytes, start: int, markers: List[int], count: int) -> bool:
    """Whether names begin there: the first 256 end at the second marker, the last where the table does."""

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
    """The symbol table, by whichever of the places and encodings of its addresses fits.

    :raises KallsymsError: none does.
    """
    found = {
        "_stext": symbols["_stext"],
        "kallsyms_num_syms": names.num_syms,
        "kallsyms_names": names.names,
        "kallsyms_token_table": tokens.table,
        "kallsyms_token_index": tokens.index_at,
    }
    problem = "its addresses are neither before its names nor behind its tokens"
    for places in _address_places(read, symbols["_stext"], tokens, names):
        try:
            table = Kallsyms.from_memory(read, {**found, **places}, origin="kallsyms (found by scanning)")
            check(table, symbols)
            return table
        except KallsymsError as error:
            problem = error.what
    raise KallsymsError(problem)


def _address_places(read: Reader, stext: int, tokens: _Tokens, names: _Names) -> Iterator[Dict[str, int]]:
    """Where the addresses can be: before the number of symbols, or behind the tokens (since 6.4).

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
    if _START_KERNEL_MAP <= word(before) <= stext:
        yield {"kallsyms_offsets": before - size & -8, "kallsyms_relative_base": before}
    behind = tokens.index_at + 2 * _TOKENS + 3 & -4
    base = behind + size + 7 & -8
    if _START_KERNEL_MAP <= word(base) <= stext:
        yield {"kallsyms_offsets": behind, "kallsyms_relative_base": base}
    if word(names.num_syms - 8) >= stext:
        yield {"kallsyms_addresses": names.num_syms - 8 * names.number}
    yield {"kallsyms_offsets": behind}


def check(table: Kallsyms, symbols: Mapping[str, int]) -> None:
    """Compare a symbol table with the symbols that VMCOREINFO gives.

    :raises KallsymsError: one that both have is elsewhere.
    """
    for name, address in symbols.items():
        # What is not in the image is the value of a variable and not its place (mem_section, vmemmap).
        if not in_image(address):
            continue
        known = [symbol.address for symbol in table.lookup_all(name)]
        if known and address not in known:
            raise KallsymsError(f"it has {name} at {known[0]:016x}, VMCOREINFO at {address:016x}")


# The types


def find_btf(read: Reader, start: int, end: int) -> Iterator[bytes]:
    """What looks like a kernel's BTF in its image: a header whose sizes fit, and strings from NUL to NUL.

    :param read: reads virtual memory.
    :param start: first address to look at.
    :param end: address behind the last.
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
