# SPDX-License-Identifier: LGPL-2.1-or-later
"""One file per architecture: constants and pure arithmetic, no drgn.

An architecture is added by adding a file here with an ``ARCHITECTURE``; nothing else has to know of it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, List, Optional, Protocol, Sequence, Tuple

from kvintro.errors import WrongArchitecture


class Geometry(Protocol):
    """Page-table geometry of one kernel: what :mod:`kvintro.paging` needs to walk its tables.

    Levels are counted from 1 (tables of 4K pages on x86-64) to ``levels`` (the root). All tables have
    512 entries of 8 bytes.
    """

    levels: int
    flags_mask: int
    pfn_mask: int

    def shift(self, level: int) -> int:
        """log2 of the bytes that one entry of a table at ``level`` spans."""

    def large_levels(self) -> Sequence[int]:
        """Levels above 1 at which an entry may map a page itself."""

    def large_bit(self) -> int:
        """The bit that says an entry at such a level maps a page."""

    def sign_extend(self, address: int) -> int:
        """The canonical address with the given low bits."""


class Architecture(Protocol):
    """What an architecture file exports as ``ARCHITECTURE``."""

    name: str
    drgn_name: str
    elf_machine: int
    machine: str
    regions: Tuple[Any, ...]

    def geometry(self, levels: int, physical_mask: int) -> Geometry:
        """The geometry with ``levels`` of paging; entries hold addresses within ``physical_mask``."""


def architectures() -> List[Architecture]:
    """All architectures that have a file here."""
    return [
        module.ARCHITECTURE
        for info in pkgutil.iter_modules(__path__)
        for module in [importlib.import_module(f"{__name__}.{info.name}")]
        if hasattr(module, "ARCHITECTURE")
    ]


def by_elf_machine(machine: int) -> Architecture:
    """The architecture of an ELF file's ``e_machine``.

    :raises WrongArchitecture: kvintro has none of that number.
    """
    known = architectures()
    for arch in known:
        if arch.elf_machine == machine:
            return arch
    names = {3: "i386", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 183: "aarch64", 243: "riscv"}
    raise _wrong(names.get(machine, f"ELF machine {machine}"))


def by_machine(machine: str) -> Optional[Architecture]:
    """The architecture of a kernel's ``utsname.machine``; None for none, as QEMU writes it into kdumps.

    :raises WrongArchitecture: kvintro has none of that name.
    """
    for arch in architectures():
        if arch.machine == machine:
            return arch
    if machine:
        raise _wrong(machine)
    return None


def _wrong(name: str) -> WrongArchitecture:
    known = ", ".join(arch.name for arch in architectures())
    return WrongArchitecture(
        f"the dump is of another architecture ({name})", f"kvintro reads kernels of {known}"
    )
