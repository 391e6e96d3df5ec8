# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every core, written in every other format without its note: each gives the same kernel.

`test_layout_truth` compares the core itself with the truth.
"""

from __future__ import annotations

import gzip
import os
import struct
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import drgn
import pytest

from kvintro.errors import NotADump, NotInDump, Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.opening import open_kernel
from kvintro.prompt import kernel as kernel_of
from kvintro.source import Request, Source, open_source
from kvintro.source.kallsyms import READ_ERRORS, vmcoreinfo_symbols
from kvintro.source.scan import find_btf, find_kallsyms, image_of
from kvintro.source.vmcoreinfo import in_silence
from tests.conftest import Core
from tests.cores.conftest import regions
from tests.memory_files import (
    CODECS,
    avml,
    elf_without_notes,
    flattened,
    lime,
    packed_again,
    raw,
    snappy,
    split,
)
from tests.timing import allowed

ARCHITECTURES = ("amd64", "arm64", "riscv64")
#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

Range = Tuple[int, bytes]


@pytest.fixture(scope="session", autouse=True)
def one_boot_of_each(core: Core) -> None:
    """Use one boot of each kernel, because writing and compressing all of memory is slow."""
    if not core.meta["kaslr"]:
        pytest.skip("formats are tried on the dump of the same kernel with KASLR")


def compressed(ranges: List[Range]) -> bytes:
    pack = snappy()
    if pack is None:
        pytest.skip("no snappy library (pip install cramjam)")
    return avml(ranges, pack)


#: Functions that take the path, the memory, and ELF's number of the machine.
FORMS: Dict[str, Callable[[Path, List[Range], int], object]] = {
    "ELF": lambda path, memory, machine: path.write_bytes(elf_without_notes(memory, machine)),
    "raw memory": lambda path, memory, _: raw(path, memory),
    "LiME": lambda path, memory, _: path.write_bytes(lime(memory)),
    "AVML": lambda path, memory, _: path.write_bytes(compressed(memory)),
}


@pytest.mark.parametrize("form", FORMS)
def test_without_the_note(
    core: Core, kernel: Kernel, memory: List[Range], expected: Any, tmp_path: Path, form: str
) -> None:
    path = tmp_path / "dump"
    FORMS[form](path, memory, kernel.arch.elf_machine)
    try:
        other = open_kernel(Request(core=str(path)))
        assert other.source.format == form
        # Among the notes in memory, it found the one that the kernel registered with QEMU.
        assert other.source.vmcoreinfo == kernel.source.vmcoreinfo
        assert other.source.vmcoreinfo_origin.startswith("found in memory at physical 0x")
        if core.has_truth("vmcoreinfo"):
            address = int(core.truth("vmcoreinfo").split()[0], 16)
            assert int(other.source.vmcoreinfo_origin.rpartition(" ")[2], 16) == address
        assert other.source.complete is not False
        assert regions(other) == expected
    finally:
        path.unlink()


def ram_alone(core: Core, memory: List[Range], path: Path) -> Tuple[int, bytes]:
    """Write only RAM; return its first address and its content."""
    if core.architecture == "amd64":
        pytest.skip("RAM begins at 0 there")
    # QEMU's dump of riscv64 also has the read-only memory at 0.
    start = core.ram_base
    raw(path, [(first - start, data) for first, data in memory if first >= start])
    return start, path.read_bytes()


def test_a_file_that_begins_with_ram(
    core: Core, kernel: Kernel, memory: List[Range], expected: Any, tmp_path: Path
) -> None:
    """As QEMU's memory-backend-file and pmemsave write it: the file does not contain the address of RAM."""
    path = tmp_path / "dump"
    start, _ = ram_alone(core, memory, path)
    other = open_kernel(Request(core=str(path)))
    assert [(s.paddr, s.filesz) for s in other.source.segments] == [(start, path.stat().st_size)]
    assert other.source.complete is (None if kernel.code_only else True)
    assert regions(other) == expected
    address = int(core.truth("vmcoreinfo").split()[0], 16)
    assert other.source.vmcoreinfo_origin == f"found in memory at physical {address:#x}"
    chosen = open_kernel(Request(core=str(path), vmcoreinfo_at=address))
    assert regions(chosen) == expected
    assert other.source.kernels is not None
    assert [found.address for found in other.source.kernels(in_silence).found] == [address]
    path.unlink()


def test_a_file_that_begins_with_ram_and_lacks_some(
    core: Core, kernel: Kernel, memory: List[Range], tmp_path: Path
) -> None:
    """Bytes are removed, so that the data after them is at wrong offsets."""
    path = tmp_path / "dump"
    start, data = ram_alone(core, memory, path)
    namespace = int(kernel.source.vmcoreinfo["SYMBOL(init_uts_ns)"], 16) - kernel.image_offset.value & ALL
    # The kernel may have allocated the page of VMCOREINFO anywhere, and that page must stay in the file.
    before_note = int(core.truth("vmcoreinfo").split()[0], 16) - start
    if not before_note:
        pytest.skip("RAM begins with the page of VMCOREINFO: nothing before it can be removed")

    def opened_without(at: int, size: int = 1 << 20) -> Source:
        path.write_bytes(data[:at] + data[at + size :])
        return open_source(Request(core=str(path)))

    between = (kernel.root.value + namespace) // 2 - start & -kernel.form.page_size
    try:
        warnings = opened_without(between).warnings
    except NotADump as error:
        assert "no VMCOREINFO in it is valid" in error.what
    else:
        assert any("of this boot could not be verified" in warning for warning in warnings)
    if kernel.code_only or "ARCH_KEEP_MEMBLOCK" not in core.config:
        warnings = opened_without(0, min(1 << 20, before_note)).warnings
        assert any(
            "it is not known whether this file's RAM is in one piece" in warning for warning in warnings
        )
    else:
        with pytest.raises(
            NotADump, match=rf"its kernel has RAM from {start:#x} to .*, and this file does not"
        ):
            opened_without(0, min(1 << 20, before_note))
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


def bounds_of_parts(kernel: Kernel) -> List[int]:
    """Page frames at which the parts begin, and the end of the last."""
    first, end = min(first for first, _ in kernel.node_spans()), kernel.max_pfn.value
    third = (end - first) // 3
    return [0, first + third | 1, first + 2 * third | 3, max(end, 1 << 20)]


@pytest.fixture
def parts(plain_kdump: Path, kernel: Kernel, tmp_path: Path) -> Iterator[List[str]]:
    """A split dump; the bounds are inside a byte of the bitmaps."""
    bounds = bounds_of_parts(kernel)
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
    """kernel() takes all files; drgn alone takes one, and kvintro recognises it as a part."""
    k = kernel_of(Path(parts[1]), *parts[:1], parts[2])
    assert (k._source.format, k._source.complete, k._source.warnings) == ("split kdump", True, [])
    assert regions(k._kernel) == expected
    with pytest.raises(UsageError, match="together with parts of a dump"):
        kernel_of(k.prog, parts[0])
    prog = drgn.Program(kernel.prog.platform)
    prog.set_core_dump(parts[1])
    one = kernel_of(prog)
    assert (one._source.format, one._source.complete) == ("split kdump", False)
    assert any("parts of a split dump" in warning for warning in one._source.warnings)
    assert_only_a_part(one._kernel, kernel)


def assert_only_a_part(other: Kernel, whole: Kernel) -> None:
    """The pages of the second of three parts are read; the others are not in the dump, and never zeros."""
    bounds, page = bounds_of_parts(whole), whole.form.page_size
    there = range(bounds[1], bounds[2])
    first, end = min(first for first, _ in whole.node_spans()), whole.max_pfn.value
    for pfn in (*range(first, end, 331), there[0] - 1, there[0], there[-1], there[-1] + 1):
        try:
            said = whole.read_physical(pfn * page, page)
        except NotInDump:
            said = b""
        try:
            found = other.read_physical(pfn * page, page)
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
    with pytest.raises(UsageError, match="not a part of a split one"):
        open_source(Request(core=[parts[0], str(plain_kdump)]))
    last = Path(parts[2])
    data = bytearray(last.read_bytes())
    at, size = struct.unpack_from("<QQ", data, int.from_bytes(data[428:432], "little") + 32)
    spoiled = data[at : at + size].replace(b"LENGTH(zone.free_area)=", b"LENGTH(zone.free_areb)=")
    assert spoiled != data[at : at + size]
    data[at : at + size] = spoiled
    last.write_bytes(data)
    with pytest.raises(NotADump, match="parts of different dumps"):
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
        # The part that was cut off contained the note or the image.
        assert "VMCOREINFO" in error.what
        return
    finally:
        path.unlink()
    if source.kallsyms is None or source.kallsyms.code_only:
        assert source.complete is None  # only max_pfn says how long it should be
        return
    assert source.complete is False
    assert any("truncated" in warning for warning in source.warnings)


def test_a_raw_file_that_ends_within_its_kernel(kernel: Kernel, memory: List[Range], tmp_path: Path) -> None:
    """Cut off before the variable with the size of memory, wherever KASLR put the image."""
    if kernel.source.symbols == "none" or kernel.code_only:
        pytest.skip("this kernel's symbols do not lead to max_pfn")
    physical = kernel.symbol("max_pfn") - kernel.image_offset.value & ALL
    path, note = tmp_path / "dump", tmp_path / "vmcoreinfo"
    raw(path, memory)
    os.truncate(path, physical & -4096)
    # VMCOREINFO is given, because its page may be after the cut.
    note.write_text("".join(f"{key}={value}\n" for key, value in kernel.source.vmcoreinfo.items()))
    source = open_source(Request(core=str(path), vmcoreinfo=str(note)))
    path.unlink()
    # On arm64 the symbols may be after the cut, and there is no other source.
    assert source.complete is (None if source.kallsyms is None else False)
    assert any("truncated" in warning for warning in source.warnings) is (source.kallsyms is not None)


# Scanning


def said_by_the_kernel(core: Core) -> Iterator[Tuple[str, int, str]]:
    """/proc/kallsyms without modules."""
    with gzip.open(core.truth_directory / "kallsyms.gz", "rt") as file:
        for line in file:
            fields = line.split()
            if len(fields) == 3:
                yield fields[2], int(fields[0], 16), fields[1]


def test_the_symbol_table_without_being_led_to_it(core: Core, kernel: Kernel) -> None:
    """On every kernel, with or without the keys in VMCOREINFO, and quickly."""
    symbols = {
        name: address
        for name, address in vmcoreinfo_symbols(kernel.prog["VMCOREINFO"].string_().decode()).items()
        if not name.startswith("kallsyms_")
    }
    started = time.process_time()
    table = find_kallsyms(kernel.prog.read, symbols)
    assert time.process_time() - started < allowed(2)  # 0.1 to 0.3 s on an idle machine
    found = [(symbol.name, symbol.address, symbol.type) for symbol in table]
    said = list(said_by_the_kernel(core))
    if core.meta["kallsyms_sampled"]:
        assert set(said) <= set(found)
    else:
        assert found == said


def test_the_types_without_being_led_to_them(kernel: Kernel) -> None:
    """The only BTF in the image is the one that the symbols point to."""
    try:
        start, stop = kernel.symbol("__start_BTF"), kernel.symbol("__stop_BTF")
    except Unavailable as error:
        pytest.skip(error.what)
    said = kernel.prog.read(start, stop - start)
    try:
        where = image_of(vmcoreinfo_symbols(kernel.prog["VMCOREINFO"].string_().decode()))
        (found,) = find_btf(kernel.prog.read, *where)
    except READ_ERRORS:
        pytest.fail("the image cannot be read")
    assert said == found
