#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Measure how the processor time of commands grows with processes, vmalloc areas and memory.

    tools/bench_growth.py CORE [processes] [areas] [memory] [--runs N]

CORE is the dump of a small guest on x86-64 without KASLR, whose direct map has space for 16 TB:
debian-6.12-5level-nokaslr of the lab. Larger dumps of up to a gigabyte are made of it in a temporary
directory. In these, the process with the most areas exists many times, with its own tables; or the kernel has
many vmalloc areas; or it has up to 16 TB, whose direct map is in 2M pages and whose sections share their
struct pages. The copies of a process are in the list of processes, but not in the tree of process numbers.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Sequence, Tuple

import numpy
from numpy.typing import NDArray

from kvintro.kernels import Kernel
from kvintro.opening import open_kernel
from kvintro.queries.pages.census import Pages
from kvintro.readers.damage import Damage
from kvintro.readers.processes import Process, each_mm, memory_of
from kvintro.readers.structures import offset_of, pointer_at, size_of
from kvintro.regions.vmalloc import REGION as VMALLOC
from kvintro.source import Request
from kvintro.source.elf import read_headers

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.bench_busy import cost, cpu

U64 = NDArray[numpy.uint64]
PAGE, ADDRESS = 4096, 0xFFFFFFFFFF000
TABLE, DATA, LARGE = 0x63, 0x8000000000000163, 0x80000000000001E3


class Larger:
    """A core to which memory is added, at the first gigabyte after its own; the direct map maps it."""

    def __init__(self, core: Path) -> None:
        self.core = core
        self.kernel = open_kernel(Request(core=str(core)))
        self.linear = self.kernel.linear_offset.value
        self.start = -(-(self.kernel.max_pfn.value * PAGE) >> 30) << 30
        self.more = bytearray()
        self._pages: Dict[int, bytearray] = {}

    def take(self, size: int, align: int = PAGE) -> int:
        """Physical address of new memory, filled with zeros."""
        self.more += bytes(-len(self.more) % align)
        self.more += bytes(size)
        return self.start + len(self.more) - size

    def read(self, address: int, size: int) -> bytes:
        """Physical memory as it is now."""
        at = address - self.start
        if at >= 0:
            return bytes(self.more[at : at + size])
        page = self._pages.get(address // PAGE)
        if page is not None:
            return bytes(page[address % PAGE : address % PAGE + size])
        return self.kernel.read_physical(address, size)

    def write(self, address: int, data: bytes) -> None:
        """Change memory, within a page if it is the core's."""
        at = address - self.start
        if at >= 0:
            self.more[at : at + len(data)] = data
            return
        first = address & -PAGE
        page = self._pages.setdefault(first // PAGE, bytearray(self.read(first, PAGE)))
        page[address - first : address - first + len(data)] = data

    def word(self, virtual: int, value: int) -> None:
        """Change a word of the kernel's memory."""
        physical = self.kernel.walk(virtual).physical
        assert physical is not None
        self.write(physical, struct.pack("<Q", value))

    def table(self, virtual: int, level: int) -> int:
        """The table of a level (1 is the lowest) that translates an address; made if it does not exist."""
        at = self.kernel.root.value
        for upper in range(self.kernel.form.levels, level, -1):
            where = at + 8 * (virtual >> 12 + 9 * (upper - 1) & 511)
            (value,) = struct.unpack("<Q", self.read(where, 8))
            if not value & 1:
                value = self.take(PAGE) | TABLE
                self.write(where, struct.pack("<Q", value))
            at = value & ADDRESS
        return at

    def map(self, virtual: int, entries: U64, level: int) -> None:
        """Write the entries of a level from an address on."""
        done = 0
        while done < len(entries):
            index = (virtual >> 12 + 9 * (level - 1)) + done & 511
            part = entries[done : done + 512 - index]
            where = self.table(virtual + (done << 12 + 9 * (level - 1)), level)
            self.write(where + 8 * index, part.tobytes())
            done += len(part)

    def describe(self, end: int, level: int, pages: bytes) -> None:
        """Make the memory from :attr:`start` on a part of the machine: direct map and sections.

        :param end: physical address after it.
        :param level: of the direct map's large pages.
        :param pages: struct pages of a section, which all new sections share.
        """
        kernel, u = self.kernel, numpy.uint64
        frames = numpy.arange(self.start, end, 1 << 12 + 9 * (level - 1), dtype="u8")
        self.map(self.linear + self.start, frames | u(LARGE), level)
        form, bits = Pages(kernel).form, kernel.section_size_bits.value
        shared = self.take(2 << 20, 2 << 20)
        self.write(shared, pages)
        low, high = (form.address(address // PAGE) for address in (self.start, end))
        self.map(low, numpy.full(high - low >> 21, shared | LARGE, "u8"), 2)
        size = size_of(kernel, "struct mem_section")
        table, each = pointer_at(kernel, kernel.symbol("mem_section")), PAGE // size
        pattern = kernel.read(pointer_at(kernel, table), size)
        first, last = self.start >> bits, end >> bits
        for root in range(first // each, -(-last // each)):
            old = pointer_at(kernel, table + 8 * root)
            place = kernel.walk(old).physical if old else self.take(PAGE)
            assert place is not None
            behind, until = max(first - root * each, 0), min(last - root * each, each)
            self.write(place + behind * size, pattern * (until - behind))
            if not old:
                self.word(table + 8 * root, self.linear + place)
        self.word(kernel.symbol("max_pfn"), end // PAGE)

    def save(self, path: Path) -> None:
        """Write the core with all changes."""
        shutil.copyfile(self.core, path)
        with path.open("r+b") as file:
            headers = read_headers(file)
            for number, page in self._pages.items():
                at = number * PAGE
                part = next(p for p in headers.segments if p.paddr <= at < p.paddr + p.filesz)
                file.seek(part.offset + at - part.paddr)
                file.write(page)
            file.seek(0)
            elf = bytearray(file.read(64))
            (table,), (count,) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<H", elf, 56)
            file.seek(table)
            lines = file.read(56 * count)
            data = -(-file.seek(0, 2) // PAGE) * PAGE
            size = len(self.more)
            file.seek(data)
            file.write(self.more)
            file.write(lines + struct.pack("<IIQQQQQQ", 1, 7, data, 0, self.start, size, size, PAGE))
            struct.pack_into("<Q", elf, 32, data + size)
            struct.pack_into("<H", elf, 56, count + 1)
            file.seek(0)
            file.write(elf)


class Template:
    """The memory of a process in one piece, with the places of the words that refer to it.

    :ivar at: offset of each object in the piece, by its old address.
    """

    def __init__(self, larger: Larger, process: Process) -> None:
        self.larger, kernel = larger, larger.kernel
        self.data = bytearray()
        self.at: Dict[int, Tuple[int, int]] = {}
        self.physical: List[int] = []
        mm = process.mm
        self.root = pointer_at(kernel, mm + offset_of(kernel, "struct mm_struct", "pgd"))
        self._tables(self.root - larger.linear, kernel.form.levels)
        self.at[self.root] = (0, PAGE)
        signal = pointer_at(kernel, process.task + offset_of(kernel, "struct task_struct", "signal"))
        self.add(process.task, size_of(kernel, "struct task_struct"))
        self.add(signal, size_of(kernel, "struct signal_struct"))
        self.add(mm, size_of(kernel, "struct mm_struct"))
        areas = size_of(kernel, "struct vm_area_struct")
        for area in self._maple(pointer_at(kernel, mm + offset_of(kernel, "struct mm_struct", "mm_mt") + 8)):
            self.add(area, areas)

    def add(self, address: int, size: int, align: int = 256) -> None:
        """Copy an object."""
        self.data += bytes(-len(self.data) % align)
        self.at[address] = (len(self.data), size)
        self.data += self.larger.kernel.read(address, size)

    def _tables(self, physical: int, level: int) -> int:
        """Copy a table and those below it; return its offset."""
        self.lowest = physical  # in the end one of the lowest level
        offset = len(self.data)
        entries = numpy.frombuffer(self.larger.read(physical, PAGE), "<u8").copy()
        self.data += bytes(PAGE)
        for i in range(256 if level == self.larger.kernel.form.levels else 512):
            value = int(entries[i])
            if level > 1 and value & 1 and not value & 0x80:
                entries[i] = self._tables(value & ADDRESS, level - 1) | value & ~ADDRESS
                self.physical.append(offset // 8 + i)
        self.data[offset : offset + PAGE] = entries.tobytes()
        return offset

    def _maple(self, encoded: int) -> Iterator[int]:
        """Copy the nodes of a maple tree; return its entries."""
        kind = encoded >> 3 & 15
        node = encoded & ~255
        self.add(node, 256)
        words = struct.unpack("<32Q", self.larger.kernel.read(node, 256))
        slots = words[10:20] if kind == 3 else words[16:32]
        for slot in slots:
            if slot >> 63 and kind > 1:
                yield from self._maple(slot)
            elif slot >> 63 and slot not in self.at:
                yield slot

    def copies(self, count: int) -> Tuple[U64, int, int]:
        """Copies as rows, the physical address of the first one, and the size of each."""
        self.data += bytes(-len(self.data) % PAGE)
        size = len(self.data)
        start = self.larger.take(size * count)
        base = self.larger.linear + start
        words = numpy.frombuffer(bytes(self.data), "<u8").copy()
        virtual: List[int] = []
        tables = {offset // 8 for offset, _ in self.at.values()} - {0}
        first = min(tables)
        for old, (offset, length) in self.at.items():
            inside = (words >= numpy.uint64(old)) & (words < numpy.uint64(old + length))
            inside[:first] = False
            places = numpy.flatnonzero(inside)
            words[places] += numpy.uint64(base + offset - old & (1 << 64) - 1)
            virtual += places.tolist()
        words[self.physical] += numpy.uint64(start)
        rows = numpy.tile(words, (count, 1))
        steps = (numpy.arange(count, dtype="u8") * numpy.uint64(size))[:, None]
        rows[:, [*virtual, *self.physical]] += steps
        return rows, start, size


def largest_process(kernel: Kernel) -> Process:
    """The process with the most areas."""
    return max(each_mm(kernel, Damage()), key=lambda process: memory_of(kernel, process).areas)


def add_processes(larger: Larger, count: int) -> None:
    """Copy the process with the most areas."""
    kernel = larger.kernel
    process = largest_process(kernel)
    template = Template(larger, process)
    rows, start, size = template.copies(count)
    task, _ = template.at[process.task]
    tasks = offset_of(kernel, "struct task_struct", "tasks")
    halves = rows.view("<u4")
    for member in ("pid", "tgid"):
        halves[:, (task + offset_of(kernel, "struct task_struct", member)) // 4] = 10_000 + numpy.arange(
            count
        )
    link = (task + tasks) // 8
    places = larger.linear + start + task + tasks + numpy.arange(count, dtype="u8") * numpy.uint64(size)
    chain(larger, kernel.symbol("init_task") + tasks, rows, link, places)
    larger.write(start, rows.tobytes())
    tables_only(larger, template)


def tables_only(larger: Larger, template: Template) -> None:
    """Describe all memory that was added as page tables."""
    form = Pages(larger.kernel).form
    page = larger.kernel.read(form.address(template.lowest // PAGE), form.size)
    gigabytes = (len(larger.more) + (64 << 20) >> 30) + 1
    larger.describe(larger.start + (gigabytes << 30), 3, page * ((2 << 20) // form.size))


def chain(larger: Larger, head: int, rows: U64, column: int, places: U64) -> None:
    """Put nodes at the end of a list.

    :param column: which word of each row is the node's ``next``; ``prev`` follows.
    :param places: addresses of the nodes.
    """
    last = pointer_at(larger.kernel, head + 8)
    rows[:, column] = numpy.append(places[1:], numpy.uint64(head))
    rows[:, column + 1] = numpy.append(numpy.uint64(last), places[:-1])
    larger.word(last, int(places[0]))
    larger.word(head + 8, int(places[-1]))


def add_areas(larger: Larger, count: int) -> None:
    """Add vmalloc areas of three pages, of vmalloc()."""
    kernel, each, pages = larger.kernel, 4 * PAGE, 3
    u = numpy.uint64
    where = kernel.place(VMALLOC).range
    start = where.start + (where.end + 1 - where.start >> 1) & -(1 << 39)
    number = numpy.arange(count, dtype="u8")
    starts = u(start) + number * u(each)
    # Of the memory that is added, because a free page would be a defect.
    frames = u(larger.start // PAGE) + numpy.arange(count * pages, dtype="u8") % u((1 << 30) // PAGE)
    entries = numpy.zeros((count, 4), "u8")
    entries[:, :pages] = (frames << u(12) | u(DATA)).reshape(-1, pages)
    larger.map(start, entries.reshape(-1), 1)

    def put(kind: str, values: Dict[str, object]) -> Tuple[U64, int, int]:
        size = size_of(kernel, kind)
        rows = numpy.zeros((count, size // 8), "u8")
        for member, value in values.items():
            at = offset_of(kernel, kind, member)
            narrow = member in ("nr_pages", "page_order")
            (rows.view("u4") if narrow else rows)[:, at // (4 if narrow else 8)] = value
        return rows, larger.take(rows.nbytes), size

    arrays = larger.take(8 * pages * count)
    base = u(Pages(kernel).form.base)
    larger.write(arrays, (base + frames * u(Pages(kernel).form.size)).tobytes())
    members = {
        "addr": starts,
        "size": each,
        "flags": 2,  # VM_ALLOC
        "pages": u(larger.linear + arrays) + number * u(8 * pages),
        "nr_pages": pages,
        "caller": kernel.symbol("_stext"),
    }
    rows, at, size = put("struct vm_struct", members)
    larger.write(at, rows.tobytes())
    described = u(larger.linear + at) + number * u(size)
    rows, at, size = put(
        "struct vmap_area", {"va_start": starts, "va_end": starts + u(each), "vm": described}
    )
    link = offset_of(kernel, "struct vmap_area", "list")
    busy = offset_of(kernel, "struct vmap_node", "busy") + offset_of(kernel, "struct rb_list", "head")
    places = u(larger.linear + at + link) + number * u(size)
    chain(larger, kernel.value("vmap_nodes").value + busy, rows, link // 8, places)
    larger.write(at, rows.tobytes())
    tables_only(larger, Template(larger, largest_process(kernel)))


def add_memory(larger: Larger, terabytes: int) -> None:
    """Add a direct map in 2M pages, and sections, which share the struct pages of section 0.

    Compound pages are left out, because their tails would have their heads in section 0.
    """
    kernel, u = larger.kernel, numpy.uint64
    form = Pages(kernel).form
    words = numpy.frombuffer(kernel.read(form.base, 2 << 20), "<u8").reshape(-1, form.size // 8).copy()
    compound = (words[:, form.compound // 8] & u(1)) | (words[:, form.flags // 8] & u(form.mask("head"))) != 0
    words[compound] = numpy.resize(words[~compound], (int(compound.sum()), words.shape[1]))
    larger.describe(terabytes << 40, 2, words.tobytes())


def make(core: Path, add: Callable[[Larger, int], None], size: int, path: Path) -> None:
    """Make a larger core."""
    larger = Larger(core)
    add(larger, size)
    larger.save(path)


def rate(path: Path) -> float:
    """Million page frames a second, of the census of the last eighth of the memory."""
    pages = Pages(open_kernel(Request(core=str(path))))
    high = pages.sections.end
    seconds = cpu(lambda: pages.census(high - high // 8, high))
    return high / 8 / seconds / 1e6


def measure(
    core: Path, add: Callable[[Larger, int], None], sizes: Sequence[int], commands: Sequence[str], runs: int
) -> None:
    """Print the processor time and peak memory of commands on cores of some sizes."""
    print(f"{add.__name__.replace('_', ' ')}: medians of {runs} runs, processor time and peak memory")
    for size in sizes:
        # Other processes make and count, because the peak memory of this one would count for the commands.
        with tempfile.TemporaryDirectory() as directory, ProcessPoolExecutor(1) as pool:
            path = Path(directory, "core")
            pool.submit(make, core, add, size, path).result()
            start = [sys.executable, "-m", "kvintro", "-c", str(path), "--format", "json"]
            for words in commands:
                one = cost([*start, *words.split()], runs)
                print(f"  {size:7,}  {words:14} {one.seconds:7.2f} s {one.megabytes:5.0f} MB", flush=True)
            if add is add_memory:
                found = pool.submit(rate, path).result()
                print(f"  {size:7,}  census         {found:7.1f} million page frames a second", flush=True)


def main() -> int:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("core", metavar="CORE", type=Path)
    parser.add_argument("what", nargs="*", metavar="processes, areas, memory", help="default: all of them")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    for name, (add, sizes, commands) in GROWTH.items():
        if name in options.what or not options.what:
            measure(options.core, add, sizes, commands, options.runs)
    return 0


#: What is added, how many of it, and the commands that are measured.
GROWTH: Dict[str, Tuple[Callable[[Larger, int], None], Sequence[int], Sequence[str]]] = {
    "processes": (add_processes, (100, 1_000, 10_000), ("layout", "check", "user --all", "show vmalloc")),
    "areas": (add_areas, (1_000, 10_000, 100_000), ("layout", "check", "user --all", "show vmalloc")),
    "memory": (add_memory, (1, 4, 16), ("layout",)),
}

if __name__ == "__main__":
    sys.exit(main())
