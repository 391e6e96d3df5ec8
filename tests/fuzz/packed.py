# SPDX-License-Identifier: LGPL-2.1-or-later
"""Packed dumps that are damaged, cut off, or far larger than their packed files."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import os
import random
import tarfile
from typing import Callable, List, Sequence

from kvintro.errors import KvintroError, NotInDump
from kvintro.source.content import FileContent
from kvintro.source.formats import examine
from kvintro.source.packed import plain
from kvintro.source.unpack import Unpacker
from tests.fuzz.damage import damaged
from tests.fuzz.hypervisors import made_up_memory
from tests.fuzz.saved import made_up_pages
from tests.fuzz.targets import _File, made_up_file
from tests.hypervisors import PAGE
from tests.memory_files import lime
from tests.packers import IN_BLOCKS, PACKERS

Packer = Callable[[bytes], bytes]


def _tar(data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("memory")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


class Packed(_File):
    """A packed dump that is damaged, cut off, or a decompression bomb.

    Data read from one that was only cut off must equal the whole dump's.
    """

    name = "packed dumps"
    cases = 600

    def prepare(self) -> None:
        super().prepare()
        os.environ["XDG_CACHE_HOME"] = str(self.path.parent / "cache")
        self._memory = made_up_memory()
        self._pages = sorted(made_up_pages())
        # lzop is a program, and starting it for each case is slow.
        known = [pack for name, pack in PACKERS.items() if name != "lzop"]
        packers: Sequence[Packer] = (*known, *IN_BLOCKS.values())
        dump = lime([(0, self._memory)])
        self._files: List[bytes] = [pack(dump) for pack in packers]
        self._files += [_tar(made_up_file()), gzip.compress(_tar(made_up_file()), 1, mtime=0)]
        zeros = lime([(0, bytes(200 << 20))])
        self._bombs = [gzip.compress(zeros), bz2.compress(zeros), lzma.compress(zeros, preset=0)]

    def run(self, chosen: random.Random) -> None:
        way = chosen.random()
        data = chosen.choice(self._files)
        if way < 0.02:
            data = chosen.choice(self._bombs) * chosen.choice((1, 3))
        elif way < 0.6:
            head = min(len(data), chosen.choice((20, 100, 3000, len(data))))
            data = damaged(chosen, data[:head]) + data[head:]
            if chosen.random() < 0.3:
                data = data[:-30] + damaged(chosen, data[-30:])
        elif way < 0.9:
            data = data[: chosen.randrange(chosen.choice((100, len(data))))]
        self.path.write_bytes(data)
        if way >= 0.6:
            self._compare()
        self.ask(chosen, *chosen.choice(((), ("--no-cache",))))

    def _compare(self) -> None:
        with contextlib.suppress(KvintroError), self.path.open("rb") as file:
            dump = examine(plain(FileContent(file), "FILE", Unpacker()).content, "FILE")
            if dump.format != "LiME":
                return
            for page in self._pages:
                with contextlib.suppress(NotInDump):
                    assert dump.layouts[0].read(page * PAGE, PAGE) == self._memory[page * PAGE :][:PAGE]
