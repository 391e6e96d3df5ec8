# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: bounds against VMCOREINFO's numbers, and tables of processes against the kernel's own ptdump."""

from __future__ import annotations

import re
from typing import Dict

import pytest

from kvintro.kernels import Kernel
from kvintro.model import ALL, AddressRange
from kvintro.queries.roots import process_root
from kvintro.queries.translate import Input, Translator
from kvintro.render import render_stream
from kvintro.reports.ptdump import ptdump
from kvintro.source.elf import Segment
from kvintro.source.translation import unreachable
from tests.conftest import Core
from tests.cores.showing import kallsyms

ARCHITECTURES = ("riscv64",)


@pytest.fixture(scope="module")
def numbers(core: Core) -> Dict[str, int]:
    """The numbers of VMCOREINFO, read from the guest's memory by QEMU."""
    found = re.findall(r"^NUMBER\((\w+)\)=(\S+)$", core.truth("vmcoreinfo-text"), re.M)
    return {name: int(value, 0) & ALL for name, value in found}


def test_bounds(core: Core, kernel: Kernel, numbers: Dict[str, int]) -> None:
    assert numbers["VA_BITS"] == core.meta["va_bits"]

    def place(key: str) -> AddressRange:
        return kernel.place(key).range

    assert place("vmemmap") == AddressRange(numbers["VMEMMAP_START"], numbers["VMEMMAP_END"] - 1)
    assert place("vmalloc") == AddressRange(numbers["VMALLOC_START"], numbers["VMALLOC_END"] - 1)
    assert place("modules") == AddressRange(numbers["MODULES_VADDR"], numbers["MODULES_END"] - 1)
    assert place("direct_map").start == numbers["VMALLOC_END"]
    assert place("kernel_image").start == kallsyms(core, "_start")["_start"]
    assert (place("kernel_image").start == numbers["KERNEL_LINK_ADDR"]) is not core.meta["kaslr"]
    # /sys/kernel's words: high_memory ends the direct map.
    (high,) = re.findall(r"^high_memory \w+ 8 (\w+)$", core.truth("values"), re.M) or ("",)
    used = kernel.place("direct_map").used
    assert used is not None and (not high or used.end + 1 == int(high, 16))


def test_vmemmap(core: Core, kernel: Kernel) -> None:
    """VMCOREINFO's vmemmap is where the struct page of page frame 0 would be."""
    (said,) = re.findall(r"^SYMBOL\(vmemmap\)=(\w+)$", core.truth("vmcoreinfo-text"), re.M)
    first = core.ram_base >> 12
    used = kernel.place("vmemmap").used
    assert used is not None and used.start == int(said, 16) + first * kernel.page_struct_size.value & ALL


def test_memory_out_of_reach_in_kcore(core: Core, kernel: Kernel) -> None:
    """The headers of that kernel's /proc/kcore: page tables must give what no file offset can reach."""
    lines = [line.split() for line in core.truth("kcore-phdrs").splitlines() if line.startswith("LOAD ")]
    segments = [Segment(*(int(word, 16) for word in words[1:6])) for words in lines]
    found = list(unreachable(segments, kernel.form.kernel))

    def is_left(address: int) -> bool:
        return any(start <= address <= end for start, end in found)

    said = [int(text, 16) for text in re.findall(r"^0x(\w+)-", core.truth("vmallocinfo"), re.M)]
    assert said and all(is_left(address) for address in said if address in kernel.place("vmalloc").range)
    (vmemmap,) = re.findall(r"^NUMBER\(VMEMMAP_START\)=(\w+)$", core.truth("vmcoreinfo-text"), re.M)
    assert is_left(int(vmemmap, 16))
    # A file can have these: RAM, modules and the image.
    for key in ("direct_map", "modules", "kernel_image"):
        assert any(segment.vaddr in kernel.place(key).range for segment in segments)
    assert not is_left(kallsyms(core, "_text")["_text"])
    assert all(not is_left(segment.vaddr) for segment in segments if segment.offset < 1 << 63)


def pages(text: str) -> Dict[int, str]:
    """The flags of each page. The kernel takes the accessed bit (A) away whenever it looks for idle pages."""
    found = {}
    for start, end, flags in re.findall(r"^0x(\w+)-0x(\w+) +0x\w+ +\d+[KMGTPE] (.*)$", text, re.M):
        level, *letters = flags.split()
        kept = " ".join([level, *(letter for letter in letters if letter not in ("A", "."))])
        found.update(dict.fromkeys(range(int(start, 16), int(end, 16), 4096), kept))
    return found


def test_tables_of_processes(core: Core, kernel: Kernel) -> None:
    """The kernel's own ptdump_walk() of each process of the workload."""
    compared = 0
    for path in sorted(core.truth_directory.glob("proc/*/ptdump")):
        root = process_root(kernel, int(path.parent.name))
        found = "".join(render_stream(ptdump(kernel, root, wanted=kernel.form.user), "text"))
        assert pages(found) == pages(path.read_text())
        compared += 1
    if not compared:
        pytest.skip(f"{core.name} was taken without ptdump of processes")


def test_svnapot(core: Core, kernel: Kernel) -> None:
    """A page of 64 KB of hugetlbfs; pagemap has each of its page frames."""
    found = re.findall(r"^(\d+) \S+ hugetlb_64k ([0-9a-f]+) ", core.truth("workload"), re.M)
    if not found or not int(found[0][1], 16):
        pytest.skip("this kernel or processor has no Svnapot")
    pid, start = int(found[0][0]), int(found[0][1], 16)
    frames = {
        int(address, 16): int(entry, 16) & (1 << 55) - 1
        for address, entry in re.findall(rf"^{pid} (\w+) (\w+)$", core.truth("pagemap"), re.M)
    }
    translator = Translator(kernel, pid=pid)
    for address in range(start, start + (64 << 10), 4096):
        assert translator.translate(Input("", address, "virtual")).pfn == frames[address]
    last = kernel.walk(start, process_root(kernel, pid).table).steps[-1]
    assert kernel.entries.decode(last.value or 0, last.level, half="user").contiguous == 64 << 10
