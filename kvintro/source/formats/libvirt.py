# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests that libvirt saved (virsh save, managedsave, snapshots with --memspec): a header and QEMU's stream.

libvirt's src/qemu/qemu_saveimage.h: a mark, then numbers in the byte order of the host, 92 bytes in total;
then the guest's XML, and the stream, which may be compressed as a whole.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple, Optional

from kvintro.errors import NotADump
from kvintro.source.content import Content
from kvintro.source.dump import COPY_AGAIN, Format, begins
from kvintro.source.formats.qemu import QemuDump
from kvintro.source.opened import Source
from kvintro.source.unpack import unpacked
from kvintro.source.vmcoreinfo import Chosen

MAGIC, UNFINISHED = b"LibvirtQemudSave", b"LibvirtQemudPart"
_HEADER_SIZE = 92
_NUMBERS = "IIIII"  # version, bytes of XML, whether the guest ran, format, where in the XML its cookie begins
_VERSIONS = (1, 2)
_FORMATS = ("raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse")
_IN_PLACE = ("raw", "sparse")
_MAX_XML = 16 << 20
_NAME = re.compile(rb"<name>([^<]{1,200})</name>")
_UNFINISHED = "libvirt did not finish this file; missing memory is shown as not in the dump"


class Header(NamedTuple):
    """Content of libvirt's header.

    :ivar stream: offset of the stream.
    :ivar form: how it is packed, by libvirt's name.
    """

    stream: int
    form: str
    name: Optional[str]
    unfinished: bool


def read_header(content: Content, path: str) -> Header:
    """Read the header.

    :raises NotADump: it is invalid or of an unknown version.
    """
    head = content.at(0, _HEADER_SIZE)
    if len(head) < _HEADER_SIZE:
        raise NotADump(f"{path} is truncated within its header", COPY_AGAIN)
    for order in "<>":
        version, length, _, number, _ = struct.unpack_from(order + _NUMBERS, head, len(MAGIC))
        if version in _VERSIONS:
            break
    else:
        raise NotADump(f"{path}: libvirt's header has an unknown version", "copy it again whole")
    if length > _MAX_XML:
        raise NotADump(f"{path}: invalid libvirt header", COPY_AGAIN)
    if number >= len(_FORMATS):
        raise NotADump(
            f"{path}: libvirt's header has the unknown format {number}",
            "load it with virsh restore --paused FILE, then virsh dump --memory-only DOMAIN FILE",
        )
    found = _NAME.search(content.at(_HEADER_SIZE, length))
    name = found[1].decode("utf-8", "replace") if found is not None else None
    return Header(_HEADER_SIZE + length, _FORMATS[number], name, head.startswith(UNFINISHED))


class LibvirtDump(QemuDump):
    """A file that libvirt saved."""

    def __init__(self, content: Content, path: str) -> None:
        header = read_header(content, path)
        self._unfinished = header.unfinished
        start = header.stream
        if header.form not in _IN_PLACE:
            content, start = unpacked(content, header.stream, header.form, path), 0
        of = f" of {header.name}" if header.name else ""
        form = "libvirt save file" + (f", {header.form}" if header.form != "raw" else "")
        super().__init__(content, path, start=start, form=form, writer=f"libvirt{of}")

    def opened(self, chosen: Chosen) -> Source:
        source = super().opened(chosen)
        if self._unfinished:
            source.warnings.append(_UNFINISHED)
        return source


FORMAT = Format("a guest saved by libvirt", begins(MAGIC, UNFINISHED), form="libvirt", read=LibvirtDump)
