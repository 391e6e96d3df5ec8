# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every core's memory in the files of other hypervisors gives the same kernel.

volatility3 also reads the formats that it supports, page by page. This shows that the tests' writers follow
the format, and not only kvintro.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest

from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.source import Request
from tests.conftest import Core
from tests.cores.conftest import Range, regions
from tests.hypervisors import (
    PAGE,
    Region,
    cloud_hypervisor_state,
    debug_guest,
    libxc_stream,
    pages_of,
    virtualbox_core,
    vmware_state,
    xen_core,
    xl_save,
)
from tests.volatility import Volatility

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

STEP = 1 << 20


@pytest.fixture(scope="session", autouse=True)
def one_boot_of_each(core: Core) -> None:
    """Use one boot of each kernel, because writing all of memory is slow."""
    if not core.meta["kaslr"]:
        pytest.skip("formats are tried on the dump of the same kernel with KASLR")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory for large files, which is removed after the test."""
    yield tmp_path
    for path in sorted(tmp_path.rglob("*"), reverse=True):
        if path.is_file():
            path.unlink()


def assert_same(path: Path, kernel: Kernel, expected: Any, form: str, **more: Any) -> Kernel:
    """The layout equals the core's, and nothing is reported as missing."""
    other = open_kernel(Request(core=str(path), **more))
    assert other.source.format == form
    assert other.source.vmcoreinfo == kernel.source.vmcoreinfo
    assert (other.source.complete, other.source.warnings) == (True, [])
    assert regions(other) == expected
    return other


def assert_volatility_agrees(judge: Volatility, kernel: Kernel, memory: List[Range]) -> None:
    for first, data in memory:
        for at in range(0, len(data), STEP):
            part = data[at : at + STEP]
            assert judge.read(first + at, len(part)) == part
            assert kernel.read_physical(first + at, len(part)) == part


def shuffled(memory: List[Range]) -> Tuple[List[Region], bytes]:
    """Memory cut into regions, with the first ones at the end of the file."""
    cut: List[Range] = []
    for first, data in memory:
        third = len(data) // 3 // PAGE * PAGE or len(data)
        cut += [(first + at, data[at : at + third]) for at in range(0, len(data), third)]
    regions_: List[Region] = []
    out = b""
    for first, data in reversed(cut):
        regions_.append((first // PAGE, len(out) // PAGE, len(data) // PAGE))
        out += data
    return regions_[::-1], out


def test_vmware(place: Path, kernel: Kernel, memory: List[Range], expected: Any) -> None:
    pieces, data = shuffled(memory)
    state, vmem = place / "guest.vmss", place / "guest.vmem"
    state.write_bytes(vmware_state(pieces))
    vmem.write_bytes(data)
    for path in (state, vmem):
        other = assert_same(path, kernel, expected, "VMware state and .vmem")
    assert_volatility_agrees(Volatility("vmware.VmwareLayer", vmem, state), other, memory)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_vmware_in_one_file(
    place: Path, kernel: Kernel, memory: List[Range], expected: Any, packed: bool
) -> None:
    pieces, data = shuffled(memory)
    path = place / "guest.vmsn"
    path.write_bytes(vmware_state(pieces, data, padding=100, packed=packed))
    assert_same(path, kernel, expected, "VMware state")


def test_vmware_debug_guest(place: Path, kernel: Kernel, memory: List[Range], expected: Any) -> None:
    if len(memory) > 3:
        pytest.skip("this format has at most three pieces")
    holes = [
        ((first + len(data)) // PAGE, (after - first - len(data)) // PAGE)
        for (first, data), (after, _) in zip(memory, memory[1:])
    ]
    assert memory[0][0] == 0
    pages = sum(len(data) for _, data in memory) // PAGE
    (place / "debug.guest").write_bytes(debug_guest(4, pages, holes))
    (place / "debug.vmem").write_bytes(b"".join(data for _, data in memory))
    assert_same(place / "debug.guest", kernel, expected, "VMware debug.guest and .vmem")
    assert_same(place / "debug.vmem", kernel, expected, "VMware state and .vmem")


def test_virtualbox(place: Path, kernel: Kernel, memory: List[Range], expected: Any) -> None:
    path = place / "core"
    path.write_bytes(virtualbox_core(memory, [(0xE0000000, 16 << 20), (0xFFFF0000, 1 << 16)]))
    other = assert_same(path, kernel, expected, "VirtualBox core")
    assert (other.source.writer, other.source.left_out) == ("VirtualBox 7.0.14", 0)
    assert_volatility_agrees(Volatility("elf.Elf64Layer", path), other, memory)


def test_xen_core(place: Path, kernel: Kernel, memory: List[Range], expected: Any) -> None:
    """volatility3 uses frame 0 as a special value, and makes a layer for each page."""
    pages = pages_of(memory)
    path = place / "core"
    path.write_bytes(xen_core(pages))
    other = assert_same(path, kernel, expected, "Xen core")
    assert other.source.writer == "Xen 4.17"
    judge = Volatility("xen.XenCoreDumpLayer", path)
    for frame, data in pages[1::7]:
        assert judge.read(frame * PAGE, PAGE) == other.read_physical(frame * PAGE, PAGE) == data


def test_xl_save(place: Path, kernel: Kernel, memory: List[Range], expected: Any) -> None:
    """The guest kept running while it was saved: old content of pages is never read."""
    pages = pages_of(memory)
    old = [(frame, b"old!" * (PAGE // 4)) for frame, _ in pages[::5]]
    rest = [pages[at : at + 1024] for at in range(0, len(pages), 1024)]
    path = place / "save"
    path.write_bytes(xl_save(libxc_stream([old[at : at + 1024] for at in range(0, len(old), 1024)] + rest)))
    other = assert_same(path, kernel, expected, "Xen save file")
    for frame, data in pages[::7]:
        assert other.read_physical(frame * PAGE, PAGE) == data


def test_cloud_hypervisor(place: Path, kernel: Kernel, memory: List[Range], expected: Any) -> None:
    (place / "memory-ranges").write_bytes(b"".join(data for _, data in memory))
    ranges = [(first, len(data)) for first, data in memory]
    (place / "state.json").write_bytes(cloud_hypervisor_state(ranges, "text"))
    assert_same(place / "memory-ranges", kernel, expected, "Cloud Hypervisor snapshot")
