# SPDX-License-Identifier: LGPL-2.1-or-later
"""Damaged files of other hypervisors: headers, tags and tables, and files that are cut off."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Dict, List

from kvintro.errors import KvintroError, NotInDump
from kvintro.source.beside import Beside
from kvintro.source.content import FileContent
from kvintro.source.formats import examine
from tests.fuzz.damage import damaged
from tests.fuzz.saved import made_up_pages
from tests.fuzz.targets import _File
from tests.hypervisors import (
    PAGE,
    cloud_hypervisor_state,
    debug_guest,
    libxc_stream,
    virtualbox_core,
    vmware_state,
    xen_core,
    xl_save,
)

#: Files by name: the first one is opened, and the last one has the memory.
Files = Dict[str, bytes]

_SIZE = 20 << 20


def made_up_memory() -> bytes:
    """The memory of a made-up kernel, from the first byte to the last."""
    flat = bytearray(_SIZE)
    for number, data in made_up_pages().items():
        flat[number * PAGE : (number + 1) * PAGE] = data
    return bytes(flat)


def _write(path: Path, data: bytes) -> None:
    """A file whose zeros are holes."""
    with path.open("wb") as file:
        for at in range(0, len(data), 1 << 16):
            part = data[at : at + (1 << 16)]
            if any(part):
                file.seek(at)
                file.write(part)
        file.truncate(len(data))


class Hypervisors(_File):
    """Files of VMware, VirtualBox, Xen and others, one of them damaged or cut off.

    Data read from a file that was only cut off must equal the whole file's.
    """

    name = "hypervisors"
    cases = 1200

    def prepare(self) -> None:
        super().prepare()
        self._directory = self.path.parent
        self._memory = made_up_memory()
        self._pages = sorted(made_up_pages())
        half = _SIZE // 2 // PAGE
        turned = self._memory[half * PAGE :] + self._memory[: half * PAGE]
        regions = [(0, half, half), (half, 0, half)]
        pages = sorted(made_up_pages().items())
        batches = [pages[at : at + 10] for at in range(0, len(pages), 10)]
        old = [(frame, bytes([data[0]]) + data[1:]) for frame, data in pages[::3]]
        self._kinds: List[Files] = [
            {"a.vmss": vmware_state(regions), "a.vmem": turned},
            {"a.vmem": turned, "a.vmsn": vmware_state(regions)},
            {"a.vmss": vmware_state(regions, turned, padding=9)},
            {"a.vmss": vmware_state(regions, turned, packed=True, mark=0xBED2BED0)},
            {"core": virtualbox_core([(0, self._memory)], [(0xE0000000, _SIZE)])},
            {"core": xen_core(pages)},
            {"save": xl_save(libxc_stream([old, *batches]))},
            {"save": libxc_stream(batches)},
            {
                "memory-ranges": self._memory,
                "state.json": cloud_hypervisor_state([(0, _SIZE // 2), (_SIZE // 2, _SIZE // 2)], "text"),
            },
            {"debug.guest": debug_guest(4, _SIZE // PAGE, []), "debug.vmem": self._memory},
            {"debug.vmem": self._memory, "debug.guest": debug_guest(1, _SIZE // PAGE, [])},
        ]

    def run(self, chosen: random.Random) -> None:
        files = dict(chosen.choice(self._kinds))
        state = min(files, key=lambda name: len(files[name]))
        name = state if chosen.random() < 0.8 else chosen.choice([*files])
        data = files[name]
        cut = chosen.random() < 0.3
        if cut:
            files[name] = data[: chosen.randrange(chosen.choice((200, len(data))))]
        else:
            head = min(len(data), chosen.choice((20, 400, 5000)))
            files[name] = damaged(chosen, data[:head]) + data[head:]
        for old in self._directory.iterdir():
            old.unlink()
        for each, content in files.items():
            _write(self._directory / each, content)
        self.path = self._directory / next(iter(files))
        if cut:
            self._compare(self.path, files)
        self.ask(chosen)

    def _compare(self, path: Path, files: Files) -> None:
        with contextlib.suppress(KvintroError), path.open("rb") as file:
            dump = examine(FileContent(file), "FILE", beside=Beside(str(path)))
            if dump.format == "raw memory":
                return  # without its state, the places of the pages are unknown
            for page in self._pages:
                with contextlib.suppress(NotInDump):
                    assert dump.layouts[0].read(page * PAGE, PAGE) == self._memory[page * PAGE :][:PAGE]
