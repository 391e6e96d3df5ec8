# SPDX-License-Identifier: LGPL-2.1-or-later
"""Damaged files of guests saved by QEMU and libvirt: streams, libvirt's files, snapshots in disk images."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import random
import struct
from typing import Callable, Dict, List, Sequence

from kvintro.errors import NotADump, NotInDump
from kvintro.source.formats import examine
from kvintro.source.formats.qemu import QemuDump
from tests.fuzz.damage import damaged
from tests.fuzz.targets import _File, made_up_info, made_up_memory
from tests.saved_guests import (
    PACKED,
    PAGE,
    PLAIN,
    XBZRLE,
    ZERO,
    Record,
    clock,
    libvirt,
    mapped,
    qcow2,
    stream,
)

_SIZE = 32 << 20
_NOTE_AT = 0x200000


def made_up_pages() -> Dict[int, bytes]:
    """The pages of a made-up kernel with its VMCOREINFO, by number."""
    memory = made_up_memory()
    text = made_up_info().encode()
    note = struct.pack("<III", 11, len(text), 0) + b"VMCOREINFO\0\0" + text
    memory.write(_NOTE_AT, note)
    return {at // PAGE: bytes(data) for at, data in memory.pages.items()}


def made_up_records(pages: Dict[int, bytes]) -> List[Record]:
    """All pages, some of them twice."""
    records: List[Record] = []
    for number, (page, data) in enumerate(sorted(pages.items())):
        kind = (PLAIN, PACKED, PLAIN)[number % 3]
        before = bytes([data[0] ^ 1]) + data[1:]
        if number % 4 == 0:
            records += [("pc.ram", page, PLAIN, b"", before), ("pc.ram", page, XBZRLE, before, data)]
        else:
            records.append(("pc.ram", page, kind, b"", data))
    zeros = [page for page in range(_NOTE_AT // PAGE) if page not in pages]
    return records + [("pc.ram", page, ZERO, b"", bytes(PAGE)) for page in zeros[:40]]


class SavedGuests(_File):
    """A saved guest whose headers, records or tables are damaged, or that is cut off.

    Data read from one that was only cut off must equal the whole file's.
    """

    name = "saved guests"
    cases = 1500

    def prepare(self) -> None:
        super().prepare()
        self._pages = made_up_pages()
        blocks = [("pc.ram", _SIZE), ("vga.vram", 16 * PAGE)]
        plain = stream(blocks, made_up_records(self._pages), tail=clock(_SIZE, 0))
        makers: Sequence[Callable[[], bytes]] = (
            lambda: plain,
            lambda: stream(blocks, made_up_records(self._pages), machine=None),
            lambda: mapped("pc.ram", 64 * PAGE, {n % 64: data for n, data in self._pages.items()}),
            lambda: libvirt(plain, 0),
            lambda: libvirt(gzip.compress(plain, mtime=0), 1, order=">"),
            lambda: libvirt(lzma.compress(plain), 3),
            lambda: qcow2([("one", plain), ("two", plain)], bits=12),
            lambda: qcow2([("one", plain)], bits=9, extended=True, disk=1 << 20),
        )
        self._files = [make() for make in makers]

    def run(self, chosen: random.Random) -> None:
        data = chosen.choice(self._files)
        way = chosen.random()
        if way < 0.6:
            head = chosen.choice((40, 300, 5000, len(data)))
            data = damaged(chosen, data[:head]) + data[head:]
        elif way < 0.9:
            data = data[: chosen.randrange(chosen.choice((600, len(data))))]
        self.path.write_bytes(data)
        if 0.6 <= way < 0.9 and data[:4] == b"QEVM" and b"mapped-ram" not in data[:200]:
            self._compare(chosen)
        more = ("--snapshot", chosen.choice(("one", "two", "3"))) if data.startswith(b"QFI") else ()
        self.ask(chosen, *more)

    def _compare(self, chosen: random.Random) -> None:
        with contextlib.suppress(NotADump), self.path.open("rb") as file:
            dump = examine(file, "FILE")
            assert isinstance(dump, QemuDump)
            for page in self._pages:
                with contextlib.suppress(NotInDump):
                    found = dump.layouts[0].read(page * PAGE, PAGE)
                    # Or the content before its delta.
                    assert found[1:] == self._pages[page][1:], f"{page:x}"
