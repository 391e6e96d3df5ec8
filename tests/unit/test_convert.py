# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parts of ``kvintro convert``: sets of page frames, and the output file."""

from __future__ import annotations

import errno
import gzip
import os
import stat
from functools import cache
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import drgn
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvintro.cli import main
from kvintro.convert import convert
from kvintro.convert.kdump import packer
from kvintro.convert.target import Target
from kvintro.errors import NotWritten, UsageError
from kvintro.opening import open_kernel
from kvintro.queries.pages.frames import Frames, Memory, memory_of
from kvintro.source import Request
from kvintro.source.elf import writer_of
from kvintro.source.files import keep
from kvintro.source.physical import Held
from tests import saved_guests
from tests.fuzz.hypervisors import made_up_memory
from tests.fuzz.saved import made_up_pages
from tests.hypervisors import PAGE, virtualbox_core, vmware_state
from tests.memory_files import lime
from tests.synthetic import packed_notes

RUNS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def members(frames: Frames) -> Set[int]:
    """The frames one by one, after checking the runs."""
    runs = list(frames)
    assert all(first < end for first, end in runs)
    assert all(one[1] < two[0] for one, two in zip(runs, runs[1:]))
    return {frame for first, end in runs for frame in range(first, end)}


def plain(runs: List[Tuple[int, int]]) -> Set[int]:
    return {frame for first, end in runs for frame in range(first, end)}


@given(RUNS, RUNS)
def test_frames_are_sets(one: List[Tuple[int, int]], two: List[Tuple[int, int]]) -> None:
    a, b = Frames.of(one), Frames.of(two)
    assert members(a) == plain(one)
    assert a.count == len(plain(one)) and a.end == max(plain(one), default=-1) + 1
    assert members(a | b) == plain(one) | plain(two)
    assert members(a & b) == plain(one) & plain(two)
    assert members(a - b) == plain(one) - plain(two)


@given(RUNS, st.integers(0, 7), st.integers(1, 7))
def test_frames_as_bits(runs: List[Tuple[int, int]], first: int, count: int) -> None:
    data = Frames.of(runs).bits(8 * first, 8 * count).tobytes()
    parts = list(Frames.of(runs).parts(8))
    assert parts == sorted({frame // 8 * 8 for frame in plain(runs)})
    found = {8 * first + at for at in range(8 * count) if data[at // 8] >> at % 8 & 1}
    assert found == {frame for frame in plain(runs) if 8 * first <= frame < 8 * (first + count)}


def test_a_page_that_is_there_in_part_is_not_there() -> None:
    """As at the end of conventional memory, where firmware reserves part of a page."""
    memory = Memory([Held(0, 0x9FC00, True), Held(0xA0000, 0xB0001, False)], 0x1000)
    assert list(memory.there) == [(0, 0x9F)]
    assert list(memory.left_out) == [(0xA0, 0xB1)]


def test_what_wrote_a_file() -> None:
    note = packed_notes([("CORE", 1, bytes(336)), ("KVINTRO", 0, b"kvintro 1.2.3")])
    assert writer_of(note) == "kvintro 1.2.3"
    assert writer_of(packed_notes([("KVINTRO", 0, b"kvintro 1\x1b[2J")])) == ""
    assert writer_of(note[:-8]) == ""


# The file


@pytest.fixture(params=("unnamed", "named"))
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems with and without unnamed files (O_TMPFILE)."""
    if request.param == "named":
        real = os.open

        def without(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "none here")
            return real(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", without)
    return str(request.param)


def test_the_file_is_there_once_it_is_complete(file_system: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    with Target(str(path), force=False) as target:
        target.write_at(1 << 20, b"end")
        target.write_at(0, b"begin")
        target.end_at(2 << 20)
        assert not path.exists()
        size, real = target.commit()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert size == path.stat().st_size == 2 << 20 and real < size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes()[1 << 20 :][:3] == b"end"


@pytest.mark.parametrize("error", [KeyboardInterrupt, NotWritten("a full disk", ""), SystemExit])
def test_nothing_is_left_of_a_failure(file_system: str, tmp_path: Path, error: BaseException) -> None:
    with (
        pytest.raises((KeyboardInterrupt, NotWritten, SystemExit)),
        Target(str(tmp_path / "out"), force=False) as target,
    ):
        target.write_at(0, b"begin")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays(file_system: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("mine")
    with pytest.raises(NotWritten, match="exists"):
        Target(str(path), force=False)
    path.unlink()
    with pytest.raises(NotWritten, match="created in the meantime"), Target(str(path), force=False) as target:
        path.write_text("mine")
        target.commit()
    assert path.read_text() == "mine"
    with pytest.raises(KeyboardInterrupt), Target(str(path), force=True) as target:
        target.write_at(0, b"other")
        raise KeyboardInterrupt
    assert path.read_text() == "mine"
    with Target(str(path), force=True) as target:
        target.write_at(0, b"other")
        target.commit()
    assert path.read_text() == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_source_is_not_replaced(tmp_path: Path) -> None:
    path, other = tmp_path / "dump", tmp_path / "other"
    path.write_text("memory")
    os.link(path, other)
    with path.open("rb") as file, pytest.raises(UsageError, match="which is being read"):
        Target(str(other), force=True, sources=[keep(file.fileno(), str(path))])
    assert path.read_text() == "memory"


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("", "not the name of a file"),
        ("gone/out", "no such file"),
        ("link", "a link"),
        ("pipe", "not a regular"),
    ],
)
def test_what_is_no_file(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotWritten, match=what) as raised:
        Target(f"{tmp_path}/{name}", force=True)
    assert raised.value.remedy
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "none is named"),
        (["-o", "out", "--compress", "zlib"], "--compress needs --to kdump"),
        (["-o", "out", "-d", "32"], "not a number from 0 to 31"),
        (["-o", "taken"], "exists"),
    ],
)
def test_the_command_line_is_checked_before_the_dump(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: List[str],
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    assert main(["convert", "no-such-dump", *words]) in (2, 3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and what in " ".join(lines)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["taken"]


def test_without_a_library_for_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("kvintro.convert.kdump.import_module", nothing)
    with pytest.raises(NotWritten, match="no library for zstd") as raised:
        packer("zstd")
    assert "--compress zlib" in raised.value.remedy


# Sources of every kind


@cache
def _sources() -> Dict[str, Dict[str, bytes]]:
    """Files with the memory of a made-up kernel; the first one is opened."""
    memory, size = made_up_memory(), len(made_up_memory())
    half = size // 2 // PAGE
    turned = memory[half * PAGE :] + memory[: half * PAGE]
    regions = [(0, half, half), (half, 0, half)]
    pages = sorted(made_up_pages().items())
    records: List[saved_guests.Record] = [
        ("pc.ram", number, saved_guests.PLAIN, b"", data) for number, data in pages
    ]
    # Pages that the guest changed later.
    records = [(name, number, kind, b"", bytes(PAGE)) for name, number, kind, _, _ in records[::3]] + records
    sent = {number for number, _ in pages}
    records += [
        ("pc.ram", number, saved_guests.ZERO, b"", bytes(PAGE))
        for number in range(size // PAGE)
        if number not in sent
    ]
    stream = saved_guests.stream([("pc.ram", size)], records)
    return {
        "stream": {"saved": stream},
        "libvirt": {"saved": saved_guests.libvirt(gzip.compress(stream, 1), 1)},
        "qcow2": {"disk": saved_guests.qcow2([("one", stream)])},
        "mapped": {"saved": saved_guests.mapped("pc.ram", size, dict(pages))},
        "vmware": {"a.vmss": vmware_state(regions), "a.vmem": turned},
        "vmware in one": {"a.vmss": vmware_state(regions, turned, packed=True)},
        "virtualbox": {"core": virtualbox_core([(0, memory)], [(0xE0000000, size)])},
        "raw": {"memory": memory},
        "LiME": {"memory": lime([(0, memory)])},
    }


@pytest.mark.parametrize("form", ["elf", "kdump"])
@pytest.mark.parametrize("kind", _sources())
def test_each_source(tmp_path: Path, kind: str, form: str) -> None:
    """drgn reads the same memory from the new file as was written to the source."""
    for name, data in _sources()[kind].items():
        (tmp_path / name).write_bytes(data)
    path = tmp_path / "out"
    kernel = open_kernel(Request(core=str(tmp_path / next(iter(_sources()[kind])))))
    convert(kernel, str(path), form=form, compress="zlib")
    prog = drgn.Program()
    prog.set_core_dump(path)
    memory = made_up_memory()
    for at in range(0, len(memory), 1 << 20):
        assert prog.read(at, 1 << 20, True) == memory[at : at + (1 << 20)], f"{at:x}"
    assert memory_of(open_kernel(Request(core=str(path)))).there.count == len(memory) // PAGE


def test_no_name_in_a_kdump_is_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kernel's names cannot be read. With an empty one, drgn does not find the architecture."""
    monkeypatch.setattr("kvintro.convert._own_names", lambda kernel, release: None)
    source, path = tmp_path / "memory", tmp_path / "out"
    source.write_bytes(_sources()["LiME"]["memory"])
    convert(open_kernel(Request(core=str(source))), str(path), form="kdump", compress="zlib")
    names = [path.read_bytes()[12 + 65 * at :][:65].rstrip(b"\0") for at in range(6)]
    assert (names[0], names[2], names[4]) == (b"Linux", b"6.0.0-made-up", b"x86_64")
    assert all(names)
    drgn.Program().set_core_dump(path)
