# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory as a value of a type: its members at their offsets, with values and identities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Sequence, Tuple, Union

import drgn
from drgn import TypeKind

from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.model import Address, Size, Thing
from kvintro.queries.memory import WORD, Piece, Space, Words
from kvintro.readers.structures import TROUBLE, need_types, plain_text
from kvintro.text import printable

_LARGEST = 1 << 20  # maximum size of a type in bytes
_DEEPEST = 16  # maximum nesting of structures
_MOST_ROWS = 1 << 14
_MOST_ELEMENTS = 16  # maximum number of elements listed of an array
_COMPOUND = (TypeKind.STRUCT, TypeKind.UNION, TypeKind.CLASS)
_SCALAR = (TypeKind.INT, TypeKind.BOOL, TypeKind.FLOAT, TypeKind.ENUM, TypeKind.POINTER)
#: Structures by slab cache, where their names differ.
_IN_CACHES = {
    "buffer_head": "buffer_head",
    "cred_jar": "cred",
    "eventpoll_epi": "epitem",
    "ext4_inode_cache": "ext4_inode_info",
    "files_cache": "files_struct",
    "filp": "file",
    "fs_cache": "fs_struct",
    "inode_cache": "inode",
    "key_jar": "key",
    "mnt_cache": "mount",
    "proc_inode_cache": "proc_inode",
    "shmem_inode_cache": "shmem_inode_info",
    "sighand_cache": "sighand_struct",
    "signal_cache": "signal_struct",
    "skbuff_head_cache": "sk_buff",
    "sock_inode_cache": "socket_alloc",
}


@dataclass(frozen=True)
class Member:
    """A member of a structure, or an element of an array.

    :ivar name: full name with the enclosing members: ``se.load.weight``, ``cpus[1]``; empty for the value
        itself.
    :ivar label: its own name alone: ``weight``, ``[1]``; empty for a structure or union without a name.
    :ivar depth: number of structures and arrays that contain it.
    :ivar type: name of the type in C.
    :ivar address: address of its first byte.
    :ivar offset: offset in bytes from the start of the whole value.
    :ivar size: size in bytes; null for types of unknown size.
    :ivar bit_offset: for a bit field, its offset in bits from the byte at the offset.
    :ivar bit_size: size of a bit field in bits; null for others.
    :ivar value: value to display; null for structures, and for values that cannot be read.
    :ivar number: value of an integer, a pointer, a boolean or an enumeration.
    :ivar points_to: type that a pointer points to.
    :ivar identity: the most specific identity of the value.
    :ivar note: why it cannot be read, or how many elements are not listed.
    :ivar state: ``mapped`` if its memory can be read; else ``unmapped``, ``not-in-dump``, ``non-canonical``.
    """

    name: str
    label: str
    depth: int
    type: str
    address: Address
    offset: int
    size: Optional[Size]
    bit_offset: Optional[int] = None
    bit_size: Optional[int] = None
    value: Optional[str] = None
    number: Optional[int] = None
    points_to: Optional[str] = None
    identity: Optional[Thing] = None
    note: Optional[str] = None
    state: str = "mapped"


def type_named(kernel: Kernel, name: str) -> drgn.Type:
    """Look up a type by its name in C: ``struct task_struct``, ``struct list_head [4]``, ``pid_t``.

    If there is no type of that name, the name may be that of a structure or union without the keyword.

    :raises UsageError: there is no such type, or it has no size.
    :raises Unavailable: the source has no types.
    """
    need_types(kernel, name)
    for text in (name, f"struct {name}", f"union {name}"):
        try:
            found = kernel.prog.type(text)
            size = drgn.sizeof(found)
        except (LookupError, SyntaxError, ValueError):
            continue
        except TypeError:
            raise UsageError(
                f"{printable(text)} does not have a size", "name a type that is complete"
            ) from None
        if size > _LARGEST:
            raise UsageError(f"{printable(text)} has {size} bytes", f"at most {_LARGEST} can be shown")
        return found
    raise UsageError(
        f"this kernel has no type {printable(name)}", "give it as in C, as in --type 'struct task_struct'"
    )


class Members:
    """Reads values of types from one address space."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._space = words.space
        self._prog = words.space.kernel.prog

    def of(self, type_: drgn.Type, address: int) -> List[Member]:
        """A value and everything in it, in order of offset.

        Structures are followed by their members, arrays by their first elements.

        :param type_: see :func:`type_named`.
        """
        whole = _Whole.read(self._space, address, drgn.sizeof(type_))
        rows: List[Member] = []
        for row in self._value(type_, whole, ("", ""), 0, 0):
            if len(rows) >= _MOST_ROWS:
                break
            rows.append(row)
        return rows

    def _value(
        self,
        type_: drgn.Type,
        whole: _Whole,
        names: Tuple[str, str],
        depth: int,
        bit: int,
        bits: Optional[int] = None,
    ) -> Iterator[Member]:
        """Rows of a value.

        :param names: full name with the enclosing members, and its own name alone.
        :param bit: offset in bits from the start of the whole value.
        :param bits: size of a bit field in bits.
        """
        plain = underlying(type_)
        try:
            size = drgn.sizeof(type_)
        except TypeError:
            size = None  # incomplete, or an array without a length
        start = bit // 8
        name = names[0]
        row = Member(
            *names,
            depth,
            type_.type_name(),
            Address(whole.address + start),
            start,
            None if size is None else Size(size),
            None if bits is None else bit % 8,
            bits,
            points_to=_target(plain),
        )
        if plain.kind in _COMPOUND and depth < _DEEPEST and size is not None:
            yield row
            for member in plain.members:
                below = f"{name}.{member.name}" if name and member.name else member.name or name
                yield from self._value(
                    member.type,
                    whole,
                    (below, member.name or ""),
                    depth + 1,
                    bit + member.bit_offset,
                    member.bit_field_size,
                )
        elif plain.kind == TypeKind.ARRAY and size and underlying(plain.type).kind not in _SCALAR:
            yield from self._elements(plain, row, whole, bit)
        else:
            yield self._scalar(type_, plain, row, whole, bit)

    def _elements(self, plain: drgn.Type, row: Member, whole: _Whole, bit: int) -> Iterator[Member]:
        count, each = plain.length or 0, drgn.sizeof(plain.type)
        hidden = max(0, count - _MOST_ELEMENTS)
        yield _changed(row, note=f"{hidden} more elements are not listed" if hidden else None)
        if row.depth < _DEEPEST:
            for index in range(count - hidden):
                at = bit + 8 * each * index
                names = f"{row.name}[{index}]", f"[{index}]"
                yield from self._value(plain.type, whole, names, row.depth + 1, at)

    def _scalar(self, type_: drgn.Type, plain: drgn.Type, row: Member, whole: _Whole, bit: int) -> Member:
        """Add the value to the row of a scalar."""
        if not row.size:
            return row
        size = row.size if row.bit_size is None else (bit % 8 + row.bit_size + 7) // 8
        data = whole.part(row.offset, size)
        if isinstance(data, Piece):
            return _changed(row, note=data.why, state=data.state)
        if plain.kind == TypeKind.ARRAY:
            return _changed(row, value=_array_text(self._prog, plain, data))
        if plain.kind not in _SCALAR:
            return _changed(row, note="values of this type are not shown")
        try:
            found = drgn.Object.from_bytes_(
                self._prog, type_, data, bit_offset=bit % 8, bit_field_size=row.bit_size
            )
            value = found.value_()
        except (ValueError, TypeError, NotImplementedError) as error:
            return _changed(row, note=str(error))
        number = None if plain.kind == TypeKind.FLOAT else int(value)
        identity = None
        if number is not None and row.size == WORD and row.bit_size is None:
            identity = self._words.identifier.of_word(number & (1 << 64) - 1)
            # An ordinary number can look like an error value.
            if identity is not None and identity.kind == "error_value" and plain.kind != TypeKind.POINTER:
                identity = None
        return _changed(row, value=_text(plain, value), number=number, identity=identity)


@dataclass(frozen=True)
class _Whole:
    """The bytes of a value.

    :ivar missing: pieces that cannot be read; their bytes here are zeros.
    """

    address: int
    data: bytes
    missing: Sequence[Piece]

    @classmethod
    def read(cls, space: Space, address: int, size: int) -> _Whole:
        """Read everything that can be read."""
        pieces = list(space.pieces(address, size))
        data = b"".join(bytes(piece.size) if piece.data is None else piece.data for piece in pieces)
        missing = [piece for piece in pieces if piece.data is None]
        if len(data) < size:
            rest = size - len(data)
            missing.append(Piece(address + len(data), rest, None, "unmapped", "beyond the last address"))
        return cls(address, data.ljust(size, b"\0"), missing)

    def part(self, offset: int, size: int) -> Union[bytes, Piece]:
        """Some of the bytes, or the first piece of them that cannot be read."""
        start = self.address + offset
        for piece in self.missing:
            if start < piece.start + piece.size and piece.start < start + size:
                return piece
        return self.data[offset : offset + size]


def underlying(type_: drgn.Type) -> drgn.Type:
    """A type without its typedefs."""
    while type_.kind == TypeKind.TYPEDEF:
        type_ = type_.type
    return type_


def _changed(row: Member, **values: Any) -> Member:
    return Member(**{**vars(row), **values})


def _target(plain: drgn.Type) -> Optional[str]:
    """Name of the type that a pointer points to, if its members or value can be shown."""
    if plain.kind != TypeKind.POINTER:
        return None
    target = underlying(plain.type)
    if target.kind in (TypeKind.VOID, TypeKind.FUNCTION) or (target.kind in _COMPOUND and not target.tag):
        return None
    return str(plain.type.type_name())


def _text(plain: drgn.Type, value: Any) -> str:
    if plain.kind == TypeKind.POINTER:
        return f"{value:016x}"
    if plain.kind == TypeKind.BOOL:
        return "true" if value else "false"
    if plain.kind == TypeKind.ENUM:
        name = next((e.name for e in plain.enumerators or () if e.value == value), None)
        return str(value) if name is None else f"{name} ({value})"
    if plain.kind == TypeKind.INT and abs(value) >> 32:
        return f"{value} ({value & (1 << 8 * plain.size) - 1:#x})"
    return str(value)


def _array_text(prog: drgn.Program, plain: drgn.Type, data: bytes) -> str:
    """Format an array of scalars. An array of characters becomes a string."""
    element = underlying(plain.type)
    if element.kind == TypeKind.INT and element.size == 1 and element.name in ("char", "signed char"):
        return f'"{printable(plain_text(data))}"'
    each = drgn.sizeof(plain.type)
    count = plain.length or 0
    values = [
        drgn.Object.from_bytes_(prog, plain.type, data[at : at + each]).value_()
        for at in range(0, each * min(count, _MOST_ELEMENTS), each)
    ]
    texts = [_text(element, value) for value in values]
    rest = [f"... {count - len(values)} more"] if count > len(values) else []
    return " ".join(texts + rest)


def inferred_type(kernel: Kernel, things: Sequence[Thing]) -> Optional[Tuple[str, Address]]:
    """Infer the type of the object that contains an address, and the object's address.

    The name of a slab cache determines the type if the cache has only such objects, and if the structure fits
    into them. A symbol determines it if the type of the variable is known.

    :param things: identities of the address, most specific first; see
        :class:`kvintro.queries.identify.Identifier`.
    :return: None if the type is unknown.
    """
    for thing in things:
        if thing.start is None:
            continue
        name = {"task": "struct task_struct", "struct_page": "struct page"}.get(thing.kind)
        try:
            if thing.kind == "slab_object":
                name = _type_in_cache(kernel, thing)
            elif thing.kind == "symbol":
                found = kernel.prog.object(thing.details["name"], drgn.FindObjectFlags.VARIABLE)
                name = found.type_.type_name() if found.address_ == thing.start else None
        except TROUBLE:
            continue
        if name is not None:
            return name, thing.start
    return None


def _type_in_cache(kernel: Kernel, thing: Thing) -> Optional[str]:
    from drgn.helpers.linux.slab import find_containing_slab_cache

    cache = thing.details["cache"]
    name = f"struct {_IN_CACHES.get(cache, cache)}"
    if not thing.details["allocated"] or not cache.isidentifier():
        return None
    if not 0 < drgn.sizeof(kernel.prog.type(name)) <= (thing.size or 0):
        return None
    # Caches of similar objects are merged, and keep the name of one of them (mm/slab_common.c).
    merged = find_containing_slab_cache(kernel.prog, thing.start).refcount.value_() > 1
    return None if merged else name
