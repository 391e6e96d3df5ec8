# SPDX-License-Identifier: LGPL-2.1-or-later
"""Detects the format of a file from its content: formats that kvintro reads, and others that it may be given.

To add a format, add a module here with a ``FORMAT`` (see :mod:`kvintro.source.dump`) and list it in
:data:`READERS`.
"""

from __future__ import annotations

from typing import BinaryIO, Callable, Optional, Tuple, Union

from kvintro.errors import NotADump, UsageError
from kvintro.source.beside import Beside
from kvintro.source.content import Content, FileContent
from kvintro.source.dump import COPY_AGAIN, READS, Dump, Format, begins
from kvintro.source.flattened import MAGIC as FLATTENED_MAGIC
from kvintro.source.flattened import Flattened
from kvintro.source.formats import (
    avml,
    elf,
    kdump,
    libvirt,
    lime,
    microvm,
    qcow2,
    qemu,
    raw,
    virtualbox,
    vmware,
    xen_core,
    xl_save,
)
from kvintro.source.formats.unread import HEAD, LOOKALIKES, OTHERS

#: A flattened file; rearranged, it is an ELF file or a kdump, see :func:`examine`.
FLATTENED = Format("a flattened dump", begins(FLATTENED_MAGIC), form="flattened")
#: The formats that kvintro reads and that have their own mark.
READERS: Tuple[Format, ...] = (
    virtualbox.FORMAT,
    xen_core.FORMAT,
    elf.FORMAT,
    kdump.FORMAT,
    FLATTENED,
    lime.FORMAT,
    avml.FORMAT,
    qemu.FORMAT,
    libvirt.FORMAT,
    qcow2.FORMAT,
    vmware.FORMAT,
    xl_save.FORMAT,
)
#: All formats, in the order in which they are tried; the first that fits is used.
FORMATS = (*LOOKALIKES, *READERS, *OTHERS, raw.FORMAT)
#: Readers of raw memory that is described by a file beside it.
_DESCRIBED: Tuple[Callable[[Content, str, Beside], Optional[Dump]], ...] = (
    vmware.read_memory,
    microvm.read_memory,
)
_UNKNOWN = Format("not a kernel dump", lambda content, head: True, READS)


def recognise(content: Content) -> Format:
    """The format of a file; never fails."""
    head = content.at(0, HEAD)
    return next((each for each in FORMATS if each.fits(content, head)), _UNKNOWN)


def examine(
    file: Union[BinaryIO, Content],
    path: str,
    form: Optional[str] = None,
    snapshot: Optional[str] = None,
    beside: Optional[Beside] = None,
) -> Dump:
    """Detect the format of a dump, and read its headers.

    :param path: name of the file in messages.
    :param form: one of :data:`~kvintro.model.DUMP_FORMATS`; None to detect it from the content.
    :param snapshot: the snapshot to read, if the file has several.
    :param beside: other files that may belong to it.
    :raises NotADump: it is not a dump, or its headers are invalid.
    :raises UsageError: it has no such snapshot.
    """
    try:
        content = file if isinstance(file, Content) else FileContent(file)
        return _examined(content, path, form, snapshot, beside or Beside())
    except NotADump as error:
        if path in error.what:
            raise
        raise NotADump(f"{path}: {error.what}", error.remedy) from error


def _examined(file: Content, path: str, form: Optional[str], snapshot: Optional[str], beside: Beside) -> Dump:
    if snapshot is not None:
        if recognise(file) is not qcow2.FORMAT:
            raise UsageError(f"{path} has no snapshots", "--snapshot needs a qcow2 disk image")
        return qcow2.Qcow2Dump(file, path, snapshot)
    if form == raw.FORMAT.form:
        return raw.RawDump(file, path, forced=True)
    size = file.size
    content: Content = file
    found = recognise(content)
    if found is FLATTENED:
        assert isinstance(file, FileContent)
        content = Flattened(file)
        found = recognise(content)
        if found not in (elf.FORMAT, kdump.FORMAT):
            if not content.complete:
                raise NotADump(f"{path}: the flattened dump is truncated before its header", COPY_AGAIN)
            raise NotADump(f"{path} is a flattened file, but not a kernel dump", "take the dump again")
    if form not in (None, found.form):
        raise NotADump(
            f"{path} does not have the format {form}",
            "omit --format-in: the content shows the format",
        )
    if found is raw.FORMAT and form is None:
        described = next(filter(None, (read(content, path, beside) for read in _DESCRIBED)), None)
        if described is not None:
            return described
    if found.read_with is not None:
        return found.read_with(content, path, beside)
    if found.read is None:
        raise NotADump(f"{path} is {found.name}", found.advice)
    dump = found.read(content, path)
    dump.size = size
    return dump
