# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads packed files: unpacks them, reads them in place if the format allows that, or finds a dump in a tar.

The first bytes of the content show its format before all of it is unpacked.
"""

from __future__ import annotations

from typing import Iterator, List, NamedTuple, Optional, Tuple

from kvintro.errors import NotADump, SourceError
from kvintro.source.blocks import in_blocks
from kvintro.source.content import Content, FileContent, Part
from kvintro.source.dump import Format
from kvintro.source.formats import recognise
from kvintro.source.formats.unread import HEAD
from kvintro.source.spool import copied
from kvintro.source.unpack import Unpacker, beginning, unpack

_MAX_LAYERS = 3  # a dump in a tar in gzip
_TAR = "tar"
_MAX_MEMBERS = 10000
_LIST = 4
#: Formats that can only be read from files, by libkdumpfile or after the records are put in order.
_FILES_ONLY = ("kdump", "flattened")


class Plain(NamedTuple):
    """The content of a packed file.

    :ivar layers: how it was packed, outermost first; empty if it was not.
    :ivar whole: whether all of it could be unpacked.
    """

    content: Content
    layers: Tuple[str, ...]
    whole: bool


class _Head(Content):
    """The first bytes of a content of unknown length."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = self.real = 1 << 40

    def at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size] if offset >= 0 else b""

    def stretches(self, start: int, end: int) -> Iterator[Tuple[int, int]]:
        yield start, end


def plain(content: Content, path: str, how: Unpacker) -> Plain:
    """The content of a file, unpacked if it is packed.

    :raises NotADump: it is packed, and the content is not a dump.
    :raises SourceError: it cannot be unpacked.
    """
    layers: List[str] = []
    whole = True
    for _ in range(_MAX_LAYERS):
        packing = recognise(content).packing
        if not packing:
            break
        layers.append(packing)
        if packing == _TAR:
            content = _member(content, path)
            continue
        try:
            data = beginning(content, packing, 64 * HEAD)
            inside = recognise(_Head(data))
            if not data or (inside.form is None and not inside.packing):
                raise _no_dump(path, packing, inside if data else None)
            blocks = None if inside.form in _FILES_ONLY else in_blocks(content, packing)
            if blocks is not None:
                content = blocks
                continue
            found = unpack(content, 0, packing, path, how)
        except NotADump:
            raise
        except SourceError as error:
            what = error.what if path in error.what else f"{path}: {error.what}"
            raise SourceError(what, error.remedy) from None
        content, whole = found.content, whole and found.whole
    if layers and not isinstance(content, FileContent) and recognise(content).form in _FILES_ONLY:
        content = copied(content, path)
    return Plain(content, tuple(layers), whole)


def _no_dump(path: str, packing: str, inside: Optional[Format]) -> NotADump:
    what, remedy = "nothing that can be unpacked", "is it damaged? copy it again whole"
    if inside is not None:
        what, remedy = inside.name, inside.advice
    return NotADump(f"{path} is compressed with {packing} and contains {what}", remedy)


def _member(content: Content, path: str) -> Content:
    """The dump in a tar archive, read in place.

    :raises NotADump: there is none, or more than one.
    """
    import tarfile

    block = tarfile.BLOCKSIZE
    found: List[Tuple[str, Part]] = []
    names: List[str] = []
    at = 0
    for _ in range(_MAX_MEMBERS):
        head = content.at(at, block)
        if len(head) < block or not any(head):
            break
        try:
            member = tarfile.TarInfo.frombuf(head, "utf-8", "replace")
        except tarfile.HeaderError:
            break
        at += block
        if member.size < 0:
            break
        if member.type == tarfile.GNUTYPE_SPARSE:
            raise NotADump(f"{path} contains a sparse file, {member.name}", "unpack it first: tar xSf FILE")
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            part = Part(content, at, member.size)
            known = recognise(part)
            names.append(member.name)
            if known.form is not None or (known.packing and known.packing != _TAR):
                found.append((member.name, part))
        at += -(-member.size // block) * block
    if len(found) == 1:
        return found[0][1]
    if not found:
        has = ", ".join(names[:_LIST]) or "no files"
        raise NotADump(f"{path} is a tar archive without a dump; it contains {has}", "give a dump of memory")
    has = ", ".join(name for name, _ in found[:_LIST])
    more = f" and {len(found) - _LIST} more" if len(found) > _LIST else ""
    raise NotADump(
        f"{path} is a tar archive with {len(found)} files that may be dumps: {has}{more}",
        "unpack it first: tar xf FILE; then give the dump that was in it",
    )
