# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every core rewritten in every other format, without its note: the same kernel comes out of each.

The kernel's own words are what `test_layout_truth` compares the core itself with.
"""

from __future__ import annotations

import gzip
import json
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from kvintro.errors import NotADump
from kvintro.kernel import Kernel, open_kernel
from kvintro.render import render
from kvintro.reports.layout import layout
from kvintro.source import Request, open_source
from kvintro.source.core import examine
from kvintro.source.kallsyms import READ_ERRORS, vmcoreinfo_symbols
from kvintro.source.scan import find_btf, find_kallsyms, image_of, pieces
from tests.conftest import Core
from tests.memory_files import CODECS, avml, elf_without_notes, flattened, lime, packed_again, snappy

Range = Tuple[int, bytes]


def regions(kernel: Kernel) -> Any:
    """The layout's rows: what is said of the file differs, what is said of the kernel must not."""
    return json.loads(render(layout(kernel), "json"))["regions"]


@pytest.fixture(scope="session")
def memory(core: Core, kernel: Kernel) -> List[Range]:
    """All physical memory that the core has, and that can be RAM."""
    with core.path.open("rb") as file:
        dump = examine(file, str(core.path))
    if dump.headers is not None:
        ranges = [(s.paddr, s.paddr + s.filesz) for s in dump.headers.segments]
    else:
        assert dump.kdump is not None
        ranges = list(dump.kdump.ranges())

    def read(address: int, size: int) -> bytes:
        data: bytes = kernel.prog.read(address, size, True)
        return data

    found: List[Tuple[int, List[bytes]]] = []
    following = -1
    for start, end in ranges:
        if start >= 0xC0000000:  # QEMU's ROM
            continue
        for address, data in pieces(read, start, end):
            if address != following:
                found.append((address, []))
            found[-1][1].append(data)
            following = address + len(data)
    return [(address, b"".join(parts)) for address, parts in found]


@pytest.fixture(scope="session")
def expected(kernel: Kernel) -> Any:
    return regions(kernel)


def raw(ranges: List[Range]) -> bytes:
    out = bytearray(max(address + len(data) for address, data in ranges))
    for address, data in ranges:
        out[address : address + len(data)] = data
    return bytes(out)


def compressed(ranges: List[Range]) -> bytes:
    pack = snappy()
    if pack is None:
        pytest.skip("no snappy library (pip install cramjam)")
    return avml(ranges, pack)


FORMS: Dict[str, Callable[[List[Range]], bytes]] = {
    "ELF": elf_without_notes,
    "raw memory": raw,
    "LiME": lime,
    "AVML": compressed,
}


@pytest.mark.parametrize("form", FORMS)
def test_without_the_note(
    core: Core, kernel: Kernel, memory: List[Range], expected: Any, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "dump"
    path.write_bytes(FORMS[form](memory))
    try:
        other = open_kernel(Request(core=str(path)))
        assert other.source.format == form
        # Of the notes in memory it found the one that QEMU was told of.
        assert other.source.vmcoreinfo == kernel.source.vmcoreinfo
        assert other.source.vmcoreinfo_origin.startswith("found in memory at physical 0x")
        if core.has_truth("vmcoreinfo"):
            address = int(core.truth("vmcoreinfo").split()[0], 16)
            assert int(other.source.vmcoreinfo_origin.rpartition(" ")[2], 16) == address
        assert other.source.complete is not False
        assert regions(other) == expected
    finally:
        path.unlink()


@pytest.fixture(scope="session")
def plain_kdump(core: Core) -> Path:
    for name in ("core-raw.kdump", "core.kdump"):
        path = core.directory / name
        if path.exists() and path.read_bytes()[:8] == b"KDUMP   ":
            return path
    pytest.skip("this core has no plain kdump")


@pytest.fixture(params=CODECS)
def codec(request: pytest.FixtureRequest) -> Tuple[int, Callable[[bytes], bytes]]:
    flag, library = CODECS[request.param]
    pack = library()
    if pack is None:
        pytest.skip(f"nothing here packs {request.param}")
    return flag, pack


def test_each_compression(
    plain_kdump: Path, expected: Any, tmp_path: Path, codec: Tuple[int, Callable[[bytes], bytes]]
) -> None:
    path = tmp_path / "dump"
    packed_again(plain_kdump, path, *codec)
    try:
        other = open_kernel(Request(core=str(path)))
        assert (other.source.format, other.source.complete) == ("kdump", True)
        assert regions(other) == expected
    finally:
        path.unlink()


@pytest.mark.parametrize("flat", [False, True], ids=["plain", "flattened"])
def test_kdump_without_the_note(
    plain_kdump: Path, kernel: Kernel, expected: Any, tmp_path: Path, flat: bool
) -> None:
    """As QEMU writes it without the vmcoreinfo device: offset and size of VMCOREINFO are zero."""
    data = bytearray(plain_kdump.read_bytes())
    block = int.from_bytes(data[428:432], "little")
    # struct kdump_sub_header: offset_vmcoreinfo and size_vmcoreinfo; then those of the notes.
    data[block + 32 : block + 64] = bytes(32)
    path = tmp_path / "dump"
    path.write_bytes(flattened(bytes(data), 1 << 16) if flat else data)
    try:
        other = open_kernel(Request(core=str(path)))
        assert other.source.vmcoreinfo == kernel.source.vmcoreinfo
        assert "found in memory" in other.source.vmcoreinfo_origin
        assert (other.source.complete, other.source.memory) == (True, kernel.source.memory or None)
        assert regions(other) == expected
    finally:
        path.unlink()


def test_part_of_a_split_dump(plain_kdump: Path, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    shutil.copyfile(plain_kdump, path)
    with path.open("r+b") as file:
        file.seek(428)
        block = int.from_bytes(file.read(4), "little")
        file.seek(block + 12)
        file.write(b"\1")
    try:
        with pytest.raises(NotADump, match="part of a split dump") as raised:
            open_source(Request(core=str(path)))
        assert "--reassemble" in raised.value.remedy
    finally:
        path.unlink()


def test_a_raw_file_that_was_cut_off(memory: List[Range], expected: Any, tmp_path: Path) -> None:
    data = raw(memory)
    path = tmp_path / "dump"
    path.write_bytes(data[: len(data) - (16 << 20)])
    try:
        source = open_source(Request(core=str(path)))
    except NotADump as error:
        # What was cut off had the note or the image.
        assert "VMCOREINFO" in error.what
        return
    finally:
        path.unlink()
    assert source.complete is False
    assert any("truncated" in warning for warning in source.warnings)


# Scanning


def said_by_the_kernel(core: Core) -> Iterator[Tuple[str, int, str]]:
    """/proc/kallsyms without modules."""
    with gzip.open(core.truth_directory / "kallsyms.gz", "rt") as file:
        for line in file:
            fields = line.split()
            if len(fields) == 3:
                yield fields[2], int(fields[0], 16), fields[1]


def test_the_symbol_table_without_being_led_to_it(core: Core, kernel: Kernel) -> None:
    """On every kernel, whether its VMCOREINFO has the keys or not, and in no time."""
    symbols = {
        name: address
        for name, address in vmcoreinfo_symbols(kernel.prog["VMCOREINFO"].string_().decode()).items()
        if not name.startswith("kallsyms_")
    }
    started = time.monotonic()
    table = find_kallsyms(kernel.prog.read, symbols)
    assert time.monotonic() - started < 2  # 0.1 to 0.3 s where nothing else runs
    found = [(symbol.name, symbol.address, symbol.type) for symbol in table]
    said = list(said_by_the_kernel(core))
    if core.meta["kallsyms_sampled"]:
        assert set(said) <= set(found)
    else:
        assert found == said


def test_the_types_without_being_led_to_them(kernel: Kernel) -> None:
    """The only BTF in the image is that which symbols lead to."""
    start, stop = kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")
    said = kernel.prog.read(start, stop - start)
    try:
        where = image_of(vmcoreinfo_symbols(kernel.prog["VMCOREINFO"].string_().decode()))
        (found,) = find_btf(kernel.prog.read, *where)
    except READ_ERRORS:
        pytest.fail("the image cannot be read")
    assert said == found
