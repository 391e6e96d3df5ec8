# SPDX-License-Identifier: LGPL-2.1-or-later
"""The damaged inputs, and the commands that run on them.

Some targets are small and made up, so that thousands of cases take seconds; others are the shipped dump with
a few words changed, and commands run on it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import struct
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import drgn

from kvintro.cli import main
from kvintro.commands import load_command
from kvintro.errors import KvintroError, NotADump
from kvintro.kernels import Kernel
from kvintro.model import Stream
from kvintro.opening import kernel_of, open_kernel
from kvintro.paging import MAPPED
from kvintro.parser import parse
from kvintro.readers.damage import Damage
from kvintro.readers.processes import each_mm, mm_of, root_of
from kvintro.render import FORMATS, render, render_stream
from kvintro.source import Request, Source, debuginfo, parse_vmcoreinfo
from kvintro.source.program import hide_null
from tests.fuzz.damage import HOSTILE, damaged, damaged_text, some, word
from tests.fuzz.harness import Target, next_question
from tests.hostile import OWN_PAINT, assert_inert
from tests.regions import REGIONS
from tests.synthetic import PAGE, START_KERNEL_MAP, Memory, elf_core, vmcoreinfo

SAMPLE = Path(__file__).resolve().parents[2] / "vmcores/debian-6.12/core.kdump"

#: Commands that run on a kernel, with A for an address. Others need files or a terminal.
QUESTIONS: Dict[str, Sequence[str]] = {
    "aliases": ("A",),
    "check": ("",),
    "explain": ("", "vmalloc", "kernel_image"),
    "identify": ("A", "A A A"),
    "info": ("",),
    "kaslr": ("",),
    "layout": ("", "--pid 1", "--no-holes"),
    "page": ("A",),
    "pages": ("",),
    "pte": ("A",),
    "ptdump": ("", "--wx", "--range modules", "--pid 1 --root user", "--root efi"),
    "read": ("A", "A --size 4096", "init_task --type task_struct", "--pid 1 A", "--phys 1000"),
    "search": (
        "A --in kernel_image",
        "--to A --size 4096 --in vmalloc,modules",
        "--string x --pid 1 --limit 5",
    ),
    "show": REGIONS,
    "translate": ("A A A --walk", "--pid 1 A", "--from page A", "--from pfn A"),
    "user": ("1",),
}
#: Commands that do not run here, and the reason.
NOT_ASKED = {
    "browse": "shows the reports of the others on a terminal",
    "convert": "copies all of memory; it is asked of damaged files",
    "diff": "opens two sources; what it compares are the reports of layout",
    "report": "is the reports of the others on one page, whose HTML is asked for here",
    "shell": "runs what it is given",
    "survey": "opens each dump in a process of its own; what it asks are the reports of others",
}
ADDRESSES = (
    "ffffffff81000000",
    "ffff888000000000",
    "ffffea0000000000",
    "ffffc90000000000",
    "fffffe0000001000",
    "ffffffffc0000000",
    "ffffffffff600000",
    "ffff800000000000",
    "0",
    "1000",
    "7fffffffffff",
    "ffffffffffffffff",
)


def ask(kernel: Kernel, line: str, form: str, pieces: Optional[int] = None) -> str:
    """The output of a command.

    :param pieces: for output in pieces, the number of pieces to read.
    :raises KvintroError: the command refuses.
    """
    next_question()
    args = parse(line.split())
    result = load_command(args.command).run(kernel, args)
    if isinstance(result, Stream):
        return "".join(itertools.islice(render_stream(result, form if form != "html" else "text"), pieces))
    return render(result, form)


def check_inert(text: str, form: str) -> None:
    """Assert that the text is inert."""
    if form == "json":
        assert text.isascii()
        json.loads(text)
        return
    assert_inert(text)
    if form == "html":
        for tag in ("<script>alert", "<img src=x"):
            assert tag not in text


def ask_some(
    kernel: Kernel,
    chosen: random.Random,
    commands: Iterable[str],
    addresses: Sequence[str],
    forms: Sequence[str] = (*FORMATS, "text"),
) -> None:
    """Run some commands, each in one format; a refusal is an answer."""
    for command in commands:
        question = chosen.choice(QUESTIONS[command])
        words = [chosen.choice(addresses) if w == "A" else w for w in question.split()]
        form = chosen.choice(forms)
        try:
            text = ask(kernel, " ".join([command, *words]), form)
        except KvintroError as error:
            assert "\n" not in error.what + error.remedy
        else:
            check_inert(text, form)


def available() -> List[str]:
    """The commands to run that this version has."""
    from kvintro.commands import command_names

    return [name for name in command_names() if name in QUESTIONS]


def run_main(*arguments: str) -> str:
    """Run the command line in this process; return its output.

    :raises KvintroError: it ends with an error of one line and a hint.
    """
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            main([*arguments, "--debug"])
    except KvintroError as error:
        assert "\n" not in error.what + error.remedy, repr(error.what)
        raise
    return out.getvalue()


class PageTables(Target):
    """Made-up page tables with damaged entries, against a walker that follows the manual."""

    name = "page tables"
    cases = 4000

    def run(self, chosen: random.Random) -> None:
        levels = chosen.choice((4, 5))
        memory = Memory(levels)
        mapped = []
        for _ in range(chosen.randint(1, 30)):
            level = chosen.choice((1, 1, 2, 3))
            shift = 12 + 9 * (level - 1)
            virtual = _half(chosen, levels) >> shift << shift
            physical = chosen.randrange(1 << 40) >> shift << shift
            with contextlib.suppress(Exception):  # a small page cannot be below a large one
                memory.map(virtual, physical, level, chosen.choice((0x63, 0x67, 0x61, 0x8000000000000063)))
                mapped.append(virtual)
        tables = sorted(memory.pages)
        for _ in range(chosen.randint(0, 12)):
            entry = chosen.choice(tables) + 8 * chosen.choice(
                (0, 256, 272, 273, 510, 511, chosen.randrange(512))
            )
            old = struct.unpack("<Q", memory.read(entry, 8))[0]
            others = [table | 0x63 for table in tables]
            memory.entry(entry, word(chosen, old, others))
        if chosen.random() < 0.2:
            del memory.pages[chosen.choice(tables)]
        info = vmcoreinfo(levels)
        kernel = bare_kernel(memory.read, info)
        probes = [address + chosen.randrange(1 << 12) for address in mapped]
        probes += [_half(chosen, levels) for _ in range(8)]
        for address in probes:
            found = kernel.walk(address)
            assert (found.state, found.physical) == translated(memory, levels, address), hex(address)
        import numpy

        places, states = kernel.translate_array(numpy.array(probes, numpy.uint64))
        from kvintro.paging.bulk import STATES

        for address, at, state in zip(probes, places.tolist(), states.tolist()):
            expected = translated(memory, levels, address)
            assert (STATES[state], at) == (expected[0], expected[1] or 0), hex(address)
        text = json.loads(ask(kernel, "ptdump", "json"))
        for row in [row for row in text["ranges"] if row["state"] == "mapped"][:200]:
            start = int(row["start"], 16)
            for address in (start, start + row["size"] // 2, start + row["size"] - 1):
                assert translated(memory, levels, address)[0] == "mapped", f"{address:x} is not mapped"
        ask_some(kernel, chosen, ["layout"], ADDRESSES)


def _half(chosen: random.Random, levels: int) -> int:
    """An address, mostly in the kernel half."""
    bits = 12 + 9 * levels - 1
    way = chosen.randrange(4)
    if way == 0:
        return chosen.randrange(1 << bits)
    if way == 1:
        return (1 << 64) - 1 - chosen.randrange(1 << 31)
    return (1 << 64) - 1 - chosen.randrange(1 << bits)


def translated(memory: Memory, levels: int, address: int) -> Tuple[str, Optional[int]]:
    """Translate an address like the processor: Intel SDM volume 3, 4.5; with 52 bits of physical address."""
    top = address >> (11 + 9 * levels)
    if top not in (0, (1 << (64 - 11 - 9 * levels)) - 1):
        return "non-canonical", None
    table = memory.root
    for level in range(levels, 0, -1):
        shift = 12 + 9 * (level - 1)
        page = memory.pages.get(table)
        if page is None:
            return "not-in-dump", None
        (entry,) = struct.unpack_from("<Q", page, 8 * (address >> shift & 511))
        if not entry & 1:
            return "unmapped", None
        base = entry & 0x000FFFFFFFFFF000
        large = bool(entry & 0x80) and level > 1
        if large and level > 3:
            return "unmapped", None
        if large and base & ((1 << shift) - 1) & ~0x1000:
            return "unmapped", None
        if large or level == 1:
            return "mapped", (base >> shift << shift) | address & ((1 << shift) - 1)
        table = base
    raise AssertionError


def bare_kernel(read: Callable[[int, int], bytes], info: str) -> Kernel:
    """A kernel that has neither symbols nor types."""
    prog = _program(read, info)
    return kernel_of(Source(prog, "core", "made-up", "ELF", 0, True, vmcoreinfo=parse_vmcoreinfo(prog)))


def _program(read: Callable[[int, int], bytes], info: str) -> drgn.Program:
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))

    def segment(address: int, count: int, offset: int, physical: bool) -> bytes:
        try:
            return read(address, count)
        except KvintroError:
            raise drgn.FaultError("no such memory", address) from None

    prog.add_memory_segment(0, 1 << 52, segment, True)
    prog.set_linux_kernel_custom(info, False)
    return prog


_SMALL = 1 << 20  # bytes of a file that is fast to copy


class _File(Target):
    """A damaged file, opened by the command line."""

    def prepare(self) -> None:
        self.path = Path(tempfile.mkdtemp(dir=self.scratch)) / "core"

    def ask(self, chosen: random.Random, *more: str) -> None:
        """Run a command on the file.

        :param more: options.
        """
        command = chosen.choice(
            ("layout", "layout", "translate ffffffff81000000 ffff888000000000", "explain")
        )
        form = chosen.choice(("text", "json"))
        source = ("-c", str(self.path), *more)
        if chosen.random() < (1 / 4 if self.path.stat().st_size < _SMALL else 1 / 25):
            # The output is a valid dump, whatever the input was.
            new = self.path.with_name("converted")
            to = chosen.choice(("elf", "kdump --compress none", "kdump --compress zlib"))
            level = chosen.choice((0, 1, 31))
            line = f"convert --force -d {level} --to {to} -o {new}"
            check_inert(run_main(*source, "--format", form, *line.split()), form)
            source = ("-c", str(new))
        check_inert(run_main(*source, "--format", form, *command.split()), form)


def made_up_info(levels: int = 4) -> str:
    return vmcoreinfo(levels, more={"SYMBOL(init_uts_ns)": "ffffffff81001000"})


def made_up_memory() -> Memory:
    memory = Memory()
    memory.map(0xFFFFFFFF81000000, 0x1000000, 2)
    names = (b"Linux", b"(none)", b"6.0.0-made-up", b"#1", b"x86_64")  # libkdumpfile needs the last one
    memory.write(0x1001000, b"".join(name.ljust(65, b"\0") for name in names))
    memory.map(0xFFFF888000000000, 0, 3)
    memory.map(0xFFFFC90000001000, 0x300000)
    return memory


def made_up_file(info: Optional[str] = None) -> bytes:
    """An ELF core of a made-up kernel."""
    memory = made_up_memory()
    segments = [(START_KERNEL_MAP + at, at, bytes(data)) for at, data in sorted(memory.pages.items())]
    text = info if info is not None else made_up_info()
    notes = [("VMCOREINFO", 0, text.encode("utf-8", "surrogateescape")), ("CORE", 1, bytes(336))]
    return elf_core(segments, notes)


class ElfFiles(_File):
    """An ELF core with damaged bytes: mostly in its headers and notes."""

    name = "ELF files"
    cases = 1500

    def prepare(self) -> None:
        super().prepare()
        self._data = made_up_file()

    def run(self, chosen: random.Random) -> None:
        head = 64 + 56 * 12 + 1200 if chosen.random() < 0.8 else len(self._data)
        self.path.write_bytes(damaged(chosen, self._data[:head]) + self._data[head:])
        self.ask(chosen)


class Vmcoreinfo(_File):
    """VMCOREINFO with damaged lines: the dump's note, or a file that the user names."""

    name = "VMCOREINFO"
    cases = 1500

    def run(self, chosen: random.Random) -> None:
        lines = made_up_info(chosen.choice((4, 4, 4, 5))).splitlines()
        text = damaged_text(chosen, lines)
        way = chosen.random()
        if way < 0.4:
            # A program that was opened elsewhere: nothing compares the text with memory.
            try:
                kernel = bare_kernel(made_up_memory().read, text)
            except Exception as error:  # drgn's own
                raise NotADump(str(error)) from error
            ask_some(kernel, chosen, ["layout", "translate", "explain"], ADDRESSES)
            return
        if way < 0.7:
            self.path.write_bytes(made_up_file(text))
            self.ask(chosen)
            return
        self.path.write_bytes(made_up_file(chosen.choice((None, ""))))
        data = text.encode("utf-8", "surrogateescape")
        if chosen.random() < 0.5:
            data = chosen.choice((b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\0")) + data.replace(b"\n", b"\r\n")
        given = self.path.with_name("given")
        given.write_bytes(data)
        self.ask(chosen, "--vmcoreinfo", str(given))


class CutElf(_File):
    """An ELF core cut at any byte."""

    name = "cut ELF files"
    cases = 800

    def prepare(self) -> None:
        super().prepare()
        self._data = made_up_file()

    def run(self, chosen: random.Random) -> None:
        self.path.write_bytes(self._data[: chosen.randrange(chosen.choice((2000, len(self._data))))])
        self.ask(chosen)


class CutKdump(_File):
    """The shipped kdump cut at any byte: data read from it must equal the whole dump's."""

    name = "cut kdumps"
    cases = 250

    def prepare(self) -> None:
        super().prepare()
        self._data = self.content()
        self._whole = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        self._whole.set_core_dump(str(SAMPLE))

    def content(self) -> bytes:
        """The whole file."""
        return SAMPLE.read_bytes()

    def run(self, chosen: random.Random) -> None:
        size = len(self._data)
        # Most files that are cut early cannot be opened.
        low = chosen.choice((0, 0, size * 9 // 10, size * 99 // 100))
        cut = chosen.randrange(low, chosen.choice((4096, 65536, size)) if not low else size)
        self.path.write_bytes(memoryview(self._data)[:cut])
        self.ask(chosen)
        kernel = open_kernel(Request(core=str(self.path), types="none"))
        for _ in range(300):
            at = chosen.randrange(1 << 15) * PAGE
            try:
                found = kernel.read_physical(at, PAGE)
            except KvintroError:
                continue
            assert found == self._whole.read(at, PAGE, True), f"{at:x}"


class CutFlattened(CutKdump):
    """The same, flattened."""

    name = "cut flattened kdumps"
    cases = 150

    def content(self) -> bytes:
        data = SAMPLE.read_bytes()
        out = [struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")]
        step = 1 << 18
        for at in range(0, len(data), step):
            part = data[at : at + step]
            out += [struct.pack(">qq", at, len(part)), part]
        return b"".join([*out, b"\xff" * 16])


class CutRaw(CutKdump):
    """The same as raw memory, which only VMCOREINFO in the middle identifies."""

    name = "cut raw memory"
    cases = 60

    def content(self) -> bytes:
        whole = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        whole.set_core_dump(str(SAMPLE))
        out = bytearray(1 << 27)
        for at in range(0, len(out), PAGE):
            with contextlib.suppress(drgn.FaultError):
                out[at : at + PAGE] = whole.read(at, PAGE, True)
        return bytes(out)


class KdumpHeaders(_File):
    """The shipped kdump with damaged headers, bitmaps and page descriptors."""

    name = "kdump headers"
    cases = 250

    def prepare(self) -> None:
        super().prepare()
        self.path.write_bytes(SAMPLE.read_bytes())
        self._undo: List[Tuple[int, bytes]] = []

    def run(self, chosen: random.Random) -> None:
        with self.path.open("r+b", buffering=0) as file:
            for at, data in reversed(self._undo):
                os.pwrite(file.fileno(), data, at)
            self._undo = []
            for _ in range(chosen.randint(1, 6)):
                at = chosen.randrange(chosen.choice((600, 4096, 3 * 4096, 1 << 18)))
                old = os.pread(file.fileno(), chosen.choice((1, 4, 8)), at)
                new = word(chosen, int.from_bytes(old, "little")) & (1 << 8 * len(old)) - 1
                self._undo.append((at, old))
                os.pwrite(file.fileno(), new.to_bytes(len(old), "little"), at)
        self.ask(chosen)


class SmallBtf(Target):
    """A small blob of BTF with every kind of type."""

    name = "small BTF"
    cases = 1500

    def prepare(self) -> None:
        from tests.unit.test_btf import small_blob

        self._data = small_blob()

    def run(self, chosen: random.Random) -> None:
        from tests.unit.test_btf import use_all_of_it

        with contextlib.suppress(KvintroError):
            use_all_of_it(damaged(chosen, self._data))


class Real(Target):
    """The shipped dump, with changes to its memory."""

    def prepare(self) -> None:
        self.base = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
        self.base.set_core_dump(str(SAMPLE))
        hide_null(self.base)
        self.info = self.base["VMCOREINFO"].string_().decode()
        self.changes: Dict[int, bytes] = {}
        self.sound = self.kernel(self.base)
        self.addresses = [*ADDRESSES, *self._own_addresses()]

    def _own_addresses(self) -> List[str]:
        names = ("init_task", "_text", "_end", "modules", "init_top_pgt", "vmap_nodes", "jiffies_64")
        found = [f"{a:x}" for a in map(self.sound.find_symbol, names) if a is not None]
        for row in self.sound.kernel_ranges:
            if row[2] & 1:
                found.append(f"{row[0]:x}")
        return found[:200]

    def read(self, address: int, size: int) -> bytes:
        """Physical memory as changed."""
        data: bytes = self.base.read(address, size, True)
        for at, change in self.changes.items():
            if at < address + size and address < at + len(change):
                out = bytearray(data)
                low, high = max(at, address), min(at + len(change), address + size)
                out[low - address : high - address] = change[low - at : high - at]
                data = bytes(out)
        return data

    def kernel(self, prog: Optional[drgn.Program] = None) -> Kernel:
        """A kernel with symbols and types found in the dump."""
        if prog is None:
            prog = _program(self.read, self.info)
        source = Source(prog, "core", "sample", "kdump", 0, True, vmcoreinfo=parse_vmcoreinfo(prog))
        debuginfo.load(source, Request())
        return kernel_of(source)

    def physical(self, virtual: int) -> Optional[int]:
        """The physical address of a virtual address in the undamaged dump."""
        return self.sound.walk(virtual).physical

    def change(self, virtual: int, data: bytes) -> None:
        """Change memory, within a page."""
        at = self.physical(virtual)
        if at is not None:
            self.changes[at] = data[: PAGE - at % PAGE]

    def change_word(self, chosen: random.Random, virtual: int, others: Sequence[int] = ()) -> None:
        """Change one word."""
        at = self.physical(virtual)
        if at is None:
            return
        old = int.from_bytes(self.base.read(at, 8, True), "little")
        self.changes[at] = word(chosen, old, others).to_bytes(8, "little")


def _structures(prog: drgn.Program) -> Iterator[Tuple[int, int]]:
    """(address, size) of structures that reports follow."""
    from drgn.helpers.linux import for_each_module, for_each_task, for_each_vma, for_each_vmap_area  # type: ignore[attr-defined]

    trouble = (LookupError, drgn.FaultError, AttributeError, ValueError, TypeError)

    def of(objects: Iterable[drgn.Object], most: int) -> Iterator[Tuple[int, int]]:
        with contextlib.suppress(*trouble):
            for number, obj in enumerate(objects):
                if number == most:
                    return
                yield obj.value_(), drgn.sizeof(obj.type_.type)

    yield from of(for_each_vmap_area(prog), 400)
    yield from of((area.vm for area in for_each_vmap_area(prog) if area.vm), 200)
    yield from of(for_each_module(prog), 60)
    tasks = list(for_each_task(prog))
    yield from of(tasks, 100)
    for task in tasks[:100]:
        if task.mm:
            yield task.mm.value_(), drgn.sizeof(task.mm.type_.type)
            yield from of(for_each_vma(task.mm), 20)
    from kvintro.source.variables import TYPES

    for name in TYPES:
        with contextlib.suppress(*trouble):
            obj = prog[name]
            yield obj.address_, min(drgn.sizeof(obj), 1 << 14)
    resources = [prog["iomem_resource"].child.read_()]
    for _ in range(100):
        with contextlib.suppress(*trouble):
            resource = resources.pop() if resources else None
            if resource:
                yield resource.value_(), drgn.sizeof(resource.type_.type)
                resources += [resource.sibling.read_(), resource.child.read_()]
    with contextlib.suppress(*trouble):
        nodes = prog["vmap_nodes"].read_()
        yield nodes.value_(), drgn.sizeof(nodes.type_.type) * prog["nr_vmap_nodes"].value_()


class Structures(Real):
    """Trees, lists, tables and variables of the kernel, with words changed; the types stay."""

    name = "structures"
    cases = 900

    def prepare(self) -> None:
        super().prepare()
        self.found = list(_structures(self.base))
        self.pointers = [address for address, _ in self.found]
        self.source = self.kernel().source
        self.commands = available()

    def run(self, chosen: random.Random) -> None:
        self.changes.clear()
        for _ in range(chosen.randint(1, 40)):
            address, size = chosen.choice(self.found)
            others = [p + chosen.choice((0, 0, 8, 16, 24, 40)) for p in some(chosen, self.pointers, 4)]
            self.change_word(chosen, address + chosen.randrange(max(size // 8, 1)) * 8, others)
        ask_some(kernel_of(self.source), chosen, chosen.sample(self.commands, 6), self.addresses)


class RealTables(Real):
    """The kernel's own page tables with changed entries: no unmapped address may be reported as mapped."""

    name = "real page tables"
    cases = 300

    def prepare(self) -> None:
        super().prepare()
        self.source = self.kernel().source
        self.commands = available()
        self.mapped = [(low, high) for low, high, key in self.sound.kernel_ranges if key & 1]

    def run(self, chosen: random.Random) -> None:
        self.changes.clear()
        steps = [
            step
            for _ in range(20)
            for low, high in [chosen.choice(self.mapped)]
            for step in self.sound.walk(chosen.randint(low, high)).steps
        ]
        tables = [step.entry_address & ~0xFFF | 0x63 for step in steps]
        for _ in range(chosen.randint(1, 10)):
            step = chosen.choice(steps)
            at = chosen.choice((step.entry_address, step.entry_address & ~0xFFF | chosen.randrange(512) * 8))
            old = int.from_bytes(self.base.read(at, 8, True), "little")
            self.changes[at] = word(chosen, old, tables).to_bytes(8, "little")
        kernel = kernel_of(self.source)
        memory = Memory(4, kernel.root.value)
        memory.pages = _Pages(self.read)
        probes = [chosen.randint(*chosen.choice(self.mapped)) for _ in range(30)]
        for address in probes:
            try:
                expected = translated(memory, 4, address)
            except drgn.FaultError:
                expected = ("not-in-dump", None)
            found = kernel.walk(address)
            assert (found.state, found.physical) == expected, hex(address)
        words = [f"{address:x}" for address in probes]
        ask_some(kernel, chosen, [*chosen.sample(self.commands, 5), "translate"], words)


class SharedTables(RealTables):
    """Tables that share one another wildly: a few pages map the whole address space in different ways."""

    name = "shared page tables"
    cases = 8
    _TABLES = 0x100000  # their physical address
    _PIECES = 8

    def run(self, chosen: random.Random) -> None:
        self.changes.clear()
        count = chosen.choice((1, 2, 4, 16))
        flags = [0x63, 0x61, 0x67, 0x8000000000000063, 0x80000000000001E1][: chosen.choice((1, 2, 5))]
        places: List[List[int]] = []
        for level in range(3):
            below = places[-1] if places else [chosen.randrange(1 << 15) * PAGE for _ in range(512)]
            places.append([self._TABLES + (level * count + i) * PAGE for i in range(count)])
            for at in places[-1]:
                # With only one choice, all entries of a table are equal, so the ranges are long but few.
                entries = [chosen.choice(below) | chosen.choice(flags) for _ in range(512)]
                self.changes[at] = struct.pack("<512Q", *entries)
        root = self.sound.root.value
        for index in {chosen.randrange(512) for _ in range(chosen.choice((1, 8, 400)))} - {511}:
            self.changes[root + 8 * index] = struct.pack("<Q", chosen.choice(places[2]) | 0x63)
        kernel = kernel_of(self.source)
        for low, high, _ in kernel.kernel_ranges.select(MAPPED)[:200]:
            for address in (low, high):
                assert kernel.walk(address).state == "mapped", hex(address)
        for line in ("ptdump", chosen.choice(("ptdump --wx", "aliases 5000", "layout"))):
            # All tables have been read by now. There can be 650,000 similar lines, and writing them takes
            # most of the time. So only 130,000 are read, more than any real kernel has.
            check_inert(ask(kernel, line, chosen.choice(("text", "json", "csv")), self._PIECES), "text")
        ask_some(kernel, chosen, chosen.sample(self.commands, 2), self.addresses)


class SharedUserTables(RealTables):
    """The same in processes: all of them point to a few tables, which share one another wildly."""

    name = "shared user page tables"
    cases = 8
    _TABLES = 0x100000
    _FLAGS = (0x67, 0x25, 0x8000000000000067, 0x80000000000000E7)  # of user pages; the last are large

    def prepare(self) -> None:
        super().prepare()
        self._roots = [
            root_of(self.sound, mm_of(self.sound, process)) for process in each_mm(self.sound, Damage())
        ]

    def run(self, chosen: random.Random) -> None:
        self.changes.clear()
        count = chosen.choice((1, 2, 4))
        flags = self._FLAGS[: chosen.choice((1, 2, 4))]
        below = [chosen.randrange(1 << 15) * PAGE for _ in range(512)]
        for level in range(3):
            tables = [self._TABLES + (level * count + i) * PAGE for i in range(count)]
            for at in tables:
                entries = [
                    chosen.choice(below) | chosen.choice(flags if level < 2 else flags[:1])
                    for _ in range(512)
                ]
                self.changes[at] = struct.pack("<512Q", *entries)
            below = tables
        for root in self._roots:
            for index in {chosen.randrange(256) for _ in range(chosen.choice((1, 8, 200)))}:
                self.changes[root + 8 * index] = struct.pack("<Q", chosen.choice(below) | 0x67)
        kernel = kernel_of(self.source)
        for line in ("user --all", chosen.choice(("check", "page 5000", "aliases 5000", "user 1"))):
            check_inert(ask(kernel, line, chosen.choice(("text", "json", "csv")), 8), "text")
        ask_some(kernel, chosen, chosen.sample(self.commands, 2), self.addresses)


class _Pages(Dict[int, Any]):
    """Pages of memory, read on demand."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._read = read

    def get(self, address: int, default: Any = None) -> Any:
        try:
            return self._read(address, PAGE)
        except (drgn.FaultError, OverflowError, ValueError):
            return default


class Modules(Real):
    """Loaded modules: their list, their symbol tables, their BTF."""

    name = "modules"
    cases = 200

    def prepare(self) -> None:
        super().prepare()
        from drgn.helpers.linux import for_each_module  # type: ignore[attr-defined]

        self.spots: List[Tuple[int, int]] = []
        for module in for_each_module(self.base):
            self.spots.append((module.value_(), drgn.sizeof(module.type_.type)))
            with contextlib.suppress(AttributeError, drgn.FaultError):
                tables = module.kallsyms.read_()
                self.spots.append((tables.value_(), drgn.sizeof(tables.type_.type)))
                self.spots.append((tables.symtab.value_(), tables.num_symtab.value_() * 24))
        with contextlib.suppress(LookupError, drgn.FaultError):
            from drgn.helpers.linux import list_for_each_entry  # type: ignore[attr-defined]

            for entry in list_for_each_entry(
                "struct btf_module", self.base["btf_modules"].address_of_(), "list"
            ):
                self.spots.append((entry.value_(), 64))
                self.spots.append((entry.btf.value_(), drgn.sizeof(entry.btf.type_.type)))
                self.spots.append((entry.btf.data.value_(), entry.btf.data_size.value_()))
        self.spots.append((self.sound.symbol("modules"), 16))

    def run(self, chosen: random.Random) -> None:
        self.changes.clear()
        for _ in range(chosen.randint(1, 12)):
            address, size = chosen.choice(self.spots)
            others = [p for p, _ in (chosen.choice(self.spots) for _ in range(3))]
            self.change_word(chosen, address + chosen.randrange(max(size // 8, 1)) * 8, others)
        kernel = self.kernel()
        for name in ("nosuchsymbol", "virtio_init", "struct nosuch"):
            with contextlib.suppress(LookupError):
                kernel.prog.symbol(name)
            with contextlib.suppress(LookupError):
                kernel.prog.type(name)
        ask_some(kernel, chosen, ["show", "translate", "layout"], self.addresses)
        check_inert(ask(kernel, "show modules", "text"), "text")


class RealBtf(Real):
    """The kernel's own BTF, with damaged type descriptions."""

    name = "real BTF"
    cases = 150

    def prepare(self) -> None:
        super().prepare()
        start, end = self.sound.symbol("__start_BTF"), self.sound.symbol("__stop_BTF")
        self._data = self.base.read(start, end - start)
        (self._strings,) = struct.unpack_from("<I", self._data, 16)
        self.commands = available()

    def run(self, chosen: random.Random) -> None:
        self.changes.clear()
        data = bytearray(self._data)
        if chosen.random() < 0.2:
            data = data[: chosen.randrange(len(data))]
        for _ in range(chosen.choice((1, 10, 1000, 20000))):
            at = chosen.randrange(chosen.choice((64, self._strings, len(data)))) & ~3
            if at + 4 <= len(data):
                (old,) = struct.unpack_from("<I", data, at)
                struct.pack_into("<I", data, at, word(chosen, old) & 0xFFFFFFFF)
        prog = _program(self.read, self.info)
        source = Source(prog, "core", "sample", "kdump", 0, True, vmcoreinfo=parse_vmcoreinfo(prog))
        from kvintro.types import install

        done = install(prog, btf=bytes(data))
        source.symbols, source.types = done.symbols or "none", done.types or "none"
        source.kallsyms = done.kallsyms
        ask_some(kernel_of(source), chosen, chosen.sample(self.commands, 6), self.addresses)


class KallsymsTables(Real):
    """The kernel's symbol table, damaged."""

    name = "kallsyms"
    cases = 300

    def prepare(self) -> None:
        super().prepare()
        lines = parse_vmcoreinfo(self.base)
        self._tables = {
            key[len("SYMBOL(") : -1]: int(value, 16)
            for key, value in lines.items()
            if key.startswith("SYMBOL(kallsyms") or key == "SYMBOL(_stext)"
        }

    def run(self, chosen: random.Random) -> None:
        from kvintro.source.kallsyms import Kallsyms

        self.changes.clear()
        for _ in range(chosen.choice((1, 3, 30))):
            name = chosen.choice([n for n in self._tables if n.startswith("kallsyms")])
            reach = (
                64 if name in ("kallsyms_num_syms", "kallsyms_relative_base") else 1 << chosen.randint(4, 19)
            )
            self.change_word(chosen, self._tables[name] + chosen.randrange(reach))
        tables = dict(self._tables)
        if chosen.random() < 0.3:
            name = chosen.choice(list(tables))
            tables[name] = word(chosen, tables[name], list(tables.values()))
        prog = _program(self.read, self.info)
        found = Kallsyms.from_memory(prog.read, tables)
        for name in ("init_task", "_text", "nosuch", "vmap_nodes", ""):
            found.lookup_all(name)
        for address in (0, self._tables["_stext"], self._tables["_stext"] + 12345, (1 << 64) - 1):
            found.by_address(address)


class Strings(Real):
    """Hostile strings of the kernel, printed in every format."""

    name = "strings"
    cases = 400

    def prepare(self) -> None:
        super().prepare()
        from drgn.helpers.linux import for_each_module, for_each_task  # type: ignore[attr-defined]

        self.spots: List[int] = []
        for module in for_each_module(self.base):
            self.spots.append(module.name.address_)
        for task in for_each_task(self.base):
            self.spots.append(task.comm.address_)
        pending = [self.base["iomem_resource"].child.read_()]
        while pending:
            resource = pending.pop()
            if resource:
                self.spots.append(resource.name.value_())
                pending += [resource.sibling.read_(), resource.child.read_()]
        with contextlib.suppress(LookupError, AttributeError, drgn.FaultError):
            from drgn.helpers.linux import list_for_each_entry  # type: ignore[attr-defined]

            for cache in list_for_each_entry(
                "struct kmem_cache", self.base["slab_caches"].address_of_(), "list"
            ):
                self.spots.append(cache.name.value_())
        for name in ("linux_banner", "saved_command_line", "boot_command_line"):
            address = self.sound.find_symbol(name)
            if address is not None:
                self.spots.append(address)
        self.pages = [*self._name_files(), *self.addresses[:20]]
        # Names of symbols consist of these.
        tokens = parse_vmcoreinfo(self.base)["SYMBOL(kallsyms_token_table)"]
        self._tokens = int(tokens, 16)
        self.source = self.kernel().source
        self.commands = available()

    def _name_files(self) -> List[str]:
        """Pages of files that processes map; from here on, their names are among the spots."""
        from drgn.helpers.linux import address_space_for_each_page, for_each_task, for_each_vma, page_to_pfn  # type: ignore[attr-defined]

        found: List[str] = []
        seen = set()
        for task in for_each_task(self.base):
            if not task.mm:
                continue
            for vma in for_each_vma(task.mm):
                dentry = vma.vm_file.f_path.dentry.read_() if vma.vm_file else None
                if not dentry or dentry.value_() in seen:
                    continue
                seen.add(dentry.value_())
                self.spots += [dentry.d_name.name.value_()] * 3
                for _, page in address_space_for_each_page(vma.vm_file.f_mapping):
                    if not page.value_() & 1:  # else it is swapped out
                        found.append(f"pfn:{page_to_pfn(page).value_():x}")
                    if len(found) % 4 == 0:
                        break
        return found

    def run(self, chosen: random.Random) -> None:
        self.changes.clear()
        for spot in some(chosen, self.spots, 60):
            text = chosen.choice(HOSTILE)[:15] + b"\0"
            self.change(spot, text)
        if chosen.random() < 0.3:
            for _ in range(20):
                self.change(
                    self._tokens + chosen.randrange(600), chosen.choice((b"\x1b", b"<", b"\n", b"\x9b"))
                )
            kernel = self.kernel()
        else:
            kernel = kernel_of(self.source)
        ask_some(kernel, chosen, chosen.sample(self.commands, 8), self.addresses)
        # Where lists and tables are cells.
        ask_some(kernel, chosen, ["page", "page", "user", "translate"], self.pages, ["csv"])
        if chosen.random() < 0.2:
            self._check_terminal(kernel, chosen)

    def _check_terminal(self, kernel: Kernel, chosen: random.Random) -> None:
        """Check the output for a terminal: colours are our own, and the rest is inert."""
        line = chosen.choice(
            (f"page {chosen.choice(self.pages)}", "user --all", "layout --map", "show modules")
        )
        args = parse([*line.split(), "--color", "always"])
        with contextlib.suppress(KvintroError):
            found = load_command(args.command).run(kernel, args)
            text = render(found, args.format, color=True, width=100)
            assert_inert(OWN_PAINT.sub("", text))


TARGETS: Sequence[Target] = (
    PageTables(),
    ElfFiles(),
    Vmcoreinfo(),
    CutElf(),
    CutKdump(),
    CutFlattened(),
    CutRaw(),
    KdumpHeaders(),
    SmallBtf(),
    RealBtf(),
    KallsymsTables(),
    Structures(),
    RealTables(),
    SharedTables(),
    SharedUserTables(),
    Modules(),
    Strings(),
)
