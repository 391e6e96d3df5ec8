# SPDX-License-Identifier: LGPL-2.1-or-later
"""Packed dumps: unpacked once and kept, or read in place; damaged, too large, or not dumps."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from kvintro.cli import main
from kvintro.errors import NotADump, SourceError
from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.source import Request, unpack
from kvintro.source.blocks import Blocks, in_blocks
from kvintro.source.cache import user_cache
from kvintro.source.content import FileContent
from kvintro.source.packed import plain
from kvintro.source.unpack import Unpacker
from tests.conftest import ROOT
from tests.fuzz.hypervisors import made_up_memory
from tests.fuzz.targets import made_up_file
from tests.hypervisors import vmware_state
from tests.memory_files import lime
from tests.packers import IN_BLOCKS, PACKERS, library, program

MB = 1 << 20
MEMORY = made_up_memory()
LIME = lime([(0, MEMORY)])
RELEASE = "6.0.0-made-up"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate cache for the test, and its directory of files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kvintro" / "unpacked"


def opened(path: Path, **more: Any) -> Kernel:
    kernel = open_kernel(Request(core=str(path), **more))
    assert kernel.source.vmcoreinfo["OSRELEASE"] == RELEASE
    return kernel


def assert_whole(kernel: Kernel) -> None:
    for at in range(0, len(MEMORY), MB):
        assert kernel.read_physical(at, MB) == MEMORY[at : at + MB]


@pytest.mark.parametrize("packing", PACKERS)
def test_each_packing(tmp_path: Path, packing: str) -> None:
    path = tmp_path / "memory.packed"
    path.write_bytes(PACKERS[packing](LIME))
    for _ in range(2):  # unpacked, then kept
        kernel = opened(path)
        source = kernel.source
        assert (source.format, source.packing, source.complete) == ("LiME", packing, None)
        assert source.size == path.stat().st_size
        assert_whole(kernel)


@pytest.mark.parametrize("packing", ["zstd", "lz4"])
def test_by_programs(tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries are missing. If the programs are missing too, the message names both."""
    path = tmp_path / "memory.packed"
    path.write_bytes(PACKERS[packing](LIME))

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(unpack, "import_module", missing)
    if shutil.which(packing) is None:
        pytest.skip(f"{packing} is missing (apt install {packing})")
    assert_whole(opened(path, cache=False))
    path.write_bytes(path.read_bytes()[:-100])
    assert opened(path, cache=False).source.complete is False
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SourceError, match=packing) as raised:
        opened(path, cache=False)
    assert str(path) in raised.value.what
    assert raised.value.remedy == f"install {packing}, or pip install 'kvintro[packed]'"


def test_old_frames_of_lz4(tmp_path: Path) -> None:
    """As ``lz4 -l`` writes them, and as in kernel images."""
    path = tmp_path / "memory.lz4"
    path.write_bytes(program("lz4", "-l", "-1")(LIME))
    assert_whole(opened(path))


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd", "lz4"])
def test_streams_that_follow_each_other(tmp_path: Path, packing: str) -> None:
    """As pigz, pbzip2, pzstd and cat make them; zeros at the end do not matter."""
    path = tmp_path / "memory.packed"
    cut = 3 * MB + 17
    path.write_bytes(PACKERS[packing](LIME[:cut]) + PACKERS[packing](LIME[cut:]) + bytes(5000))
    kernel = opened(path)
    assert kernel.source.complete is None
    assert_whole(kernel)


@pytest.mark.parametrize("packing", PACKERS)
def test_cut_off(tmp_path: Path, cache: Path, packing: str) -> None:
    """The remaining data is shown as truncated, and is not kept."""
    path = tmp_path / "memory.packed"
    noise = random.Random(1).randbytes(2 * MB)
    data = PACKERS[packing](lime([(0, MEMORY), (len(MEMORY), noise)]))
    path.write_bytes(data[:-MB])
    kernel = opened(path)
    assert kernel.source.complete is False
    assert any("truncated" in warning for warning in kernel.source.warnings)
    assert_whole(kernel)
    assert list(cache.iterdir()) == []


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "memory.gz"
    noise = random.Random(1).randbytes(4 * MB)
    data = bytearray(gzip.compress(lime([(0, MEMORY), (len(MEMORY), noise)]), 1))
    data[-2 * MB : -MB] = b"\xff" * MB
    path.write_bytes(data)
    assert opened(path).source.complete is False


@pytest.mark.parametrize("packing", IN_BLOCKS)
def test_in_place(tmp_path: Path, cache: Path, packing: str) -> None:
    """Nothing is unpacked into a file."""
    path = tmp_path / "memory.packed"
    path.write_bytes(IN_BLOCKS[packing](LIME))
    kernel = opened(path)
    assert_whole(kernel)
    assert list(cache.iterdir()) == []
    with path.open("rb") as file:
        content = in_blocks(FileContent(file), packing.replace("bg", "g").replace("seekable ", "").split()[0])
    assert isinstance(content, Blocks)
    assert content.size == len(LIME)
    chosen = random.Random(2)
    for _ in range(300):
        at = chosen.randrange(-5, len(LIME) + 10)
        size = chosen.choice((1, 100, 70000, 300000))
        assert content.at(at, size) == (LIME[at : at + size] if at >= 0 else b"")


@pytest.mark.parametrize("packing", IN_BLOCKS)
def test_a_damaged_block_is_missing(tmp_path: Path, packing: str) -> None:
    noise = random.Random(3).randbytes(4 * MB)
    data = bytearray(IN_BLOCKS[packing](noise))
    at = len(data) // 2
    data[at : at + 40] = bytes(40)
    path = tmp_path / "packed"
    path.write_bytes(data)
    with path.open("rb") as file:
        content = in_blocks(FileContent(file), packing.replace("bg", "g").replace("seekable ", "").split()[0])
    if content is None:
        return  # its chain of blocks is broken, so it is unpacked as far as possible
    found: List[bytes] = [content.at(start, 4096) for start in range(0, len(noise), 4096)]
    assert sum(part == noise[n * 4096 :][:4096] for n, part in enumerate(found)) > len(found) // 2
    if packing != "lz4 with its size":  # its blocks are stored uncompressed, without checksums
        assert all(noise[n * 4096 :].startswith(part) for n, part in enumerate(found))


def test_not_in_place(tmp_path: Path) -> None:
    """Files without the necessary information, or with impossible values."""
    frame = library("lz4.frame")
    sized = bytearray(IN_BLOCKS["lz4 with its size"](LIME))
    sized[6:14] = (len(LIME) + 70000).to_bytes(8, "little")
    table = bytearray(IN_BLOCKS["seekable zstd"](LIME))
    table[-17:-13] = b"\xff" * 4
    for form, data in (
        ("lz4", frame.compress(LIME, block_linked=False, store_size=False)),
        ("lz4", frame.compress(LIME, block_linked=True, store_size=True)),
        ("lz4", bytes(sized)),
        ("zstd", bytes(table)),
        ("zstd", PACKERS["zstd"](LIME)),
        ("gzip", PACKERS["gzip"](LIME)),
        ("gzip", IN_BLOCKS["bgzip"](LIME)[:-20]),
    ):
        path = tmp_path / "packed"
        path.write_bytes(data)
        with path.open("rb") as file:
            assert in_blocks(FileContent(file), form) is None


# tar


def tar_of(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}
    ) as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name * (30 if name == "long" else 1))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        archive.addfile(tarfile.TarInfo("directory/"))
    return out.getvalue()


TARS: Dict[str, Callable[[], bytes]] = {
    "tar": lambda: tar_of(readme=b"text\n" * 100, long=LIME),
    "gzip, tar": lambda: gzip.compress(tar_of(lime=LIME), 1),
    "tar, gzip": lambda: tar_of(lime=gzip.compress(LIME, 1)),
    "zstd, tar": lambda: IN_BLOCKS["seekable zstd"](tar_of(lime=LIME)),
}


@pytest.mark.parametrize("layers", TARS)
def test_a_tar(tmp_path: Path, layers: str) -> None:
    path = tmp_path / "memory.tar"
    path.write_bytes(TARS[layers]())
    kernel = opened(path)
    assert (kernel.source.format, kernel.source.packing) == ("LiME", layers)
    assert_whole(kernel)


def test_a_core_in_a_tar(tmp_path: Path) -> None:
    for data in (made_up_file(), (ROOT / "vmcores/debian-7.3/core.kdump").read_bytes()):
        path = tmp_path / "memory.tar"
        path.write_bytes(tar_of(core=data))
        source = open_kernel(Request(core=str(path))).source
        assert (source.packing, source.complete) == ("tar", True)


@pytest.mark.parametrize(
    ("data", "said", "remedy"),
    [
        (tar_of(a=b"text", b=b"more"), "without a dump; it contains a, b", "memory"),
        (tar_of(one=LIME, two=LIME), "2 files that may be dumps: one, two", "tar xf"),
        (gzip.compress(b"some text\n" * 100), "contains a text file, not a kernel dump", "ELF"),
        (gzip.compress(b""), "nothing that can be unpacked", ""),
        (gzip.compress(b"hsqs" + bytes(9000)), "squashfs", "memory"),
        (b"\x1f\x8b\x08" + b"\xff" * 5000, "nothing that can be unpacked", ""),
        (gzip.compress(gzip.compress(gzip.compress(gzip.compress(LIME)))), "compressed with gzip", "gunzip"),
    ],
)
def test_what_has_no_dump(tmp_path: Path, data: bytes, said: str, remedy: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(NotADump) as raised:
        opened(path)
    assert said in raised.value.what
    assert str(path) in raised.value.what
    assert remedy in raised.value.remedy


@pytest.mark.parametrize("packing", ["gzip", "bzip2", "xz", "zstd"])
def test_a_bomb(tmp_path: Path, cache: Path, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_LIMIT_FREE", 8 * MB)
    monkeypatch.setattr(unpack, "_LIMIT_TO_PACKED", 10)
    path = tmp_path / "bomb"
    path.write_bytes(PACKERS[packing](b"\xfa\xce" * MB + bytes(200 * MB)))
    with pytest.raises(NotADump, match="which is too much for memory"):
        opened(path)
    assert list(cache.iterdir()) == []


def test_no_room(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "room_in", lambda directory: 1000)
    path = tmp_path / "memory.gz"
    path.write_bytes(PACKERS["gzip"](LIME))
    with pytest.raises(SourceError, match="which is the free space in") as raised:
        opened(path)
    assert "--no-cache" in raised.value.remedy
    assert list(cache.iterdir()) == []


# The cache


def test_it_is_unpacked_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memory.gz"
    path.write_bytes(PACKERS["gzip"](LIME))
    opened(path)
    (kept,) = cache.iterdir()
    assert (kept.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o600, 0o700)
    assert kept.stat().st_blocks * 512 < len(LIME) // 4  # zeros are holes
    os.utime(kept, (1, time.time() - 1000))

    def never(*_: object) -> None:
        raise AssertionError("unpacked again")

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "_write", never)
        assert_whole(opened(path))
        assert time.time() - kept.stat().st_mtime < 500  # it was used
        with pytest.raises(AssertionError):
            opened(path, cache=False)
        # Different content is a different file, even with the same name.
        path.write_bytes(PACKERS["gzip"](lime([(0, MEMORY), (1 << 32, b"x" * 4096)])))
        with pytest.raises(AssertionError):
            opened(path)
    opened(path)
    assert len(list(cache.iterdir())) == 2


def test_no_cache(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "memory.gz"
    path.write_bytes(PACKERS["gzip"](LIME))
    assert main(["-c", str(path), "--no-cache", "info"]) in (0, 4)
    assert "packed with" in capsys.readouterr().out
    assert not cache.exists()


def test_it_is_cleaned(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old files are removed first, then the least recently used ones until the rest is small enough."""
    paths: List[Path] = []
    for number in range(4):
        path = tmp_path / f"{number}.gz"
        path.write_bytes(PACKERS["gzip"](lime([(0, MEMORY), (1 << 32, random.Random(number).randbytes(MB))])))
        opened(path)
        (kept,) = set(cache.iterdir()) - set(paths)
        os.utime(kept, (1, time.time() - 1000 * (10 - number)))
        paths.append(kept)
    other = cache / "notes.txt"
    other.write_text("mine")
    old = cache / "0.1.partial"
    old.write_text("left by a process that died")
    os.utime(old, (1, time.time() - 2 * 24 * 3600))
    os.utime(paths[2], (1, time.time() - 8 * 24 * 3600))
    found = user_cache()
    assert found is not None
    found.clean()
    assert {path.name for path in cache.iterdir()} == {paths[n].name for n in (0, 1, 3)} | {"notes.txt"}

    real = os.statvfs

    class Small:
        f_frsize = 1

        def __init__(self, path: Path) -> None:
            self.f_blocks = 4 * (paths[3].stat().st_blocks * 512 + 1)
            self.f_bavail = real(path).f_bavail

    monkeypatch.setattr("kvintro.source.cache.os.statvfs", Small)
    found.clean()
    assert {path.name for path in cache.iterdir()} == {paths[3].name, "notes.txt"}


def test_directories_that_are_not_used(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that others can read, a link, one that cannot be created."""
    cache.mkdir(parents=True)
    cache.chmod(0o755)
    assert user_cache() is None
    cache.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    assert user_cache() is None
    for base in ("relative", "/proc/self"):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert user_cache() is None
    path = tmp_path / "memory.gz"
    path.write_bytes(PACKERS["gzip"](LIME))
    assert_whole(opened(path))


# Other ways of naming a dump


def test_through_a_pipe(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kvintro", "-c", "-", "info"]
    for data in (PACKERS["gzip"](LIME), gzip.compress(tar_of(lime=LIME), 1)):
        done = subprocess.run(command, input=data, stdout=subprocess.PIPE, cwd=ROOT, check=False)
        assert done.returncode in (0, 4)
        assert RELEASE in done.stdout.decode()
        assert "gzip" in done.stdout.decode()


def test_packed_files_that_belong_together(tmp_path: Path) -> None:
    """debug.guest.gz next to debug.vmem.gz, and a .vmss next to a .vmem.gz; either can be named."""
    half = len(MEMORY) // 2
    state = vmware_state([(0, half >> 12, half >> 12), (half >> 12, 0, half >> 12)])
    turned = MEMORY[half:] + MEMORY[:half]
    for ending in ("", ".gz"):
        for old in tmp_path.glob("a.*"):
            old.unlink()
        (tmp_path / f"a.vmss{ending}").write_bytes(gzip.compress(state) if ending else state)
        (tmp_path / "a.vmem.gz").write_bytes(gzip.compress(turned, 1))
        for name in (f"a.vmss{ending}", "a.vmem.gz"):
            kernel = opened(tmp_path / name)
            assert kernel.source.format == "VMware state and .vmem"
            assert_whole(kernel)


def test_watched(tmp_path: Path) -> None:
    """The progress bar gets the amount of the packed file that was read, up to its end."""
    path = tmp_path / "memory.gz"
    path.write_bytes(PACKERS["gzip"](LIME))
    seen: List[int] = []

    def watch(pieces: Any, size: int) -> Any:
        for position, data in pieces:
            seen.append(position)
            yield position, data
        assert size == path.stat().st_size

    with path.open("rb") as file:
        found = plain(FileContent(file), str(path), Unpacker(watch))
    assert found.layers == ("gzip",) and found.whole
    assert seen == sorted(seen) and seen[-1] == path.stat().st_size
