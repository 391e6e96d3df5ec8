# SPDX-License-Identifier: LGPL-2.1-or-later
"""Coverage-guided fuzzing with atheris: it keeps the inputs that reach new code, and mutates them further.

python -m tests.fuzz.guided TARGET DIRECTORY [libFuzzer's options, such as -max_total_time=60]

DIRECTORY gets the inputs that reached new code. Inputs that failed are written to the current directory;
name one in place of DIRECTORY to run it alone.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import signal
import struct
import sys
import tempfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from tests import timing
from tests.fuzz.damage import HOSTILE
from tests.fuzz.harness import MEMORY, SECONDS, Hang

if TYPE_CHECKING:  # imported late, so that atheris sees it
    from kvintro.model import Report


class Target:
    """What is done with each input. Any exception except an error message of kvintro's is a failure."""

    def __init__(self, scratch: Path) -> None:
        """:param scratch: a directory for files."""

    def seeds(self) -> Sequence[bytes]:
        """Inputs to start from."""
        raise NotImplementedError

    def run(self, data: bytes) -> None:
        """Use one input."""
        raise NotImplementedError


class Btf(Target):
    """BTF: every type of it is made."""

    def seeds(self) -> Sequence[bytes]:
        from tests.unit.test_btf import small_blob

        return [small_blob()]

    def run(self, data: bytes) -> None:
        from tests.unit.test_btf import use_all_of_it

        use_all_of_it(data)


class KallsymsTables(Target):
    """The kernel's symbol table in memory: a byte that chooses the encoding, and the tables."""

    def __init__(self, scratch: Path) -> None:
        from tests.made_up_kernel import Tables
        from tests.unit.test_kallsyms import ENCODINGS, all_symbols

        self._tables = [
            Tables(all_symbols(encoding), encoding, sequence=sequence)
            for encoding in ENCODINGS
            for sequence in (True, False)
        ]

    def seeds(self) -> Sequence[bytes]:
        return [bytes([number]) + tables.data for number, tables in enumerate(self._tables)]

    def run(self, data: bytes) -> None:
        from kvintro.source.kallsyms import Kallsyms
        from tests.made_up_kernel import TEXT

        tables = self._tables[data[0] % len(self._tables)] if data else self._tables[0]
        tables.data = data[1:]
        found = Kallsyms.from_memory(tables.read, tables.symbols)
        for name in ("start", "twice", "suffixed", "x" * 300, "nosuch", ""):
            found.lookup_all(name)
        for address in (0, TEXT, TEXT + 0x123, (1 << 64) - 1):
            found.by_address(address)
        for symbol in itertools.islice(found, 1000):
            found.lookup(symbol.name)


class Vmcoreinfo(Target):
    """The text of VMCOREINFO: a byte that chooses where it comes from, and the text."""

    def __init__(self, scratch: Path) -> None:
        from tests.fuzz.targets import made_up_file

        self._core, self._given = scratch / "core", scratch / "given"
        self._core.write_bytes(made_up_file())

    def seeds(self) -> Sequence[bytes]:
        from tests.fuzz.targets import made_up_info

        return [way + made_up_info(levels).encode() for way, levels in ((b"a", 4), (b"b", 4), (b"b", 5))]

    def run(self, data: bytes) -> None:
        from kvintro.errors import NotADump
        from kvintro.opening import open_kernel
        from kvintro.source import Request
        from tests.fuzz.targets import bare_kernel, made_up_memory

        if data[:1] == b"a":
            self._given.write_bytes(data[1:])
            kernel = open_kernel(Request(core=str(self._core), vmcoreinfo=str(self._given), types="none"))
        else:
            try:
                kernel = bare_kernel(made_up_memory().read, data[1:].decode("utf-8", "surrogateescape"))
            except Exception as error:  # drgn's own
                raise NotADump(str(error)) from error
        _ask(kernel)


class _File(Target):
    """A file that is opened as a dump."""

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "core"

    def run(self, data: bytes) -> None:
        from kvintro.opening import open_kernel
        from kvintro.source import Request

        self.path.write_bytes(data)
        _ask(open_kernel(Request(core=str(self.path), types="none")))


class Kdump(_File):
    """A kdump, whole and flattened."""

    def seeds(self) -> Sequence[bytes]:
        from tests.fuzz.targets import made_up_file, run_main
        from tests.memory_files import flattened

        self.path.write_bytes(made_up_file())
        target = self.path.with_name("kdump")
        found = []
        for compression in ("none", "zlib"):
            run_main(
                *("-c", str(self.path), "--types", "none", "--no-sandbox"),
                *("convert", "--force", "--to", "kdump", "--compress", compression, "-o", str(target)),
            )
            found.append(target.read_bytes())
        return [*found, flattened(found[1])]


class Lime(_File):
    """LiME's ranges, which AVML writes too."""

    def seeds(self) -> Sequence[bytes]:
        from tests.fuzz.targets import made_up_info, made_up_memory
        from tests.memory_files import lime
        from tests.synthetic import packed_notes

        memory = made_up_memory()
        memory.write(0x5000, packed_notes([("VMCOREINFO", 0, made_up_info().encode())]))
        ranges = sorted((at, bytes(data)) for at, data in memory.pages.items())
        return [lime(ranges)]


class PageTables(Target):
    """Page tables: a byte that chooses the number of levels, and entries of eight tables.

    Each entry has 11 bytes: its table, its index, its value. If the highest bit of the first byte is set, the
    value is another table's address and flags. A walker that follows the processor's manual is the judge.
    """

    _ENTRY = struct.Struct("<BHQ")
    _TABLES = tuple(0x100000 + 0x1000 * number for number in range(8))

    def seeds(self) -> Sequence[bytes]:
        chain = [(0x80, 511, 1 | 0x63 << 3), (0x81, 510, 2 | 0x63 << 3), (0x82, 8, 3 | 0x63 << 3)]
        for_five = [*chain, (0x83, 0, 4 | 0x63 << 3), (0x04, 0, 0x1000063)]
        large = [chain[0], (0x01, 510, 0x1E3), (0x00, 273, 0x1000E3), (0x80, 272, 0 | 0x63 << 3)]
        return [
            bytes([levels]) + b"".join(self._ENTRY.pack(*entry) for entry in entries)
            for levels, entries in ((0, [*chain, (0x03, 0, 0x1000063)]), (1, for_five), (0, large))
        ]

    def run(self, data: bytes) -> None:
        import numpy

        from kvintro.paging import MAPPED
        from kvintro.paging.bulk import STATES
        from tests.fuzz.targets import bare_kernel, translated
        from tests.synthetic import Memory, vmcoreinfo

        levels = 5 if data[:1] == b"\1" else 4
        memory = Memory(levels, self._TABLES[0])
        memory.pages = {table: bytearray(4096) for table in self._TABLES}
        indexes = set()
        for at in range(
            1, min(len(data), 1 + 64 * self._ENTRY.size) - self._ENTRY.size + 1, self._ENTRY.size
        ):
            table, index, value = self._ENTRY.unpack_from(data, at)
            if table & 0x80:
                value = self._TABLES[value & 7] | value >> 3 & 0x8000000000000FFF
            memory.entry(self._TABLES[table & 7] + 8 * (index & 511), value)
            indexes.add(index & 511)
        kernel = bare_kernel(memory.read, vmcoreinfo(levels, self._TABLES[0]))
        probes = list(_addresses(sorted(indexes)[:3], levels))
        places, states = kernel.translate_array(numpy.array(probes, numpy.uint64))
        for address, place, state in zip(probes, places.tolist(), states.tolist()):
            expected = translated(memory, levels, address)
            found = kernel.walk(address)
            assert (found.state, found.physical) == expected, hex(address)
            assert (STATES[state], place) == (expected[0], expected[1] or 0), hex(address)
        for low, high, _ in kernel.kernel_ranges.select(MAPPED)[:50]:
            for address in (low, low + (high - low) // 2, high):
                assert translated(memory, levels, address)[0] == "mapped", hex(address)


def _addresses(indexes: Sequence[int], levels: int) -> Iterator[int]:
    """Addresses that use entries with these indexes, at each level."""
    for way in itertools.product(indexes, repeat=levels):
        address = 0x123
        for level, index in enumerate(way):
            address |= index << 12 + 9 * level
        top = 12 + 9 * levels - 1
        yield address | (1 << 64) - (1 << top) if address >> top else address
    yield 1 << 60


class _Text(Target):
    """A text in the place of every string of a report."""

    def __init__(self, scratch: Path) -> None:
        from kvintro.commands import load_command
        from kvintro.parser import parse
        from tests.fuzz.targets import bare_kernel, made_up_info, made_up_memory

        kernel = bare_kernel(made_up_memory().read, made_up_info())
        self._reports = [
            _shortened(load_command(words[0]).run(kernel, parse(words)))
            for words in (["layout"], ["info"], ["translate", "ffffffff81000000"])
        ]

    def seeds(self) -> Sequence[bytes]:
        return [*HOSTILE, b"x", "é漢字\u2028\ud7b0\U0001f3fb".encode()]

    def rendered(self, data: bytes, form: str) -> List[str]:
        """The reports with this text."""
        from kvintro.render import render
        from tests.hostile import poisoned_report

        text = data.decode("utf-8", "surrogateescape")
        return [render(poisoned_report(report, text), form) for report in self._reports]


def _shortened(report: Any) -> Report:
    """A report with a few rows of each table."""
    tables = tuple(replace(table, rows=list(table.rows)[:3]) for table in report.tables)
    found: Report = replace(report, tables=tables)
    return found


class Terminal(_Text):
    """Text and CSV for a terminal, and JSON."""

    def run(self, data: bytes) -> None:
        from tests.fuzz.targets import check_inert

        for form in ("text", "csv", "json"):
            for text in self.rendered(data, form):
                check_inert(text, form)
        for line in self.rendered(data, "csv")[0].split("\n"):
            assert not any(cell.lstrip('" ').startswith(("=", "+", "-", "@")) for cell in line.split(",")[:1])


class Html(_Text):
    """Pages: no text adds an element or an attribute."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        pages = zip(self.rendered(b"", "html"), self.rendered(b"x", "html"))
        self._usual = [_elements(empty) | _elements(other) for empty, other in pages]

    def run(self, data: bytes) -> None:
        for page, usual in zip(self.rendered(data, "html"), self._usual):
            added = _elements(page) - usual
            assert not added, added


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: Set[Tuple[str, Tuple[str, ...]]] = set()

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.found.add((tag, tuple(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.found.add(("comment", ()))


def _elements(page: str) -> Set[Tuple[str, Tuple[str, ...]]]:
    """The kinds of elements of a page, each with the names of its attributes."""
    parser = _Elements()
    parser.feed(page)
    parser.close()
    return parser.found


TARGETS: Dict[str, Callable[[Path], Target]] = {
    "btf": Btf,
    "html": Html,
    "kallsyms": KallsymsTables,
    "kdump": Kdump,
    "lime": Lime,
    "page-tables": PageTables,
    "terminal": Terminal,
    "vmcoreinfo": Vmcoreinfo,
}


def _ask(kernel: object) -> None:
    """Run commands that only need page tables."""
    from kvintro.errors import KvintroError
    from kvintro.kernels import Kernel
    from tests.fuzz.targets import ADDRESSES, ask, check_inert

    assert isinstance(kernel, Kernel)
    for line in ("info", "layout", f"translate {' '.join(ADDRESSES[:6])} --walk"):
        try:
            text = ask(kernel, line, "text")
        except KvintroError as error:
            assert "\n" not in error.what + error.remedy
        else:
            check_inert(text, "text")


def main() -> None:
    """Run a target until an input fails, or the options end it."""
    import atheris

    name, place, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="kvintro-fuzz-") as scratch:
        with atheris.instrument_imports(include=["kvintro"]):
            target = TARGETS[name](Path(scratch))
            seeds = target.seeds()
            run = _limited(target)
            # So that the modules that kvintro imports late are instrumented, too.
            for seed in seeds:
                target.run(seed)
        if not Path(place).is_file():
            Path(place).mkdir(parents=True, exist_ok=True)
            for number, seed in enumerate(seeds):
                (Path(place) / f"seed-{number}").write_bytes(seed)
            options += [f"-max_len={2 * max(map(len, seeds)) + 64}", f"-rss_limit_mb={MEMORY >> 20}"]
            # Long inputs from the start: escaping has few branches, so no new ones would reward longer texts.
            options.append("-len_control=0")
        atheris.Setup([sys.argv[0], place, *options], run)
        atheris.Fuzz()


def _limited(target: Target) -> Callable[[bytes], None]:
    """The target with a limit of processor time; refusals are answers."""
    from kvintro.errors import KvintroError

    def too_long(*_: object) -> None:
        raise Hang

    def run(data: bytes) -> None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS * timing.SLOWEST)
        with contextlib.suppress(KvintroError):
            target.run(data)
        signal.setitimer(signal.ITIMER_PROF, 0)

    signal.signal(signal.SIGPROF, too_long)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return run


if __name__ == "__main__":
    main()
