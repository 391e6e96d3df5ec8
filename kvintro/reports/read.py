# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory as words, as a value of a type, or as plain bytes."""

from __future__ import annotations

from typing import Iterator, Optional, Sequence, Tuple, TypedDict, Union

import drgn

from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.model import Address, Column, Raw, Report, Size, Table, Thing
from kvintro.queries.members import Member, Members, inferred_type, type_named
from kvintro.queries.memory import MemoryWord, Space, Words
from kvintro.queries.translate import Input

_SIZE = 128  # default number of bytes
_MOST = 1 << 20  # maximum number of bytes shown as words
_MOST_RAW = 1 << 40
_AT_ONCE = 1 << 20


class ReadExtra(TypedDict):
    """Values for the whole report.

    :ivar space: ``kernel``, ``physical`` or ``pid N``.
    :ivar type: the requested type.
    :ivar identities: identities of the address, most specific first.
    """

    address: Address
    size: Size
    space: str
    type: Optional[str]
    identities: Sequence[Thing]


ReadReport = Report[Tuple[Table[Union[MemoryWord, Member]]], ReadExtra]

WORDS = (
    Column("address", "address"),
    Column("value", "value"),
    Column("text", "ASCII"),
    Column("identity", "what it is"),
)
MEMBERS = (
    Column("offset", "offset", "right"),
    Column("name", "member"),
    Column("type", "type", spare=1),
    Column("value", "value"),
    Column("identity", "what it is"),
)


def read(
    kernel: Kernel,
    text: str,
    *,
    size: Optional[int] = None,
    type_name: Optional[str] = None,
    pid: Optional[int] = None,
    physical: bool = False,
) -> ReadReport:
    """Read words or members from an address on.

    :param text: see :meth:`kvintro.queries.memory.Space.parse`.
    :param size: number of bytes; by default 128, or the size of the type.
    :param type_name: see :func:`kvintro.queries.members.type_named`.
    :param pid: process whose memory is read.
    :param physical: whether the address is physical.
    :raises UsageError: the address or the type is unknown, or the size is too large.
    """
    space = Space(kernel, pid=pid, physical=physical)
    asked = space.parse(text)
    reader = Words(space)
    type_ = None if type_name is None else type_named(kernel, type_name)
    if size is not None and size > _MOST:
        raise UsageError(f"{size} bytes are too many to show", f"give at most {_MOST}, or --raw -o FILE")
    size = _SIZE if size is None else size
    table: Table[Union[MemoryWord, Member]]
    if type_ is None:
        table = Table("words", WORDS, list(reader.at(asked.value, size)))
    else:
        size = drgn.sizeof(type_)
        table = Table("members", MEMBERS, Members(reader).of(type_, asked.value))
    identities = reader.identifier.identify(asked).identities
    notes = [*kernel.source.warnings, *([asked.note] if asked.note else [])]
    notes += _hints(kernel, space, asked, type_name, identities)
    return Report(
        command="read",
        kernel=kernel.identity,
        tables=(table,),
        notes=tuple(notes),
        partial=any(row.state == "not-in-dump" for row in table.rows),
        negative=any(row.state in ("unmapped", "non-canonical") for row in table.rows),
        extra={
            "address": Address(asked.value),
            "size": Size(size),
            "space": space.name,
            "type": None if type_ is None else type_.type_name(),
            "identities": identities,
        },
    )


def _hints(
    kernel: Kernel, space: Space, asked: Input, type_name: Optional[str], things: Sequence[Thing]
) -> Iterator[str]:
    """Notes about what is unknown, and about what to ask next."""
    if kernel.source.types == "none":
        yield "without types, tasks, stacks, slab objects and areas are not identified"
    if asked.value in kernel.form.user and not space.physical and space.pid is None:
        yield "a user address: name the process with --pid; --phys reads physical memory"
    known = None if type_name is not None or space.physical else inferred_type(kernel, things)
    if known is not None:
        name, start = known
        yield f"it is in a {name}: kvintro read {start:016x} --type '{name}' shows the members"


def raw(
    kernel: Kernel,
    text: str,
    *,
    size: Optional[int] = None,
    type_name: Optional[str] = None,
    pid: Optional[int] = None,
    physical: bool = False,
) -> Raw:
    """Read the bytes from an address on; the parameters are those of :func:`read`.

    :raises UsageError: the address or the type is unknown, or the size is too large.
    :raises NotInDump: a byte cannot be read. Then nothing is written to a file.
    """
    space = Space(kernel, pid=pid, physical=physical)
    start = space.parse(text).value
    if type_name is not None:
        size = drgn.sizeof(type_named(kernel, type_name))
    count = _SIZE if size is None else size
    if count > _MOST_RAW or start + count - 1 > space.end:
        raise UsageError(f"{count} bytes from {start:016x} are too many", "give a smaller --size")
    return Raw("read", kernel.identity, (), pieces=_parts(space, start, count))


def _parts(space: Space, start: int, size: int) -> Iterator[bytes]:
    while size:
        count = min(size, _AT_ONCE)
        yield space.read(start, count)
        start, size = start + count, size - count
