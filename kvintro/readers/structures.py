# SPDX-License-Identifier: LGPL-2.1-or-later
"""Structures, members and strings of a kernel whose memory cannot be trusted."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

import drgn

from kvintro.arch.form import SMALLEST_PAGE
from kvintro.errors import Unavailable
from kvintro.model import ALL

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

#: Exceptions that drgn raises for unexpected types or contents. NotInDump is an Unavailable.
TROUBLE = (
    LookupError,
    AttributeError,
    TypeError,
    ValueError,
    OverflowError,
    OSError,
    drgn.FaultError,
    drgn.ObjectAbsentError,
    Unavailable,
)

#: The remedy for missing types.
USE_TYPES = "give -s VMLINUX or --btf FILE"
LONGEST_TEXT = 4 << 10  # PATH_MAX
#: Structures that the kernel allocates without the end of their last member. The memory after them can be
#: another object, a page that a filter removed, or a guard page of KFENCE.
_SHORT = (
    "struct task_struct",  # thread (arch/x86/kernel/fpu/init.c:fpu__init_task_struct_size)
    "struct kmem_cache",  # node, an element per NUMA node of the machine (mm/slub.c:kmem_cache_init)
)
_LARGEST_STRUCT = 1 << 24  # struct pglist_data takes a few hundred KB
_MOST_NEAR = 1 << 10  # pages that a reader of small structures keeps
#: Reads memory: (address, size). It raises NotInDump.
Read = Callable[[int, int], bytes]
#: First address of the kernel half.
KERNEL_HALF = 1 << 63


def need_types(kernel: Kernel, what: str) -> None:
    """Refuse an operation that needs types.

    :raises Unavailable: the source has no types.
    """
    if kernel.source.types == "none":
        raise Unavailable(f"{what} cannot be read without types", USE_TYPES)


def type_of(kernel: Kernel, name: str) -> drgn.Type:
    """Look up a type by name.

    :raises Unavailable: the source does not have the type.
    """
    need_types(kernel, name)
    try:
        return kernel.prog.type(name)
    except (LookupError, ValueError) as error:
        raise Unavailable(f"{name} cannot be read: this source's types do not have it") from error


def has_member(kernel: Kernel, type_name: str, member: str) -> bool:
    """Whether the kernel's structure has a member. This distinguishes the versions of a structure."""
    try:
        return bool(kernel.prog.type(type_name).has_member(member))
    except (LookupError, TypeError):
        return False


def near_reader(kernel: Kernel) -> Read:
    """Return a function like :meth:`Kernel.read`, for many small structures that share pages.

    It reads whole pages and keeps them, unless the kernel is running.
    """
    if kernel.source.live:
        return kernel.read
    pages: Dict[int, bytes] = {}

    def read(address: int, size: int) -> bytes:
        at = address % SMALLEST_PAGE
        if at + size > SMALLEST_PAGE:
            return kernel.read(address, size)
        page = pages.get(address - at)
        if page is None:
            if len(pages) >= _MOST_NEAR:
                pages.clear()
            try:
                page = kernel.read(address - at, SMALLEST_PAGE)
            except Unavailable:
                page = b""  # part of it may be in the source
            pages[address - at] = page
        return page[at : at + size] or kernel.read(address, size)

    return read


def struct_reader(kernel: Kernel, type_name: str) -> Callable[[int], drgn.Object]:
    """Return a function that reads a whole structure at an address, at once.

    The function raises Unavailable if the memory is not in the source. It does not read the last member of
    the types in ``_SHORT``, which is zero in the result.

    :raises Unavailable: there is no such type.
    """
    kind = type_of(kernel, type_name)
    read = _bytes_reader(kernel, type_name, kernel.read)
    return lambda address: drgn.Object.from_bytes_(kernel.prog, kind, read(address))


def _bytes_reader(kernel: Kernel, type_name: str, read: Read) -> Callable[[int], bytes]:
    kind = type_of(kernel, type_name)
    whole = size_of(kernel, type_name)
    needed = kind.members[-1].bit_offset // 8 if type_name in _SHORT and kind.members else whole

    def read_whole(address: int) -> bytes:
        try:
            data = read(address & ALL, needed)
        except Unavailable as error:
            raise Unavailable(f"{type_name} at {address & ALL:016x} is not in this source") from error
        return data.ljust(whole, b"\0")

    return read_whole


def member_reader(
    kernel: Kernel, type_name: str, *members: str, read: Optional[Read] = None
) -> Callable[[int], Tuple[Any, ...]]:
    """Like :func:`struct_reader`, but the function returns some members only, ten times as fast.

    :param members: names of integers, pointers and arrays of characters; the latter are returned as bytes.
        Dots separate nested members. One that this kernel's structure lacks is 0.
    :param read: reads memory, by default :meth:`Kernel.read`.
    """
    read_whole = _bytes_reader(kernel, type_name, read or kernel.read)
    kind = type_of(kernel, type_name)
    places = [_place(kind, member) for member in members]

    def values(address: int) -> Tuple[Any, ...]:
        data = read_whole(address)
        return tuple([0 if unpack is None else unpack(data, at)[0] for unpack, at in places])

    return values


def _place(kind: drgn.Type, path: str) -> Tuple[Optional[Callable[[bytes, int], Tuple[Any, ...]]], int]:
    """A function that unpacks a member, and the member's offset; None if the type lacks it."""
    at = 0
    for name in path.split("."):
        if not kind.has_member(name):
            return None, 0
        member = kind.member(name)
        at, kind = at + member.offset, member.type
        while kind.kind == drgn.TypeKind.TYPEDEF:
            kind = kind.type
    size = int(drgn.sizeof(kind))
    if kind.kind == drgn.TypeKind.ARRAY:
        return struct.Struct(f"{size}s").unpack_from, at
    letter = {1: "b", 2: "h", 4: "i", 8: "q"}[size]
    signed = kind.kind == drgn.TypeKind.INT and kind.is_signed
    return struct.Struct("<" + (letter if signed else letter.upper())).unpack_from, at


def struct_at(kernel: Kernel, type_name: str, address: int) -> drgn.Object:
    """Read a whole structure at once; see :func:`struct_reader`.

    :raises Unavailable: there is no such type, or the memory is not in the source.
    """
    return struct_reader(kernel, type_name)(address)


def struct_around(kernel: Kernel, type_name: str, node: int, offset: int) -> drgn.Object:
    """Read the structure that contains the links at an address: container_of().

    :param offset: offset of the links in the structure.
    :raises Unavailable: the address is not in the kernel half, or not in the source.
    """
    if node < KERNEL_HALF:
        raise Unavailable(f"{node:016x} is not a kernel address")
    return struct_at(kernel, type_name, node - offset)


def number(obj: drgn.Object, member: str, default: int = 0) -> int:
    """Value of an integer or pointer member; the default if the structure lacks it."""
    try:
        return int(getattr(obj, member).value_())
    except AttributeError:
        return default


def offset_of(kernel: Kernel, type_name: str, member: str) -> int:
    """offsetof(); without types, the value in VMCOREINFO.

    :raises Unavailable: there is no such type or member.
    """
    if kernel.source.types == "none":
        return _said(kernel, "OFFSET", type_name, member)
    try:
        return int(drgn.offsetof(type_of(kernel, type_name), member))
    except (LookupError, TypeError) as error:
        raise Unavailable(f"{type_name} has no member {member} here") from error


def size_of(kernel: Kernel, type_name: str) -> int:
    """sizeof(); without types, the value in VMCOREINFO.

    :raises Unavailable: there is no such type.
    """
    if kernel.source.types == "none":
        return _said(kernel, "SIZE", type_name)
    try:
        return int(drgn.sizeof(type_of(kernel, type_name)))
    except TypeError as error:
        raise Unavailable(f"{type_name} is incomplete here") from error


def _said(kernel: Kernel, what: str, type_name: str, member: str = "") -> int:
    """A size or an offset from VMCOREINFO.

    :raises Unavailable: it is missing, or too large for any structure.
    """
    name = ".".join(filter(None, (type_name.split()[-1], member)))
    try:
        found = kernel.number(f"{what}({name})").value
    except Unavailable as error:
        raise Unavailable(f"there are no types, and {error.what}", USE_TYPES) from error
    if not 0 <= found < _LARGEST_STRUCT:
        raise Unavailable(f"VMCOREINFO's {what}({name}) is {found}, which is invalid")
    return found


def is_operations(
    kernel: Kernel, address: int, name: str, type_name: str, member: str, function: str
) -> bool:
    """Whether a structure of function pointers is the variable of that name.

    If variables have no names, it is recognised by a function that only this variable contains.

    :param member: member that points to that function.
    :param function: name of that function.
    """
    known = kernel.find_symbol(name)
    if known is not None or not kernel.code_only:
        return address == known
    wanted = kernel.find_symbol(function)
    if wanted is None:
        return False
    try:
        return pointer_at(kernel, address + offset_of(kernel, type_name, member)) == wanted
    except Unavailable:
        return False


def pointer_at(kernel: Kernel, address: int) -> int:
    """Read an eight-byte number.

    :raises NotInDump: it is not in the source.
    """
    return int.from_bytes(kernel.read(address & ALL, 8), "little")


def text_at(kernel: Kernel, address: int, limit: int = LONGEST_TEXT) -> str:
    """Read a string up to its NUL or the limit. Bytes that are not UTF-8 become escapes.

    :raises NotInDump: its first page is not in the source.
    """
    out, page = b"", SMALLEST_PAGE
    while len(out) < limit:
        room = min(page - (address + len(out)) % page, limit - len(out))
        try:
            part = kernel.read(address + len(out), room)
        except Unavailable:
            if not out:
                raise
            break
        head, found, _ = part.partition(b"\0")
        out += head
        if found:
            break
    return plain_text(out)


def plain_text(data: bytes) -> str:
    """Convert the bytes of a kernel's string to text."""
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def text_of(obj: drgn.Object) -> str:
    """Text of a character array in a structure, such as ``comm``."""
    return plain_text(bytes(int(c.value_()) & 0xFF for c in obj))


def optional(obj: drgn.Object, member: str) -> Optional[drgn.Object]:
    """A member; None if the structure lacks it."""
    try:
        return getattr(obj, member)
    except AttributeError:
        return None
