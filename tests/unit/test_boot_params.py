# SPDX-License-Identifier: LGPL-2.1-or-later
"""The unpacker's choices according to the boot header, with made-up headers."""

from __future__ import annotations

import struct
from typing import Any, Dict, List, Optional, Tuple, cast

import pytest

from kvintro.arch.x86_64 import boot_params
from kvintro.arch.x86_64.boot_params import booted_by_efi, image_sizes, unpacking
from kvintro.errors import NotInDump, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Fact

MB = 1 << 20
GRUB, QEMU, SYSLINUX, KEXEC = 0x72, 0xB0, 0x31, 0xD0
HERE, LINE = 0x1000, 0x3000


class Booted:
    """The needed parts of a kernel: ``boot_params``, a command line, physical memory."""

    def __init__(
        self,
        fields: Dict[int, Tuple[int, int]],
        line: Optional[str] = "quiet",
        physical: Optional[Dict[int, bytes]] = None,
    ) -> None:
        page = bytearray(4096)
        for offset, (value, size) in fields.items():
            page[offset : offset + size] = value.to_bytes(size, "little")
        self._memory = {HERE: bytes(page)}
        self._line = line
        if line is not None:
            self._memory[LINE] = line.encode() + b"\0"
        self._physical = physical or {}
        self.text = Fact(0xFFFF_FFFF_8100_0000, "made")

    def symbol(self, name: str) -> int:
        return {"boot_params": HERE, "_end": self.text.value + 40 * MB}[name]

    def find_symbol(self, name: str) -> Optional[int]:
        return None

    def value(self, name: str, size: int = 8) -> Fact[int]:
        if name != "saved_command_line" or self._line is None:
            raise Unavailable(name)
        return Fact(LINE, name)

    def read(self, address: int, size: int) -> bytes:
        for start, data in self._memory.items():
            if start <= address and address + size <= start + max(len(data), 4096):
                return data[address - start :][:size].ljust(size, b"\0")
        raise NotInDump(address, size, physical=False)

    def read_physical(self, address: int, size: int) -> bytes:
        for start, data in self._physical.items():
            if start <= address and address + size <= start + len(data):
                return data[address - start :][:size]
        raise NotInDump(address, size, physical=True)


def header(loader: int = QEMU, start: int = MB, **more: int) -> Dict[int, Tuple[int, int]]:
    """Fields by offset: (value, bytes)."""
    sizes = {
        "ramdisk_image": (0x218, 4),
        "ramdisk_size": (0x21C, 4),
        "cmd_line_ptr": (0x228, 4),
        "setup_data": (0x250, 8),
    }
    found = {
        0x1E8: (1, 1),
        0x210: (loader, 1),
        0x214: (start, 4),
        0x230: (2 * MB, 4),
        0x24C: (10 * MB, 4),
        0x258: (16 * MB, 8),
        0x260: (55 * MB, 4),
        0x2D0: (int.from_bytes(struct.pack("<QQI", MB, 2047 * MB, 1), "little"), 20),
    }
    for name, value in more.items():
        offset, size = sizes[name]
        found[offset] = (value, size)
    return found


@pytest.fixture(autouse=True)
def no_srat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_params, "_immovable", lambda kernel: [])


def told(fields: Dict[int, Tuple[int, int]], **more: Any) -> boot_params.Unpacking:
    return unpacking(cast(Kernel, Booted(fields, **more)))


@pytest.mark.parametrize(
    ("start", "load"),
    [(MB, 16 * MB), (16 * MB, 16 * MB), (17 * MB, 18 * MB), (600 * MB, 600 * MB), (0x40100000, 0x40200000)],
)
def test_where_it_was_loaded(start: int, load: int) -> None:
    """head_64.S: aligned, and not below LOAD_PHYSICAL_ADDR."""
    found = told(header(GRUB, start))
    assert found.load == load
    assert found.ram == [(MB, 2048 * MB)]
    assert found.taken == [(load + 45 * MB, load + 55 * MB)]
    # Above 512 MB, places before the packed kernel count, and its start is not known exactly.
    assert found.complete is (load <= 512 * MB)


@pytest.mark.parametrize("loader", [KEXEC, 0xD1])
def test_kexec_does_not_say(loader: int) -> None:
    with pytest.raises(Unavailable, match="packed kernel"):
        told(header(loader))


def test_other_loaders_may_have_taken_more() -> None:
    assert not told(header(SYSLINUX)).complete


@pytest.mark.parametrize(
    ("line", "end", "avoided"),
    [
        ("quiet", 2048 * MB, []),
        ("mem=1G", 1024 * MB, []),
        ("mem=0x20000000 mem=1G", 512 * MB, []),
        ("mem=nopentium", 2048 * MB, []),
        ("memmap=16M!160M quiet", 2048 * MB, [(160 * MB, 176 * MB)]),
        ("memmap=16M$160M,64k#0x1000000", 2048 * MB, [(160 * MB, 176 * MB), (16 * MB, 16 * MB + 65536)]),
        ("memmap=exactmap memmap=1G@16M", 2048 * MB, []),
        ("memmap=1G", 1024 * MB, []),
        ("memmap=16M!160M -- mem=1M", 2048 * MB, [(160 * MB, 176 * MB)]),
        ("membarrier=1", 2048 * MB, []),
        ("mem=nonsense memmap=!,", 2048 * MB, []),
    ],
)
def test_options_that_shrink_memory(line: str, end: int, avoided: List[Tuple[int, int]]) -> None:
    found = told(header(), line=line)
    assert found.ram == [(MB, end)]
    assert found.taken[1:] == avoided
    assert found.complete


@pytest.mark.parametrize("line", ["hugepagesz=1G hugepages=1", None])
def test_options_that_are_not_followed(line: Optional[str]) -> None:
    assert not told(header(), line=line).complete


def test_a_command_line_that_is_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unpacker does not see it, and the boundary within the whole command line is unknown."""
    monkeypatch.setattr(Booted, "find_symbol", lambda self, name: name)
    assert not told(header(), line="mem=1G").complete
    assert told(header()).complete


def test_an_srat_excludes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hot-pluggable memory, and places that would span two entries."""
    entries = [
        (0, 0x9FC00, 1),
        (MB, 127 * MB, 1),
        (128 * MB, 128 * MB, 0),
        (256 * MB, 4096 * MB, 3),
        (512 * MB, 0, 1),
    ]
    cpu = struct.pack("<BB14x", 0, 16)
    memory = [struct.pack("<BB6xQQ4xI8x", 1, 40, *entry) for entry in entries]
    table = b"SRAT".ljust(48, b"\0") + cpu + b"".join(memory)
    immovable = boot_params._memory_affinity(table)
    assert immovable == [(0, 0x9FC00), (MB, 128 * MB), (128 * MB, 256 * MB)]
    monkeypatch.setattr(boot_params, "_immovable", lambda kernel: immovable)
    found = told(header())
    assert found.ram == [(MB, 128 * MB), (128 * MB, 256 * MB)] and found.complete
    monkeypatch.setattr(boot_params, "_immovable", lambda kernel: None)
    assert not told(header()).complete


@pytest.mark.parametrize("table", [b"", b"SRAT", b"SRAT".ljust(60, b"\0"), b"SRAT".ljust(50, b"\1")])
def test_a_broken_srat(table: bytes) -> None:
    """As in the kernel, an entry without a length ends it, and then the table has no effect."""
    assert boot_params._memory_affinity(table) == []


def test_setup_data_is_in_the_way() -> None:
    """struct setup_data, and the memory that a struct setup_indirect in it points to."""
    first = struct.pack("<QII", 0x200_0000, 9, 32)
    second = struct.pack("<QII", 0, 1 << 31, 24) + struct.pack("<IIQQ", 5, 0, 3 * MB, 100 * MB)
    found = told(header(setup_data=0x180_0000), physical={0x180_0000: first, 0x200_0000: second})
    assert found.taken[1:] == [
        (0x180_0000, 0x180_0000 + 48),
        (0x200_0000, 0x200_0000 + 40),
        (100 * MB, 103 * MB),
    ]
    assert found.complete


@pytest.mark.parametrize(
    "physical", [{}, {0x180_0000: struct.pack("<QII", 0x180_0000, 9, 0)}], ids=["missing", "circle"]
)
def test_setup_data_that_leads_nowhere(physical: Dict[int, bytes]) -> None:
    assert not told(header(setup_data=0x180_0000), physical=physical).complete


def test_initrd_and_command_line() -> None:
    found = told(header(ramdisk_image=100 * MB, ramdisk_size=MB, cmd_line_ptr=0x20000))
    assert found.taken[1:] == [(100 * MB, 101 * MB), (0x20000, 0x20001)]


def test_the_efi_stub_leaves_no_header() -> None:
    fields: Dict[int, Tuple[int, int]] = {0x1C0: (int.from_bytes(b"EL64", "little"), 4), 0x210: (0x21, 1)}
    kernel = cast(Kernel, Booted(fields))
    assert booted_by_efi(kernel)
    assert image_sizes(kernel) == (40 * MB, None, "_text to _end")
    assert not booted_by_efi(cast(Kernel, Booted(header())))
    least, most, _ = image_sizes(cast(Kernel, Booted(header())))
    assert most is not None and least == 40 * MB < most < 55 * MB


def test_a_made_up_number_of_ram_entries_is_bounded() -> None:
    fields = header()
    fields[0x1E8] = (255, 1)
    ram: List[Tuple[int, int]] = told(fields).ram
    assert len(ram) <= 128
