# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of other hypervisors: which ones belong together, where memory is, which are refused."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import struct
from pathlib import Path
from typing import Dict, Optional, Sequence

import pytest

from kvintro.errors import NotADump, NotInDump, UsageError
from kvintro.source.beside import Beside
from kvintro.source.content import FileContent
from kvintro.source.core import open_core
from kvintro.source.dump import Dump
from kvintro.source.files import open_file
from kvintro.source.formats import examine
from tests.hypervisors import (
    PAGE,
    block,
    cloud_hypervisor_state,
    debug_guest,
    libxc_stream,
    number,
    pages_of,
    virtualbox_core,
    vmware_state,
    xen_core,
    xl_save,
)
from tests.saved_guests import PLAIN, clock, stream

MB = 1 << 20
GB = 1 << 30
FOUR_GB = 1 << 32
#: 8 MB in which each page contains its own number.
MEMORY = b"".join(struct.pack("<I", n) * (PAGE // 4) for n in range(8 * MB // PAGE))
PAGES = len(MEMORY) // PAGE


def opened(path: Path, given: Sequence[Path] = ()) -> Dump:
    others = {}
    for other in given:
        with other.open("rb") as file:
            others[str(other)] = FileContent(file)
    with path.open("rb") as file:
        return examine(file, str(path), beside=Beside(str(path), others))


def page(dump: Dump, address: int) -> int:
    """The number in the page at an address."""
    data = dump.layouts[0].read(address, PAGE)
    assert data == data[:4] * (PAGE // 4)
    return int.from_bytes(data[:4], "little")


def written(directory: Path, files: Dict[str, bytes]) -> Dict[str, Path]:
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return {name: directory / name for name in files}


# VMware

#: 3 MB from 0, 4 MB from 4 GB, 1 MB from 5 GB; the last are first in the file.
REGIONS = [(0, 256, 768), (FOUR_GB // PAGE, 1024, 1024), (5 * GB // PAGE, 0, 256)]


def assert_in_regions(dump: Dump) -> None:
    assert (dump.complete, dump.left_out) == (True, 0)
    assert [(e.address, e.size) for e in dump.layouts[0].extents] == [
        (0, 3 * MB),
        (FOUR_GB, 4 * MB),
        (5 * GB, MB),
    ]
    assert [page(dump, at) for at in (0, 3 * MB - PAGE, FOUR_GB, FOUR_GB + 4 * MB - PAGE)] == [
        256,
        1023,
        1024,
        2047,
    ]
    assert [page(dump, at) for at in (5 * GB, 5 * GB + MB - PAGE)] == [0, 255]
    for at in (3 * MB, FOUR_GB - PAGE, FOUR_GB + 4 * MB, 5 * GB + MB):
        with pytest.raises(NotInDump):
            dump.layouts[0].read(at, 1)


@pytest.mark.parametrize("mark", [0xBED2BED2, 0xBED3BED3, 0xBAD1BAD1, 0xBAD2BAD2, 0xBED2BED0, 0xBED0BED0])
@pytest.mark.parametrize("ending", ["vmss", "vmsn", "VMSS"])
def test_a_state_and_its_memory(tmp_path: Path, ending: str, mark: int) -> None:
    """Either of the two can be named; another machine's files in the same directory are ignored."""
    files = {
        f"VM-Snapshot266.{ending}": vmware_state(REGIONS, mark=mark),
        "VM-Snapshot266.vmem": MEMORY,
        "other.vmem": bytes(len(MEMORY)),
        "VM-Snapshot2.vmsn": vmware_state([(0, 0, PAGES)]),
        "VM.vmx": b"config",
    }
    for name in list(written(tmp_path, files))[:2]:
        dump = opened(tmp_path / name)
        assert dump.format == "VMware state and .vmem"
        assert_in_regions(dump)
        assert {path for path, _ in dump.others} | {str(tmp_path / name)} == {
            str(tmp_path / other) for other in list(files)[:2]
        }


def test_names_that_differ(tmp_path: Path) -> None:
    """The only file with the length in the state is used; if there are two, the right one must be named."""
    found = written(tmp_path, {"564d.vmem": MEMORY, "VM-1.vmss": vmware_state(REGIONS)})
    for path in found.values():
        assert_in_regions(opened(path))
    second = written(tmp_path, {"copy.vmem": MEMORY})["copy.vmem"]
    with pytest.raises(NotADump, match="2 files beside it may have it") as raised:
        opened(found["VM-1.vmss"])
    assert "second -c" in raised.value.remedy
    assert_in_regions(opened(found["VM-1.vmss"], [second]))


@pytest.mark.parametrize("turned", [False, True])
def test_both_files_are_named_and_beside_each_other(tmp_path: Path, turned: bool) -> None:
    found = written(tmp_path, {"a.vmss": vmware_state(REGIONS), "a.vmem": MEMORY})
    one, other = sorted(found.values(), reverse=turned)
    assert_in_regions(opened(one, [other]))


def test_changes_since_another_snapshot(tmp_path: Path) -> None:
    """Firecracker's diff has holes, and VMCOREINFO is not among the changes."""
    path = tmp_path / "memory"
    with path.open("wb") as file:
        file.seek(5 << 20)
        file.write(random.Random(1).randbytes(1 << 20))
        file.truncate(64 << 20)
    with pytest.raises(NotADump, match="no VMCOREINFO") as raised:
        open_core({str(path): open_file(str(path))}, [str(path)])
    assert "snapshot-editor" in raised.value.remedy


def test_two_files_on_the_command_line(tmp_path: Path) -> None:
    """In either order, and from different directories; they do not count as parts of a split dump."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    state = written(tmp_path / "one", {"a.vmss": vmware_state(REGIONS)})["a.vmss"]
    memory = written(tmp_path / "other", {"memory": MEMORY})["memory"]
    for paths in ([str(state), str(memory)], [str(memory), str(state)]):
        files = {path: open_file(path) for path in paths}
        with pytest.raises(NotADump, match="VMCOREINFO"):  # there is no kernel in it
            open_core(files, paths)
    with pytest.raises(UsageError, match="not a part of a split one"):
        paths = [str(memory), str(memory)]
        open_core({str(memory): open_file(str(memory))}, paths)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("padding", [0, 1234])
@pytest.mark.parametrize("mark", [0xBED2BED2, 0xBED0BED0])
def test_memory_in_the_state(tmp_path: Path, mark: int, padding: int, packed: bool) -> None:
    data = vmware_state(REGIONS, MEMORY, mark=mark, padding=padding, packed=packed)
    dump = opened(written(tmp_path, {"a.vmss": data})["a.vmss"])
    assert dump.format == "VMware state"
    assert_in_regions(dump)


def test_one_piece(tmp_path: Path) -> None:
    """The state of a small machine has no regions, or does not mention them."""
    for state in (vmware_state([]), vmware_state([]).replace(b"regionsCount", b"regionzCount")):
        found = written(tmp_path, {"a.vmss": state, "a.vmem": MEMORY})
        for path in found.values():
            dump = opened(path)
            assert [(e.address, e.size) for e in dump.layouts[0].extents] == [(0, len(MEMORY))]
            assert page(dump, 5 * PAGE) == 5


def test_memory_alone_has_no_gap(tmp_path: Path) -> None:
    path = tmp_path / "a.vmem"
    path.write_bytes(MEMORY)
    os.truncate(path, 4 * GB)
    ends = [layout.end for layout in opened(path).layouts]
    assert ends[:2] == [4 * GB, 5 * GB]


def test_memory_that_was_cut_off(tmp_path: Path) -> None:
    """Missing memory is not in the dump, and does not read as zeros."""
    files = written(tmp_path, {"a.vmss": vmware_state([(0, 0, PAGES + 5)]), "a.vmem": MEMORY})
    for path in files.values():
        dump = opened(path)
        assert dump.complete is False
        assert page(dump, len(MEMORY) - PAGE) == PAGES - 1
        with pytest.raises(NotInDump):
            dump.layouts[0].read(len(MEMORY), 1)


#: A piece of 2 MB, a hole of 4, a piece of 3, a hole of 8, a piece of 3 MB.
HOLES = [(2 * MB // PAGE, 4 * MB // PAGE), (9 * MB // PAGE, 8 * MB // PAGE)]


@pytest.mark.parametrize("version", [1, 3, 4, 5, 6, 7])
def test_debug_guest(tmp_path: Path, version: int) -> None:
    found = written(tmp_path, {"debug.guest": debug_guest(version, PAGES, HOLES), "debug.vmem": MEMORY})
    for path in found.values():
        dump = opened(path)
        assert dump.complete is True
        assert [(e.address, e.size) for e in dump.layouts[0].extents] == [
            (0, 2 * MB),
            (6 * MB, 3 * MB),
            (17 * MB, 3 * MB),
        ]
        assert [page(dump, at) for at in (0, 6 * MB, 17 * MB)] == [0, 512, 512 + 768]


@pytest.mark.parametrize(
    ("data", "said", "remedy"),
    [
        (vmware_state(REGIONS), "is not in it", "without memory"),
        (vmware_state(REGIONS).replace(b"memory\0", b"mem0ry\0"), "information about memory", "whole"),
        (vmware_state(REGIONS)[:100], "table of groups", "whole"),
        (struct.pack("<III", 0xBED2BED2, 8, 0), "table of groups", "whole"),
        (struct.pack("<III", 0xBED2BED2, 8, 1 << 31) + bytes(9000), "table of groups", "whole"),
        (vmware_state([(0, 0, 5), (4, 5, 5)]), "overlap", "whole"),
        (vmware_state([], more=number("regionsCount", 9) * 3).replace(b"regionsCount", b"regionsC0unt", 3)
         .replace(b"regionsCount\0", b"regionsCount\7"), "where region 0 of 7 is", "whole"),
        (vmware_state(REGIONS, MEMORY, more=block("Memory", MEMORY)), "2 blocks", "vmss2core"),
        (vmware_state(REGIONS, MEMORY, packed=True).replace(b"\x78\x01", b"\x99\x01"), "unknown way", "make"),
        (vmware_state(REGIONS)[:280], "truncated before the addresses of its memory", "whole"),
        (debug_guest(4, PAGES, HOLES), "is not in it", "without memory"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path: Path, data: bytes, said: str, remedy: str) -> None:
    path = written(tmp_path, {"a.vmss": data})["a.vmss"]
    with pytest.raises(NotADump) as raised:
        opened(path)
    assert said in raised.value.what
    assert str(path) in raised.value.what
    assert remedy in raised.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_memory_that_may_not_be_read(tmp_path: Path) -> None:
    found = written(tmp_path, {"a.vmss": vmware_state(REGIONS), "a.vmem": MEMORY})
    found["a.vmem"].chmod(0)
    with pytest.raises(NotADump, match="permission denied"):
        opened(found["a.vmss"])


def test_other_files_do_not_matter(tmp_path: Path) -> None:
    """Neither a different file with the right name nor a directory full of files has an effect."""
    found = written(tmp_path, {"a.vmem": MEMORY, "a.vmss": b"text", "a.vmsn": gzip.compress(b"x")})
    (tmp_path / "a.guest").mkdir()
    for number_ in range(200):
        (tmp_path / f"{number_}.vmsn").write_bytes(b"")
    assert opened(found["a.vmem"]).format == "raw memory"


# VirtualBox

RANGES = [(0, MEMORY[: 640 << 10]), (MB, MEMORY[MB : 5 * MB]), (FOUR_GB, MEMORY[5 * MB :])]


@pytest.mark.parametrize("version", [0, 1])
def test_virtualbox(tmp_path: Path, version: int) -> None:
    """Memory of devices has no bytes, and does not count as excluded; with and without an ELF version."""
    data = virtualbox_core(RANGES, [(0xE0000000, 16 * MB), (0xFFFF0000, 1 << 16)], version=version)
    dump = opened(written(tmp_path, {"core": data})["core"])
    assert (dump.format, dump.complete, dump.left_out) == ("VirtualBox core", True, 0)
    assert [(s.paddr, s.filesz) for s in dump.segments] == [(first, len(data)) for first, data in RANGES]
    assert [page(dump, at) for at in (0, MB, 5 * MB - PAGE, FOUR_GB)] == [0, 256, 1279, 1280]
    with pytest.raises(NotInDump):
        dump.layouts[0].read(0xE0000000, 1)


def test_virtualbox_cut_off(tmp_path: Path) -> None:
    data = virtualbox_core(RANGES)[: -2 * MB]
    dump = opened(written(tmp_path, {"core": data})["core"])
    assert dump.complete is False
    assert page(dump, FOUR_GB) == 1280
    with pytest.raises(NotInDump):
        dump.layouts[0].read(FOUR_GB + 2 * MB, 1)


# Xen

NO_FRAME = (1 << 64) - 1


def test_xen_core(tmp_path: Path) -> None:
    """Pages in any order, with invalid entries."""
    pages = pages_of(RANGES)
    mixed = [*pages[::-2], (NO_FRAME, bytes(PAGE)), *pages[-2::-2]]
    dump = opened(written(tmp_path, {"core": xen_core(mixed)})["core"])
    assert (dump.format, dump.complete, dump.left_out) == ("Xen core", True, 0)
    memory = dump.layouts[0]
    assert all(memory.read(frame * PAGE, PAGE) == data for frame, data in pages)
    assert [extent.address for extent in memory.extents] == [0, FOUR_GB]
    for at in (640 << 10, 5 * MB, FOUR_GB - PAGE, FOUR_GB + 3 * MB):
        with pytest.raises(NotInDump):
            memory.read(at, 1)
    found = {address + at: data[at] for address, data in memory.pieces() for at in range(0, len(data), PAGE)}
    assert found == {frame * PAGE: data[0] for frame, data in pages}


def test_xen_core_cut_off(tmp_path: Path) -> None:
    dump = opened(written(tmp_path, {"core": xen_core(pages_of(RANGES))[: -MB - 5]})["core"])
    assert dump.complete is False
    assert page(dump, FOUR_GB) == 1280
    with pytest.raises(NotInDump):
        dump.layouts[0].read(FOUR_GB + 2 * MB - PAGE, 1)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("outer", [None, 3, 1])
def test_xl_save(tmp_path: Path, outer: Optional[int], version: int) -> None:
    """The last copy of a page counts; a page whose type has no content does not exist."""
    pages = pages_of(RANGES)
    old = [(frame, b"old!" * (PAGE // 4)) for frame, _ in pages[::3]]
    batches = [old, [*pages[:500], (77777, b"")], pages[500:], pages[:1]]
    data = libxc_stream(batches, version=version)
    if outer is not None:
        data = xl_save(data, needed=outer)
    dump = opened(written(tmp_path, {"save": data})["save"])
    assert (dump.format, dump.complete, dump.left_out) == ("Xen save file", True, 0)
    memory = dump.layouts[0]
    assert all(memory.read(frame * PAGE, PAGE) == data for frame, data in pages)
    assert [extent.address for extent in memory.extents] == [0, FOUR_GB]


def test_xl_save_cut_at_any_byte(tmp_path: Path) -> None:
    pages = dict(pages_of([(0, MEMORY[: 64 * PAGE])]))
    whole = xl_save(libxc_stream([list(pages.items())[at : at + 10] for at in range(0, 64, 10)]))
    end = len(whole) - 4008
    for cut in (*range(33, 300, 7), *range(300, end + 200, 3331), end - 1, end, end + 8):
        path = written(tmp_path, {"save": whole[:cut]})["save"]
        try:
            dump = opened(path)
        except NotADump as error:
            assert "truncated" in error.what, error.what
            continue
        assert dump.complete is (cut >= end + 8), cut
        for frame, data in pages.items():
            with contextlib.suppress(NotInDump):
                assert dump.layouts[0].read(frame * PAGE, PAGE) == data


# Microvms, Proxmox

SPLIT = [(0, 3 * MB), (FOUR_GB, 4 * MB), (5 * GB, MB)]


@pytest.mark.parametrize("form", ["text", "bytes", "plain"])
def test_cloud_hypervisor(tmp_path: Path, form: str) -> None:
    files = {
        "memory-ranges": MEMORY,
        "state.json": cloud_hypervisor_state(SPLIT, form),
        "config.json": b"{}",
    }
    dump = opened(written(tmp_path, files)["memory-ranges"])
    assert (dump.format, dump.complete) == ("Cloud Hypervisor snapshot", True)
    assert [page(dump, at) for at in (0, FOUR_GB, 5 * GB)] == [0, 768, 1792]
    with pytest.raises(NotInDump):
        dump.layouts[0].read(3 * MB, 1)


@pytest.mark.parametrize(
    "state",
    [
        cloud_hypervisor_state(SPLIT[:2], "text"),
        cloud_hypervisor_state([(0, 4 * MB), (3 * MB, 4 * MB)], "text"),
        b"{" * 100000,
        b"[" * 100000,
        b"{}" + bytes(9 * MB),
        b"",
    ],
    ids=["another size", "overlap", "braces", "brackets", "large", "empty"],
)
def test_a_state_that_is_not_its(tmp_path: Path, state: bytes) -> None:
    dump = opened(written(tmp_path, {"memory-ranges": MEMORY, "state.json": state})["memory-ranges"])
    assert dump.format == "raw memory"


def test_raw_memory_with_a_gap(tmp_path: Path) -> None:
    """All gaps of microVMs."""
    path = tmp_path / "mem_file"
    path.write_bytes(MEMORY)
    os.truncate(path, 300 * GB)
    found = [[(e.address, e.size) for e in layout.extents] for layout in opened(path).layouts]
    assert [(0, 3 * GB), (FOUR_GB, 297 * GB)] in found
    assert [(0, 0xD0000000), (FOUR_GB, 300 * GB - 0xD0000000)] in found
    assert [(0, 3 * GB), (FOUR_GB, 252 * GB), (512 * GB, 45 * GB)] in found


def test_proxmox(tmp_path: Path) -> None:
    """Data after the end of a state, such as the rest of an earlier one, is ignored."""
    pages = [("pc.ram", n, PLAIN, b"", MEMORY[n % PAGES * PAGE :][:PAGE]) for n in range(2 * PAGES)]
    machine = "pc-i440fx-9.2+pve0"
    state = stream([("pc.ram", 16 * MB)], pages, machine=machine, tail=clock(16 * MB, 0))
    older = stream([("pc.ram", 64 * MB)], [], tail=clock(64 * MB, 0)) + b"junk" * 5000
    dump = opened(written(tmp_path, {"vm-100-state-one.raw": state + older})["vm-100-state-one.raw"])
    assert (dump.format, dump.complete, dump.left_out) == ("QEMU stream", True, 0)
    assert [(e.address, e.size) for e in dump.layouts[0].extents] == [(0, 16 * MB)]
    assert page(dump, 16 * MB - PAGE) == PAGES - 1


PV = "paravirtualised"


@pytest.mark.parametrize(
    ("data", "said", "remedy"),
    [
        (xen_core([(1, bytes(PAGE))], mark=0xF00FEBED), PV, "crash"),
        (xen_core([(1, bytes(PAGE))], frames=".xen_p2m"), PV, "crash"),
        (xen_core([(1, bytes(PAGE))], frames=".xen_pfm"), "the numbers of its page frames", "whole"),
        (xen_core([(1, bytes(PAGE))], mark=5), "invalid Xen header", "whole"),
        (xen_core([(1, bytes(PAGE))])[:-PAGE], "before its first page", "whole"),
        (xl_save(libxc_stream([], guest=1)), PV, "dump-core"),
        (xl_save(libxc_stream([], version=4)), "in a form", "xl dump-core"),
        (xl_save(libxc_stream([])), "before its first page", "whole"),
        (xl_save(b"", needed=1), "truncated", "whole"),
        (xl_save(libxc_stream([])).replace(b"LibxlFmt", b"LibxlFmz"), "libxl", "whole"),
        (
            xl_save(b"").replace(struct.pack("<I", 0x01020304), struct.pack(">I", 0x01020304)),
            "order",
            "whole",
        ),
        (b"LinuxGuestRecord" + bytes(9000), "an old Xen", "dump-core"),
    ],
)
def test_what_cannot_be_read_of_xen(tmp_path: Path, data: bytes, said: str, remedy: str) -> None:
    path = written(tmp_path, {"file": data})["file"]
    with pytest.raises(NotADump) as raised:
        opened(path)
    assert said in raised.value.what
    assert str(path) in raised.value.what
    assert remedy in raised.value.remedy
