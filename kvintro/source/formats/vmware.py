# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMware's suspended machines (.vmss) and snapshots (.vmsn), with their memory.

The memory is in a file beside the state (.vmem), or in the state itself as the block ``Memory``. The state
has groups of tags. The group ``memory`` maps pages of the file to pages of the machine (crash's
vmware_vmss.h, volatility's vmware.py). ``debug.guest`` beside ``debug.vmem`` has the same information in
another format (crash's vmware_guestdump.c). Without any of these, a .vmem is raw memory without the gap below
4 GB.
"""

from __future__ import annotations

import struct
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from kvintro.errors import NotADump
from kvintro.source.beside import Beside
from kvintro.source.content import Content, Part
from kvintro.source.dump import COPY_AGAIN, Format, Test, begins, either
from kvintro.source.formats.memory import MemoryDump
from kvintro.source.formats.raw import LEAST, raw_layouts
from kvintro.source.opened import Source
from kvintro.source.physical import PAGE, Extent, MemoryFile, PhysicalMemory
from kvintro.source.unpack import unpacked
from kvintro.source.vmcoreinfo import Chosen

_HEADER = struct.Struct("<4sII")  # mark, version, number of groups
_GROUP = struct.Struct("<64sQQ")  # name, offset and size of its tags
#: Marks of states; the value is whether sizes of blocks have 64 bits.
_MARKS: Dict[bytes, bool] = {
    b"\xd2\xbe\xd2\xbe": True,
    b"\xd3\xbe\xd3\xbe": True,  # partial
    b"\xd1\xba\xd1\xba": True,
    b"\xd2\xba\xd2\xba": True,
    b"\xd0\xbe\xd2\xbe": False,
    b"\xd0\xbe\xd0\xbe": False,
}
_BLOCK, _PACKED_BLOCK = 63, 62
_WIDE, _NARROW = struct.Struct("<QQH"), struct.Struct("<IIH")  # bytes in the file, in memory, and of padding
_LONGEST_TAG = 2 + 255 + 3 * 4 + 61
_MAX_GROUPS, _MAX_TAGS, _MAX_REGIONS = 1000, 1 << 16, 5000
_MAX_PAGES = 1 << 40
_STATES = (".vmss", ".vmsn", ".guest")
_MEMORY = (".vmem",)
_AGAIN = "copy the machine's files again whole"


class Block(NamedTuple):
    """Bytes in a state: ``stored`` bytes at ``offset``, which unpack to ``size`` bytes."""

    offset: int
    stored: int
    size: int
    packed: bool


class Tag(NamedTuple):
    """A tag of a group: a number, or a block."""

    name: str
    indices: Tuple[int, ...]
    value: int
    block: Optional[Block]


class Described(NamedTuple):
    """A state's description of memory.

    :ivar regions: pieces of memory, with offsets in the file that has them; empty if memory is contiguous.
    :ivar blocks: the memory itself, if it is in the state.
    :ivar whole: whether all tags could be read.
    :ivar writer: the program that wrote the state.
    """

    regions: Sequence[Extent]
    blocks: Sequence[Block]
    whole: bool
    writer: str

    @property
    def end(self) -> int:
        """Size in bytes of the file with the memory, according to the regions."""
        return max((region.offset + region.size for region in self.regions), default=0)


class VmwareDump(MemoryDump):
    """The memory of a machine, with its state.

    :param content: the memory, from its first byte on.
    :param others: the files that belong to it, besides ``path``.
    """

    def __init__(
        self,
        content: Content,
        path: str,
        described: Described,
        form: str,
        others: Sequence[Tuple[str, Content]] = (),
    ) -> None:
        if described.regions:
            layouts: List[PhysicalMemory] = [_in_regions(content, described.regions)]
        else:
            layouts = raw_layouts(content)
        super().__init__(content, path, form, layouts)
        if described.regions:
            self.complete = described.whole and layouts[0].complete
            self.left_out = 0
        elif not described.whole:
            self.complete = False
        self.others = others
        self._writer = described.writer

    def opened(self, chosen: Chosen) -> Source:
        source = super().opened(chosen)
        source.writer = self._writer
        return source


def _in_regions(content: Content, regions: Sequence[Extent]) -> PhysicalMemory:
    there = [r._replace(size=min(r.size, content.size - r.offset)) for r in regions]
    complete = all(part.size == region.size for part, region in zip(there, regions))
    return MemoryFile(content, [part for part in there if part.size > 0], complete=complete)


# The state


def read_state(content: Content, path: str) -> Described:
    """Read the description of memory in a .vmss or .vmsn.

    :raises NotADump: it is invalid.
    """
    mark, version, count = _HEADER.unpack(content.at(0, _HEADER.size).ljust(_HEADER.size, b"\0"))
    table = content.at(_HEADER.size, min(count, _MAX_GROUPS) * _GROUP.size)
    groups = {
        name.partition(b"\0")[0]: at
        for name, at, _ in _GROUP.iter_unpack(table[: len(table) // _GROUP.size * _GROUP.size])
    }
    if not 0 < count <= _MAX_GROUPS or len(table) < count * _GROUP.size:
        raise NotADump(f"{path}: its table of groups is invalid", COPY_AGAIN)
    writer = f"VMware, version {version} of its format"
    if b"memory" not in groups:
        raise NotADump(f"{path} is a VMware state file without information about memory", _AGAIN)
    numbers: Dict[str, Dict[Tuple[int, ...], int]] = {}
    blocks: List[Block] = []
    whole = True
    for tag in _tags(content, groups[b"memory"], wide=_MARKS[mark]):
        if tag is None:
            whole = False
        elif tag.block is None:
            numbers.setdefault(tag.name, {})[tag.indices] = tag.value
        elif tag.name == "Memory" and tag.block.size:
            blocks.append(tag.block)
    if not whole and "regionsCount" not in numbers:
        raise NotADump(f"{path} is truncated before the addresses of its memory", _AGAIN)
    return Described(_regions(numbers, path), blocks, whole, writer)


def _tags(content: Content, at: int, *, wide: bool) -> Iterator[Optional[Tag]]:
    """The tags of a group; a final None if there should be more."""
    form = _WIDE if wide else _NARROW
    for _ in range(_MAX_TAGS):
        data = content.at(at, _LONGEST_TAG)
        if data[:2] == b"\0\0":
            return
        if len(data) < 2:
            break
        kind, count, length = data[0] & 63, data[0] >> 6, data[1]
        name = data[2 : 2 + length].decode("ascii", "replace")
        here = 2 + length + 4 * count
        if len(data) < here:
            break
        indices = struct.unpack_from(f"<{count}I", data, 2 + length)
        if kind not in (_BLOCK, _PACKED_BLOCK):
            value = data[here : here + kind]
            at += here + kind
            if len(value) < kind:
                break
            yield Tag(name, indices, int.from_bytes(value, "little"), None)
            continue
        if len(data) < here + form.size:
            break
        stored, size, padding = form.unpack_from(data, here)
        block = Block(at + here + form.size + padding, stored, size, kind == _PACKED_BLOCK)
        at = block.offset + stored
        yield Tag(name, indices, 0, block)
    yield None


def _regions(numbers: Dict[str, Dict[Tuple[int, ...], int]], path: str) -> List[Extent]:
    """The regions of memory."""
    count = numbers.get("regionsCount", {}).get((), 0)
    if count > _MAX_REGIONS:
        raise NotADump(f"{path} has {count} regions of memory, which is too many", _AGAIN)
    found: List[Extent] = []
    for index in range(count):
        try:
            frame, page, size = (
                numbers[name][(index,)] for name in ("regionPPN", "regionPageNum", "regionSize")
            )
        except KeyError:
            raise NotADump(f"{path} does not say where region {index} of {count} is", _AGAIN) from None
        if max(frame, page, size) >= _MAX_PAGES:
            raise NotADump(f"{path}: region {index} of its memory is invalid", _AGAIN)
        if size:
            found.append(Extent(frame * PAGE, size * PAGE, page * PAGE))
    return _without_overlap(found, path)


def _without_overlap(regions: List[Extent], path: str) -> List[Extent]:
    regions = sorted(regions)
    for one, other in zip(regions, regions[1:]):
        if one.address + one.size > other.address:
            raise NotADump(f"{path}: its regions overlap at {other.address:016x}", _AGAIN)
    return regions


# debug.guest

#: By version: offset and format of the description of memory. It has the last address, number of pages, 4
#: bytes, number of holes, then two holes, each with its first page and number of pages.
_GUESTS: Dict[int, Tuple[int, struct.Struct]] = {
    1: (21, struct.Struct("<QIII4I")),
    **{
        version: (at, struct.Struct("<QQII4Q"))
        for version, at in ((3, 22), (4, 22), (5, 22), (6, 23), (7, 16))
    },
}
_MAX_CPUS = 5000


def guest_regions(content: Content) -> Optional[List[Extent]]:
    """The regions in a debug.guest; None if it is not one. It has no mark, so its numbers are checked."""
    head = content.at(0, 128)
    if len(head) < 128:
        return None
    version, cpus = struct.unpack_from("<II", head)
    if version not in _GUESTS or not 0 < cpus <= _MAX_CPUS:
        return None
    at, form = _GUESTS[version]
    last, pages, _, count, *words = form.unpack_from(head, at)
    if count > 2 or not 0 < pages < _MAX_PAGES or last >= _MAX_PAGES * PAGE:
        return None
    holes = sorted(zip(words[: 2 * count : 2], words[1 : 2 * count : 2]))
    if last + 1 != (pages + sum(size for _, size in holes)) * PAGE:
        return None
    found: List[Extent] = []
    frame = page = 0
    for start, size in (*holes, (last // PAGE + 1, 0)):
        if not frame <= start:
            return None
        if start > frame:
            found.append(Extent(frame * PAGE, (start - frame) * PAGE, page * PAGE))
        page += start - frame
        frame = start + size
    return found


def _is_guest(content: Content, head: bytes) -> bool:
    return head[:1] in b"\1\3\4\5\6\7" and guest_regions(content) is not None


# Which files belong together


def _described(content: Content, path: str) -> Optional[Described]:
    """A file's description of a machine's memory; None if it is not a state."""
    head = content.at(0, 4)
    if head in _MARKS:
        return read_state(content, path)
    regions = guest_regions(content)
    return None if regions is None else Described(regions, (), True, "VMware (debug.guest)")


def read_with(content: Content, path: str, beside: Beside) -> VmwareDump:
    """Read a state that the user named, with the memory in it or beside it.

    :raises NotADump: there is no memory, or the state is invalid.
    """
    described = _described(content, path)
    assert described is not None
    kind = "VMware state" if content.at(0, 4) in _MARKS else "VMware debug.guest"
    if described.blocks:
        return VmwareDump(_block(content, described.blocks, path), path, described, kind)
    fitting = [
        other
        for other in beside.ending(*_MEMORY)
        if other.content.size >= LEAST
        and (other.same or (described.regions and other.content.size == described.end))
    ]
    same = [other for other in fitting if other.same] or fitting
    if len(same) != 1:
        raise _no_memory(path, beside, [other.path for other in same])
    (found,) = same
    return VmwareDump(found.content, path, described, f"{kind} and .vmem", ((found.path, found.content),))


def _no_memory(path: str, beside: Beside, found: Sequence[str]) -> NotADump:
    what = f"{path} is a VMware state file, and the machine's memory is not in it"
    if beside.refused:
        return NotADump(f"{what}; {beside.refused[0].what}", "make it readable, or name it with a second -c")
    if found:
        return NotADump(
            f"{what}; {len(found)} files beside it may have it", "name the right one with a second -c"
        )
    return NotADump(
        what,
        "put its .vmem beside it, or name that with a second -c; a snapshot that was taken without memory "
        "has none",
    )


def _block(content: Content, blocks: Sequence[Block], path: str) -> Content:
    """The memory in a state."""
    if len(blocks) > 1:
        raise NotADump(
            f"{path} has its memory in {len(blocks)} blocks, but does not contain their order",
            "make ELF of it: vmss2core -N6 FILE",
        )
    (block,) = blocks
    if not block.packed:
        return Part(content, block.offset, min(block.stored, block.size))
    part = Part(content, block.offset, block.stored)
    if part.at(0, 1) != b"\x78":
        raise NotADump(
            f"{path} has memory that is compressed in an unknown way",
            "make ELF of it: vmss2core -N6 FILE",
        )
    return unpacked(part, 0, "zlib", path)


def read_memory(content: Content, path: str, beside: Beside) -> Optional[VmwareDump]:
    """Read raw memory that the user named, if a state beside it describes it; otherwise None."""
    for other in beside.ending(*_STATES):
        try:
            described = _described(other.content, other.path)
        except NotADump:
            continue
        if described is None or described.blocks or not described.regions:
            continue
        if other.same or described.end == content.size:
            others = ((other.path, other.content),)
            return VmwareDump(content, path, described, "VMware state and .vmem", others)
    return None


_IS_STATE: Test = begins(*_MARKS)
FORMAT = Format("a saved machine of VMware", either(_IS_STATE, _is_guest), form="vmware", read_with=read_with)
