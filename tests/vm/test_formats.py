# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests dumped by QEMU in every way that it offers, with and without the vmcoreinfo device: one kernel each.

The files of one guest are taken while it is stopped, so kvintro causes any difference between them.
"""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Set, Tuple

import drgn
import pytest

import kvintro
from kvintro.convert import convert
from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.queries.pages.frames import memory_of
from kvintro.render import render
from kvintro.reports.info import info
from kvintro.reports.layout import layout
from kvintro.reports.pages import pages_report
from kvintro.source import Request
from kvintro.source.elf import read_headers
from kvintro.source.vmcoreinfo import in_silence
from tests.conftest import ROOT, VMCORES
from tests.memory_files import avml, bitmap_of, elf_without_notes, kexec_elf, lime, snappy
from tests.saved_guests import libvirt

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


#: Files that `kvintro convert` makes of a running QEMU, and its options.
CONVERTED = {"converted-elf": ("--to", "elf"), "converted-kdump": ("--to", "kdump")}


def converted(monitor: Path, directory: Path) -> Dict[str, Path]:
    """What kvintro makes of the guest."""
    command = [sys.executable, "-m", "kvintro", "--qemu", str(monitor), "convert"]
    for name, options in CONVERTED.items():
        subprocess.run([*command, "-o", str(directory / name), *options], check=True, cwd=ROOT)
    return {name: directory / name for name in CONVERTED}


def dumped(directory: Path, series: str, memory_mb: int, device: bool, *only: str) -> Dict[str, Path]:
    """Boot a guest and dump it."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is missing")
    boot, formats, archive, entry = lab()
    guest = entry("formats", series, memory_mb=memory_mb)
    kernel = boot.find_kernel(guest, archive())
    found: Dict[str, Path] = formats.dump_all(
        guest, kernel, directory, device=device, only=only or None, meanwhile=None if only else converted
    )
    return found


def regions(kernel: Kernel) -> Any:
    return json.loads(render(layout(kernel), "json"))["regions"]


@pytest.fixture(
    scope="module",
    params=[pytest.param(g, marks=pytest.mark.xdist_group(f"guest {g[0]} {g[1]}")) for g in GUESTS],
    ids=[f"{series}-{'with' if device else 'without'}" for series, device in GUESTS],
)
def guest(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dict[str, Path]]:
    """The dumped files, and those that are made from them."""
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
    assert set(kernels) >= {"elf", "kdump-zlib", "pmemsave", "backend", "lime", "elf-no-note", *CONVERTED}
    expected = regions(kernels["elf"])
    assert {row["state"] for row in expected} <= {"present", "absent"}
    lines = kernels["elf"].source.vmcoreinfo
    for name, kernel in kernels.items():
        assert kernel.source.vmcoreinfo == lines, name
        assert regions(kernel) == expected, name
        assert kernel.source.complete is not False, name
    assert kernels["pmemsave"].source.format == kernels["backend"].source.format == "raw memory"


def test_where_vmcoreinfo_comes_from(guest: Dict[str, Path]) -> None:
    """QEMU's own formats have the note only with the device; converted files always have it."""
    with guest["elf"].open("rb") as file:
        device = read_headers(file).note("VMCOREINFO") is not None
    for name, path in guest.items():
        origin = open_kernel(Request(core=str(path))).source.vmcoreinfo_origin
        noted = name in CONVERTED or (device and (name == "elf" or name.startswith("kdump")))
        assert ("note" in origin) is noted, name
        assert ("found in memory at physical 0x" in origin) is not noted, name


def test_a_converted_guest_is_the_dumped_one(guest: Dict[str, Path]) -> None:
    """By drgn, each page of RAM is that of QEMU's dump of the same pause."""
    ram = [(first, data) for first, data in _ram(guest["elf"]) if first < 3 * GB]
    assert sum(len(data) for _, data in ram) == 256 << 20
    for name in CONVERTED:
        prog = drgn.Program()
        prog.set_core_dump(guest[name])
        for first, data in ram:
            for at in range(0, len(data), 1 << 20):
                part = data[at : at + (1 << 20)]
                assert prog.read(first + at, len(part), True) == part, f"{name}: {first + at:x}"


@pytest.mark.parametrize("memory_mb", [4096])
def test_memory_on_both_sides_of_the_gap(tmp_path: Path, memory_mb: int) -> None:
    """A file with the guest's RAM does not contain the guest's gap below 4 GB."""
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


# Guests that QEMU saved

#: Machine type, name of its memory if that is not QEMU's own, how its pages are sent.
SAVED = [
    ("pc", "", "plain"),
    # 128 MB below 4 GB and the same amount above, where the default of the machine type is wrong.
    ("q35,max-ram-below-4g=128M", "mem0", "compress"),
    ("q35", "", "live"),
]


@pytest.fixture(
    scope="module",
    params=[pytest.param(each, marks=pytest.mark.xdist_group(f"saved {each[2]}")) for each in SAVED],
    ids=[each[2] for each in SAVED],
)
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dict[str, Path]]:
    """All files of a saved guest."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is missing")
    machine, backend, stream = request.param
    boot, formats, archive, entry = lab()
    guest = entry("saved", "6.12", memory_mb=256)
    directory = tmp_path_factory.mktemp("saved")
    found: Dict[str, Path] = formats.save_all(
        guest, boot.find_kernel(guest, archive()), directory, machine=machine, backend=backend, stream=stream
    )
    yield found
    for path in found.values():
        path.unlink()


def files_of(saved: Dict[str, Path], directory: Path) -> Iterator[Tuple[str, Request]]:
    """Each file with the guest's memory, also in libvirt's formats."""
    yield "QEMU stream", Request(core=str(saved["stream"]))
    packed = directory / "packed"
    packed.write_bytes(libvirt(gzip.compress(saved["stream"].read_bytes(), 1), 1, order=">"))
    yield "libvirt save file, gzip", Request(core=str(packed))
    packed.unlink()
    if "disk" in saved:
        yield "qcow2 snapshot", Request(core=str(saved["disk"]), snapshot="one")


def assert_same_ram(kernel: Kernel, ram: Path) -> None:
    """Compare with pmemsave, except the first megabyte, where QEMU shows devices instead of RAM."""
    with ram.open("rb") as file:
        for segment in kernel.source.segments:
            for at in range(segment.paddr, segment.paddr + segment.filesz, 1 << 20):
                if at:
                    file.seek(at)
                    assert kernel.read_physical(at, 1 << 20) == file.read(1 << 20), f"{at:x}"


def test_a_saved_guest_is_the_dumped_one(saved: Dict[str, Path], tmp_path: Path) -> None:
    """Its layout equals that of the ELF file of the same pause, and each page equals pmemsave's."""
    expected = open_kernel(Request(core=str(saved["elf"])))
    for form, asked in files_of(saved, tmp_path):
        kernel = open_kernel(asked)
        assert (kernel.source.format, kernel.source.complete, kernel.source.left_out) == (form, True, 0)
        assert kernel.source.memory == 256 << 20
        assert kernel.source.warnings == []
        assert kernel.source.vmcoreinfo == expected.source.vmcoreinfo
        assert regions(kernel) == regions(expected), form
        assert_same_ram(kernel, saved["ram"])


@pytest.mark.parametrize("machine", ["pc", "q35,max-ram-below-4g=128M"])
def test_guests_of_a_newer_qemu(tmp_path: Path, machine: str, request: pytest.FixtureRequest) -> None:
    """QEMU 10 of Debian 13: pages with fixed places, also by several threads, and XBZRLE."""
    if not request.config.getoption("--thorough"):
        pytest.skip("QEMU of Debian 13 has to be fetched, and takes minutes: --thorough")
    boot, formats, archive, entry = lab()
    guest = entry("newer", "6.12", memory_mb=256)
    found = formats.save_by_newer(guest, boot.find_kernel(guest, archive()), tmp_path, machine=machine)
    expected = regions(open_kernel(Request(core=str(found["elf"]))))
    for name in ("live", *formats.NEWER_STREAMS):
        kernel = open_kernel(Request(core=str(found[name])))
        assert (kernel.source.format, kernel.source.complete) == ("QEMU stream", True), name
        assert kernel.source.warnings == []
        assert kernel.source.memory == 256 << 20
        assert regions(kernel) == expected, name
        assert_same_ram(kernel, found["ram"])
    for path in found.values():
        path.unlink()


# makedumpfile on a kernel that it supports


@pytest.fixture(scope="module")
def vmcore(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuple[Path, Path]]:
    """The /proc/vmcore that a guest's kdump kernel would have, and the truth of that boot."""
    if shutil.which("makedumpfile") is None:
        pytest.skip("makedumpfile is missing (apt install makedumpfile)")
    directory = VMCORES / "built" / "debian-5.10-4level-kaslr"
    if not (directory / "core.elf").exists():
        pytest.skip("debian-5.10-4level-kaslr is not built (make vmcores)")
    path = tmp_path_factory.mktemp("vmcore") / "vmcore"
    path.write_bytes(kexec_core(directory / "core.elf"))
    yield path, directory / "truth"
    path.unlink()


def kexec_core(core: Path, entry_at: int = 0) -> bytes:
    """QEMU's dump with the headers that /proc/vmcore has.

    :param entry_at: physical address of an entry that will point to a table of zeros, among other zeros.
    """
    kernel = open_kernel(Request(core=str(core)))
    info = kernel.source.vmcoreinfo
    stext = int(info["SYMBOL(_stext)"], 16)
    ram = [(first, bytearray(data)) for first, data in _ram(core) if first < 3 * GB]
    if entry_at:
        run = bytes(4 << 20)
        zeros = next(first + data.index(run) for first, data in ram if run in data)
        table = (zeros + len(run) // 2) & -4096
        first, data = next(each for each in ram if each[0] <= entry_at < each[0] + len(each[1]))
        struct.pack_into("<Q", data, entry_at - first, table | 0x63)
    note = kernel.prog["VMCOREINFO"].string_()
    text_at = stext - 0xFFFFFFFF80000000 + int(info["NUMBER(phys_base)"])
    whole = [(first, bytes(data)) for first, data in ram]
    return kexec_elf(whole, note, kernel.value("page_offset_base").value, stext, text_at)


def made(vmcore: Path, *words: str) -> List[str]:
    """Files that makedumpfile made; words that begin with a dot are suffixes of the file names."""
    names = [f"{vmcore}{word}" for word in words if word.startswith(".")]
    command = ["makedumpfile", *(word for word in words if not word.startswith(".")), str(vmcore)]
    if "-F" in words:
        with open(names[0], "wb") as file:
            subprocess.run(command, check=True, stdout=file, stderr=subprocess.DEVNULL)
    else:
        subprocess.run([*command, *names], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return names


SPLIT = ("--split", "--splitblock-size", "16")

#: Fields of a region that say what could not be read.
NOT_READ = {"at_least", "unreadable", "reason"}


def without(fields: Set[str], rows: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in fields} for row in rows]


def assert_only_zeros_are_absent(whole: str, others: List[str]) -> int:
    """The number of page tables that a filtered dump lacks: each is a page of zeros in the whole dump.

    vunmap() keeps a page table in which nothing is mapped any more. From an ELF file, makedumpfile leaves out
    long runs of excluded pages (PFN_EXCLUDED: 256 or more), pages of zeros among them; in a kdump they stay.
    """
    complete = kvintro.open(whole)
    absent = [row for row in kvintro.open(*others).ptdump().rows if row["state"] == "not-in-dump"]
    for row in absent:
        (found,) = complete.translate(row["start"]).results
        table = found.walk[-1].entry_address & -4096
        assert complete.read_physical(table, 4096) == bytes(4096), f"{row['start']:x}"
    return len(absent)


@pytest.mark.xdist_group("makedumpfile")
@pytest.mark.parametrize(
    ("words", "form"),
    [
        (("-c", "-d", "0", ".zlib"), "kdump"),
        (("-l", "-d", "0", ".lzo"), "kdump"),
        ((*SPLIT, "-c", "-d", "0", ".1", ".2", ".3"), "split kdump"),
        ((*SPLIT, "-l", "-d", "31", ".1", ".2", ".3"), "split kdump"),
        ((*SPLIT, "--cyclic-buffer", "1", "-c", "-d", "31", ".1", ".2"), "split kdump"),
        (("-F", "-c", "-d", "31", ".flat"), "flattened kdump"),
        (("-E", "-d", "31", ".elf"), "ELF"),
        (("-F", "-E", "-d", "31", ".flat"), "flattened ELF"),
    ],
    ids=" ".join,
)
def test_makedumpfile(vmcore: Tuple[Path, Path], words: Tuple[str, ...], form: str) -> None:
    """Whole or filtered, in one file or more: the layout, the page tables and the census are the same."""
    names = made(vmcore[0], *words)
    try:
        whole, other = (open_kernel(Request(core=core)) for core in (str(vmcore[0]), names))
        assert (other.source.format, other.source.complete) == (form, True)
        assert ((other.source.left_out or 0) > 0) is ("31" in words)
        assert other.source.warnings == []
        empty = assert_only_zeros_are_absent(str(vmcore[0]), names)
        assert empty == 0 or "ELF" in form
        fields = NOT_READ if empty else set()
        assert without(fields, regions(other)) == without(fields, regions(whole))
        assert list(other.kernel_ranges) == list(whole.kernel_ranges)
        tables = [pages_report(kernel).tables[:-1] for kernel in (whole, other)]
        assert [table.rows for table in tables[0]] == [table.rows for table in tables[1]]
    finally:
        for name in names:
            Path(name).unlink()


@pytest.mark.xdist_group("makedumpfile")
def test_a_page_table_in_which_nothing_is_mapped(vmcore: Tuple[Path, Path], tmp_path: Path) -> None:
    """A filtered ELF file lacks a page table of zeros: what it maps is unknown there, and not nothing."""
    core = vmcore[1].parent / "core.elf"
    listed = kvintro.open(str(core)).ptdump(range="vmalloc").rows
    address = [row["start"] for row in listed if (row["level"], row["state"]) == ("pte", "present")][-1]
    (found,) = kvintro.open(str(core)).translate(address).results
    emptied = tmp_path / "emptied"
    emptied.write_bytes(kexec_core(core, entry_at=found.walk[-2].entry_address))
    (name,) = made(emptied, "-E", "-d", "31", ".filtered")
    rows = [
        next(row for row in regions(open_kernel(Request(core=str(path)))) if row["key"] == "vmalloc")
        for path in (emptied, name)
    ]
    absent = assert_only_zeros_are_absent(str(emptied), [name])
    emptied.unlink()
    assert absent == 1
    assert without(NOT_READ, rows[:1]) == without(NOT_READ, rows[1:])
    assert rows[1]["at_least"] and rows[1]["unreadable"] == absent * (2 << 20)
    assert rows[1]["reason"] == f"page tables of {2 * absent} MB are not in this source"


@pytest.mark.xdist_group("makedumpfile")
@pytest.mark.parametrize("level", [0, 1, 2, 4, 8, 16, 31])
def test_convert_leaves_out_what_makedumpfile_does(
    vmcore: Tuple[Path, Path], tmp_path: Path, level: int
) -> None:
    """Frame by frame, for a kernel that it supports; and makedumpfile reads the converted file."""
    (theirs,) = made(vmcore[0], "-c", "-d", str(level), ".filtered")
    ours = tmp_path / "ours"
    convert(open_kernel(Request(core=str(vmcore[0]))), str(ours), form="kdump", compress="zlib", level=level)
    (again,) = made(ours, "-c", "-d", str(level), ".again")
    try:
        frames = [memory_of(open_kernel(Request(core=str(name)))) for name in (theirs, ours, again)]
        for other in frames[1:]:
            assert list(other.there) == list(frames[0].there)
            assert list(other.left_out) == list(frames[0].left_out)
        assert (frames[0].left_out.count > 0) is (level > 1)
    finally:
        for name in (theirs, ours, again):
            Path(name).unlink()


@pytest.mark.xdist_group("makedumpfile")
@pytest.mark.parametrize("form", ["kdump", "ELF"])
def test_pages_that_makedumpfile_left_out(vmcore: Tuple[Path, Path], form: str) -> None:
    """User pages, by the process's own pagemap, are reported as mapped but not in the dump."""
    (name,) = made(vmcore[0], "-E" if form == "ELF" else "-c", "-d", "31", ".filtered")
    with open(name, "rb") as file:
        if form == "ELF":
            parts = read_headers(file).segments
            held = {(p.paddr + at) >> 12 for p in parts for at in range(0, p.filesz, 4096)}
        else:
            bits = bitmap_of(file.read())
            held = {frame for frame in range(bits.bit_length()) if bits >> frame & 1}
    wanted: Dict[str, Dict[str, int]] = {}
    for line in (vmcore[1] / "pagemap").read_text().splitlines():
        pid, address, entry = line.split()
        if int(entry, 16) >> 63:
            wanted.setdefault(pid, {})[address] = int(entry, 16) & (1 << 55) - 1
    found: Dict[bool, List[bool]] = {True: [], False: []}
    try:
        for pid, frames in wanted.items():
            command = [sys.executable, "-m", "kvintro", "-c", name, "--json", "translate", "--pid", pid]
            done = subprocess.run([*command, *frames], check=False, stdout=subprocess.PIPE, cwd=ROOT)
            for result in json.loads(done.stdout)["results"]:
                if result["state"] == "unmapped":  # pagemap includes pages of PROT_NONE
                    continue
                assert (result["state"], result["pfn"]) == ("mapped", frames[result["input"]])
                found[result["pfn"] in held].append(result["in_dump"])
    finally:
        Path(name).unlink()
    assert len(found[False]) > 100 and not any(found[False])
    assert all(found[True])


def test_a_panic_is_reported(tmp_path: Path) -> None:
    """`info` on a guest that panicked after an NMI, against the message on its console."""
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


def test_a_crash_kernel_and_the_crashed_one(tmp_path: Path) -> None:
    """Both are in the memory of a guest that crashed into its crash kernel, and either can be selected."""
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is missing")
    boot, formats, archive, entry = lab()
    crashes = entry("crashed", "6.12", memory_mb=384, extra=("crashkernel=160M",))
    found = formats.dump_crashed(crashes, boot.find_kernel(crashes, archive()), tmp_path)
    layouts: Dict[int, Any] = {}
    for path in found.values():
        source = open_kernel(Request(core=str(path))).source
        assert source.kernels is not None
        kernels = source.kernels(in_silence).found
        assert [kernel.lines["OSRELEASE"] for kernel in kernels] == [source.vmcoreinfo["OSRELEASE"]] * 2
        panics, command_lines = set(), set()
        for kernel in kernels:
            chosen = open_kernel(Request(core=str(path), vmcoreinfo_at=kernel.address))
            assert chosen.source.vmcoreinfo == kernel.lines
            assert layouts.setdefault(kernel.address, regions(chosen)) == regions(chosen)
            facts = {row["key"]: row["value"] for row in json.loads(render(info(chosen), "json"))["facts"]}
            panics.add(str(facts["panic"]))
            command_lines.add(str(facts["command_line"]).split()[0])
        # /proc/cmdline of the crash kernel begins with the text that kexec_file_load() adds.
        assert any("sysrq triggered crash" in panic for panic in panics) and len(panics) == 2
        assert any(word.startswith("elfcorehdr=") for word in command_lines) and len(command_lines) == 2
    assert len(layouts) == 2
    for path in found.values():
        path.unlink()
