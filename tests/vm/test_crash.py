# SPDX-License-Identifier: LGPL-2.1-or-later
"""crash gives the same output for the core itself, for a file of ``kvintro convert``, and for VMware's files.

Every page that crash reads from these files is the page that kvintro reads.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest

from kvintro.arch.x86_64 import PRESENT
from kvintro.convert import convert
from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.queries.pages.frames import memory_of
from kvintro.queries.translate import Input, Translator
from kvintro.source import Request
from kvintro.source.elf import parse_notes, read_headers
from tests.conftest import Core
from tests.hypervisors import PAGE, vmware_cpus, vmware_state
from tests.vm.test_translate_against_crash import CACHE, _answers, _crash

#: Bytes that the test reads at once.
STEP = 1 << 20
COMMANDS = ["ps", "bt -c 0", "kmem -i", "rd linux_banner 8", "mount", "sys"]


@pytest.fixture
def vmlinux(core: Core, kernel: Kernel) -> Path:
    """The kernel's vmlinux."""
    if not core.meta["oracle"] or core.meta["efi"] or not core.meta["kaslr"] or core.meta.get("variant"):
        pytest.skip("one core of the kernel that is built with DWARF is enough: crash takes its time")
    path: Path = CACHE / core.meta["vmlinux"]
    if not path.exists():
        pytest.skip(f"there is no {path.name} of this kernel in the lab's cache")
    with path.open("rb") as file:
        if read_headers(file, section_notes=True).build_id != kernel.source.vmcoreinfo["BUILD-ID"]:
            pytest.skip(f"the {path.name} in the lab's cache is of another build")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory whose files are removed after the test, because they are large."""
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()


@cache
def said(vmlinux: Path, core: Path, *more: str, **files: Any) -> str:
    """What crash prints, without the names and sizes of files, and registers that VMware does not save."""
    text = _crash(vmlinux, core, [*COMMANDS, *more], **files)
    assert text.count("\n") > 100
    lines = [line.lstrip() for line in text.splitlines()]
    return "\n".join(x for x in lines if not re.match(r"DUMPFILE: |ORIG_RAX: |CS: |\d+ bytes copied ", x))


def assert_crash_agrees(
    vmlinux: Path, path: Path, core: Core, kernel: Kernel, *, beside: Tuple[Path, ...] = ()
) -> None:
    """crash prints the same as for the core. Its walks and all pages that it reads are those of kvintro."""
    other = open_kernel(Request(core=str(path)))
    mapped = [start for start, _, key in kernel.kernel_ranges if key & PRESENT]
    walks = [f"vtop {start:x}" for start in mapped[:: len(mapped) // 20]]
    runs = [(first * PAGE, (end - first) * PAGE) for first, end in memory_of(other).there]
    assert sum(size for _, size in runs) > 10 << 20
    reads = [f"rd -p -r {first:x} {first:x} {size}" for first, size in runs]
    text = said(vmlinux, path, *walks, *reads, beside=beside, written=path.parent)
    assert text == said(vmlinux, core.path, *walks)
    answers, translator = _answers(text), Translator(other)
    assert len(answers) == len(walks) >= 20
    for address, (values, _) in answers.items():
        walk = translator.translate(Input("", address, "virtual")).walk
        assert values == [step.value for step in walk], hex(address)
    for first, size in runs:
        read = path.parent / f"{first:x}"
        assert read.stat().st_size == size
        with read.open("rb") as file:
            for at in range(first, first + size, STEP):
                data = file.read(STEP)
                assert data == kernel.read_physical(at, len(data)) == other.read_physical(at, len(data))
        read.unlink()


@pytest.mark.parametrize(
    ("form", "compress", "level"), [("elf", "none", 0), ("kdump", "zlib", 0), ("kdump", "zstd", 31)]
)
def test_crash_reads_converted_files(
    core: Core, kernel: Kernel, vmlinux: Path, place: Path, form: str, compress: str, level: int
) -> None:
    path = place / "converted"
    convert(kernel, str(path), form=form, compress=compress, level=level)
    assert_crash_agrees(vmlinux, path, core, kernel)


def registers(core: Path) -> List[bytes]:
    """The registers of all CPUs, as QEMU writes them into a dump."""
    with core.open("rb") as file:
        found: List[bytes] = []
        for at, size in read_headers(file).note_places:
            file.seek(at)
            found += [bytes(data) for name, _, data in parse_notes(file.read(size)) if name == "QEMU"]
    return found


@pytest.mark.parametrize("apart", [True, False], ids=["vmss and vmem", "vmsn"])
def test_crash_reads_vmware_files(
    core: Core, kernel: Kernel, vmlinux: Path, place: Path, apart: bool
) -> None:
    """By VMware's registers, crash finds where the kernel was loaded, and it needs no VMCOREINFO."""
    if core.path.name != "core.elf":
        pytest.skip("only the ELF core lists its ranges of memory (make vmcores)")
    states = registers(core.path)
    assert len(states) == 2
    parts = [(part.paddr, kernel.read_physical(part.paddr, part.filesz)) for part in kernel.source.segments]
    pieces = []
    data = b""
    for first, content in parts:  # crash needs this order
        pieces.append((first // PAGE, len(data) // PAGE, len(content) // PAGE))
        data += content
    path, vmem = (place / f"guest.{name}" for name in ("vmss" if apart else "vmsn", "vmem"))
    # crash reads more than the list of groups, and a file of VMware is never that small.
    groups = {"cpu": vmware_cpus(states), "filler": bytes(1 << 16)}
    memory = b"" if apart else data
    path.write_bytes(vmware_state(pieces, memory, padding=100, groups=groups))
    if apart:
        vmem.write_bytes(data)
    assert_crash_agrees(vmlinux, path, core, kernel, beside=(vmem,) if apart else ())
