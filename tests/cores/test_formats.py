# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every core rewritten in every other format, without its note: the same kernel comes out of each.

The kernel's own words are what `test_layout_truth` compares the core itself with.
"""

from __future__ import annotations

import gzip
import json
import os
import struct
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import drgn
import pytest

from kvintro.arch.x86_64 import START_KERNEL_MAP
from kvintro.errors import NotADump, NotInDump, UsageError
from kvintro.kernel import Kernel, open_kernel
from kvintro.prompt import kernel as kernel_of
from kvintro.render import render
from kvintro.reports.layout import layout
from kvintro.source import Request, open_source
from kvintro.source.kallsyms import READ_ERRORS, vmcoreinfo_symbols
from kvintro.source.scan import find_btf, find_kallsyms, image_of, pieces
from tests.conftest import Core
from tests.memory_files import (
    CODECS,
    avml,
    dumped_ranges,
    elf_without_notes,
    flattened,
    lime,
    packed_again,
    raw,
    snappy,
    split,
)
from tests.timing import allowed

Range = Tuple[int, bytes]


def regions(kernel: Kernel) -> Any:
    """The layout's rows: what is said of the file differs, what is said of the kernel must not."""
    return json.loads(render(layout(kernel), "json"))["regions"]


@pytest.fixture(scope="session", autouse=True)
def one_boot_of_each(core: Core) -> None:
    """Writing and compressing all of memory takes its time."""
    if not core.meta["kaslr"]:
        pytest.skip("formats are tried on the dump of the same kernel with KASLR")


@pytest.fixture(scope="session")
def memory(core: Core, kernel: Kernel) -> List[Range]:
    """All physical memory that the core has, and that can be RAM."""

    def read(address: int, size: int) -> bytes:
        data: bytes = kernel.prog.read(address, size, True)
        return data

    found: List[Tuple[int, List[bytes]]] = []
    following = -1
    for start, end in dumped_ranges(core.path):
        for address, data in pieces(read, start, end):
            if address != following:
                found.append((address, []))
            found[-1][1].append(data)
            following = address + len(data)
    return [(address, b"".join(parts)) for address, parts in found]


@pytest.fixture(scope="session")
def expected(kernel: Kernel) -> Any:
    return regions(kernel)


def compressed(ranges: List[Range]) -> bytes:
    pack = snappy()
    if pack is None:
        pytest.skip("no snappy library (pip install cramjam)")
    return avml(ranges, pack)


FORMS: Dict[str, Callable[[Path, List[Range]], object]] = {
    "ELF": lambda path, memory: path.write_bytes(elf_without_notes(memory)),
    "raw memory": raw,
    "LiME": lambda path, memory: path.write_bytes(lime(memory)),
    "AVML": lambda path, memory: path.write_bytes(compressed(memory)),
}


@pytest.mark.parametrize("form", FORMS)
def test_without_the_note(
    core: Core, kernel: Kernel, memory: List[Range], expected: Any, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "dump"
    FORMS[form](path, memory)
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


@pytest.fixture
def parts(plain_kdump: Path, kernel: Kernel, tmp_path: Path) -> Iterator[List[str]]:
    """A split dump; the borders are in the middle of what a byte of the bitmaps says."""
    end = kernel.max_pfn.value
    bounds = [0, end // 3 | 1, end // 3 * 2 | 3, max(end, 1 << 20)]
    paths = [tmp_path / f"part{number}" for number in range(3)]
    for path, data in zip(paths, split(plain_kdump.read_bytes(), bounds)):
        path.write_bytes(data)
    yield [str(path) for path in paths]
    for path in paths:
        path.unlink()


def test_a_split_dump(parts: List[str], kernel: Kernel, expected: Any) -> None:
    other = open_kernel(Request(core=[parts[2], parts[0], parts[1]]))
    assert (other.source.format, other.source.complete) == ("split kdump", True)
    assert other.source.left_out == kernel.source.left_out
    assert regions(other) == expected


def test_a_split_dump_at_a_prompt(parts: List[str], kernel: Kernel, expected: Any) -> None:
    """All its files are given to kernel(); drgn alone takes one of them, which is then known to be a part."""
    k = kernel_of(Path(parts[1]), *parts[:1], parts[2])
    assert (k.source.format, k.source.complete, k.source.warnings) == ("split kdump", True, [])
    assert regions(k.plain) == expected
    with pytest.raises(UsageError, match="all of its dump"):
        kernel_of(k.prog, parts[0])
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    prog.set_core_dump(parts[1])
    one = kernel_of(prog)
    assert (one.source.format, one.source.complete) == ("split kdump", False)
    assert any("parts of a split dump" in warning for warning in one.source.warnings)
    assert_only_a_part(one.plain, kernel)


def assert_only_a_part(other: Kernel, whole: Kernel) -> None:
    """What the second of three parts has is read from it, and the rest is not in the dump; never zeros."""
    end = whole.max_pfn.value
    there = range(end // 3 | 1, end // 3 * 2 | 3)
    for pfn in (*range(0, end, 331), there[0] - 1, there[0], there[-1], there[-1] + 1):
        try:
            said = whole.read_physical(pfn << 12, 4096)
        except NotInDump:
            said = b""
        try:
            found = other.read_physical(pfn << 12, 4096)
        except NotInDump:
            found = b""
        assert found == (said if pfn in there else b"")


def test_parts_that_are_missing(parts: List[str], kernel: Kernel) -> None:
    other = open_kernel(Request(core=parts[1], types="none"))
    assert other.source.complete is False
    assert any("parts of a split dump" in warning for warning in other.source.warnings)
    assert_only_a_part(other, kernel)


def test_parts_that_do_not_belong_together(parts: List[str], plain_kdump: Path) -> None:
    with pytest.raises(NotADump, match="another part has too"):
        open_source(Request(core=[parts[0], parts[0]]))
    with pytest.raises(UsageError, match="no part of a split one"):
        open_source(Request(core=[parts[0], str(plain_kdump)]))
    last = Path(parts[2])
    data = bytearray(last.read_bytes())
    at, size = struct.unpack_from("<QQ", data, int.from_bytes(data[428:432], "little") + 32)
    spoiled = data[at : at + size].replace(b"LENGTH(zone.free_area)=", b"LENGTH(zone.free_areb)=")
    assert spoiled != data[at : at + size]
    data[at : at + size] = spoiled
    last.write_bytes(data)
    with pytest.raises(NotADump, match="not of the dump"):
        open_source(Request(core=parts))
    for cut in (1000, 4500, 9000):
        last.write_bytes(data[:cut])
        with pytest.raises(NotADump, match=r"part2.* is truncated"):
            open_source(Request(core=parts))


def test_a_raw_file_that_was_cut_off(memory: List[Range], expected: Any, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    raw(path, memory)
    os.truncate(path, path.stat().st_size - (16 << 20))
    try:
        source = open_source(Request(core=str(path)))
    except NotADump as error:
        # What was cut off had the note or the image.
        assert "VMCOREINFO" in error.what
        return
    finally:
        path.unlink()
    if source.kallsyms is not None and source.kallsyms.code_only:
        assert source.complete is None  # how long it should be only max_pfn says
        return
    assert source.complete is False
    assert any("truncated" in warning for warning in source.warnings)


def test_a_raw_file_that_ends_within_its_kernel(kernel: Kernel, memory: List[Range], tmp_path: Path) -> None:
    """Wherever KASLR put the image: cut off before the variable that says how much memory there was."""
    if kernel.source.symbols == "none" or kernel.code_only:
        pytest.skip("this kernel's symbols do not lead to max_pfn")
    physical = kernel.symbol("max_pfn") - START_KERNEL_MAP + kernel.phys_base.value
    path, note = tmp_path / "dump", tmp_path / "vmcoreinfo"
    raw(path, memory)
    os.truncate(path, physical & -4096)
    # Given, since the page with it may lie behind.
    note.write_text("".join(f"{key}={value}\n" for key, value in kernel.source.vmcoreinfo.items()))
    source = open_source(Request(core=str(path), vmcoreinfo=str(note)))
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
    started = time.process_time()
    table = find_kallsyms(kernel.prog.read, symbols)
    assert time.process_time() - started < allowed(2)  # 0.1 to 0.3 s where nothing else runs
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
