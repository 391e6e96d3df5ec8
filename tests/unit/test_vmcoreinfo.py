# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMCOREINFO in memory made by the test, and the checks before it is accepted."""

from __future__ import annotations

import struct
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvintro.cli import main
from kvintro.errors import NotADump, NotInDump, WrongVmcoreinfo
from kvintro.source.dump import outside
from kvintro.source.kallsyms import vmcoreinfo_symbols
from kvintro.source.live import open_running_kernel
from kvintro.source.note import parse, text_from_file
from kvintro.source.physical import Extent, PhysicalMemory
from kvintro.source.vmcoreinfo import (
    BuildIds,
    Found,
    Judge,
    MemorySearch,
    Verdict,
    Wanted,
    candidates,
    text_at,
)
from tests.memory_files import elf_without_notes, lime
from tests.synthetic import PAGE, START_KERNEL_MAP, Memory, elf_core, vmcoreinfo
from tests.timing import allowed

RELEASE = "6.0.0-made-up"
BUILD_ID = "c0ffee" * 6 + "0123"
NAMESPACE = 0x1800000  # address of init_uts_ns, virtual and physical, because phys_base is 0
STEXT = 0x1000000
NOTE = 0x300000


def text(**more: str) -> str:
    return vmcoreinfo(
        more={
            "BUILD-ID": BUILD_ID,
            "SYMBOL(init_uts_ns)": f"{START_KERNEL_MAP + NAMESPACE + 0x700:x}",
            **more,
        }
    )


def find_vmcoreinfo(layouts: List[PhysicalMemory], **more: Any) -> Found:
    """The first VMCOREINFO that fits."""
    return MemorySearch(layouts, **more).first("the file")


def judged(guest: Guest, content: str) -> Verdict:
    return Judge(guest.read)(content.encode())


def note(content: str) -> bytes:
    data = content.encode()
    return struct.pack("<III", 11, len(data), 0) + b"VMCOREINFO\0\0" + data + bytes(-len(data) % 4)


class Guest(PhysicalMemory):
    """A kernel with only the memory that confirms its VMCOREINFO."""

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
    assert (found.text.decode(), found.address, found.layouts) == (said, NOTE, (guest,))


def test_copies_that_belong_to_nothing() -> None:
    """From an earlier boot, of another kernel, in the page cache: the first correct one is used."""
    guest = Guest()
    before = text(**{"SYMBOL(swapper_pg_dir)": f"{START_KERNEL_MAP + 0x200000:x}"})
    guest.put(NOTE - 0x3000, note(before))
    guest.put(NOTE - 0x2000, note(text(OSRELEASE="5.4.0-other")))
    guest.put(NOTE - 0x1000 + 16, note(text()))  # not at the start of a page
    guest.put(NOTE, note(text()))
    guest.put(NOTE + 0x3000, note(text()))
    assert find_vmcoreinfo([guest]).address == NOTE


def test_the_search_ends_where_it_is_found() -> None:
    guest = Guest()
    guest.put(NOTE, note(text()))

    def pieces() -> Iterator[Tuple[int, bytes]]:
        yield NOTE, bytes(guest.memory.pages[NOTE])
        pytest.fail("more was read")

    assert find_vmcoreinfo([guest], watch=lambda *_: pieces()).address == NOTE


@pytest.mark.parametrize(
    ("more", "state", "said"),
    [
        ({"OSRELEASE": "6.0.0-other"}, "wrong", "with release 6.0.0-other"),
        ({"OSRELEASE": "6.0.0"}, "wrong", "with release 6.0.0"),
        ({"BUILD-ID": "ff" * 20}, "wrong", "does not have the build id"),
        ({"BUILD-ID": "not hex"}, "wrong", "BUILD-ID is not a number"),
        ({"SYMBOL(swapper_pg_dir)": "100000"}, "wrong", "swapper_pg_dir is not in a kernel's image"),
        ({"SYMBOL(init_uts_ns)": "zzz"}, "wrong", "init_uts_ns) is not a number"),
        ({"NUMBER(pgtable_l5_enabled)": "1"}, "wrong", "have 4 levels, and it says 5"),
        ({"NUMBER(sme_mask)": "nonsense"}, "wrong", "sme_mask) is not a number"),
        ({"NUMBER(sme_mask)": str(1 << 63)}, "fits", ""),  # bits outside addresses do not matter
        ({"KERNELOFFSET": "16c"}, "wrong", "KERNELOFFSET"),  # cut off within its number
        ({"KERNELOFFSET": "40000000"}, "wrong", "KERNELOFFSET"),
        ({"KERNELOFFSET": "16c00000"}, "wrong", "KERNELOFFSET"),  # more than the image's window allows
        ({"KERNELOFFSET": "200000"}, "fits", ""),
        ({"NUMBER(phys_base)": ""}, "wrong", " or NUMBER(phys_base)"),
        # These lead to memory that is not in the source.
        ({"SYMBOL(swapper_pg_dir)": f"{START_KERNEL_MAP + 0x2000:x}"}, "unknown", "page tables are not in"),
        ({"SYMBOL(init_uts_ns)": f"{START_KERNEL_MAP + 0x5000000:x}"}, "unknown", "not in this source"),
        ({"NUMBER(phys_base)": "2097152"}, "unknown", "not in this source"),
        ({"NUMBER(phys_base)": "-99999999999999999999999"}, "unknown", "not in this source"),
    ],
)
def test_what_is_not_believed(more: "dict[str, str]", state: str, said: str) -> None:
    guest = Guest()
    guest.put(NOTE, note(text(**more)))
    verdict = judged(guest, text(**more))
    assert verdict.state == state
    assert said in verdict.reason
    if state == "fits":
        return
    with pytest.raises(NotADump, match="is valid"):
        find_vmcoreinfo([guest])


def moved(by: int) -> str:
    """VMCOREINFO of the same kernel in another boot, in which KASLR moved the image by this much."""
    names = {"swapper_pg_dir": 0x100000, "init_uts_ns": NAMESPACE + 0x700, "_stext": STEXT}
    symbols = {f"SYMBOL({name})": f"{START_KERNEL_MAP + at + by:x}" for name, at in names.items()}
    return text(**symbols, **{"NUMBER(phys_base)": str(-by), "KERNELOFFSET": f"{by:x}"})


@pytest.mark.parametrize("by", [2 << 20, 8 << 20, 512 << 20])
def test_another_boot_at_the_same_place(by: int) -> None:
    """Only virtual addresses differ, as where the image was not moved in physical memory: the release and the
    build id are where the text says, and the page tables are this boot's."""
    verdict = judged(Guest(), moved(by))
    assert verdict.state == "wrong"
    assert "page tables" in verdict.reason


def _within(page: int, address: int) -> bool:
    return address & ~0xFFF == page


def test_page_tables_that_are_lost() -> None:
    """Values that cannot be compared, or that a damaged table does not map, do not count as wrong."""
    guest = Guest()
    assert judged(guest, text()).state == "fits"
    tables = [page for page in guest.memory.pages if 0x100000 <= page < 0x200000]
    # The table of the middle level has an entry for 2 MB of the image. A lost entry is not a contradiction,
    upper = int.from_bytes(guest.memory.read(0x100000 + 511 * 8, 8), "little") & ~0xFFF
    middle = int.from_bytes(guest.memory.read(upper + 510 * 8, 8), "little") & ~0xFFF
    whole = guest.memory.read(middle, PAGE)
    entry = 8 * (NAMESPACE >> 21)
    guest.memory.write(middle + entry, bytes(8))
    assert judged(guest, text()).state == "fits"
    # all of them leave nothing to compare with,
    guest.memory.write(middle, bytes(PAGE))
    assert judged(guest, text()) == Verdict("unknown", "its page tables do not map an image")
    # an entry that leads elsewhere is one,
    guest.memory.write(middle, whole)
    guest.memory.write(middle + entry, struct.pack("<Q", 0x2000000 | 0xE3))
    assert judged(guest, text()).state == "wrong"
    guest.memory.write(middle, whole)
    for table in tables:
        kept = guest.memory.pages.pop(table)
        assert judged(guest, text()) in (
            Verdict("fits"),  # not a table of the image's
            Verdict("unknown", "its page tables are not in this source"),
        )
        there = Judge(guest.read, lacks=partial(_within, table))
        assert there(text().encode()).state in ("fits", "unknown")
        guest.memory.pages[table] = kept


def test_init_uts_ns_that_is_lost() -> None:
    guest = Guest()
    kept = guest.memory.pages.pop(NAMESPACE)
    verdict = judged(guest, text())
    assert (verdict.state, "init_uts_ns" in verdict.reason) == ("unknown", True)
    # One page may be excluded; a machine without any of the memory is a different one.
    nowhere = Judge(guest.read, lacks=lambda _: True)
    assert nowhere(text().encode()).state == "unknown"
    root = guest.memory.pages.pop(0x100000)
    assert nowhere(text().encode()).state == "wrong"
    guest.memory.pages[0x100000] = root
    guest.memory.pages[NAMESPACE] = kept


def test_a_build_id_that_cannot_be_looked_for() -> None:
    """Before 5.9 there is none, and memory that is not in the dump cannot contradict it."""
    guest = Guest()
    without = "".join(line + "\n" for line in text().splitlines() if "BUILD-ID" not in line)
    assert judged(guest, without).state == "fits"
    other = text(**{"BUILD-ID": "ff" * 20})
    assert judged(guest, other).state == "wrong"
    # Missing pages next to it do not hide the note.
    del guest.memory.pages[STEXT + 0x201000]
    assert BuildIds(guest.read).has(STEXT, NAMESPACE, bytes.fromhex(BUILD_ID))
    del guest.memory.pages[STEXT + 0x3000]
    assert judged(guest, other).state == "fits"


def test_build_ids_are_looked_for_once() -> None:
    """For any number of texts, memory is read only once for them, and within the budget."""
    guest = Guest()
    count = 0

    def read(address: int, size: int) -> bytes:
        nonlocal count
        count += size
        return guest.read(address, size)

    build_ids = BuildIds(read, 4 << 20)
    for number in range(1000):
        assert build_ids.has(STEXT, STEXT + (3 << 20), number.to_bytes(20, "little")) is False
    assert count < 5 << 20
    assert build_ids.has(STEXT, STEXT + (3 << 20), bytes.fromhex(BUILD_ID))
    assert build_ids.has(NAMESPACE - (1 << 20), NAMESPACE, bytes(20)) is None
    assert count < 6 << 20


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
    """The search ends, however many wrong ones there are."""
    guest = Guest()
    for number in range(1000):
        guest.put(0x10000000 + number * PAGE, note(text(OSRELEASE=f"{number}")))
    started = time.process_time()
    with pytest.raises(NotADump, match="256 were found"):
        find_vmcoreinfo([guest])
    assert time.process_time() - started < allowed(10)


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
    assert "init_uts_ns with release 6.6.6" in capsys.readouterr().err
    guest.put(NOTE + 0x1000, note(text()))
    path.write_bytes(make(ranges(guest)))
    assert main(["-c", str(path), "layout"]) == 4
    assert RELEASE in capsys.readouterr().out
    # A text from the user is also compared, and the message names the one that fits.
    given = tmp_path / "vmcoreinfo"
    given.write_text(text(OSRELEASE="6.6.6"))
    assert main(["-c", str(path), "--vmcoreinfo", str(given), "layout"]) == 3
    assert f"physical {NOTE + 0x1000:#x} fits ({RELEASE}" in capsys.readouterr().err


def test_forced_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dump"
    guest = Guest()
    guest.put(NOTE, note(text()))
    with path.open("wb") as file:
        for address, page in ranges(guest):
            file.seek(address)
            file.write(page)
        file.seek(0)
        file.write(b"EMiL")  # bytes that a page of memory may contain
    assert main(["-c", str(path), "layout"]) == 3
    assert "invalid header" in capsys.readouterr().err
    assert main(["-c", str(path), "--format-in", "raw", "layout"]) == 4
    assert RELEASE in capsys.readouterr().out
    for form in ("elf", "kdump", "avml"):
        assert main(["-c", str(path), "--format-in", form, "layout"]) == 3
        assert "internal error" not in capsys.readouterr().err


def test_not_in_dump_is_what_walks_expect() -> None:
    with pytest.raises(NotInDump):
        Guest().read(1 << 40, 8)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_from_an_editor(end: str, mark: bytes) -> None:
    data = mark + ("\n \n" + text()).replace("\n", end).encode()
    assert parse(text_from_file(data, "file")) == parse(text())
    assert parse(text_from_file(data + bytes(700), "file")) == parse(text())  # a note's padding


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (text().encode("utf-16"), "UTF-16"),
        (text().encode("utf-16-le"), "UTF-16"),
        (text().encode("utf-16-be"), "UTF-16"),
        (bytes(range(256)), "not plain text"),
        (text().encode() + b"\x1b[2J\n", "not plain text"),
        (b"hello\n", "no OSRELEASE"),
        (text()[:20].encode(), "no OSRELEASE"),
        (text()[: text().index("KERNELOFFSET") + 13].encode(), "no KERNELOFFSET, so it was cut off"),
        (text().encode() + b"SYMBOL(x\n" * 10000, "at most 64 KB"),
    ],
)
def test_text_that_is_none(data: bytes, said: str) -> None:
    with pytest.raises(WrongVmcoreinfo) as caught:
        text_from_file(data, "file")
    assert said in caught.value.what
    assert caught.value.remedy
    assert "\n" not in caught.value.what


def test_every_cut_is_refused_or_fits() -> None:
    """No number is taken from an incomplete line, wherever the text was cut off."""
    whole = parse(text())
    for size in range(len(text())):
        part = parse(text()[:size])
        assert part.items() <= whole.items()


def test_lines_without_an_end_take_no_time() -> None:
    """Compared with the time for a tenth of them, not with a fixed time."""

    def seconds(count: int) -> float:
        content = "SYMBOL(x\n" * count
        started = time.process_time()
        for _ in range(20):
            vmcoreinfo_symbols(content)
        return time.process_time() - started

    assert vmcoreinfo_symbols(text() + "SYMBOL(x\n" * 1000)["_stext"] == 0xFFFFFFFF81000000
    small, large = (min(seconds(count) for _ in range(3)) for count in (700, 7000))
    assert large < 40 * small  # ten times as much input; quadratic time would be a hundred times as long


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=8))
def test_what_a_machine_has_no_memory_at(ranges: List[Tuple[int, int]]) -> None:
    """Ranges that overlap, touch or are empty, against each address one by one."""
    found = sorted((start, start + size) for start, size in ranges)
    is_outside = outside(found)
    has = {address for start, end in found for address in range(start, end)}
    assert {address for address in range(90) if is_outside(address)} == set(range(90)) - has


def test_many_ranges_cost_no_look_up_more() -> None:
    """A dump of 200,000 segments: hundreds of thousands of page-table entries are looked up in them."""
    is_outside = outside([(n << 13, (n << 13) + 4096) for n in range(200_000)])
    started = time.process_time()
    assert sum(is_outside(n << 12) for n in range(200_000)) == 100_000
    assert time.process_time() - started < allowed(5)


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize(
    ("more", "state"),
    [
        ({}, "fits"),
        ({"SYMBOL(swapper_pg_dir)": f"{START_KERNEL_MAP + STEXT:x}"}, "unknown"),
        ({"OSRELEASE": "6.0.0-other"}, "wrong"),
        ({"NUMBER(phys_base)": "4194304"}, "wrong"),
        ({"NUMBER(pgtable_l5_enabled)": "1"}, "wrong"),
    ],
)
def test_given_for_the_running_kernel(tmp_path: Path, noted: bool, more: Dict[str, str], state: str) -> None:
    """A text is compared with /proc/kcore as with a dump, with a note of the kernel's or without."""
    guest = Guest()
    pages = [(0, address, data) for address, data in guest.pieces()]
    notes = [("VMCOREINFO", 0, text().encode())] if noted else []
    path = tmp_path / "kcore"
    # Memory that is not RAM does not have a physical address there.
    path.write_bytes(elf_core([*pages, (0xFFFFC90000000000, (1 << 64) - 1, bytes(PAGE))], notes))
    wanted = Wanted(text(**more).encode(), "FILE")
    with path.open("rb") as file:
        if state == "fits":
            source = open_running_kernel(file, wanted)
            assert (source.vmcoreinfo_origin, source.warnings) == ("--vmcoreinfo", [])
            return
        if state == "unknown" and not noted:  # a table of zeros
            source = open_running_kernel(file, wanted)
            assert source.vmcoreinfo_origin == "--vmcoreinfo (not verified)" and len(source.warnings) == 1
            return
        with pytest.raises(WrongVmcoreinfo) as caught:
            open_running_kernel(file, wanted)
    assert "FILE is not the VMCOREINFO of /proc/kcore" in caught.value.what
    assert ("run it without --vmcoreinfo" in caught.value.remedy) is noted
