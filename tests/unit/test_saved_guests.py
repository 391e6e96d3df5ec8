# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's migration stream, alone, after libvirt's header and in qcow2 snapshots; tests/vm has real ones."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import pytest

from kvintro.errors import KvintroError, NotADump, NotInDump, SourceError, UsageError
from kvintro.source.formats import examine
from kvintro.source.formats.qemu import QemuDump
from kvintro.source.physical import PhysicalMemory
from tests.saved_guests import (
    CONTINUE,
    FLUSH,
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
    text,
)

GB = 1 << 30
MB = 1 << 20
NAME = b"VMCOREINFO\0\0"  # of a note, at its offset 12
BLOCKS = [("pc.ram", 64 * PAGE), ("vga.vram", 16 * PAGE), ("pc.bios", 2 * PAGE)]


def opened(tmp_path: Path, data: bytes, snapshot: Optional[str] = None) -> QemuDump:
    path = tmp_path / "file"
    path.write_bytes(data)
    with path.open("rb") as file:
        dump = examine(file, "FILE", snapshot=snapshot)
    assert isinstance(dump, QemuDump)
    return dump


def content(memory: PhysicalMemory) -> Dict[int, bytes]:
    """All readable pages, by address."""
    found = {}
    for extent in memory.extents:
        for at in range(extent.address, extent.address + extent.size, PAGE):
            try:
                found[at] = memory.read(at, PAGE)
            except NotInDump:
                continue
    # Searches read the same pages, except pages of zeros; the one for VMCOREINFO may omit more.
    assert not_zero(paged(memory.pieces())) == not_zero(found)
    noted = paged(memory.noted_pieces())
    assert noted.items() <= found.items()
    assert noted.keys() >= {at for at, data in found.items() if data[12:24] == NAME}
    # Pages that are read together equal those that are read one by one.
    starts = [at for at in found if at - PAGE not in found]
    ends = [at + PAGE for at in found if at + PAGE not in found]
    for start, end in zip(sorted(starts), sorted(ends)):
        for first in range(start, end, 5 * PAGE):
            data = b"".join(found[at] for at in range(first, end, PAGE))
            assert memory.read(first + 9, end - first - 9) == data[9:]
    return found


def paged(pieces: Iterator[Tuple[int, Union[bytes, bytearray, memoryview]]]) -> Dict[int, bytes]:
    return {
        address + at: bytes(data[at : at + PAGE])
        for address, data in pieces
        for at in range(0, len(data), PAGE)
    }


def not_zero(pages: Dict[int, bytes]) -> Dict[int, bytes]:
    return {at: data for at, data in pages.items() if any(data)}


def guest(seed: int, rounds: int = 4) -> Tuple[List[Record], Dict[str, Dict[int, bytes]]]:
    """A guest that runs while it is saved: records, and the final content of its blocks."""
    chosen = random.Random(seed)
    memory = {name: {n: bytes(PAGE) for n in range(size // PAGE)} for name, size in BLOCKS}
    records: List[Record] = []
    for number in range(rounds):
        for name, pages in memory.items():
            for index in pages:
                if number and chosen.random() < 0.7:
                    continue
                before, kind = pages[index], chosen.choice((PLAIN, PLAIN, ZERO, PACKED, XBZRLE))
                if kind == XBZRLE and not number:
                    kind = PLAIN
                if kind == ZERO:
                    after = bytes([chosen.choice((0, 0, 7))]) * PAGE
                elif kind == XBZRLE:
                    changed = bytearray(before)
                    for _ in range(chosen.randint(1, 5)):
                        changed[chosen.randrange(PAGE)] ^= chosen.randint(1, 255)
                    after = bytes(changed)
                    if after == before:
                        continue
                else:
                    after = bytes(chosen.getrandbits(8) for _ in range(64)) * 64
                    name_in_note = chosen.choice((NAME, NAME[:-1] + b"x", after[12:24]))
                    after = after[:12] + name_in_note + after[24:]
                records.append((name, index, kind, before, after))
                pages[index] = after
    return records, memory


@pytest.mark.parametrize("seed", range(6))
def test_the_last_copy_of_each_page_counts(tmp_path: Path, seed: int) -> None:
    records, memory = guest(seed)
    machine = None if seed % 3 == 0 else "pc-q35-7.2"
    dump = opened(tmp_path, stream(BLOCKS, records, machine=machine))
    assert (dump.complete, dump.left_out, dump.stream.machine) == (True, 0, machine or "")
    assert content(dump.layouts[0]) == {n * PAGE: data for n, data in memory["pc.ram"].items()}


def test_commands_between_sections(tmp_path: Path) -> None:
    """QEMU 10 writes "switchover start" (11), without data, before the last part of RAM."""
    records, memory = guest(5)
    dump = opened(tmp_path, stream(BLOCKS, records, between=b"\x08\0\x0b\0\0" + b"\x08\0\x02\0\x04ping"))
    assert (dump.complete, dump.stream.stopped) == (True, "")
    assert content(dump.layouts[0]) == {n * PAGE: data for n, data in memory["pc.ram"].items()}
    dump = opened(tmp_path, stream(BLOCKS, records, between=b"\x08\0\x07\0\x04" + bytes(100)))
    assert "postcopy" in dump.stream.stopped


def test_the_index_is_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvintro.source.stream._COMPACT", 20)
    records, memory = guest(11, rounds=9)
    dump = opened(tmp_path, stream(BLOCKS, records))
    assert content(dump.layouts[0]) == {n * PAGE: data for n, data in memory["pc.ram"].items()}


@pytest.mark.parametrize("chunk", [4200, 9001, 1 << 16])
def test_records_at_any_place_in_the_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Single pages and runs, which are read in different ways, begin and end anywhere in the buffer."""
    monkeypatch.setattr("kvintro.source.stream._CHUNK", chunk)
    monkeypatch.setattr("kvintro.source.stream._RUN", 2)
    records, memory = guest(12, rounds=5)
    pages = memory["pc.ram"]
    for kind, first in ((PLAIN, 3), (ZERO, 20), (PLAIN, 34)):
        for index in range(first, first + 14):
            pages[index] = bytes([index]) * PAGE
            if kind == PLAIN and index % 5 == 0:
                pages[index] = bytes(12) + NAME + bytes(PAGE - 24)
            records.append(("pc.ram", index, kind, b"", pages[index]))
    dump = opened(tmp_path, stream(BLOCKS, records))
    assert (dump.complete, dump.left_out) == (True, 0)
    assert content(dump.layouts[0]) == {n * PAGE: data for n, data in pages.items()}


def test_the_search_reads_only_what_may_be_a_note(tmp_path: Path) -> None:
    """Among plain pages it reads those whose last copy begins with a note; others it may have to unpack."""
    note, other = bytes(12) + NAME + bytes(PAGE - 24), b"x" * PAGE
    kinds: Sequence[Tuple[int, int, bytes]] = (
        *((n, PLAIN, note if n == 300 else other) for n in range(600)),
        *((n, kind, data) for n, kind, data in ((3, PLAIN, note), (4, ZERO, bytes(PAGE)), (5, PLAIN, note))),
        *((n, kind, data) for n, kind, data in ((5, PLAIN, other), (6, PACKED, other), (300, PLAIN, note))),
    )
    records: List[Record] = [("pc.ram", n, kind, b"", data) for n, kind, data in kinds]
    memory = opened(tmp_path, stream([("pc.ram", 600 * PAGE)], records)).layouts[0]
    assert paged(memory.noted_pieces()) == {3 * PAGE: note, 6 * PAGE: other, 300 * PAGE: note}


def test_adjacent_pages_of_which_some_changed(tmp_path: Path) -> None:
    """A page that is read together with others has its last content."""
    records = pages_of("pc.ram", 64)
    pages = {index * PAGE: after for _, index, _, _, after in records}
    for index in (9, 10, 30):
        before, after = pages[index * PAGE], b"new" + pages[index * PAGE][3:]
        records.append(("pc.ram", index, XBZRLE, before, after))
        pages[index * PAGE] = after
    assert content(opened(tmp_path, stream(BLOCKS, records)).layouts[0]) == pages


def test_adjacent_pages_of_which_some_cannot_be_read(tmp_path: Path) -> None:
    records = pages_of("pc.ram", 64)
    whole = stream(BLOCKS, records, parts=1)
    dump = opened(tmp_path, whole)
    os.truncate(tmp_path / "file", whole.index(records[40][4]) + 5)
    kept = {index * PAGE: data for _, index, _, _, data in records[:40]}
    assert content(dump.layouts[0]) == kept


def test_a_run_that_leaves_its_block(tmp_path: Path) -> None:
    records = pages_of("pc.ram", 600)
    data = bytearray(stream([("pc.ram", 600 * PAGE)], records, parts=1))
    at = data.index(struct.pack(">Q", 500 * PAGE | PLAIN | CONTINUE))
    data[at : at + 8] = struct.pack(">Q", 600 * PAGE | PLAIN | CONTINUE)
    dump = opened(tmp_path, bytes(data))
    assert "outside all blocks" in dump.stream.stopped
    assert len(content(dump.layouts[0])) == 500


def test_cut_at_any_byte(tmp_path: Path) -> None:
    """Every page that is read is a content that the guest had at some time, and never zeros instead."""
    records, _ = guest(3)
    whole = stream(BLOCKS, records)
    had: Dict[int, List[bytes]] = {}
    for name, index, _, _, after in records:
        if name == "pc.ram":
            had.setdefault(index * PAGE, []).append(after)
    chosen = random.Random(5)
    for cut in [10, 40, 90, 200, *(chosen.randrange(len(whole)) for _ in range(40))]:
        try:
            dump = opened(tmp_path, whole[:cut])
        except NotADump as error:
            assert "truncated" in error.what
            continue
        found = content(dump.layouts[0])
        assert dump.complete is (cut > len(whole) - 5)
        assert all(data in had[at] for at, data in found.items())


def pages_of(name: str, count: int) -> List[Record]:
    return [(name, n, PLAIN, b"", bytes([n % 255 + 1]) * PAGE) for n in range(count)]


def test_a_user_named_block(tmp_path: Path) -> None:
    blocks = [("mem0", 8 * PAGE), ("/rom@etc/acpi/tables", 2 * PAGE)]
    dump = opened(tmp_path, stream(blocks, pages_of("mem0", 8)))
    assert dump.layouts[0].read(7 * PAGE, 1) == b"\x08"


def test_nodes_follow_each_other(tmp_path: Path) -> None:
    """Nodes are in the order of their numbers, whatever their order in the stream."""
    blocks = [("ram-node1", 8 * PAGE), ("ram-node0", 8 * PAGE), ("pc.bios", PAGE)]
    records = pages_of("ram-node1", 8) + [("ram-node0", n, ZERO, b"", b"\xee" * PAGE) for n in range(8)]
    dump = opened(tmp_path, stream(blocks, records))
    memory = dump.layouts[0]
    assert memory.end == 16 * PAGE
    assert (memory.read(0, 1), memory.read(8 * PAGE, 1)) == (b"\xee", b"\x01")


def test_plugged_memory_is_not_guessed(tmp_path: Path) -> None:
    """According to the clock, the machine has 32 MB; the stream does not contain the address of the rest."""
    blocks = [("plug", 64 * MB), ("pc.ram", 32 * MB)]
    records = pages_of("pc.ram", 8) + pages_of("plug", 8)
    dump = opened(tmp_path, stream(blocks, records, tail=clock(32 * MB, 0)))
    assert dump.layouts[0].end == 32 * MB
    assert dump.layouts[0].read(0, 1) == b"\x01"
    assert any("'plug'" in line for line in dump._others)


@pytest.mark.parametrize(
    ("machine", "size", "tail", "wanted"),
    [
        ("pc-i440fx-7.2", 256 * MB, clock(128 * MB, 128 * MB), [(0, 128 * MB), (4 * GB, 128 * MB)]),
        ("pc-q35-7.2", 5 * GB, b"", [(0, 2 * GB), (4 * GB, 3 * GB)]),
        ("pc-q35-7.2", 2 * GB, b"", [(0, 2 * GB)]),
        ("pc-i440fx-9.2+pve0", 5 * GB, b"", [(0, 3 * GB), (4 * GB, 2 * GB)]),
        ("pc-i440fx-7.2", 5 * GB, clock(3 * GB, 7 * GB), [(0, 3 * GB), (4 * GB, 2 * GB)]),
    ],
    ids=["clock", "q35", "q35, all low", "pc", "a clock of another machine"],
)
def test_the_gap(
    tmp_path: Path, machine: str, size: int, tail: bytes, wanted: Sequence[Tuple[int, int]]
) -> None:
    dump = opened(tmp_path, stream([("pc.ram", size)], pages_of("pc.ram", 8), machine=machine, tail=tail))
    assert [[(e.address, e.size) for e in layout.extents] for layout in dump.layouts] == [list(wanted)]


def test_a_gap_that_nothing_tells(tmp_path: Path) -> None:
    """Before 2.4 the stream does not name the machine type, so all usual gaps are tried."""
    dump = opened(tmp_path, stream([("pc.ram", 5 * GB)], pages_of("pc.ram", 8), machine=None))
    ends = [layout.end for layout in dump.layouts]
    assert ends[0] == 5 * GB
    assert {6 * GB, 7 * GB} <= set(ends)


def test_pages_that_never_came(tmp_path: Path) -> None:
    """For example those of a balloon: they are not in the dump, and do not read as zeros."""
    dump = opened(tmp_path, stream(BLOCKS, pages_of("pc.ram", 8)))
    assert dump.left_out == 56 * PAGE
    assert set(content(dump.layouts[0])) == {n * PAGE for n in range(8)}


def test_a_section_that_is_not_known(tmp_path: Path) -> None:
    other = b"\x01" + struct.pack(">I", 3) + text("pbs-state") + struct.pack(">II", 0, 1) + bytes(100)
    dump = opened(tmp_path, stream(BLOCKS, pages_of("pc.ram", 60), between=other))
    assert dump.complete is False
    assert "'pbs-state'" in dump.stream.stopped
    assert len(content(dump.layouts[0])) == 40  # two of the three parts


FLUSHED = struct.pack(">BIQQBI", 2, 2, FLUSH, 16, 0x7E, 2)  # a section of RAM without pages


@pytest.mark.parametrize(
    ("data", "said", "remedy"),
    [
        (stream(BLOCKS, [], capabilities=["x-ignore-shared"], parts=1), "x-ignore-shared", "memory-backend"),
        (stream(BLOCKS, [], between=FLUSHED), "multifd", "multifd"),
        (stream(BLOCKS, []), "multifd", "--memory-only"),
        (b"QEVM" + struct.pack(">I", 2) + bytes(100), "version 2", "--memory-only"),
        (b"QEVM" + struct.pack(">I", 3) + b"\x55" + bytes(100), "unknown type 85", "--memory-only"),
        (b"QEVM", "truncated", "copy it again"),
        (b"LibvirtQemudSave" + bytes(9000), "unknown version", "whole"),
        (b"LibvirtQemudSave" + bytes(9), "truncated", "copy it again"),
        (libvirt(b"", 9), "the unknown format 9", "virsh restore"),
        (libvirt(b"QEMU" + bytes(200), 0), "there is no migration stream of QEMU", "whole"),
        (qcow2([]), "no snapshots", "savevm"),
        (qcow2([("one", b"")]), "without memory", "savevm"),
        (qcow2([("one", b"x")], flags=4), "external data file", "-loadvm"),
        (qcow2([("one", b"nothing" * 100)]), "no migration stream", "whole"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_named(tmp_path: Path, data: bytes, said: str, remedy: str) -> None:
    if b"x-ignore-shared" in data:  # each block has its address in that stream
        at = data.index(b"\x06pc.ram")
        head, rest = data[:at], data[at:]
        for name, size in BLOCKS:
            entry = text(name) + struct.pack(">Q", size)
            assert rest.startswith(entry)
            head, rest = head + entry + bytes(8), rest[len(entry) :]
        data = head + rest
    with pytest.raises(NotADump) as raised:
        opened(tmp_path, data)
    assert said in raised.value.what
    assert remedy in raised.value.remedy
    assert "FILE" in raised.value.what


def test_mapped_pages(tmp_path: Path) -> None:
    pages = {n: bytes([n]) * PAGE for n in (1, 2, 9, 63)}
    data = bytearray(mapped("pc.ram", 64 * PAGE, pages))
    stale = data.index(pages[1]) + 2 * PAGE  # a page that is not in the bitmap: its content does not count
    data[stale : stale + PAGE] = b"\xff" * PAGE
    dump = opened(tmp_path, bytes(data))
    assert (dump.complete, dump.left_out) == (True, 0)
    assert content(dump.layouts[0]) == {n * PAGE: pages.get(n, bytes(PAGE)) for n in range(64)}


PACKERS: Dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("form", ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"])
def test_libvirt(tmp_path: Path, form: str, order: str) -> None:
    records, memory = guest(8)
    body = stream(BLOCKS, records)
    wanted = {n * PAGE: data for n, data in memory["pc.ram"].items()}
    if form == "sparse":
        pages = {n: data for n, data in memory["pc.ram"].items() if any(data)}
        body = mapped("pc.ram", 64 * PAGE, pages, at=92 + 3000)
    elif form in PACKERS:
        body = PACKERS[form](body)
    elif shutil.which(form) is None:
        pytest.skip(f"{form} is missing (apt install {form})")
    else:
        body = subprocess.run([form, "-c"], input=body, stdout=subprocess.PIPE, check=True).stdout
    number = ["raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"].index(form)
    dump = opened(tmp_path, libvirt(body, number, order=order))
    assert dump.complete is True
    assert dump.format == "libvirt save file" + (f", {form}" if form != "raw" else "")
    assert "lab guest" in dump.writer
    assert content(dump.layouts[0]) == wanted


def test_no_program_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SourceError, match="lzop") as raised:
        opened(tmp_path, libvirt(b"\x89LZO", 4))
    assert raised.value.what.startswith("FILE: it is packed with lzop")
    assert "install lzop" in raised.value.remedy


@pytest.mark.parametrize("form", [1, 2, 3])
def test_a_bomb(tmp_path: Path, form: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvintro.source.unpack._LIMIT_FREE", 1 << 20)
    bomb = PACKERS[["gzip", "bzip2", "xz"][form - 1]](bytes(64 << 20))
    monkeypatch.setattr("kvintro.source.unpack._LIMIT_TO_PACKED", 1)
    with pytest.raises(NotADump, match="which is too much for memory"):
        opened(tmp_path, libvirt(bomb, form))


def test_libvirt_did_not_finish(tmp_path: Path) -> None:
    """The existing part is read, packed or not."""
    records, _ = guest(2, rounds=1)
    body = gzip.compress(stream(BLOCKS, records))
    dump = opened(tmp_path, libvirt(body[: len(body) * 2 // 3], 1, mark=b"LibvirtQemudPart"))
    assert isinstance(dump, QemuDump)
    assert dump.complete is False
    assert 0 < len(content(dump.layouts[0])) < 64


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize(("bits", "backwards"), [(9, False), (12, True), (16, False), (21, True)])
def test_snapshots(tmp_path: Path, bits: int, backwards: bool, extended: bool) -> None:
    states, wanted = [], {}
    for number, name in enumerate(("before", "after the update")):
        records, memory = guest(20 + number, rounds=2)
        states.append((name, stream(BLOCKS, records)))
        wanted[name] = {n * PAGE: data for n, data in memory["pc.ram"].items()}
    data = qcow2([("disk only", b""), *states], bits=bits, extended=extended, disk=MB, backwards=backwards)
    for name, expected in wanted.items():
        dump = opened(tmp_path, data, name)
        assert (dump.complete, dump.format, dump.size) == (True, "qcow2 snapshot", len(data))
        assert name in dump.writer
        assert content(dump.layouts[0]) == expected
    assert content(opened(tmp_path, data, "3").layouts[0]) == wanted["after the update"]
    with pytest.raises(UsageError, match="memory of 2 snapshots: 'before'") as raised:
        opened(tmp_path, data)
    assert "--snapshot" in raised.value.remedy
    for name in ("disk only", "nothing"):
        with pytest.raises(UsageError, match=f"no snapshot '{name}'"):
            opened(tmp_path, data, name)


def test_a_snapshot_of_what_has_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no snapshots"):
        opened(tmp_path, stream(BLOCKS, pages_of("pc.ram", 8)), "one")


def test_lying_sizes_cost_nothing(tmp_path: Path) -> None:
    """A list of blocks that claims a petabyte; a page at the end of 16 TB."""
    with pytest.raises(KvintroError):
        opened(tmp_path, stream([("pc.ram", 1 << 50)], pages_of("pc.ram", 8)))
    last = [("pc.ram", (1 << 32) - 1, PLAIN, b"", b"x" * PAGE)]
    dump = opened(tmp_path, stream([("pc.ram", 1 << 44)], last, machine="microvm"))
    assert dump.layouts[0].read(dump.layouts[0].end - 1, 1) == b"x"
    assert dump.left_out == (1 << 44) - PAGE


def test_a_snapshot_that_lies_about_its_size(tmp_path: Path) -> None:
    data = bytearray(qcow2([("one", stream(BLOCKS, pages_of("pc.ram", 8)))], bits=21))
    at = data.index(b"1one") - 24
    data[at : at + 8] = struct.pack(">Q", 1 << 50)
    with pytest.raises(NotADump, match="too much for the size of the file"):
        opened(tmp_path, bytes(data))
