# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests dumped by QEMU in every way that it offers, with and without the vmcoreinfo device: one kernel each.

The files of one guest are taken while it is stopped, so whatever differs between them is our doing.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest

from kvintro.kernel import Kernel, open_kernel
from kvintro.render import render
from kvintro.reports.info import info
from kvintro.reports.layout import layout
from kvintro.source import Request
from kvintro.source.elf import read_headers
from tests.conftest import ROOT
from tests.memory_files import avml, elf_without_notes, lime, snappy

GB = 1 << 30
GUESTS = [("5.10", True), ("5.10", False), ("6.12", True), ("6.12", False)]


def lab() -> Tuple[Any, Any, Any, Any]:
    """The lab's modules boot and formats, and its classes Archive and Entry."""
    sys.path.insert(0, str(ROOT / "vmcores"))
    try:
        modules = [
            importlib.import_module(f"lab.{name}") for name in ("boot", "formats", "packages", "matrix")
        ]
    finally:
        sys.path.pop(0)
    return modules[0], modules[1], modules[2].Archive, modules[3].Entry


def dumped(directory: Path, series: str, memory_mb: int, device: bool, *only: str) -> Dict[str, Path]:
    """Boot a guest and dump it."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is missing")
    boot, formats, archive, entry = lab()
    guest = entry("formats", series, memory_mb=memory_mb)
    kernel = boot.find_kernel(guest, archive())
    found: Dict[str, Path] = formats.dump_all(guest, kernel, directory, device=device, only=only or None)
    return found


def regions(kernel: Kernel) -> Any:
    return json.loads(render(layout(kernel), "json"))["regions"]


@pytest.fixture(scope="module", params=GUESTS, ids=lambda g: f"{g[0]}-{'with' if g[1] else 'without'}")
def guest(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dict[str, Path]]:
    """The files, and those that are made of them."""
    series, device = request.param
    directory = tmp_path_factory.mktemp("guest")
    found = dumped(directory, series, 256, device)
    ranges = _ram(found["elf"])
    for name, data in (("lime", lime(ranges)), ("elf-no-note", elf_without_notes(ranges))):
        found[name] = directory / name
        found[name].write_bytes(data)
    pack = snappy()
    if pack is not None:
        found["avml"] = directory / "avml"
        found["avml"].write_bytes(avml(ranges, pack))
    yield found
    for path in found.values():
        path.unlink()


def _ram(elf: Path) -> List[Tuple[int, bytes]]:
    found = []
    with elf.open("rb") as file:
        for segment in read_headers(file).segments:
            file.seek(segment.offset)
            found.append((segment.paddr, file.read(segment.filesz)))
    return found


def test_every_file_is_of_the_same_kernel(guest: Dict[str, Path]) -> None:
    kernels = {name: open_kernel(Request(core=str(path))) for name, path in guest.items()}
    assert set(kernels) >= {"elf", "kdump-zlib", "pmemsave", "backend", "lime", "elf-no-note"}
    expected = regions(kernels["elf"])
    assert {row["state"] for row in expected} <= {"present", "absent"}
    lines = kernels["elf"].source.vmcoreinfo
    for name, kernel in kernels.items():
        assert kernel.source.vmcoreinfo == lines, name
        assert regions(kernel) == expected, name
        assert kernel.source.complete is not False, name
    assert kernels["pmemsave"].source.format == kernels["backend"].source.format == "raw memory"


def test_where_vmcoreinfo_comes_from(guest: Dict[str, Path]) -> None:
    """Only with the device do QEMU's own formats have the note, and only they."""
    with guest["elf"].open("rb") as file:
        device = read_headers(file).note("VMCOREINFO") is not None
    for name, path in guest.items():
        origin = open_kernel(Request(core=str(path))).source.vmcoreinfo_origin
        noted = device and (name == "elf" or name.startswith("kdump"))
        assert ("note" in origin) is noted, name
        assert ("found in memory at physical 0x" in origin) is not noted, name


@pytest.mark.parametrize("memory_mb", [4096])
def test_memory_on_both_sides_of_the_gap(tmp_path: Path, memory_mb: int) -> None:
    """A file that is the guest's RAM says nothing of the gap that the guest has below 4 GB."""
    if os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize < 16 * GB:
        pytest.skip("16 GB of disk are needed")
    found = dumped(tmp_path, "6.12", memory_mb, False, "kdump-zlib", "pmemsave")
    try:
        assert found["backend"].stat().st_size == memory_mb << 20
        kernels = {name: open_kernel(Request(core=str(path))) for name, path in found.items()}
        backend = kernels["backend"]
        assert [(s.paddr, s.filesz) for s in backend.source.segments] == [(0, 3 * GB), (4 * GB, GB)]
        assert backend.source.complete and kernels["pmemsave"].source.complete
        expected = regions(kernels["kdump-zlib"])
        assert regions(backend) == regions(kernels["pmemsave"]) == expected
    finally:
        for path in found.values():
            path.unlink()


def test_a_panic_is_reported(tmp_path: Path) -> None:
    """`info` on a guest that an NMI made panic, against what it printed on its console."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is missing")
    boot, formats, archive, entry = lab()
    panics = entry("panic", "6.12", extra=("unknown_nmi_panic", "panic=0"))
    path, console = formats.dump_panicked(panics, boot.find_kernel(panics, archive()), tmp_path)
    document = json.loads(render(info(open_kernel(Request(core=str(path)))), "json"))
    (found,) = (row["value"] for row in document["facts"] if row["key"] == "panic")
    (said,) = re.findall(r"(?<!end )Kernel panic - not syncing: .*\S", console)
    assert found == said
    path.unlink()
