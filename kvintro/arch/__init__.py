# SPDX-License-Identifier: LGPL-2.1-or-later
"""One package per architecture. The rest of kvintro uses the architecture of its kernel.

To add an architecture, add a package here with an ``ARCHITECTURE``; no other code has to change. Its modules
have fixed names. docs/architecture.md says what each contains and what it may import:

* ``form``: the :class:`~kvintro.arch.form.PagingForm` of its page tables; ``entries``: an
  :class:`~kvintro.arch.entry.EntryFormat`, which decodes entries, and ``of_any``; ``ptdump_text``: the format
  of a line of the kernel's ptdump, as ``TEXT``, see :class:`~kvintro.arch.ptdump_text.PtdumpText`; ``slots``:
  the places that KASLR chooses from. Pure arithmetic.
* ``address_space``: ``space_of``, which makes the :class:`~kvintro.arch.address_space.AddressSpace` that
  VMCOREINFO describes.
* ``facts``: facts of a kernel's address space, as ``FACTS``, see :class:`kvintro.kernels.Facts`.
* ``ptdump``: what the kernel's ptdump shows of a tree, as ``DUMP``, see :class:`kvintro.queries.ptdump.Dump`.
* ``roots``, if needed: page-table roots that only it has, as ``ROOTS``, see :mod:`kvintro.queries.roots`.
* ``variables``, if needed: types of variables that only its kernels have.
* ``regions``: the regions that only this architecture has, one module each, and in ``regions.explained``
  their texts for ``kvintro explain``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Mapping, Optional, Sequence, Tuple

from kvintro.arch.address_space import AddressSpace
from kvintro.arch.entry import EntryFormat
from kvintro.arch.form import SMALLEST_PAGE
from kvintro.arch.image import InnerPart, Part
from kvintro.arch.others import elf_machine_name
from kvintro.arch.ptdump_text import PtdumpText
from kvintro.errors import WrongArchitecture
from kvintro.model import ALL


@dataclass(frozen=True, eq=False)
class Architecture:
    """``ARCHITECTURE`` in the package of an architecture.

    :ivar name: its name for display and for JSON's ``arch``.
    :ivar package: full name of its package.
    :ivar drgn_name: name of drgn's ``Architecture``.
    :ivar elf_machine: ``e_machine`` of its ELF files.
    :ivar machine: ``utsname.machine`` of its kernels.
    :ivar qemu_machine: its name in the headers of kdumps that QEMU writes.
    :ivar vmcoreinfo_keys: keys of VMCOREINFO that only its kernels have.
    :ivar vmcoreinfo_last: the key that its kernels write last. A text without it was cut off.
    :ivar minimal_lines: lines of VMCOREINFO, see :meth:`minimal_vmcoreinfo`.
    :ivar image_parts: the main parts of the kernel's image, in the order of addresses.
    :ivar image_inner: parts of the main parts.
    :ivar ram_from_zero: whether all its machines have RAM at physical address 0.
    :ivar page_sizes: possible sizes of the smallest page of its kernels, in bytes.
    :ivar root_symbol: the kernel's root table in symbol tables; in VMCOREINFO it is always
        ``swapper_pg_dir``.
    :ivar protected_pages: variables of one page each that are read-only although they are among writable
        ones.
    :ivar unused_top: start of the last addresses, where nothing is mapped. Error pointers (MAX_ERRNO) and
        poison values are here.
    :ivar marked_variables: variables recognised by their content: a regular expression, and the offset where
        it matches.
    """

    name: str
    package: str
    drgn_name: str
    elf_machine: int
    machine: str
    qemu_machine: str
    vmcoreinfo_keys: Sequence[str]
    vmcoreinfo_last: str
    minimal_lines: bytes
    image_parts: Sequence[Part]
    image_inner: Sequence[InnerPart]
    ram_from_zero: bool = False
    page_sizes: Sequence[int] = (SMALLEST_PAGE,)
    root_symbol: str = "swapper_pg_dir"
    protected_pages: Sequence[str] = ()
    unused_top: int = ALL + 1 - SMALLEST_PAGE
    marked_variables: Mapping[str, Tuple[bytes, int]] = field(default_factory=dict)

    def minimal_vmcoreinfo(self, page_size: int) -> bytes:
        """The minimum for drgn and libkdumpfile to read physical memory."""
        return b"PAGESIZE=%d\n" % page_size + self.minimal_lines

    def address_space(self, lines: Mapping[str, str]) -> AddressSpace:
        """The address space that the lines of VMCOREINFO describe.

        :raises ValueError: a number is malformed or impossible. The text says which: "its KEY is ...".
        """
        found: AddressSpace = part(self, "address_space").space_of(lines)
        return found


def architectures() -> Sequence[Architecture]:
    """All architectures that have a package here."""
    return _in(tuple(__path__))


@cache
def _in(path: Tuple[str, ...]) -> Sequence[Architecture]:
    return tuple(
        module.ARCHITECTURE
        for info in pkgutil.iter_modules(path)
        if info.ispkg
        for module in [importlib.import_module(f"{__name__}.{info.name}")]
        if hasattr(module, "ARCHITECTURE")
    )


def by_elf_machine(machine: int) -> Architecture:
    """The architecture of an ELF file's ``e_machine``.

    :raises WrongArchitecture: kvintro does not support it.
    """
    for arch in architectures():
        if arch.elf_machine == machine:
            return arch
    raise unsupported(elf_machine_name(machine))


def by_machine(machine: str) -> Architecture:
    """The architecture of a kernel's ``utsname.machine``, or of QEMU's name for it in kdumps.

    :raises WrongArchitecture: kvintro does not support it.
    """
    for arch in architectures():
        if machine in (arch.machine, arch.qemu_machine):
            return arch
    raise unsupported(machine or "unknown")


def by_vmcoreinfo(lines: Mapping[str, str]) -> Optional[Architecture]:
    """The architecture of the kernel that wrote the lines; None if unknown."""
    for arch in architectures():
        if all(lines.get(key) for key in arch.vmcoreinfo_keys):
            return arch
    return None


def by_drgn_name(name: str) -> Architecture:
    """The architecture of a drgn program's platform.

    :raises WrongArchitecture: kvintro does not support it.
    """
    for arch in architectures():
        if arch.drgn_name == name:
            return arch
    raise unsupported(name)


def by_name(name: str) -> Architecture:
    """The architecture of JSON's ``arch``.

    :raises WrongArchitecture: kvintro does not support it.
    """
    for arch in architectures():
        if arch.name == name:
            return arch
    raise unsupported(name)


def of_this_machine() -> Architecture:
    """The architecture of the machine that this runs on, if kvintro supports it; otherwise any."""
    known = architectures()
    return next((arch for arch in known if arch.machine == os.uname().machine), known[-1])


def part(arch: Architecture, name: str) -> Any:
    """A module of an architecture, by its fixed name."""
    return importlib.import_module(f"{arch.package}.{name}")


def entries_of_any(arch: Architecture, level: str) -> EntryFormat:
    """A decoder of entries for all kernels of an architecture.

    :param level: the level of the tables, by name or number.
    """
    found: EntryFormat = part(arch, "entries").of_any(level)
    return found


def ptdump_text_of(arch: Architecture) -> PtdumpText:
    """The format of lines of the kernel's ptdump."""
    found: PtdumpText = part(arch, "ptdump_text").TEXT
    return found


def unsupported(name: str) -> WrongArchitecture:
    """The error for a dump of an architecture that kvintro does not support."""
    return WrongArchitecture(
        f"the dump's architecture is not supported: {name}", f"kvintro reads kernels of {names()}"
    )


def names() -> str:
    """Names of the architectures that have a package here, for display."""
    return ", ".join(arch.name for arch in architectures())
