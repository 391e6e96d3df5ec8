# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which VMCOREINFO is this memory's.

It is given with an option, or is in a note of the dump, or is found in the dump's memory: every kernel with
CONFIG_KEXEC keeps the note ready for a crash, at the beginning of pages of its own
(kernel/crash_core.c:crash_save_vmcoreinfo_init, kernel/vmcore_info.c since 6.9). Each of these may be of
another boot. A person gives the wrong file, and memory has copies that nothing uses any more: of the kernel
that booted before, or of a dump in the page cache. :class:`Judge` therefore compares it with the memory: by
its own page tables the image must lie where it says, init_uts_ns must have its release, and the image must
have its build id.
"""

from __future__ import annotations

import re
import struct
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

from kvintro.arch import x86_64
from kvintro.errors import KvintroError, NotADump, WrongVmcoreinfo
from kvintro.paging.step import ReadPhysical, walk
from kvintro.source.encrypted import REMEDY, why_unreadable
from kvintro.source.note import MAX_TEXT, parse, what_is_missing
from kvintro.source.physical import PhysicalMemory

_PAGE = 4096
_NAME = b"VMCOREINFO\0\0"
_NOTE = struct.Struct("<III")  # namesz, descsz, type
_PATTERN = _NAME + b"OSRELEASE="
_MAX_CANDIDATES = 256  # different texts
_MAX_PAGES = 1 << 14  # that begin as a note does
_START_KERNEL_MAP = 0xFFFFFFFF80000000
_MAX_IMAGE = 1 << 30
_PRESENT = 1
_MIN_KERNEL_ALIGN = 2 << 20  # arch/x86/include/asm/boot.h
# struct uts_namespace begins with the names, or with a kref before them; each has 65 bytes (new_utsname).
_MAX_UTS_OFFSET = 64
_UTS_FIELD = 65
_BUILD_ID_BUDGET = 256 << 20  # bytes of images that are looked through for build ids
_NOTE_ORIGIN = "the dump's note"
# A note: sizes of the name and the id, type, name. bytes.find() takes ten times as long in memory of zeros.
_BUILD_ID = re.compile(rb"\x04\0\0\0(....)\x03\0\0\0GNU\0", re.DOTALL)
_LONGEST_ID = 64
_NO_TEXT_REMEDY = "give its text with --vmcoreinfo FILE; for QEMU guests use -device vmcoreinfo"

Piece = Tuple[int, Union[bytes, bytearray, memoryview]]
Search = Callable[[Iterable[Piece], int], Iterable[Piece]]


def in_silence(pieces: Iterable[Piece], size: int) -> Iterable[Piece]:
    """A search that nobody watches."""
    return pieces


# Is it this memory's?


class Verdict(NamedTuple):
    """What memory says of a text.

    :ivar state: ``fits``; ``wrong``: memory contradicts it; ``unknown``: the source does not tell.
    :ivar reason: why it does not fit, or what could not be compared.
    """

    state: str
    reason: str = ""


FITS = Verdict("fits")


def _wrong(reason: str) -> Verdict:
    return Verdict("wrong", reason)


def _unknown(reason: str) -> Verdict:
    return Verdict("unknown", reason)


class Judge:
    """Compares texts with physical memory.

    :param read: reads physical memory; raises NotInDump.
    :param lacks: whether the machine has no memory at an address, as far as the source says so.
    """

    def __init__(
        self,
        read: ReadPhysical,
        *,
        lacks: Callable[[int], bool] = lambda _: False,
        build_ids: Optional[BuildIds] = None,
    ) -> None:
        self._read = read
        self._lacks = lacks
        self._build_ids = BuildIds(read) if build_ids is None else build_ids

    def __call__(self, text: bytes, *, with_build_id: bool = True) -> Verdict:
        """The verdict.

        :param with_build_id: look through the image for the build id, if what is compared first does not
            contradict. That costs most.
        """
        problem = what_is_missing(text)
        if problem is not None:
            return _wrong(problem)
        try:
            info = _Info(parse(text))
        except ValueError as error:
            return _wrong(str(error))
        verdicts = [self._release(info), self._tables(info)]
        if with_build_id and not any(verdict.state == "wrong" for verdict in verdicts):
            verdicts.append(self._build_id(info))
        states = [verdict.state for verdict in verdicts]
        for state in ("wrong", "absent", "unknown"):
            if state in states:
                reason = verdicts[states.index(state)].reason
                # A page that is in no range of a dump may have been left out. Where all is missing that would
                # tell, the text is of another machine or boot.
                wrong = state == "wrong" or (state == "absent" and FITS not in verdicts[:2])
                return Verdict("wrong" if wrong else "unknown", reason)
        return FITS

    def recognises(self, text: bytes) -> bool:
        """Whether the image that the text describes is where it says, by its release and its build id."""
        try:
            info = _Info(parse(text))
            wanted = bytes.fromhex(info.build_id or "")
        except (KeyError, ValueError):
            return False
        start, namespace = info.symbols.get("_stext"), info.symbols.get("init_uts_ns")
        if not wanted or start is None or namespace is None or self._release(info).state != "fits":
            return False
        return self._build_ids.has(info.physical(start), info.physical(namespace), wanted) is True

    def _release(self, info: _Info) -> Verdict:
        namespace = info.symbols.get("init_uts_ns")
        if namespace is None:
            return _unknown("it has no SYMBOL(init_uts_ns)")
        address = info.physical(namespace)
        try:
            names = self._read(address, _MAX_UTS_OFFSET + 3 * _UTS_FIELD)
        except KvintroError:
            where = f"physical {address:#x}, where init_uts_ns would be"
            if self._lacks(address):
                return Verdict("absent", f"the machine has no memory at {where}")
            return _unknown(f"{where}, is not in this source")
        wanted = info.release.encode("ascii", "replace") + b"\0"
        if any(
            names.startswith(b"Linux\0", at) and names.startswith(wanted, at + 2 * _UTS_FIELD)
            for at in range(_MAX_UTS_OFFSET)
        ):
            return FITS
        return _wrong(f"init_uts_ns does not say {info.release} where it would be")

    def _tables(self, info: _Info) -> Verdict:
        """By the text's page tables, is the image where the text says?

        One symbol that is decides: all of the image lies in one piece. But that one is not mapped may be a
        damaged table's fault.
        """
        agreed = missing = absent = False
        for name in ("init_uts_ns", "_stext", "swapper_pg_dir"):
            address = info.symbols.get(name)
            if address is None:
                continue
            found = walk(self._read, info.geometry, info.root, address)
            if found.physical is not None and found.physical != info.physical(address):
                return _wrong(
                    f"by its page tables {name} is at physical {found.physical:#x}, "
                    f"and by its phys_base at {info.physical(address):#x}"
                )
            agreed |= found.physical is not None
            if found.state == "not-in-dump":
                missing = True
                absent |= self._lacks(found.steps[-1].entry_address)
        if agreed:
            return FITS
        if absent:
            return Verdict("absent", "the machine has no memory where its page tables would be")
        if missing:
            return _unknown("its page tables are not in this source")
        if self._image_is_mapped(info):
            return _wrong("its page tables map the image elsewhere")
        other = 9 - info.levels
        geometry = info.geometry_of(other)
        if any(
            walk(self._read, geometry, info.root, address).physical == info.physical(address)
            for address in info.symbols.values()
        ):
            return _wrong(f"its page tables have {other} levels, and it says {info.levels}")
        return _unknown("its page tables map no image")

    def _image_is_mapped(self, info: _Info) -> bool:
        """Whether the tables have something where images are, and that makes sense."""
        steps = walk(self._read, info.geometry, info.root, _START_KERNEL_MAP).steps
        if not steps or steps[-1].level > 2:
            return False
        table = next(step.entry_address for step in steps if step.level == 2)
        try:
            entries = struct.unpack("<512Q", self._read(table, _PAGE))
        except KvintroError:
            return False
        present = [entry for entry in entries if entry & _PRESENT]
        return 2 * sum(self._is_sane(info, entry) for entry in present) > len(present)

    def _is_sane(self, info: _Info, entry: int) -> bool:
        """Whether an entry can be a kernel's and not what a table was overwritten with."""
        geometry = info.geometry
        physical = entry & geometry.pfn_mask
        if entry & geometry.large_bit() and entry & geometry.reserved_bits(2):
            return False
        return physical >> geometry.max_physmem_bits == 0 and not self._lacks(physical)

    def _build_id(self, info: _Info) -> Verdict:
        start, namespace = info.symbols.get("_stext"), info.symbols.get("init_uts_ns")
        if not info.build_id or start is None or namespace is None:
            return FITS  # before 5.9 there is none
        try:
            wanted = bytes.fromhex(info.build_id)
        except ValueError:
            return _wrong("its BUILD-ID is no number")
        found = self._build_ids.has(info.physical(start), info.physical(namespace), wanted)
        if found is False:
            return _wrong(f"the image in memory does not have the build id {info.build_id}")
        if found is None and self._build_ids.exhausted:
            return _unknown("too many texts ask for build ids in too much memory")
        return FITS  # two other things agree; what is not in the dump cannot contradict


class _Info:
    """What of a text is compared.

    :raises ValueError: a number is none, or not one of a kernel's.
    """

    def __init__(self, lines: Dict[str, str]) -> None:
        self._lines = lines
        self.release = lines["OSRELEASE"]
        self.build_id = lines.get("BUILD-ID")
        self._base = self._number("NUMBER(phys_base)")
        self.symbols = {
            name: self._symbol(name)
            for name in ("swapper_pg_dir", "init_uts_ns", "_stext")
            if f"SYMBOL({name})" in lines
        }
        self.levels = 5 if self._number("NUMBER(pgtable_l5_enabled)", 0) else 4
        self._mask = (1 << 52) - 1 & ~self._number("NUMBER(sme_mask)", 0)
        self.geometry = self.geometry_of(self.levels)
        self.root = self.physical(self.symbols["swapper_pg_dir"])
        offset = self._number("KERNELOFFSET", 0, 16)
        start = self.symbols.get("_stext", _START_KERNEL_MAP + _MAX_IMAGE)
        highest = (
            start - _START_KERNEL_MAP
        )  # it moved the image to there from the window's beginning or later
        if not 0 <= offset <= highest or offset >= _MAX_IMAGE or offset % _MIN_KERNEL_ALIGN:
            raise ValueError("its KERNELOFFSET is none that a kernel has")

    def geometry_of(self, levels: int) -> x86_64.X86Geometry:
        """Page tables with so many levels."""
        return x86_64.ARCHITECTURE.geometry(levels, self._mask)

    def physical(self, address: int) -> int:
        """Where in physical memory something of the image is."""
        return address - _START_KERNEL_MAP + self._base & (1 << 64) - 1

    def _symbol(self, name: str) -> int:
        value = self._number(f"SYMBOL({name})", None, 16)
        if not _START_KERNEL_MAP <= value < _START_KERNEL_MAP + _MAX_IMAGE:
            raise ValueError(f"its {name} is not in a kernel's image")
        return value

    def _number(self, key: str, default: Optional[int] = None, base: int = 10) -> int:
        text = self._lines.get(key)
        if text is None:
            assert default is not None
            return default
        try:
            if len(text) > 32:
                raise ValueError
            return int(text, base)
        except ValueError:
            raise ValueError(f"its {key} is no number") from None


class _Stretch(NamedTuple):
    """Pages that are not in the source, and the build ids, each with its address."""

    missing: List[int]
    ids: List[Tuple[int, bytes]]


def build_ids_in(address: int, data: bytes) -> Iterator[Tuple[int, bytes]]:
    """The build ids in some memory, each with the address of its note."""
    for found in _BUILD_ID.finditer(data):
        size = int.from_bytes(found[1], "little")
        if 0 < size <= min(_LONGEST_ID, len(data) - found.end()):
            yield address + found.start(), bytes(data[found.end() : found.end() + size])


class BuildIds:
    """The build ids in physical memory: looked for once, and remembered.

    :param read: reads physical memory.
    :param budget: bytes that are looked through, for all that is asked together.
    """

    _STEP = 1 << 20

    def __init__(self, read: ReadPhysical, budget: int = _BUILD_ID_BUDGET) -> None:
        self._read = read
        self._left = budget
        self._known: Dict[int, _Stretch] = {}
        self.exhausted = False

    def has(self, start: int, end: int, build_id: bytes) -> Optional[bool]:
        """Whether an image (physical, end exclusive) has a build id; None if it was not all to be looked at.

        From its end on, as the note is the last but one of the constants, and these lie before the data.
        """
        start = max(start, end - _MAX_IMAGE)
        whole = True
        for step in range(end // self._STEP, start // self._STEP - 1, -1):
            if step not in self._known:
                if self._left < self._STEP:
                    self.exhausted = True
                    return None
                self._left -= self._STEP
                self._known[step] = self._look(step * self._STEP)
            stretch = self._known[step]
            if any(start <= at < end and data == build_id for at, data in stretch.ids):
                return True
            whole &= not any(start <= page + _PAGE - 1 and page < end for page in stretch.missing)
        return False if whole else None

    def _look(self, address: int) -> _Stretch:
        behind = 16 + _LONGEST_ID  # of a note that begins just before the end
        try:
            return _Stretch([], list(build_ids_in(address, self._read(address, self._STEP + behind))))
        except KvintroError:
            pass
        stretch = _Stretch([], [])
        data, first = b"", address
        for at in range(address, address + self._STEP + _PAGE, _PAGE):
            try:
                data += self._read(at, _PAGE)
                continue
            except KvintroError:
                stretch.missing.append(at)
            stretch.ids.extend(build_ids_in(first, data))
            data, first = b"", at + _PAGE
        stretch.ids.extend(build_ids_in(first, data))
        return stretch


# In memory


class Found(NamedTuple):
    """VMCOREINFO in memory that fits.

    :ivar text: its lines.
    :ivar address: where in physical memory it was, by the first layout.
    :ivar layouts: indices of the layouts by which it fits.
    """

    text: bytes
    address: int
    layouts: Tuple[int, ...]


class KernelFound(NamedTuple):
    """A kernel whose VMCOREINFO is in memory and fits.

    :ivar lines: of its VMCOREINFO.
    :ivar address: where in physical memory that is.
    """

    lines: Dict[str, str]
    address: int


class Kernels(NamedTuple):
    """The kernels in memory.

    :ivar looked_at: bytes that were looked through; ``whole`` if that was all.
    """

    found: List[KernelFound]
    looked_at: int
    whole: bool


def identity_of(lines: Dict[str, str]) -> Tuple[Optional[str], ...]:
    """What tells two kernels in one memory apart: their page tables."""
    return tuple(lines.get(key) for key in ("SYMBOL(swapper_pg_dir)", "NUMBER(phys_base)"))


class NotBelieved(NotADump):
    """There is VMCOREINFO in memory, and the memory says otherwise or is not all there."""


class Encrypted(NotADump):
    """The memory of a guest that its host cannot read."""


def candidates(pieces: Iterable[Piece]) -> Iterator[int]:
    """Physical addresses of pages that begin with a note of VMCOREINFO.

    Only one byte of each page is looked at in most cases, so that this costs nothing next to reading them.
    """
    name_at = _NOTE.size
    for address, data in pieces:
        first = -address % _PAGE
        column = bytes(data[first + name_at :: _PAGE])
        page = column.find(_PATTERN[0])
        while page >= 0:
            at = first + page * _PAGE + name_at
            if data[at : at + len(_PATTERN)] == _PATTERN:
                yield address + at - name_at
            page = column.find(_PATTERN[0], page + 1)


def text_at(read: ReadPhysical, address: int) -> Optional[bytes]:
    """The text of a note in memory."""
    try:
        namesz, descsz, kind = _NOTE.unpack(read(address, _NOTE.size))
        name = read(address + _NOTE.size, len(_NAME))
        if namesz != len(_NAME) - 1 or name != _NAME or kind != 0 or not 0 < descsz <= MAX_TEXT:
            return None
        return bytes(read(address + _NOTE.size + len(_NAME), descsz)).split(b"\0", 1)[0]
    except KvintroError:
        return None


class MemorySearch:
    """A source's physical memory, and the VMCOREINFO in it.

    :param layouts: what addresses the file's content may have; its content is taken from the first.
    :param watch: is handed the content and its size in bytes, and iterated over while it is looked through.
    :param lacks: whether the machine has no memory at an address, as far as the source says so.
    :param limit: bytes that are looked through at most.
    """

    def __init__(
        self,
        layouts: Sequence[PhysicalMemory],
        *,
        watch: Search = in_silence,
        lacks: Callable[[int], bool] = lambda _: False,
        limit: Optional[int] = None,
    ) -> None:
        self.layouts = layouts
        self.size = sum(extent.size for extent in layouts[0].extents)
        self.looked_at = 0
        #: What did not fit, but whose image is where it says: its page tables are damaged or missing.
        self.unsure: List[Tuple[Verdict, Found]] = []
        self.given_up = False
        self._watch = watch
        self._limit = limit
        budget = _BUILD_ID_BUDGET // len(layouts)
        self._judges = [
            Judge(layout.read, lacks=lacks, build_ids=BuildIds(layout.read, budget)) for layout in layouts
        ]

    @property
    def whole(self) -> bool:
        """Whether all was looked through, once :meth:`found` has ended."""
        cut = self._limit is not None and self.looked_at >= self._limit and self.size > self._limit
        return not cut and not self.given_up

    def judge(self, text: bytes, *, with_build_id: bool = True) -> Tuple[Verdict, Tuple[int, ...]]:
        """The best verdict by any layout, and the indices of the layouts that have it."""
        verdicts = [judge(text, with_build_id=with_build_id) for judge in self._judges]
        for state in ("fits", "unknown", "wrong"):
            which = tuple(number for number, verdict in enumerate(verdicts) if verdict.state == state)
            if which:
                return verdicts[which[0]], which
        raise AssertionError

    def text_at(self, address: int) -> Optional[bytes]:
        """The text of a note there."""
        return text_at(self.layouts[0].read, address)

    def found(self, rejected: Optional[Dict[bytes, str]] = None) -> Iterator[Found]:
        """What fits, by ascending address, each kernel once.

        :param rejected: is given the texts that do not fit, with the reason.
        """
        rejected = {} if rejected is None else rejected
        known: Set[Tuple[Optional[str], ...]] = set()
        for number, address in enumerate(candidates(self._pieces())):
            if number >= _MAX_PAGES or len(rejected) + len(known) >= _MAX_CANDIDATES:
                self.given_up = True
                break
            text = self.text_at(address)
            if text is None or text in rejected:
                continue
            kernel = identity_of(parse(text))
            if kernel in known:
                continue
            verdict, which = self.judge(text)
            if verdict.state == "fits":
                known.add(kernel)
                yield Found(text, address, which)
                continue
            rejected[text] = verdict.reason
            if verdict.state == "unknown" and self._judges[which[0]].recognises(text):
                self.unsure.append((verdict, Found(text, address, which)))

    def kernels(self, watch: Search = in_silence, limit: Optional[int] = None) -> Kernels:
        """All kernels in memory.

        :param limit: bytes that are looked through at most, where that is less than the search's own limit.
        """
        self._watch = watch
        if limit is not None:
            self._limit = limit if self._limit is None else min(limit, self._limit)
        self.looked_at, self.given_up = 0, False
        found = [KernelFound(parse(found.text), found.address) for found in self.found()]
        return Kernels(found, self.looked_at, self.whole)

    def first(self, what: str) -> Found:
        """The first that fits. What comes behind it is not read.

        :param what: how people call the memory.
        :raises NotADump: there is none.
        """
        rejected: Dict[bytes, str] = {}
        for found in self.found(rejected):
            return found
        if rejected:
            count = f"{len(rejected)} were" if len(rejected) > 1 else "one was"
            raise NotBelieved(
                f"no VMCOREINFO in {what} can be believed ({count} found): {next(iter(rejected.values()))}",
                _NO_TEXT_REMEDY,
            )
        where = what if self.whole else f"the first {self.looked_at >> 20} MB of {what}"
        raise NotADump(
            f"no VMCOREINFO was found in {where}, so nothing tells which kernel it is", _NO_TEXT_REMEDY
        )

    def _pieces(self) -> Iterator[Piece]:
        for address, data in self._watch(self.layouts[0].pieces(), self.size):
            self.looked_at += len(data)
            yield address, data
            if self._limit is not None and self.looked_at >= self._limit:
                return


# Which one is taken


class Wanted(NamedTuple):
    """What the user says of VMCOREINFO.

    :ivar text: this one, of the file ``name``.
    :ivar address: the one that is there in physical memory.
    """

    text: Optional[bytes] = None
    name: str = ""
    address: Optional[int] = None


class Chosen(NamedTuple):
    """VMCOREINFO to go on with.

    :ivar origin: where it comes from, for people.
    :ivar layouts: indices of the layouts by which it is right.
    :ivar warnings: what people should know about it.
    :ivar address: where in physical memory it was found, by the first layout.
    """

    text: bytes
    origin: str
    layouts: Tuple[int, ...]
    warnings: Tuple[str, ...] = ()
    address: Optional[int] = None


def choose(memory: MemorySearch, path: str, wanted: Wanted, note: Optional[bytes], what: str) -> Chosen:
    """Take the text that the user gives, else the dump's note, else the first in memory that fits.

    What memory contradicts is not taken. What it neither confirms nor contradicts is taken with a warning,
    unless there is one that it confirms.

    :param path: how people call the source; ``what`` is what they call its memory.
    :param note: the text of the dump's note.
    :raises WrongVmcoreinfo: what the user says does not fit.
    :raises Encrypted: there is nothing to take, as the memory is encrypted.
    :raises NotADump: there is nothing to take.
    """
    try:
        return _choose(memory, path, wanted, note, what)
    except (NotADump, WrongVmcoreinfo) as error:
        why = why_unreadable(memory.layouts[0])
        if why is None:
            raise
        raise Encrypted(f"{path}: {why}", REMEDY) from error


def _choose(memory: MemorySearch, path: str, wanted: Wanted, note: Optional[bytes], what: str) -> Chosen:
    if wanted.address is not None:
        return _chosen_by_address(memory, path, wanted.address)
    if wanted.text is not None:
        return _chosen_by_file(memory, path, wanted.text, wanted.name, note)
    if note is None:
        return _first(memory, what)
    return _note_or_better(memory, path, note, what)


def _first(memory: MemorySearch, what: str) -> Chosen:
    try:
        return _found(memory.first(what))
    except NotBelieved:
        if len(memory.unsure) != 1:
            raise
        verdict, found = memory.unsure[0]
        origin = found_at(found.address)
        return _not_verified(verdict, found.text, origin, found.layouts)._replace(address=found.address)


def _note_or_better(memory: MemorySearch, path: str, note: bytes, what: str) -> Chosen:
    # The image's build id is compared when a symbol leads to it: see check_vmcoreinfo() in core.py.
    verdict, which = memory.judge(note, with_build_id=False)
    if verdict.state == "fits":
        return Chosen(note, _NOTE_ORIGIN, which)
    try:
        found = _found(memory.first(what))
    except NotADump as error:
        if verdict.state == "unknown":
            return _not_verified(verdict, note, _NOTE_ORIGIN, which)
        raise NotBelieved(
            f"{path}: its VMCOREINFO note is not believed ({verdict.reason}), and {error.what}", error.remedy
        ) from None
    warning = (
        f"the dump's VMCOREINFO note was not believed ({verdict.reason}); the one {found.origin} is used"
    )
    return found._replace(warnings=(warning,))


def _found(found: Found) -> Chosen:
    return Chosen(found.text, found_at(found.address), found.layouts, address=found.address)


def found_at(address: int) -> str:
    """An origin."""
    return f"found in memory at physical {address:#x}"


def _not_verified(verdict: Verdict, text: bytes, origin: str, which: Tuple[int, ...]) -> Chosen:
    warning = f"whether VMCOREINFO ({origin}) is of this boot could not be verified: {verdict.reason}"
    return Chosen(text, f"{origin} (not verified)", which, (warning,))


def _chosen_by_address(memory: MemorySearch, path: str, address: int) -> Chosen:
    remedy = "kvintro info lists those that fit"
    text = memory.text_at(address)
    if text is None:
        raise WrongVmcoreinfo(f"{path} has no VMCOREINFO at physical {address:#x}", remedy)
    verdict, which = memory.judge(text)
    if verdict.state == "wrong":
        what = f"the VMCOREINFO at physical {address:#x} does not fit {path}: {verdict.reason}"
        raise WrongVmcoreinfo(what, remedy)
    if verdict.state == "fits":
        return Chosen(text, found_at(address), which, address=address)
    return _not_verified(verdict, text, found_at(address), which)._replace(address=address)


def _chosen_by_file(memory: MemorySearch, path: str, text: bytes, name: str, note: Optional[bytes]) -> Chosen:
    verdict, which = memory.judge(text)
    if verdict.state == "fits":
        return Chosen(text, "--vmcoreinfo", which)
    # What does not fit, or cannot be verified, yields to what does.
    right, where = None, _NOTE_ORIGIN
    if note is not None and memory.judge(note)[0].state == "fits":
        right = note
    else:
        found = next(memory.found(), None)
        if found is not None:
            right, where = found.text, f"the one {found_at(found.address)}"
    if right is not None and parse(right) != parse(text):
        lines = parse(right)
        raise WrongVmcoreinfo(
            f"{name} is not the VMCOREINFO of {path}: {verdict.reason}",
            f"run it without --vmcoreinfo: {where} fits "
            f"({lines['OSRELEASE']}, image moved by 0x{lines['KERNELOFFSET']})",
        )
    if verdict.state == "wrong":
        raise WrongVmcoreinfo(
            f"{name} is not the VMCOREINFO of {path}: {verdict.reason}", "is it of the boot that was dumped?"
        )
    return _not_verified(verdict, text, "--vmcoreinfo", which)
