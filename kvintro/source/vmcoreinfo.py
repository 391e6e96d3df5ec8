# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMCOREINFO for dumps that have no note of it: found in memory, and believed when the memory agrees.

Every kernel with CONFIG_KEXEC keeps the note ready for a crash, at the beginning of pages of its own
(kernel/crash_core.c:crash_save_vmcoreinfo_init, kernel/vmcore_info.c since 6.9). But memory also has copies
that belong to nothing any more: of the kernel that booted before, of a dump in the page cache. What a note
says is tried out: by its page tables init_uts_ns must lie where the image is, and have the note's release;
and the image must have its build id.
"""

from __future__ import annotations

import struct
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from kvintro.arch import x86_64
from kvintro.errors import KvintroError, NotADump
from kvintro.paging.step import ReadPhysical, walk
from kvintro.source.physical import PhysicalMemory

_PAGE = 4096
_NAME = b"VMCOREINFO\0\0"
_NOTE = struct.Struct("<III")  # namesz, descsz, type
_FIRST_KEY = b"OSRELEASE="
_PATTERN = _NAME + _FIRST_KEY
_MAX_TEXT = 64 << 10  # VMCOREINFO_BYTES is a page
_MAX_CANDIDATES = 256
_START_KERNEL_MAP = 0xFFFFFFFF80000000
_MAX_IMAGE = 1 << 30
# struct uts_namespace begins with the names, or with a kref before them; each has 65 bytes (new_utsname).
_MAX_UTS_OFFSET = 64
_UTS_FIELD = 65
_GNU_BUILD_ID = struct.Struct("<III4s")

Piece = Tuple[int, Union[bytes, bytearray, memoryview]]
Search = Callable[[Iterable[Piece], int], Iterable[Piece]]


def in_silence(pieces: Iterable[Piece], size: int) -> Iterable[Piece]:
    """A search that nobody watches."""
    return pieces


class Found(NamedTuple):
    """VMCOREINFO that was believed.

    :ivar text: its lines.
    :ivar address: where in physical memory it was, by the first layout.
    :ivar layouts: of the layouts that were tried, those by which it is right.
    """

    text: bytes
    address: int
    layouts: List[PhysicalMemory]


class NotBelieved(NotADump):
    """There is VMCOREINFO in memory, and the memory says otherwise or is not all there."""


def candidates(pieces: Iterable[Piece]) -> Iterator[int]:
    """Physical addresses of pages that begin with a note of VMCOREINFO.

    Only one byte of each page is looked at in most cases, so that this costs nothing next to reading them.
    """
    name_at = _NOTE.size
    for address, data in pieces:
        first = -address % _PAGE
        column = bytes(data[first + name_at :: _PAGE])
        page = column.find(_PATTERN[0])
        while page >= 0:
            at = first + page * _PAGE + name_at
            if data[at : at + len(_PATTERN)] == _PATTERN:
                yield address + at - name_at
            page = column.find(_PATTERN[0], page + 1)


def text_at(read: ReadPhysical, address: int) -> Optional[bytes]:
    """The text of a note in memory."""
    try:
        namesz, descsz, kind = _NOTE.unpack(read(address, _NOTE.size))
        if namesz != len(_NAME) - 1 or kind != 0 or not len(_FIRST_KEY) < descsz <= _MAX_TEXT:
            return None
        return read(address + _NOTE.size + len(_NAME), descsz).rstrip(b"\0")
    except KvintroError:
        return None


def find_vmcoreinfo(
    layouts: Sequence[PhysicalMemory], what: str = "the file", search: Search = in_silence
) -> Found:
    """The first VMCOREINFO in memory that can be believed. What comes behind it is not read.

    :param layouts: what addresses the file's content may have; its content is taken from the first.
    :param what: how people call it.
    :param search: is handed that content and its size in bytes, and iterated over while it is looked through.
    :raises NotADump: there is none.
    """
    seen: Dict[bytes, str] = {}
    first = layouts[0]
    size = sum(extent.size for extent in first.extents)
    for address in candidates(search(first.pieces(), size)):
        text = text_at(first.read, address)
        if text is None or text in seen:
            continue
        problems = [why_not(layout.read, text) for layout in layouts]
        right = [layout for layout, problem in zip(layouts, problems) if problem is None]
        if right:
            return Found(text, address, right)
        seen[text] = problems[0] or ""
        if len(seen) >= _MAX_CANDIDATES:
            break
    remedy = "give its text with --vmcoreinfo FILE; for QEMU guests use -device vmcoreinfo"
    if not seen:
        raise NotADump(f"no VMCOREINFO was found in {what}, so nothing tells which kernel it is", remedy)
    problem = next(iter(seen.values()))
    count = f"{len(seen)} were" if len(seen) > 1 else "one was"
    raise NotBelieved(f"no VMCOREINFO in {what} can be believed ({count} found): {problem}", remedy)


def why_not(read: ReadPhysical, text: bytes) -> Optional[str]:
    """What is wrong with VMCOREINFO for this memory; None if it is right.

    :param read: reads physical memory, and raises NotInDump.
    """
    info = _Info(text)
    release = info.lines.get("OSRELEASE", "")
    try:
        root, namespace = info.symbol("swapper_pg_dir"), info.symbol("init_uts_ns")
        start, base = info.symbol("_stext"), info.number("NUMBER(phys_base)")
        levels = 5 if info.number("NUMBER(pgtable_l5_enabled)", 0) else 4
        mask = (1 << 52) - 1 & ~info.number("NUMBER(sme_mask)", 0)
    except ValueError as error:
        return str(error)
    if not release:
        return "it has no OSRELEASE"

    def physical(address: int) -> int:
        return address - _START_KERNEL_MAP + base & (1 << 64) - 1

    geometry = x86_64.ARCHITECTURE.geometry(levels, mask)
    found = walk(read, geometry, physical(root), namespace)
    if found.physical is None or found.physical != physical(namespace):
        return f"by its page tables init_uts_ns is {found.state} and not where {release} was loaded"
    try:
        names = read(found.physical, _MAX_UTS_OFFSET + 3 * _UTS_FIELD)
    except KvintroError:
        return "init_uts_ns is not in this source"
    if not any(
        names.startswith(b"Linux\0", at)
        and names.startswith(release.encode("ascii", "replace") + b"\0", at + 2 * _UTS_FIELD)
        for at in range(0, _MAX_UTS_OFFSET)
    ):
        return f"init_uts_ns does not say {release}"
    build_id = info.lines.get("BUILD-ID")
    if build_id and not _has_build_id(read, physical(start), physical(namespace), build_id):
        return f"the image in memory does not have the build id {build_id}"
    return None


class _Info:
    """VMCOREINFO's lines."""

    def __init__(self, text: bytes) -> None:
        pairs = (line.split("=", 1) for line in text.decode("ascii", "replace").splitlines() if "=" in line)
        self.lines: Dict[str, str] = dict(pairs)

    def symbol(self, name: str) -> int:
        value = self._value(f"SYMBOL({name})", None, 16)
        if not _START_KERNEL_MAP <= value < _START_KERNEL_MAP + _MAX_IMAGE:
            raise ValueError(f"its {name} is not in a kernel's image")
        return value

    def number(self, key: str, default: Optional[int] = None) -> int:
        return self._value(key, default, 10)

    def _value(self, key: str, default: Optional[int], base: int) -> int:
        text = self.lines.get(key)
        if text is None:
            if default is None:
                raise ValueError(f"it has no {key}")
            return default
        try:
            return int(text, base)
        except ValueError:
            raise ValueError(f"its {key} is no number") from None


def _has_build_id(read: ReadPhysical, start: int, end: int, build_id: str) -> bool:
    """Whether the constants of an image (physical) have that build id; True if they are not all there."""
    try:
        wanted = bytes.fromhex(build_id)
    except ValueError:
        return False
    note = _GNU_BUILD_ID.pack(4, len(wanted), 3, b"GNU\0") + wanted
    step = 1 << 20
    end = min(end, start + _MAX_IMAGE)
    missing = False
    for at in range(start, end, step):
        try:
            if note in read(at, min(step + len(note), end - at)):
                return True
        except KvintroError:
            missing = True
    return missing
