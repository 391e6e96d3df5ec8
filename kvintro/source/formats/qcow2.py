# SPDX-License-Identifier: LGPL-2.1-or-later
"""Internal snapshots of qcow2 disks that include the guest's memory (savevm, virsh snapshot-create).

The format (docs/interop/qcow2.rst) has a header, a table of snapshots, and for each snapshot a two-level
table of clusters. The state of the guest is QEMU's migration stream, at guest offsets after the end of the
disk. The disk itself is not read, nor is its backing file, which never contains state.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Iterator, List, NamedTuple, Optional, Tuple

from kvintro.errors import NotADump, UsageError
from kvintro.source.content import MOST, Content
from kvintro.source.dump import COPY_AGAIN, Format, begins
from kvintro.source.formats.qemu import QemuDump
from kvintro.text import size_text

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")  # up to snapshots_offset
_INCOMPATIBLE_AT = 72
_EXTERNAL_DATA, _EXTENDED_L2 = 1 << 2, 1 << 4
_SNAPSHOT = struct.Struct(">QIHHIIQII")
_EXTRA = struct.Struct(">QQ")  # bytes of VM state, bytes of the disk
_MAX_SNAPSHOTS = 65536
_MAX_EXTRA = 1024
_MAX_L1 = 4 << 20  # entries
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED, _ZEROS = 1 << 62, 1
_CLUSTER_BITS = range(9, 22)
# The state is written from its beginning on, and never compressed.
_FREE_STATE, _STATE_TO_FILE = 64 << 20, 16
_LIST = 8  # snapshots to list in a message


class Snapshot(NamedTuple):
    """An entry of the table of snapshots.

    :ivar table: offset of its L1 table.
    :ivar entries: number of entries of its L1 table.
    :ivar state: bytes of the guest's state; 0 if it has none.
    :ivar disk: bytes of the disk at the time of the snapshot.
    """

    ident: str
    name: str
    table: int
    entries: int
    state: int
    disk: int


class Image(NamedTuple):
    """The content of the header."""

    cluster: int
    entry_size: int
    snapshots: List[Snapshot]


def read_image(content: Content, path: str) -> Image:
    """Read the header and the table of snapshots.

    :raises NotADump: they are invalid or not supported.
    """
    head = content.at(0, 104)
    if len(head) < _HEADER.size:
        raise NotADump(f"{path} is truncated within its header", COPY_AGAIN)
    _, version, _, _, bits, size, *_, count, at = _HEADER.unpack_from(head)
    flags = 0
    if version >= 3 and len(head) >= _INCOMPATIBLE_AT + 8:
        (flags,) = struct.unpack_from(">Q", head, _INCOMPATIBLE_AT)
    if version not in (2, 3) or bits not in _CLUSTER_BITS or count > _MAX_SNAPSHOTS:
        raise NotADump(f"{path}: invalid qcow2 header", "copy it again whole")
    if flags & _EXTERNAL_DATA:
        raise NotADump(
            f"{path} is a qcow2 disk image, and the memory of its snapshots is in an external data file",
            "load the snapshot with qemu-system-x86_64 -loadvm NAME -S, and dump it with dump-guest-memory",
        )
    snapshots = list(_snapshots(content, at, count, size))
    return Image(1 << bits, 16 if flags & _EXTENDED_L2 else 8, snapshots)


def _snapshots(content: Content, at: int, count: int, disk: int) -> Iterator[Snapshot]:
    for _ in range(count):
        data = content.at(at, _SNAPSHOT.size + _MAX_EXTRA)
        if len(data) < _SNAPSHOT.size:
            return
        table, entries, ident, name, _, _, _, state, extra = _SNAPSHOT.unpack_from(data)
        if extra > _MAX_EXTRA:
            return
        if extra >= _EXTRA.size:
            state, disk = _EXTRA.unpack_from(data, _SNAPSHOT.size)
        at += _SNAPSHOT.size + extra
        words = content.at(at, ident + name)
        yield Snapshot(
            words[:ident].decode("utf-8", "replace"),
            words[ident:].decode("utf-8", "replace"),
            table,
            entries,
            state,
            disk,
        )
        at += ident + name + 7 & ~7


class VmState(Content):
    """The guest's state in a snapshot, as if it were a file.

    :raises NotADump: the snapshot's tables are invalid.
    """

    def __init__(self, content: Content, image: Image, snapshot: Snapshot, path: str) -> None:
        self._content = content
        self._cluster = image.cluster
        self.real = content.real
        per_table = image.cluster // image.entry_size
        reach = per_table * image.cluster
        first = -(-snapshot.disk // reach)  # the state begins with a new table
        tables = -(-snapshot.state // reach)
        if snapshot.state > _FREE_STATE + _STATE_TO_FILE * content.real:
            raise NotADump(
                f"{path} claims {size_text(snapshot.state)} of memory for snapshot {snapshot.name!r}, "
                "which is too much for the size of the file",
                COPY_AGAIN,
            )
        if snapshot.entries > _MAX_L1 or first + tables > snapshot.entries:
            raise NotADump(f"{path}: the tables of snapshot {snapshot.name!r} are invalid", COPY_AGAIN)
        self.size = snapshot.state
        data = content.at(snapshot.table + 8 * first, 8 * tables)
        self._places = self._clusters(data, per_table, image.entry_size, -(-self.size // image.cluster))

    def _clusters(self, data: bytes, per_table: int, entry_size: int, count: int) -> NDArray[numpy.int64]:
        """Offset of each cluster: 0 for zeros, -1 if it cannot be read."""
        import numpy

        parts: List[NDArray[numpy.int64]] = []
        for (entry,) in struct.iter_unpack(">Q", data[: len(data) // 8 * 8]):
            table = entry & _OFFSET
            raw = self._content.at(table, per_table * entry_size) if table else bytes(per_table * entry_size)
            raw = raw[: len(raw) // entry_size * entry_size]
            words = numpy.frombuffer(raw, ">u8").astype(numpy.uint64)[:: entry_size // 8]
            places = (words & numpy.uint64(_OFFSET)).astype(numpy.int64)
            places[(words & numpy.uint64(_ZEROS)) != 0] = 0
            places[(words & numpy.uint64(_COMPRESSED)) != 0] = -1
            parts.append(numpy.pad(places, (0, per_table - len(places)), constant_values=-1))
        found = numpy.concatenate([*parts, numpy.zeros(0, numpy.int64)])[:count]
        return numpy.pad(found, (0, count - len(found)), constant_values=-1)

    def at(self, offset: int, size: int) -> bytes:
        found: List[bytes] = []
        end = min(offset + min(size, MOST), self.size)
        while 0 <= offset < end:
            index, within = divmod(offset, self._cluster)
            count = self._touching(index, end - index * self._cluster)
            place = int(self._places[index])
            wanted = min(end - offset, count * self._cluster - within)
            if place < 0:
                break
            data = self._content.at(place + within, wanted) if place else bytes(wanted)
            found.append(data)
            offset += len(data)
            if len(data) < wanted:
                break
        return found[0] if len(found) == 1 else b"".join(found)

    def _touching(self, index: int, size: int) -> int:
        """Number of clusters from ``index`` on that are contiguous in the file, up to ``size`` bytes."""
        count = 1
        place = int(self._places[index])
        most = min(len(self._places) - index, -(-size // self._cluster))
        while place > 0 and count < most and self._places[index + count] == place + count * self._cluster:
            count += 1
        return count

    def stretches(self, start: int, end: int) -> Iterator[Tuple[int, int]]:
        at, end = start, min(end, self.size)
        while at < end:
            index = at // self._cluster
            after = min(end, (index + 1) * self._cluster)
            if self._places[index] > 0:
                yield at, after
            at = after

    def has_all(self, offset: int, size: int) -> bool:
        return 0 <= offset <= self.size - size


class Qcow2Dump(QemuDump):
    """A snapshot with memory.

    :param wanted: its name or id; None to use the only one.
    :raises NotADump: there is no snapshot with memory.
    :raises UsageError: there is none of that name, or the choice is ambiguous.
    """

    def __init__(self, content: Content, path: str, wanted: Optional[str] = None) -> None:
        image = read_image(content, path)
        snapshot = _chosen(image, path, wanted)
        state = VmState(content, image, snapshot, path)
        writer = f"snapshot {snapshot.name!r} in a qcow2 disk image"
        super().__init__(state, path, form="qcow2 snapshot", writer=writer)
        self.size = content.size


def _chosen(image: Image, path: str, wanted: Optional[str]) -> Snapshot:
    there = [snapshot for snapshot in image.snapshots if snapshot.state]
    names = ", ".join(f"{s.name!r} ({size_text(s.state)})" for s in there[:_LIST])
    if len(there) > _LIST:
        names += f" and {len(there) - _LIST} more"
    if not there:
        what = "no snapshots" if not image.snapshots else "snapshots of the disk only, without memory"
        raise NotADump(
            f"{path} is a qcow2 disk image with {what}",
            "savevm writes memory to one of the guest's disks: name that; or dump the guest as ELF",
        )
    if wanted is None:
        if len(there) == 1:
            return there[0]
        raise UsageError(
            f"{path} has memory of {len(there)} snapshots: {names}", "choose with --snapshot NAME"
        )
    found = [s for s in there if s.name == wanted] or [s for s in there if s.ident == wanted]
    if len(found) != 1:
        problem = "no snapshot" if not found else f"{len(found)} snapshots"
        raise UsageError(f"{path} has {problem} {wanted!r} with memory; it has {names}", "choose another one")
    return found[0]


FORMAT = Format("a qcow2 disk image", begins(MAGIC), form="qcow2", read=Qcow2Dump)
