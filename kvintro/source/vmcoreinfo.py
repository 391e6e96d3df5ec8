# SPDX-License-Identifier: LGPL-2.1-or-later
"""Finds the VMCOREINFO that belongs to a dump's memory.

VMCOREINFO is given with an option, or is in a note of the dump, or is found in the dump's memory: every
kernel with CONFIG_KEXEC keeps the note ready for a crash, at the start of pages of its own
(kernel/crash_core.c:crash_save_vmcoreinfo_init, kernel/vmcore_info.c since 6.9). Any of these may be from
another boot: the user may give the wrong file, and memory contains stale copies, of the kernel that booted
before or of a dump in the page cache. :class:`Judge` therefore compares it with the memory: its page tables
must map the image where it says, init_uts_ns must have its release, and the image must have its build id.
"""

from __future__ import annotations

import re
import struct
from typing import (
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

from kvintro.arch import Architecture, architectures, by_vmcoreinfo
from kvintro.arch.address_space import AddressSpace, symbol_in
from kvintro.arch.form import ENTRY_SIZE
from kvintro.errors import KvintroError, NotADump, WrongVmcoreinfo
from kvintro.paging.broken import entries_of
from kvintro.paging.step import ReadPhysical, walk
from kvintro.source.encrypted import REMEDY, why_unreadable
from kvintro.source.note import MAX_TEXT, NAME, NAME_AT, parse, what_is_missing
from kvintro.source.physical import PAGE as _PAGE
from kvintro.source.physical import PhysicalMemory

_NOTE = "III"  # namesz, descsz, type
_PATTERN = NAME + b"OSRELEASE="
_MAX_CANDIDATES = 256  # different texts
_MAX_PAGES = 1 << 14  # that begin as a note does
_MAX_IMAGE = 1 << 30
_MAX_LAYOUTS = 16  # of a file that does not record the addresses of its memory
# struct uts_namespace begins with the names, or with a kref before them; each has 65 bytes (new_utsname).
MAX_UTS_OFFSET = 64
UTS_FIELD = 65
_BUILD_ID_BUDGET = 256 << 20  # bytes of images that are searched for build ids
_NOTE_ORIGIN = "the dump's note"
# A note: sizes of the name and the id, type, name. bytes.find() would take ten times as long on zeros.
_BUILD_ID = {
    "<": re.compile(rb"\x04\0\0\0(....)\x03\0\0\0GNU\0", re.DOTALL),
    ">": re.compile(rb"\0\0\0\x04(....)\0\0\0\x03GNU\0", re.DOTALL),
}
_LONGEST_ID = 64
_NO_TEXT_REMEDY = "give its text with --vmcoreinfo FILE; for QEMU guests use -device vmcoreinfo"

Piece = Tuple[int, Union[bytes, bytearray, memoryview]]
Search = Callable[[Iterable[Piece], int], Iterable[Piece]]


def in_silence(pieces: Iterable[Piece], size: int) -> Iterable[Piece]:
    """A search without a progress display."""
    return pieces


# Does it belong to this memory?


class Verdict(NamedTuple):
    """The result of comparing a text with memory.

    :ivar state: ``fits``; ``wrong`` if memory contradicts it; ``unknown`` if the source does not say.
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
    :param lacks: whether the source says that the machine has no memory at an address.
    :param arch: the machine's architecture, if the source says so.
    """

    def __init__(
        self,
        read: ReadPhysical,
        *,
        lacks: Callable[[int], bool] = lambda _: False,
        build_ids: Optional[BuildIds] = None,
        arch: Optional[Architecture] = None,
    ) -> None:
        self._read = read
        self._lacks = lacks
        self._arch = arch
        self._build_ids = BuildIds(read) if build_ids is None else build_ids

    def __call__(self, text: bytes, *, with_build_id: bool = True) -> Verdict:
        """The verdict.

        :param with_build_id: also search the image for the build id, if the first comparisons find no
            contradiction. This is the slowest step.
        """
        problem = what_is_missing(text)
        if problem is not None:
            return _wrong(problem)
        try:
            info = _Info(parse(text))
        except ValueError as error:
            return _wrong(str(error))
        if self._arch not in (None, info.arch):
            return _wrong(f"it is from a kernel for {info.arch.name}")
        verdicts = [self._release(info), self._tables(info)]
        if with_build_id and not any(verdict.state == "wrong" for verdict in verdicts):
            verdicts.append(self._build_id(info))
        states = [verdict.state for verdict in verdicts]
        for state in ("wrong", "absent", "unknown"):
            if state in states:
                reason = verdicts[states.index(state)].reason
                # A page outside the ranges of a dump may have been excluded. If every page to compare
                # with is missing, the text is from another machine or boot.
                wrong = state == "wrong" or (state == "absent" and FITS not in verdicts[:2])
                return Verdict("wrong" if wrong else "unknown", reason)
        return FITS

    def recognises(self, text: bytes) -> bool:
        """Whether the image is where the text says, according to its release and its build id."""
        try:
            info = _Info(parse(text))
            wanted = bytes.fromhex(info.build_id or "")
        except (KeyError, ValueError):
            return False
        start, namespace = info.symbols.get("_stext"), info.symbols.get("init_uts_ns")
        if not wanted or start is None or namespace is None or self._release(info).state != "fits":
            return False
        return self._build_ids.has(info.physical(start), info.physical(namespace), wanted) is True

    def _release(self, info: Claims) -> Verdict:
        namespace = info.symbols.get("init_uts_ns")
        if namespace is None:
            return _unknown("it has no SYMBOL(init_uts_ns)")
        address = info.physical(namespace)
        try:
            names = self._read(address, MAX_UTS_OFFSET + 3 * UTS_FIELD)
        except KvintroError:
            where = f"physical {address:#x}, where init_uts_ns would be"
            if self._lacks(address):
                return Verdict("absent", f"the machine has no memory at {where}")
            return _unknown(f"{where}, is not in this source")
        if names_begin(names, info.release) is not None:
            return FITS
        return _wrong(f"init_uts_ns with release {info.release} is not at its address")

    def _tables(self, info: _Info) -> Verdict:
        """Whether the text's page tables map the image where the text says.

        One symbol that is mapped there is enough, as the image is contiguous. If a symbol is not mapped, a
        damaged table may be the reason.
        """
        space = info.space
        agreed = missing = absent = False
        for name in ("init_uts_ns", "_stext", "swapper_pg_dir"):
            address = info.symbols.get(name)
            if address is None:
                continue
            found = walk(self._read, space.form, space.root, address)
            if found.physical is not None and found.physical != info.physical(address):
                return _wrong(
                    f"by its page tables {name} is at physical {found.physical:#x}, "
                    f"and by its {space.image_by} at {info.physical(address):#x}"
                )
            agreed |= found.physical is not None
            if found.state == "not-in-dump":
                missing = True
                absent |= self._lacks(found.steps[-1].entry_address)
        if agreed:
            return FITS
        if absent:
            return Verdict("absent", "the machine has no memory where its page tables should be")
        if missing:
            return _unknown("its page tables are not in this source")
        if self._image_is_mapped(space):
            return _wrong("its page tables map the image elsewhere")
        for form in space.other_forms():
            if any(
                walk(self._read, form, space.root, address).physical == info.physical(address)
                for address in info.symbols.values()
            ):
                return _wrong(f"its page tables have {form.levels} levels, and it says {space.form.levels}")
        return _unknown("its page tables do not map an image")

    def _image_is_mapped(self, space: AddressSpace) -> bool:
        """Whether the tables map something sensible at the addresses of the image."""
        form, start = space.form, space.image.start
        steps = walk(self._read, form, space.root, start).steps
        if not steps or steps[-1].level > 2:
            return False
        entry = next(step.entry_address for step in steps if step.level == 2)
        table = entry - ENTRY_SIZE * form.index(start, 2)
        try:
            entries = entries_of(form, self._read(table, form.table_size(2)))
        except KvintroError:
            return False
        present = [entry for entry in entries if form.is_present(entry, 2)]
        return 2 * sum(self._is_sane(space, entry) for entry in present) > len(present)

    def _is_sane(self, space: AddressSpace, entry: int) -> bool:
        """Whether an entry is plausible, as opposed to data that overwrote a table."""
        form = space.form
        if form.is_table(entry, 2):
            physical: int = form.table_address(entry)
        elif form.is_leaf(entry, 2):
            physical = form.page_address(entry, 2)
        else:
            return False
        return physical >> space.physical_bits == 0 and not self._lacks(physical)

    def _build_id(self, info: Claims) -> Verdict:
        start, namespace = info.symbols.get("_stext"), info.symbols.get("init_uts_ns")
        if not info.build_id or start is None or namespace is None:
            return FITS  # before 5.9 there is no build id
        try:
            wanted = bytes.fromhex(info.build_id)
        except ValueError:
            return _wrong("its BUILD-ID is not a number")
        found = self._build_ids.has(info.physical(start), info.physical(namespace), wanted)
        if found is False:
            return _wrong(f"the image in memory does not have the build id {info.build_id}")
        if found is None and self._build_ids.exhausted:
            return _unknown("there are too many build ids to search for in memory")
        return FITS  # the two other checks agree; data that is not in the dump cannot contradict them


def names_begin(data: bytes, release: str) -> Optional[int]:
    """Where the names of a kernel with this release begin in struct uts_namespace; None if nowhere."""
    wanted = release.encode("ascii", "replace") + b"\0"
    for at in range(MAX_UTS_OFFSET):
        if data.startswith(b"Linux\0", at) and data.startswith(wanted, at + 2 * UTS_FIELD):
            return at
    return None


class Claims:
    """What a text says about the image.

    :ivar symbols: virtual addresses by name.
    """

    def __init__(self, lines: Mapping[str, str], symbols: Mapping[str, int]) -> None:
        self.release = lines["OSRELEASE"]
        self.build_id = lines.get("BUILD-ID")
        self.symbols = symbols

    def physical(self, address: int) -> int:
        """Physical address of an address in the image."""
        raise NotImplementedError


class _Info(Claims):
    """The parts of a text that are compared.

    :raises ValueError: a number is malformed or impossible.
    """

    def __init__(self, lines: Dict[str, str]) -> None:
        arch = by_vmcoreinfo(lines)
        if arch is None:
            raise ValueError("its architecture is not supported")
        self.arch = arch
        self.space = arch.address_space(lines)
        symbols = {
            name: symbol_in(lines, name, self.space.image)
            for name in ("swapper_pg_dir", "init_uts_ns", "_stext")
            if f"SYMBOL({name})" in lines
        }
        super().__init__(lines, symbols)

    def physical(self, address: int) -> int:
        return self.space.physical(address)


class _Stretch(NamedTuple):
    """Addresses of pages that are not in the source, and build ids with their addresses."""

    missing: List[int]
    ids: List[Tuple[int, bytes]]


def build_ids_in(address: int, data: bytes, order: str = "<") -> Iterator[Tuple[int, bytes]]:
    """The build ids in a piece of memory, each with the address of its note."""
    for found in _BUILD_ID[order].finditer(data):
        (size,) = struct.unpack(order + "I", found[1])
        if 0 < size <= min(_LONGEST_ID, len(data) - found.end()):
            yield address + found.start(), bytes(data[found.end() : found.end() + size])


class BuildIds:
    """The build ids in physical memory. Each part of memory is searched only once.

    :param read: reads physical memory.
    :param budget: bytes that are searched at most, over all calls.
    :param order: the kernel's byte order, as a character for :mod:`struct`.
    """

    _STEP = 1 << 20

    def __init__(self, read: ReadPhysical, budget: int = _BUILD_ID_BUDGET, order: str = "<") -> None:
        self._read = read
        self._order = order
        self._left = budget
        self._known: Dict[int, _Stretch] = {}
        self.exhausted = False

    def has(self, start: int, end: int, build_id: bytes) -> Optional[bool]:
        """Whether an image contains a build id; None if the image could not be searched as a whole.

        It is searched from its end, as the note is near the end of the constants, which precede the data.

        :param start: physical address.
        :param end: physical address, exclusive.
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
        behind = 16 + _LONGEST_ID  # for a note that begins just before the end
        try:
            data = self._read(address, self._STEP + behind)
            return _Stretch([], list(build_ids_in(address, data, self._order)))
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
            stretch.ids.extend(build_ids_in(first, data, self._order))
            data, first = b"", at + _PAGE
        stretch.ids.extend(build_ids_in(first, data, self._order))
        return stretch


# In memory


class Found(NamedTuple):
    """VMCOREINFO that was found in memory and fits.

    :ivar text: its lines.
    :ivar address: its physical address, according to the first of the layouts.
    :ivar layouts: the layouts with which it fits.
    """

    text: bytes
    address: int
    layouts: Tuple[PhysicalMemory, ...]


class KernelFound(NamedTuple):
    """A kernel whose VMCOREINFO is in memory and fits.

    :ivar lines: lines of its VMCOREINFO.
    :ivar address: physical address of its VMCOREINFO.
    """

    lines: Dict[str, str]
    address: int


class Kernels(NamedTuple):
    """The kernels in memory.

    :ivar looked_at: bytes that were searched.
    :ivar whole: whether that was all of memory.
    """

    found: List[KernelFound]
    looked_at: int
    whole: bool


def identity_of(lines: Dict[str, str]) -> Tuple[Optional[str], ...]:
    """Distinguishes kernels in the same memory, by their page tables."""
    keys = (key for arch in architectures() for key in arch.vmcoreinfo_keys)
    return tuple(lines.get(key) for key in ("SYMBOL(swapper_pg_dir)", *keys))


class NotBelieved(NotADump):
    """VMCOREINFO was found, but memory contradicts it, or memory needed to verify it is missing."""


class Encrypted(NotADump):
    """The memory is that of a guest and is encrypted, so its host cannot read it."""


def candidates(pieces: Iterable[Piece]) -> Iterator[int]:
    """Physical addresses of pages that begin with a VMCOREINFO note.

    For most pages only one byte is examined, so the cost is negligible compared to reading them.
    """
    for address, data in pieces:
        first = -address % _PAGE
        column = bytes(data[first + NAME_AT :: _PAGE])
        page = column.find(_PATTERN[0])
        while page >= 0:
            at = first + page * _PAGE + NAME_AT
            if data[at : at + len(_PATTERN)] == _PATTERN:
                yield address + at - NAME_AT
            page = column.find(_PATTERN[0], page + 1)


def text_at(read: ReadPhysical, address: int) -> Optional[bytes]:
    """The text of a VMCOREINFO note in memory, of either byte order; None if there is none at the address."""
    try:
        head = read(address, NAME_AT)
        name = read(address + NAME_AT, len(NAME))
        for order in "<>":
            namesz, descsz, kind = struct.unpack(order + _NOTE, head)
            if namesz == len(NAME) - 1 and name == NAME and kind == 0 and 0 < descsz <= MAX_TEXT:
                return bytes(read(address + NAME_AT + len(NAME), descsz)).split(b"\0", 1)[0]
    except KvintroError:
        pass
    return None


class MemorySearch:
    """Searches a source's physical memory for VMCOREINFO.

    :param layouts: possible assignments of addresses to the file's content. The first is used for the search.
    :param more: returns further layouts with which a text may fit; called if none of ``layouts`` fits.
    :param watch: takes the content and its size in bytes, and yields the content while it is searched.
    :param lacks: whether the source says that the machine has no memory at an address.
    :param limit: how many bytes to search at most.
    :param arch: the machine's architecture, if the source says so.
    :param judge_of: makes what compares texts with a layout; by default a :class:`Judge`.
    """

    def __init__(
        self,
        layouts: Sequence[PhysicalMemory],
        *,
        more: Callable[[bytes], Sequence[PhysicalMemory]] = lambda _: (),
        watch: Search = in_silence,
        lacks: Callable[[int], bool] = lambda _: False,
        limit: Optional[int] = None,
        arch: Optional[Architecture] = None,
        judge_of: Optional[Callable[[PhysicalMemory], Judge]] = None,
    ) -> None:
        self.layouts = list(layouts)
        self.size = sum(extent.size for extent in layouts[0].extents)
        self.looked_at = 0
        #: Texts that did not fit, but whose image is where they say: page tables are damaged or missing.
        self.unsure: List[Tuple[Verdict, Found]] = []
        self.given_up = False
        self._watch = watch
        self._limit = limit
        self._more = more
        budget = _BUILD_ID_BUDGET // len(layouts)
        self._judge_of = judge_of or (
            lambda layout: Judge(layout.read, lacks=lacks, build_ids=BuildIds(layout.read, budget), arch=arch)
        )
        self._judges = [self._judge_of(layout) for layout in layouts]

    @property
    def whole(self) -> bool:
        """Whether all memory was searched. Valid once :meth:`found` has ended."""
        cut = self._limit is not None and self.looked_at >= self._limit and self.size > self._limit
        return not cut and not self.given_up

    def judge(self, text: bytes, *, with_build_id: bool = True) -> Tuple[Verdict, Tuple[PhysicalMemory, ...]]:
        """The best verdict over all layouts, and the layouts that have it."""
        verdicts = [judge(text, with_build_id=with_build_id) for judge in self._judges]
        if not any(verdict.state == "fits" for verdict in verdicts):
            for layout in self._new_layouts(text):
                self.layouts.append(layout)
                self._judges.append(self._judge_of(layout))
                verdicts.append(self._judges[-1](text, with_build_id=with_build_id))
        for state in ("fits", "unknown", "wrong"):
            which = [number for number, verdict in enumerate(verdicts) if verdict.state == state]
            if which:
                return verdicts[which[0]], tuple(self.layouts[number] for number in which)
        raise AssertionError

    def _new_layouts(self, text: bytes) -> List[PhysicalMemory]:
        """Further layouts with which a text may fit, up to a limit."""
        known = [layout.extents for layout in self.layouts]
        left = max(0, _MAX_LAYOUTS - len(known))
        return [layout for layout in self._more(text) if layout.extents not in known][:left]

    def text_at(self, address: int) -> Optional[bytes]:
        """The text of a note at an address in any layout, including layouts that a search has added."""
        texts = (text_at(layout.read, address) for layout in self.layouts)
        return next((text for text in texts if text is not None), None)

    def found(self, rejected: Optional[Dict[bytes, str]] = None) -> Iterator[Found]:
        """VMCOREINFO that fits, by ascending address, once for each kernel.

        :param rejected: receives the texts that do not fit, with the reasons.
        """
        rejected = {} if rejected is None else rejected
        known: Set[Tuple[Optional[str], ...]] = set()
        for number, address in enumerate(candidates(self._pieces())):
            if number >= _MAX_PAGES or len(rejected) + len(known) >= _MAX_CANDIDATES:
                self.given_up = True
                break
            text = text_at(self.layouts[0].read, address)
            if text is None or text in rejected:
                continue
            kernel = identity_of(parse(text))
            if kernel in known:
                continue
            verdict, which = self.judge(text)
            found = Found(text, which[0].moved(self.layouts[0], address), which)
            if verdict.state == "fits":
                known.add(kernel)
                yield found
                continue
            rejected[text] = verdict.reason
            if verdict.state == "unknown" and self._judges[self.layouts.index(which[0])].recognises(text):
                self.unsure.append((verdict, found))

    def kernels(self, watch: Search = in_silence, limit: Optional[int] = None) -> Kernels:
        """All kernels in memory.

        :param limit: how many bytes to search at most, if that is less than the search's own limit.
        """
        self._watch = watch
        if limit is not None:
            self._limit = limit if self._limit is None else min(limit, self._limit)
        self.looked_at, self.given_up = 0, False
        found = [KernelFound(parse(found.text), found.address) for found in self.found()]
        return Kernels(found, self.looked_at, self.whole)

    def first(self, what: str) -> Found:
        """The first VMCOREINFO that fits. Memory after it is not read.

        :param what: the name of the memory in messages.
        :raises NotADump: there is none.
        """
        rejected: Dict[bytes, str] = {}
        for found in self.found(rejected):
            return found
        if rejected:
            count = f"{len(rejected)} were" if len(rejected) > 1 else "one was"
            raise NotBelieved(
                f"no VMCOREINFO in {what} is valid ({count} found): {next(iter(rejected.values()))}",
                _NO_TEXT_REMEDY,
            )
        where = what if self.whole else f"the first {self.looked_at >> 20} MB of {what}"
        if not self.looked_at:
            where = f"{what}, none of which could be read"
        raise NotADump(f"no VMCOREINFO was found in {where}, so the kernel is not known", _NO_TEXT_REMEDY)

    def _pieces(self) -> Iterator[Piece]:
        for address, data in self._watch(self.layouts[0].noted_pieces(), self.size):
            self.looked_at += len(data)
            yield address, data
            if self._limit is not None and self.looked_at >= self._limit:
                return


# Which one to use


class Wanted(NamedTuple):
    """The user's choice of VMCOREINFO.

    :ivar text: text of the file ``name``.
    :ivar address: physical address of the VMCOREINFO to use.
    """

    text: Optional[bytes] = None
    name: str = ""
    address: Optional[int] = None


class Chosen(NamedTuple):
    """The VMCOREINFO to use.

    :ivar origin: where it came from, for display.
    :ivar layouts: the layouts with which it fits.
    :ivar warnings: warnings about it for the user.
    :ivar address: physical address where it was found, according to the first of the layouts; None if it was
        not found in memory.
    """

    text: bytes
    origin: str
    layouts: Tuple[PhysicalMemory, ...]
    warnings: Tuple[str, ...] = ()
    address: Optional[int] = None


def choose(memory: MemorySearch, path: str, wanted: Wanted, note: Optional[bytes], what: str) -> Chosen:
    """Choose the text that the user gives, else the dump's note, else the first in memory that fits.

    A text that memory contradicts is not used. A text that memory neither confirms nor contradicts is used
    with a warning, unless there is one that memory confirms.

    :param path: name of the source in messages.
    :param note: the text of the dump's note.
    :param what: name of the source's memory in messages.
    :raises WrongVmcoreinfo: the user's choice does not fit.
    :raises Encrypted: no text can be used because the memory is encrypted.
    :raises NotADump: no text can be used.
    """
    try:
        return choose_from_any(memory, path, wanted, note, what)
    except (NotADump, WrongVmcoreinfo) as error:
        why = why_unreadable(memory.layouts[0])
        if why is None:
            raise
        raise Encrypted(f"{path}: {why}", REMEDY) from error


def choose_from_any(
    memory: MemorySearch, path: str, wanted: Wanted, note: Optional[bytes], what: str
) -> Chosen:
    """As :func:`choose`, for memory that cannot be an encrypted guest's."""
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
    # The image's build id is compared later, once a symbol gives its address: see verify.check_vmcoreinfo().
    verdict, which = memory.judge(note, with_build_id=False)
    if verdict.state == "fits":
        return Chosen(note, _NOTE_ORIGIN, which)
    try:
        found = _found(memory.first(what))
    except NotADump as error:
        if verdict.state == "unknown":
            return _not_verified(verdict, note, _NOTE_ORIGIN, which)
        raise NotBelieved(
            f"{path}: its VMCOREINFO note is rejected ({verdict.reason}), and {error.what}", error.remedy
        ) from None
    warning = f"the dump's VMCOREINFO note was rejected ({verdict.reason}); the one {found.origin} is used"
    return found._replace(warnings=(warning,))


def _found(found: Found) -> Chosen:
    return Chosen(found.text, found_at(found.address), found.layouts, address=found.address)


def found_at(address: int) -> str:
    """The origin text for an address."""
    return f"found in memory at physical {address:#x}"


def _not_verified(verdict: Verdict, text: bytes, origin: str, which: Tuple[PhysicalMemory, ...]) -> Chosen:
    warning = f"whether VMCOREINFO ({origin}) is of this boot could not be verified: {verdict.reason}"
    return Chosen(text, f"{origin} (not verified)", which, (warning,))


def _chosen_by_address(memory: MemorySearch, path: str, address: int) -> Chosen:
    remedy = "kvintro info lists those that fit"
    text = memory.text_at(address)
    if text is None:
        next(memory.found(), None)
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
    # Prefer a text that fits over one that does not fit or cannot be verified.
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
            f"({lines['OSRELEASE']}, image moved by 0x{lines.get('KERNELOFFSET', '?')})",
        )
    if verdict.state == "wrong":
        raise WrongVmcoreinfo(
            f"{name} is not the VMCOREINFO of {path}: {verdict.reason}",
            "is it from the boot that was dumped?",
        )
    return _not_verified(verdict, text, "--vmcoreinfo", which)
