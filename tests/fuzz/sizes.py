# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps that lie about sizes, in sparse files; flattened dumps; dumps that come through a pipe."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import struct
import tempfile
import threading
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Sequence, Tuple

from kvintro.errors import KvintroError
from kvintro.source.content import FileContent
from kvintro.source.flattened import MAGIC, Flattened
from tests import timing
from tests.fuzz.damage import damaged
from tests.fuzz.harness import MEMORY, Target
from tests.fuzz.targets import check_inert, made_up_file, run_main
from tests.memory_files import flattened
from tests.synthetic import vmcoreinfo

Piece = Tuple[int, bytes]  # offset, content
MB = 1 << 20
_COMMANDS = ("info", "layout", "translate ffffffff81000000")


class Liar:
    """Returns numbers: mostly the correct ones, otherwise different ones, which are usually too large."""

    def __init__(self, chosen: random.Random) -> None:
        self.chosen = chosen
        self._often = chosen.choice((0.03, 0.1, 0.5))

    def __call__(self, honest: int, bits: int) -> int:
        """A number with this many bits."""
        chosen = self.chosen
        if chosen.random() > self._often:
            return honest
        if chosen.random() < 0.6:
            return (1 << chosen.randrange(bits)) + chosen.choice((-1, 0, 0, 1)) & (1 << bits) - 1
        return chosen.choice((0, 1, (1 << bits) - 1, (1 << bits - 1) - 1, 1 << bits - 1))


def _note(lie: Liar) -> bytes:
    text = vmcoreinfo().encode()
    return (
        struct.pack("<III", lie(11, 32), lie(len(text), 32), 0) + b"VMCOREINFO\0\0" + text.ljust(4096, b"\0")
    )


def _elf(lie: Liar) -> Iterator[Piece]:
    chosen = lie.chosen
    count = chosen.randint(1, 6)
    shoff = 1 << chosen.randrange(12, 43)
    number = chosen.choice((count, lie(count, 16), 0xFFFF))
    fields = (
        4, 62, 1, 0, lie(64, 40), lie(shoff, 64), 0, 64,
        lie(56, 16), number, lie(64, 16), lie(0, 16), 0,
    )  # fmt: skip
    yield 0, b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", *fields)
    headers = b"".join(
        struct.pack(
            "<IIQQQQQQ",
            chosen.choice((1, 1, 4)),
            7,
            lie(4096, 64),
            lie(0xFFFFFFFF80000000, 64),
            lie(0, 64),
            lie(4096, 64),
            lie(4096, 64),
            1,
        )
        for _ in range(count)
    )
    yield 64, headers * (chosen.choice((1, 1, 10000)) if number == 0xFFFF else 1)
    yield shoff, bytes(44) + struct.pack("<I", lie(1 << 20, 32)) + bytes(16)
    empty = b"\1\0\0\0\0\0\0\0\0\0\0\0A\0\0\0"
    yield 4096, chosen.choice((_note(lie), _note(lie), empty * chosen.choice((10, MB)) + _note(lie)))


def _kdump(lie: Liar) -> Iterator[Piece]:
    chosen = lie.chosen
    blocks = lie(chosen.choice((2, 64, 32768)), 32)
    sub = lie(2, 31)
    head = b"KDUMP   " + struct.pack("<I", chosen.choice((6, 6, 6, 5, 4, 3, 1)))
    machine = chosen.choice((b"", b"x86_64"))
    head = (head + bytes(260) + machine).ljust(424, b"\0")
    frames = lie(min(blocks, 1 << 17) * 4096 * 4, 32)
    yield 0, head + struct.pack("<IiiII", 1, lie(4096, 31), sub, blocks, frames)
    part = (lie(0, 64), lie(1 << 20, 64))
    notes = [value for _ in range(3) for value in (lie(8192, 64), lie(400, 64))]
    split = chosen.choice((0, 0, 1))
    yield 8192, _note(lie)
    yield 4096, struct.pack("<QiiQQQQQQQQQQQ", 0, 1, split, *part, *notes, *part, lie(frames, 64))
    start = (1 + min(sub, 1 << 20)) * 4096
    half = min(blocks, 1 << 20) * 2048
    fill = chosen.choice((b"\xff", b"\x55", b"\1\0\0\0", b"\x80"))
    length = chosen.choice((1, 100, 4096, 16 * MB if chosen.random() < 0.1 else MB))
    yield start, fill * min(length, half)
    yield start + half, fill * min(length, half)
    table = start + 2 * half
    page = struct.pack("<qIIQ", lie(table + (1 << 20), 63), lie(4096, 32), chosen.randrange(4), 0)
    yield table, page * chosen.choice((1, 100, 20000))


def _range(lie: Liar, magic: bytes, version: int, first: int, size: int) -> bytes:
    last = lie(first + size - 1, 64)
    return struct.pack("<4sIQQQ", magic, lie(version, 32), lie(first, 52), last, 0)


def _lime(lie: Liar) -> Iterator[Piece]:
    chosen = lie.chosen
    if chosen.random() < 0.3:
        step = chosen.choice((1, 4096))
        one = [
            struct.pack("<4sIQQQ", b"EMiL", 1, n * 2 * step, n * 2 * step, 0) + b"x" for n in range(100000)
        ]
        yield 0, b"".join(one)
        return
    at = 0
    for number in range(chosen.randint(1, 8)):
        size = 1 << chosen.randrange(12, 40)
        yield at, _range(lie, b"EMiL", 1, number << 40, size)
        at += 32 + size


def _avml(lie: Liar) -> Iterator[Piece]:
    chosen = lie.chosen
    head = struct.pack("<4sIQQQ", b"AVML", 2, 0, chosen.choice((MB, 1 << 40)), 0)
    chunk = chosen.choice(
        (b"\x80\0\0\0", b"\xfe\1\0\0x", b"\1\5\0\0\0\0\0\0x", b"\0\7\0\0\0\0\0\0\1\0x", b"\0\0\0\0")
    )
    yield 0, head + chunk * chosen.choice((1, 1000, 2 * MB))


def _raw(lie: Liar) -> Iterator[Piece]:
    chosen = lie.chosen
    step = chosen.choice((4096, MB, 64 * MB))
    for number in range(chosen.choice((3, 1000))):
        yield number * step, chosen.choice((b"x", b"\x0b\0\0\0\x08\0\0\0\0\0\0\0VMCOREINFO\0\0OSRELEASE=6\n"))


def _flat(lie: Liar) -> Iterator[Piece]:
    chosen = lie.chosen
    yield 0, MAGIC.ljust(4096, b"\0")
    at = 4096
    pieces = list(chosen.choice((_elf, _kdump))(lie))
    chosen.shuffle(pieces)
    for offset, data in pieces:
        size = lie(len(data), 63)
        yield at, struct.pack(">qq", offset, size) + data
        at += 16 + size
    tail = chosen.choice((b"", b"\xff" * 16, bytes(16 << 10), struct.pack(">qq", 5, 1) + b"x"))
    yield at, tail * chosen.choice((1, 1, 50000 if len(tail) == 17 else 1))


_KINDS: Sequence[Callable[[Liar], Iterator[Piece]]] = (_elf, _kdump, _flat, _lime, _avml, _raw)


def write_sparse(path: Path, pieces: Iterator[Piece], size: int) -> int:
    """Make a sparse file; data beyond the file system's maximum offset is omitted.

    :return: the bytes that it takes on disk.
    """
    path.write_bytes(b"")
    with path.open("r+b", buffering=0) as file:
        for at, data in pieces:
            with contextlib.suppress(OSError, OverflowError):
                os.pwrite(file.fileno(), data, at)
        os.truncate(file.fileno(), max(size, os.fstat(file.fileno()).st_size))
        return os.fstat(file.fileno()).st_blocks * 512


class LyingSizes(Target):
    """Headers with far too large counts, sizes and offsets, in sparse files of that size.

    Half of the cases limit the address space to 1 GB. The time limit is in proportion to the real content of
    the file: 2 s, and 1 s more for each megabyte, up to the general limit; on a slower machine more.
    """

    name = "sizes that lie"
    cases = 1500

    def prepare(self) -> None:
        self.path = Path(tempfile.mkdtemp(dir=self.scratch)) / "core"
        run_in_silence(str(self.path), "info")  # all imports happen now
        with open("/proc/self/statm", encoding="ascii") as file:
            self._room = int(file.read().split()[0]) * resource.getpagesize() + MEMORY

    def run(self, chosen: random.Random) -> None:
        kind = chosen.choice(_KINDS)
        real = write_sparse(self.path, kind(Liar(chosen)), 1 << chosen.randrange(10, 44))
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (chosen.choice((self._room, hard)), hard))
        started = time.process_time()
        try:
            check_inert(run_main("-c", str(self.path), *chosen.choice(_COMMANDS).split()), "text")
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
            spent = time.process_time() - started
            limit = 2 + real / MB
            if spent > limit:
                limit = timing.allowed(limit)
            assert spent <= limit, f"{kind.__name__}: {spent:.1f} s for {real} bytes, more than {limit:.1f} s"


def run_in_silence(path: str, command: str) -> None:
    """Run the command line, and ignore its result."""
    with contextlib.suppress(KvintroError):
        run_main("-c", path, command)


class FlattenedRecords(Target):
    """Flattened files with damaged records, against a loop that seeks and writes like makedumpfile -R."""

    name = "flattened records"
    cases = 1500

    def prepare(self) -> None:
        self.path = Path(tempfile.mkdtemp(dir=self.scratch)) / "core"
        self._sound = made_up_file()

    def run(self, chosen: random.Random) -> None:
        borders = sorted({0, len(self._sound), *(chosen.randrange(len(self._sound)) for _ in range(20))})
        records = [(a, self._sound[a:b]) for a, b in zip(borders, borders[1:])]
        if chosen.random() < 0.5:
            chosen.shuffle(records)
        records = [(chosen.randrange(9000), b"?" * chosen.randint(1, 9000)) for _ in range(3)] + records
        data = b"".join(struct.pack(">qq", at, len(part)) + part for at, part in records) + b"\xff" * 16
        if chosen.random() < 0.6:
            data = damaged(chosen, data)
        data = data[: chosen.choice((len(data), chosen.randrange(len(data) + 1)))]
        self.path.write_bytes(MAGIC.ljust(4096, b"\0") + data)
        self._compare(chosen, data)
        check_inert(run_main("-c", str(self.path), "layout"), "text")

    def _compare(self, chosen: random.Random, data: bytes) -> None:
        written, complete = _rearranged(data)
        with self.path.open("rb") as file:
            content = Flattened(FileContent(file))
        assert content.complete == complete
        for _ in range(200):
            at = chosen.randrange(1 << 16)
            value = written.get(at, 0 if complete and at < content.size else None)
            found = content.at(at, 1)
            assert found == (b"" if value is None else bytes([value])), f"{at}: {found!r}"


def _rearranged(data: bytes) -> Tuple[Dict[int, int], bool]:
    """The first 64 KB that the records write, byte by byte, and whether the last record exists."""
    written: Dict[int, int] = {}
    at = 0
    while at + 16 <= len(data):
        offset, size = struct.unpack_from(">qq", data, at)
        if offset == -1:
            return written, True
        if offset < 0 or size <= 0 or offset + size > 1 << 62:
            break
        at += 16
        part = data[at : at + size]
        for index in range(min(len(part), max(0, (1 << 16) - offset))):
            written[offset + index] = part[index]
        at += size
    return written, False


class StandardInput(Target):
    """Damaged and cut dumps through a pipe give the same output as from a file."""

    name = "standard input"
    cases = 400

    def prepare(self) -> None:
        directory = Path(tempfile.mkdtemp(dir=self.scratch))
        self.path = directory / "core"
        self.spool = directory / "spool"
        self.spool.mkdir()
        os.environ["TMPDIR"] = str(self.spool)
        whole = made_up_file()
        self._forms: List[bytes] = [whole, flattened(whole, 3000)]

    def run(self, chosen: random.Random) -> None:
        data = chosen.choice(self._forms)
        data = data[: chosen.choice((len(data), chosen.randrange(len(data))))]
        if chosen.random() < 0.5:
            data = damaged(chosen, data[:5000]) + data[5000:]
        self.path.write_bytes(data)
        said = [self._said("-"), self._said(str(self.path))]
        said[1] = said[1].replace(str(self.path), "standard input")
        assert said[0].split() == said[1].split()
        assert not list(self.spool.iterdir())

    def _said(self, core: str) -> str:
        before = os.dup(0)
        receiver, sender = os.pipe()
        os.dup2(receiver, 0)
        os.close(receiver)
        thread = threading.Thread(target=self._write, args=(sender, core == "-"))
        thread.start()
        try:
            return run_main("-c", core, "layout")
        except KvintroError as error:
            return error.what
        finally:
            os.dup2(before, 0)
            os.close(before)
            thread.join()

    def _write(self, sender: int, wanted: bool) -> None:
        with os.fdopen(sender, "wb") as file, contextlib.suppress(BrokenPipeError):
            file.write(self.path.read_bytes() if wanted else b"")
