# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMCOREINFO found in memory made by the test, and what of it is believed."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from kvintro.cli import main
from kvintro.errors import NotADump, NotInDump
from kvintro.source.physical import Extent, PhysicalMemory
from kvintro.source.vmcoreinfo import candidates, find_vmcoreinfo, text_at, why_not
from tests.memory_files import elf_without_notes, lime
from tests.synthetic import PAGE, START_KERNEL_MAP, Memory, vmcoreinfo

RELEASE = "6.0.0-made-up"
BUILD_ID = "c0ffee" * 6 + "0123"
NAMESPACE = 0x1800000  # where init_uts_ns lies, virtual and physical, as phys_base is 0
STEXT = 0x1000000
NOTE = 0x300000


def text(**more: str) -> str:
    return vmcoreinfo(
        **{
            "BUILD-ID": BUILD_ID,
            "SYMBOL(init_uts_ns)": f"{START_KERNEL_MAP + NAMESPACE + 0x700:x}",
            **more,
        }
    )


def note(content: str) -> bytes:
    data = content.encode()
    return struct.pack("<III", 11, len(data), 0) + b"VMCOREINFO\0\0" + data + bytes(-len(data) % 4)


class Guest(PhysicalMemory):
    """A kernel that has little but what makes its VMCOREINFO true."""

    def __init__(self, offset: int = 4, levels: int = 4) -> None:
        self.memory = Memory(levels)
        names = b"".join(name.ljust(65, b"\0") for name in (b"Linux", b"(none)", RELEASE.encode(), b"#1"))
        for at in range(STEXT, NAMESPACE + 0x2000, 2 << 20):
            self.memory.map(START_KERNEL_MAP + at, at, level=2)
        self.memory.write(NAMESPACE + 0x700, bytes(offset) + names)
        build_id = struct.pack("<III4s", 4, 20, 3, b"GNU\0") + bytes.fromhex(BUILD_ID)
        # Across two pieces of the search.
        split = STEXT + 0x200000 - 10
        self.memory.write(split, build_id[:10])
        self.memory.write(split + 10, build_id[10:])
        for at in range(STEXT, NAMESPACE, PAGE):
            self.memory.pages.setdefault(at, bytearray(PAGE))
        super().__init__([Extent(0, 1 << 30, 0)])

    def put(self, address: int, content: bytes) -> None:
        for at in range(0, len(content), PAGE):
            self.memory.write(address + at, content[at : at + PAGE])

    def read(self, address: int, size: int) -> bytes:
        return self.memory.read(address, size)

    def pieces(self) -> Iterator[Tuple[int, bytes]]:
        for address in sorted(self.memory.pages):
            yield address, bytes(self.memory.pages[address])


@pytest.mark.parametrize("offset", [0, 4])
@pytest.mark.parametrize("levels", [4, 5])
def test_found(offset: int, levels: int) -> None:
    guest = Guest(offset, levels)
    said = text(**{"NUMBER(pgtable_l5_enabled)": str(int(levels == 5))})
    guest.put(NOTE, note(said))
    found = find_vmcoreinfo([guest])
    assert (found.text.decode(), found.address, found.layouts) == (said, NOTE, [guest])


def test_copies_that_belong_to_nothing() -> None:
    """Of the boot before, of another kernel, in the page cache: the first that is right is taken."""
    guest = Guest()
    before = text(**{"SYMBOL(swapper_pg_dir)": f"{START_KERNEL_MAP + 0x200000:x}"})
    guest.put(NOTE - 0x3000, note(before))
    guest.put(NOTE - 0x2000, note(text(OSRELEASE="5.4.0-other")))
    guest.put(NOTE - 0x1000 + 16, note(text()))  # not at the beginning of a page
    guest.put(NOTE, note(text()))
    guest.put(NOTE + 0x3000, note(text()))
    assert find_vmcoreinfo([guest]).address == NOTE


def test_the_search_ends_where_it_is_found() -> None:
    guest = Guest()
    guest.put(NOTE, note(text()))

    def pieces() -> Iterator[Tuple[int, bytes]]:
        yield NOTE, bytes(guest.memory.pages[NOTE])
        pytest.fail("more was read")

    assert find_vmcoreinfo([guest], search=lambda *_: pieces()).address == NOTE


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"OSRELEASE": "6.0.0-other"}, "does not say 6.0.0-other"),
        ({"OSRELEASE": "6.0.0"}, "does not say 6.0.0"),
        ({"BUILD-ID": "ff" * 20}, "does not have the build id"),
        ({"BUILD-ID": "not hex"}, "does not have the build id"),
        ({"SYMBOL(swapper_pg_dir)": f"{START_KERNEL_MAP + 0x2000:x}"}, "not-in-dump"),
        ({"SYMBOL(swapper_pg_dir)": "100000"}, "swapper_pg_dir is not in a kernel's image"),
        ({"SYMBOL(init_uts_ns)": f"{START_KERNEL_MAP + 0x5000000:x}"}, "unmapped"),
        ({"SYMBOL(init_uts_ns)": "zzz"}, "init_uts_ns) is no number"),
        ({"NUMBER(phys_base)": "2097152"}, "init_uts_ns is"),
        ({"NUMBER(phys_base)": "-99999999999999999999999"}, "init_uts_ns is"),
        ({"NUMBER(pgtable_l5_enabled)": "1"}, "init_uts_ns is"),
        ({"NUMBER(sme_mask)": "nonsense"}, "sme_mask) is no number"),
        ({"NUMBER(sme_mask)": str(1 << 63)}, ""),
    ],
)
def test_what_is_not_believed(more: "dict[str, str]", said: str) -> None:
    guest = Guest()
    guest.put(NOTE, note(text(**more)))
    problem = why_not(guest.read, text(**more).encode())
    if not said:  # bits that no address has do not matter
        assert problem is None
        return
    assert problem is not None and said in problem
    with pytest.raises(NotADump, match="can be believed"):
        find_vmcoreinfo([guest])


def test_a_build_id_that_cannot_be_looked_for() -> None:
    """Before 5.9 there is none; and what is not in the dump cannot contradict."""
    guest = Guest()
    without = "".join(line + "\n" for line in text().splitlines() if "BUILD-ID" not in line)
    assert why_not(guest.read, without.encode()) is None
    other = text(**{"BUILD-ID": "ff" * 20}).encode()
    assert why_not(guest.read, other) is not None
    del guest.memory.pages[STEXT + 0x3000]
    assert why_not(guest.read, other) is None


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<III", 12, 4000, 0),
        struct.pack("<III", 11, 0, 0),
        struct.pack("<III", 11, 1 << 31, 0),
        struct.pack("<III", 11, 1 << 16, 0),
        struct.pack("<III", 11, 4000, 7),
    ],
)
def test_headers_that_make_no_sense(head: bytes) -> None:
    guest = Guest()
    guest.put(NOTE, head + note(text())[12:])
    assert list(candidates(guest.pieces())) == [NOTE]
    assert text_at(guest.read, NOTE) is None
    with pytest.raises(NotADump, match="no VMCOREINFO was found"):
        find_vmcoreinfo([guest])


def test_memory_full_of_them() -> None:
    """However many wrong ones there are, the search ends."""
    guest = Guest()
    for number in range(1000):
        guest.put(0x10000000 + number * PAGE, note(text(OSRELEASE=f"{number}")))
    started = time.process_time()
    with pytest.raises(NotADump, match="256 were found"):
        find_vmcoreinfo([guest])
    assert time.process_time() - started < 10


def test_candidates_in_big_pieces() -> None:
    page = note(text()).ljust(PAGE, b"\0")
    wanted = [3, 4, 77]
    data = b"".join(page if i in wanted else bytes([i % 256]) * PAGE for i in range(100))
    assert list(candidates([(0x5000, data)])) == [0x5000 + i * PAGE for i in wanted]
    # A piece that does not begin with a page, and one that ends within a note.
    assert list(candidates([(0x5100, data[0x100 : 4 * PAGE + 20])])) == [0x5000 + 3 * PAGE]
    assert list(candidates([(0, b""), (0, b"VM")])) == []


def ranges(guest: Guest) -> List[Tuple[int, bytes]]:
    return [(address, bytes(page)) for address, page in sorted(guest.memory.pages.items())]


@pytest.mark.parametrize("make", [elf_without_notes, lime], ids=["elf", "lime"])
def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: "object") -> None:
    """The same by the command line; without types and symbols the report is partial."""
    assert callable(make)
    guest = Guest()
    path = tmp_path / "dump"
    path.write_bytes(make(ranges(guest)))
    assert main(["-c", str(path), "layout"]) == 3
    assert "no VMCOREINFO was found" in capsys.readouterr().err
    guest.put(NOTE, note(text(OSRELEASE="6.6.6")))
    path.write_bytes(make(ranges(guest)))
    assert main(["-c", str(path), "layout"]) == 3
    assert "init_uts_ns does not say 6.6.6" in capsys.readouterr().err
    guest.put(NOTE + 0x1000, note(text()))
    path.write_bytes(make(ranges(guest)))
    assert main(["-c", str(path), "layout"]) == 4
    assert RELEASE in capsys.readouterr().out
    # What the user gives is tried out as well, where nothing else can tell that it is of this boot.
    given = tmp_path / "vmcoreinfo"
    given.write_text(text(OSRELEASE="6.6.6"))
    expected = {"lime": 3, "elf_without_notes": 4}[make.__name__]  # type: ignore[attr-defined]
    assert main(["-c", str(path), "--vmcoreinfo", str(given), "layout"]) == expected


def test_forced_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump"
    guest = Guest()
    guest.put(NOTE, note(text()))
    with path.open("wb") as file:
        for address, page in ranges(guest):
            file.seek(address)
            file.write(page)
        file.seek(0)
        file.write(b"EMiL")  # what a page of memory happens to hold
    assert main(["-c", str(path), "layout"]) == 3
    assert "makes no sense" in capsys.readouterr().err
    assert main(["-c", str(path), "--format-in", "raw", "layout"]) == 4
    assert RELEASE in capsys.readouterr().out
    for form in ("elf", "kdump", "avml"):
        assert main(["-c", str(path), "--format-in", form, "layout"]) == 3
        assert "internal error" not in capsys.readouterr().err


def test_not_in_dump_is_what_walks_expect() -> None:
    with pytest.raises(NotInDump):
        Guest().read(1 << 40, 8)
