# SPDX-License-Identifier: LGPL-2.1-or-later
"""A core's memory, changed by a test and written again."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from kvintro.arch.x86_64.facts import x86_facts
from kvintro.errors import NotInDump
from kvintro.kernels import Kernel
from kvintro.source.vmcoreinfo import candidates
from tests.conftest import Core
from tests.memory_files import dumped_ranges, kexec_elf, raw, with_pages
from tests.synthetic import elf_core

PAGE = 4096
_PIECE = 1 << 20
_PRESENT, _LARGE, _ADDRESS = 1, 1 << 7, 0xFFFFFFFFFF000

_NAME = b"VMCOREINFO\0\0"
_NOTE = struct.Struct("<III")  # namesz, descsz, type

Change = Callable[[int], int]


class Remade:
    """A copy of the physical memory in a core.

    :ivar note: VMCOREINFO's text.
    """

    def __init__(self, core: Core, kernel: Kernel) -> None:
        self.kernel = kernel
        self.note: str = kernel.prog["VMCOREINFO"].string_().decode()
        self._pieces: Dict[int, bytearray] = dict(_memory(core, kernel))
        self._gone: Set[int] = set()
        self._written: Set[int] = set()
        # The lab's core.kdump is flattened, as QEMU writes it; the shipped ones are not.
        plain = core.directory / "core-raw.kdump"
        self._kdump = plain if plain.exists() else core.directory / "core.kdump"

    def read(self, address: int, size: int) -> bytes:
        """A part of a page."""
        start, piece = self._piece(address)
        return bytes(piece[address - start : address - start + size])

    def write(self, address: int, data: bytes) -> None:
        """Change the bytes at a physical address."""
        start, piece = self._piece(address)
        assert address % PAGE + len(data) <= PAGE
        piece[address - start : address - start + len(data)] = data
        self._written.add(address & -PAGE)

    def entry(self, address: int) -> int:
        """The page-table entry at a physical address."""
        return int(struct.unpack("<Q", self.read(address, 8))[0])

    def leave_out(self, page: int) -> None:
        """Exclude the page frame at a physical address from the dump."""
        assert page % PAGE == 0
        self._gone.add(page)

    def say(self, key: str, value: object) -> None:
        """Change a line of VMCOREINFO."""
        self.note, count = re.subn(rf"^{re.escape(key)}=.*$", f"{key}={value}", self.note, flags=re.M)
        assert count == 1, key
        # The kernel's own copy, which is found in memory if there is no note.
        text = self.note.encode()
        for at in candidates(iter(sorted(self._pieces.items()))):
            name = self.read(at, _NOTE.size + len(_NAME))[_NOTE.size :]
            assert _NOTE.size + len(name) + len(text) <= PAGE
            self.write(at, (_NOTE.pack(len(_NAME) - 1, len(text), 0) + name + text).ljust(PAGE, b"\0"))

    def change_entries(self, roots: Iterable[int], change: Change) -> int:
        """Change all present entries of trees: those that point to tables, and those that map pages."""
        done: Set[int] = set()
        todo = [(root & ~0xFFF, self.kernel.levels.value) for root in roots]
        count = 0
        while todo:
            table, level = todo.pop()
            if table in done or not self.has(table):
                continue
            done.add(table)
            entries = list(struct.unpack("<512Q", self.read(table, PAGE)))
            for index, entry in enumerate(entries):
                if entry & _PRESENT:
                    if level > 1 and not entry & _LARGE:
                        todo.append((entry & _ADDRESS, level - 1))
                    entries[index] = change(entry)
                    count += 1
            self.write(table, struct.pack("<512Q", *entries))
        return count

    def segments(self) -> List[Tuple[int, bytes]]:
        """(physical address, content), ascending, without what was left out."""
        found: List[Tuple[int, bytes]] = []
        for start in sorted(self._pieces):
            piece = self._pieces[start]
            cut = start
            for page in sorted(p for p in self._gone if start <= p < start + len(piece)):
                found.append((cut, bytes(piece[cut - start : page - start])))
                cut = page + PAGE
            found.append((cut, bytes(piece[cut - start :])))
        joined: List[Tuple[int, List[bytes], int]] = []
        for at, data in found:
            if joined and joined[-1][2] == at:
                joined[-1] = joined[-1][0], [*joined[-1][1], data], at + len(data)
            elif data:
                joined.append((at, [data], at + len(data)))
        return [(at, b"".join(parts)) for at, parts, _ in joined]

    def as_qemu(self, path: Path) -> Path:
        """An ELF file without virtual addresses, as QEMU writes it."""
        notes = [("VMCOREINFO", 0, self.note.encode())]
        path.write_bytes(elf_core([(0, at, data) for at, data in self.segments()], notes))
        return path

    def as_vmcore(self, path: Path) -> Path:
        """An ELF file with the virtual addresses of direct map and image, as in kexec's /proc/vmcore."""
        kernel = self.kernel
        text = kernel.text.value
        text_at = text - 0xFFFFFFFF80000000 + x86_facts(kernel).phys_base.value
        base = kernel.linear_offset.value
        path.write_bytes(kexec_elf(self.segments(), self.note.encode(), base, text, text_at))
        return path

    def as_kdump(self, path: Path) -> Path:
        """The core's own kdump with the changes."""
        pages: Dict[int, Optional[bytes]] = {address >> 12: None for address in self._gone}
        for address in self._written - self._gone:
            pages[address >> 12] = self.read(address, PAGE)
        path.write_bytes(with_pages(self._kdump.read_bytes(), pages, self.note.encode()))
        return path

    def as_raw(self, path: Path) -> Path:
        """A file of raw memory."""
        raw(path, self.segments())
        return path

    def has(self, address: int) -> bool:
        """Whether the core contains a physical address."""
        return any(start <= address < start + len(piece) for start, piece in self._near(address))

    def _near(self, address: int) -> Iterator[Tuple[int, bytearray]]:
        for start in (address & -_PIECE, address & -PAGE):
            if start in self._pieces:
                yield start, self._pieces[start]

    def _piece(self, address: int) -> Tuple[int, bytearray]:
        for start, piece in self._near(address):
            if address < start + len(piece):
                return start, piece
        raise AssertionError(f"the core has nothing at {address:#x}")


def process_roots(kernel: Kernel) -> Dict[int, int]:
    """Physical address of the root of each process, by pid."""
    from drgn.helpers.linux.pid import for_each_task

    roots = {}
    for task in for_each_task(kernel.prog):
        if task.mm:
            found = kernel.walk(task.mm.pgd.value_()).physical
            assert found is not None
            roots[int(task.pid)] = found
    return roots


def all_roots(kernel: Kernel) -> List[int]:
    """The roots of the kernel, processes and firmware, and their user halves under page-table isolation."""
    roots = [kernel.root.value, *process_roots(kernel).values()]
    if kernel.find_symbol("efi_mm") is not None:
        pgd = kernel.prog["efi_mm"].pgd.value_()
        found = kernel.walk(pgd).physical if pgd else None
        roots += [] if found is None else [found]
    return [*roots, *(root | PAGE for root in roots if kernel.isolation.value)]


def encrypt(remade: Remade, bit: int) -> None:
    """Make it the memory of a kernel with AMD's memory encryption, with the C-bit in every entry."""
    kernel = remade.kernel
    roots = all_roots(kernel)
    mask = 1 << bit
    remade.say("NUMBER(sme_mask)", mask)
    values = {"physical_mask": (1 << 52) - 1 & ~mask, "sme_me_mask": mask}
    for name, value in values.items():
        address = kernel.find_symbol(name)
        if address is not None:
            at = kernel.walk(address).physical
            assert at is not None
            remade.write(at, value.to_bytes(8, "little"))
    assert remade.change_entries(roots, lambda entry: entry | mask) > 1000


def _memory(core: Core, kernel: Kernel) -> Iterator[Tuple[int, bytearray]]:
    """All of the core's RAM, in pieces of 1 MB and in pages around holes."""
    for start, end in dumped_ranges(core.path):
        at = start
        while at < end:
            size = min(_PIECE - at % _PIECE, end - at)
            try:
                if at % _PIECE:
                    raise NotInDump(at, size, physical=True)
                yield at, bytearray(kernel.read_physical(at, size))
            except NotInDump:
                for page in range(at, at + size, PAGE):
                    try:
                        yield page, bytearray(kernel.read_physical(page, PAGE))
                    except NotInDump:
                        continue
            at += size
