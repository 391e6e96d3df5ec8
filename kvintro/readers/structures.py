# SPDX-License-Identifier: LGPL-2.1-or-later
"""Lists, trees and strings of a kernel whose memory cannot be trusted.

drgn's own iterators follow a pointer wherever it leads and go round in a circle for ever. These stop at the
first node that was met before, that is not in the source, or past a limit that no real kernel reaches, and
say so in a :class:`Damage`; what was found until then is kept.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Optional, Set, Tuple

import drgn

from kvintro.arch.x86_64 import ALL
from kvintro.errors import Unavailable

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

#: What drgn raises when types or contents are not what they should be. NotInDump is an Unavailable.
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

#: Entries of one list or tree; a machine with a million vmalloc areas would be the first.
LIMIT = 1 << 20
_LINKS = 8  # bytes of the shortest: of a struct llist_node
#: What helps where there are no types.
USE_TYPES = "give -s VMLINUX or --btf FILE"
_LARGEST_STRUCT = 1 << 24  # struct pglist_data takes some hundreds of KB
_KERNEL_HALF = 1 << 63
_MAX_CPUS = 8192  # NR_CPUS_RANGE_END with MAXSMP
_WAITING = 10  # seconds of the clock for one of the processor's


class _OutOfTime(BaseException):
    """No Exception: what helpers catch and go on after, this is not."""


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Ends what runs for too long: a helper of drgn's that follows a damaged list or tree for ever.

    Helpers are Python, so that a profile function sees them call; it costs nothing outside. What is counted
    is time of the processor, so that a busy machine gives the same answers; waiting ends too, much later.

    :raises Unavailable: they took longer than that.
    """
    deadline = time.thread_time() + seconds
    patience = time.monotonic() + _WAITING * seconds
    before = sys.getprofile()
    calls = 0

    def watch(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += 1
        if not calls & 0xF and (time.thread_time() > deadline or time.monotonic() > patience):
            raise _OutOfTime

    sys.setprofile(watch)
    try:
        yield
    except _OutOfTime:
        raise Unavailable(f"looking for it had not come to an end after {seconds:.2g} s") from None
    finally:
        sys.setprofile(before)


class Budget:
    """Time of the processor for all that one command asks of drgn's helpers.

    Each question adds a little to what is left, up to what there was at first: a long list of honest ones is
    never cut short, and a dump made to hold us up costs the sum once and not for each.

    :param seconds: for all.
    :param each: what a question adds, and may take when nothing else is left.
    """

    def __init__(self, seconds: float, each: float) -> None:
        self._left = self._most = seconds
        self._each = each

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        return self._left <= 0

    def question(self) -> None:
        """Another question is asked."""
        self._left = min(max(self._left, 0) + self._each, self._most)

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """:func:`bounded` by what is left.

        :raises Unavailable: it was not enough.
        """
        if self.spent:
            raise Unavailable("the time for looking is used up")
        started = time.thread_time()
        try:
            with bounded(self._left):
                yield
        finally:
            self._left -= time.thread_time() - started


class Damage:
    """What could not be followed or read, for the notes of a report that is then partial.

    :ivar notes: one line each; the same kind of trouble with one structure is told once, with a count.
    """

    _MOST = 20

    def __init__(self) -> None:
        self._counts: dict[str, Tuple[int, str]] = {}

    def add(self, what: str, detail: object = "") -> None:
        """Note a trouble. Equal ``what`` are counted, and the first detail is kept."""
        count, first = self._counts.get(what, (0, " ".join(str(detail).split())[:200]))
        self._counts[what] = (count + 1, first)

    def __bool__(self) -> bool:
        return bool(self._counts)

    @property
    def notes(self) -> List[str]:
        """The troubles, each in a line."""
        out = []
        for what, (count, detail) in list(self._counts.items())[: self._MOST]:
            times = f" ({count} times)" if count > 1 else ""
            out.append(f"{what}{times}: {detail}" if detail else f"{what}{times}")
        if len(self._counts) > self._MOST:
            out.append(f"and {len(self._counts) - self._MOST} more troubles of this kind")
        return out


def need_types(kernel: Kernel, what: str) -> None:
    """Say so at once where nothing can be found without types.

    :raises Unavailable: the source has none.
    """
    if kernel.source.types == "none":
        raise Unavailable(f"{what} cannot be read without types", USE_TYPES)


def type_of(kernel: Kernel, name: str) -> drgn.Type:
    """A type by its name.

    :raises Unavailable: the source does not have it.
    """
    need_types(kernel, name)
    try:
        return kernel.prog.type(name)
    except (LookupError, ValueError) as error:
        raise Unavailable(f"{name} cannot be read: this source's types do not have it") from error


def has_member(kernel: Kernel, type_name: str, member: str) -> bool:
    """Whether the kernel's structure has a member: how versions are told apart."""
    try:
        return bool(kernel.prog.type(type_name).has_member(member))
    except (LookupError, TypeError):
        return False


def struct_at(kernel: Kernel, type_name: str, address: int) -> drgn.Object:
    """A structure as a value: its memory is read here and once.

    :raises Unavailable: no such type, or its memory is not in the source.
    """
    found = drgn.Object(kernel.prog, type_of(kernel, type_name), address=address & ALL)
    try:
        return found.read_()
    except (drgn.FaultError, OverflowError, ValueError) as error:
        raise Unavailable(f"{type_name} at {address:016x} is not in this source") from error


def struct_around(kernel: Kernel, type_name: str, node: int, offset: int) -> drgn.Object:
    """container_of(), as :func:`struct_at`: what has its links at an address.

    :param offset: of the links in it.
    :raises Unavailable: that is no address of the kernel, or not in the source.
    """
    if node < _KERNEL_HALF:
        raise Unavailable(f"{node:016x} is no kernel address")
    return struct_at(kernel, type_name, node - offset)


def slab_cache_at(kernel: Kernel, address: int) -> drgn.Object:
    """A ``struct kmem_cache``, but for the array at its end, which has something for each node.

    As much of that is allocated as the machine has nodes (mm/slub.c:kmem_cache_init). What would be the rest
    may not be mapped: a guard page of KFENCE's.

    :raises Unavailable: no such type, or its memory is not in the source.
    """
    kind = type_of(kernel, "struct kmem_cache")
    whole = size_of(kernel, "struct kmem_cache")
    last = kind.members[-1] if kind.members else None
    read = last.bit_offset // 8 if last and last.type.kind == drgn.TypeKind.ARRAY else whole
    data = kernel.read(address & ALL, read)
    return drgn.Object.from_bytes_(kernel.prog, kind, data.ljust(whole, b"\0"))


def number(obj: drgn.Object, member: str, default: int = 0) -> int:
    """An integer or pointer member; the default if the structure has none of that name."""
    try:
        return int(getattr(obj, member).value_())
    except AttributeError:
        return default


def offset_of(kernel: Kernel, type_name: str, member: str) -> int:
    """offsetof(). Without types, what VMCOREINFO says of it.

    :raises Unavailable: no such type or member.
    """
    if kernel.source.types == "none":
        return _said(kernel, "OFFSET", type_name, member)
    try:
        return int(drgn.offsetof(type_of(kernel, type_name), member))
    except (LookupError, TypeError) as error:
        raise Unavailable(f"{type_name} has no member {member} here") from error


def size_of(kernel: Kernel, type_name: str) -> int:
    """sizeof(). Without types, what VMCOREINFO says of it.

    :raises Unavailable: no such type.
    """
    if kernel.source.types == "none":
        return _said(kernel, "SIZE", type_name)
    try:
        return int(drgn.sizeof(type_of(kernel, type_name)))
    except TypeError as error:
        raise Unavailable(f"{type_name} is incomplete here") from error


def _said(kernel: Kernel, what: str, type_name: str, member: str = "") -> int:
    """A size or an offset as VMCOREINFO has it.

    :raises Unavailable: it has none, or one that no structure has.
    """
    name = ".".join(filter(None, (type_name.split()[-1], member)))
    try:
        found = kernel.number(f"{what}({name})").value
    except Unavailable as error:
        raise Unavailable(f"there are no types, and {error.what}", USE_TYPES) from error
    if not 0 <= found < _LARGEST_STRUCT:
        raise Unavailable(f"VMCOREINFO's {what}({name}) is {found}, which makes no sense")
    return found


def is_table(kernel: Kernel, address: int, name: str, type_name: str, member: str, function: str) -> bool:
    """Whether a table of functions is the variable of that name.

    Where variables have no names it is one that has a function of its own: ``function`` as its ``member``.
    """
    known = kernel.find_symbol(name)
    if known is not None or not kernel.code_only:
        return address == known
    wanted = kernel.find_symbol(function)
    try:
        return (
            wanted is not None
            and pointer_at(kernel, address + offset_of(kernel, type_name, member)) == wanted
        )
    except Unavailable:
        return False


def pointer_at(kernel: Kernel, address: int) -> int:
    """Eight bytes.

    :raises NotInDump: they are not in the source.
    """
    return int.from_bytes(kernel.read(address & ALL, 8), "little")


def claims(kernel: Kernel, kind: str, size: int, owner: int) -> Callable[[int], None]:
    """What to call with the address of each entry of a list or tree.

    It raises Unavailable for an entry that overlaps another, or is in another list too. No kernel has those.

    :param kind: the type of the entries, and the member by which they are in it.
    :param size: bytes that each entry has at least. The size of its type can be more: the kernel allocates
        ``struct task_struct`` and ``struct kmem_cache`` without ends that this machine does not need.
    :param owner: address of its head.
    """

    def claim(node: int) -> None:
        problem = kernel.claims.problem(kind, node, size, owner)
        if problem:
            raise Unavailable(problem)

    return claim


def list_entries(
    kernel: Kernel, head: int, type_name: str, member: str, damage: Damage, what: str, *, limit: int = LIMIT
) -> Iterator[Tuple[int, drgn.Object]]:
    """The entries of a ``struct list_head`` list, each with its address and as a value.

    A list that breaks off is taken up again from its other end, so that one bad pointer costs no more than
    the entries around it; what comes from there comes in reverse.

    :param head: address of the list's head.
    :param member: the list's links in the entries.
    :param what: what the list is, for notes: ``the list of modules``.
    """
    offset = offset_of(kernel, type_name, member)
    claim = claims(kernel, f"{type_name}.{member}", offset + _LINKS, head)
    seen: Set[int] = {head}
    for way in ("next", "prev"):
        count = 0
        try:
            node = pointer_at(kernel, head + offset_of(kernel, "struct list_head", way))
        except Unavailable as error:
            damage.add(f"{what} has no head here", error.what)
            return
        if node == 0 and way == "next":
            return  # never initialised, so nothing was ever in it
        while node not in seen:
            if len(seen) > limit:
                damage.add(f"{what} does not end", f"given up after {limit} entries")
                return
            seen.add(node)
            try:
                claim(node)
                entry = struct_around(kernel, type_name, node, offset)
            except Unavailable as error:
                damage.add(f"{what} breaks off", f"after {count} entries: {error.what}")
                break
            yield node - offset & ALL, entry
            count += 1
            node = int(getattr(getattr(entry, member), way).value_())
        else:
            if node == head or way == "prev":
                return
            damage.add(f"{what} runs in a circle", f"after {count} entries back to {node:016x}")


def list_nodes(kernel: Kernel, head: int, damage: Damage, what: str, *, limit: int = LIMIT) -> Iterator[int]:
    """Addresses of the links of a ``struct list_head`` list; no types are needed.

    :param head: address of the list's head.
    :param what: what the list is, for notes.
    """
    following = offset_of(kernel, "struct list_head", "next")
    seen: Set[int] = {head}
    try:
        node = pointer_at(kernel, head + following)
        while node != head:
            if node in seen or node < _KERNEL_HALF:
                damage.add(f"{what} is damaged", f"after {len(seen) - 1} entries it leads to {node:016x}")
                return
            if len(seen) > limit:
                damage.add(f"{what} does not end", f"given up after {limit} entries")
                return
            seen.add(node)
            yield node
            node = pointer_at(kernel, node + following)
    except Unavailable as error:
        damage.add(f"{what} breaks off", f"after {len(seen) - 1} entries: {error.what}")


def chain_entries(
    kernel: Kernel, head: int, type_name: str, member: str, damage: Damage, what: str, *, limit: int = LIMIT
) -> Iterator[Tuple[int, drgn.Object]]:
    """As :func:`list_entries`, for a ``struct llist_head``: linked one way, and ended by NULL."""
    offset = offset_of(kernel, type_name, member)
    claim = claims(kernel, f"{type_name}.{member}", offset + _LINKS, head)
    seen: Set[int] = set()
    try:
        node = pointer_at(kernel, head)
    except Unavailable as error:
        damage.add(f"{what} has no head here", error.what)
        return
    while node:
        if node in seen or len(seen) > limit:
            damage.add(f"{what} does not end", f"given up after {len(seen)} entries")
            return
        seen.add(node)
        try:
            claim(node)
            entry = struct_around(kernel, type_name, node, offset)
        except Unavailable as error:
            damage.add(f"{what} breaks off", f"after {len(seen) - 1} entries: {error.what}")
            return
        yield node - offset & ALL, entry
        node = int(getattr(entry, member).next.value_())


def tree_entries(
    kernel: Kernel, root: int, type_name: str, member: str, damage: Damage, what: str, *, limit: int = LIMIT
) -> Iterator[Tuple[int, drgn.Object]]:
    """The entries of a ``struct rb_root`` tree in order, each with its address and as a value.

    :param root: address of the root.
    """
    offset = offset_of(kernel, type_name, member)
    claim = claims(kernel, f"{type_name}.{member}", offset + _LINKS, root)
    seen: Set[int] = set()
    above: List[Tuple[int, drgn.Object]] = []
    node = pointer_at(kernel, root)
    while node or above:
        while node:
            if node in seen:
                damage.add(f"{what} runs in a circle", f"back to {node:016x}")
                break
            if len(seen) > limit:
                damage.add(f"{what} does not end", f"given up after {limit} entries")
                return
            seen.add(node)
            try:
                claim(node)
                entry = struct_around(kernel, type_name, node, offset)
            except Unavailable as error:
                damage.add(f"{what} is damaged: what hangs below one pointer is missing", error.what)
                break
            above.append((node - offset & ALL, entry))
            node = int(getattr(entry, member).rb_left.value_())
        if not above:
            return
        address, entry = above.pop()
        yield address, entry
        node = int(getattr(entry, member).rb_right.value_())


# lib/maple_tree.c, include/linux/maple_tree.h
_MAPLE_NODE_MASK, _MAPLE_NODE_SIZE = 255, 256
_MAPLE_TYPE_SHIFT, _MAPLE_TYPE_MASK = 3, 15
_MAPLE_DENSE, _MAPLE_LEAF, _MAPLE_RANGE, _MAPLE_ARANGE = range(4)
_XA_INTERNAL = 2


def maple_entries(
    kernel: Kernel, tree: int, damage: Damage, what: str, *, limit: int = LIMIT
) -> Iterator[Tuple[int, int, int]]:
    """(first index, last index, pointer) of what a ``struct maple_tree`` holds, in order.

    :param tree: its address.
    """
    root = int(struct_at(kernel, "struct maple_tree", tree).ma_root.value_())
    if not _is_internal_node(root):
        if root & 3 != _XA_INTERNAL and root:
            yield 0, 0, root
        return
    claim = claims(kernel, "struct maple_node", _MAPLE_NODE_SIZE, tree)
    seen: Set[int] = set()
    # (encoded node, first index, last index) still to be visited, the next one last.
    waiting: List[Tuple[int, int, int]] = [(root, 0, ALL)]
    while waiting:
        encoded, low, high = waiting.pop()
        node = encoded & ~_MAPLE_NODE_MASK & ALL
        if node in seen or len(seen) > limit:
            damage.add(f"{what} runs in a circle", f"back to {node:016x}")
            continue
        seen.add(node)
        try:
            claim(node)
            slots, leaf = _maple_slots(kernel, encoded, low, high)
        except TROUBLE as error:
            damage.add(f"{what} is damaged: what hangs below one pointer is missing", error)
            continue
        if leaf:
            for first, last, entry in slots:
                if entry & 3 != _XA_INTERNAL:
                    yield first, last, entry
            continue
        for first, last, entry in reversed(slots):
            # Below the root, nodes are not marked as such: their parents' kind says what they are.
            if entry >= _KERNEL_HALF:
                waiting.append((entry, first, last))
            else:
                damage.add(
                    f"{what} is damaged: what hangs below one pointer is missing", f"{entry:#x} is no node"
                )


def _is_internal_node(entry: int) -> bool:
    """xa_is_node()."""
    return entry & 3 == _XA_INTERNAL and entry > 4096


def _maple_slots(
    kernel: Kernel, encoded: int, low: int, high: int
) -> Tuple[List[Tuple[int, int, int]], bool]:
    """(first index, last index, content) of the slots in use, and whether it is a leaf."""
    kind = encoded >> _MAPLE_TYPE_SHIFT & _MAPLE_TYPE_MASK
    node = struct_at(kernel, "struct maple_node", encoded & ~_MAPLE_NODE_MASK)
    if kind == _MAPLE_DENSE:
        dense = [int(v.value_()) for v in node.slot]
        return [(low + i, low + i, v) for i, v in enumerate(dense) if v and low + i <= high], True
    if kind not in (_MAPLE_LEAF, _MAPLE_RANGE, _MAPLE_ARANGE):
        raise ValueError(f"a node of kind {kind}")
    body = node.ma64 if kind == _MAPLE_ARANGE else node.mr64
    pivots = [int(v.value_()) for v in body.pivot]
    out = []
    first = low
    for index, slot in enumerate(int(v.value_()) for v in body.slot):
        # A pivot of 0 behind the first marks the end of those in use; the last slot has none.
        last = pivots[index] if index < len(pivots) else high
        if (last == 0 and index) or last > high:
            last = high
        if last < first:
            raise ValueError(f"pivots go down at {encoded:016x}")
        if slot:
            out.append((first, last, slot))
        if last >= high:
            break
        first = last + 1
    return out, kind == _MAPLE_LEAF


def xarray_entries(
    kernel: Kernel, array: int, damage: Damage, what: str, *, limit: int = LIMIT
) -> Iterator[Tuple[int, int, int]]:
    """(first index, last index, entry) of what a ``struct xarray`` holds, in order. A large entry comes in
    parts, one for each slot that it takes; entries with bit 0 set are values, others pointers.

    :param array: its address.
    """
    head = int(struct_at(kernel, "struct xarray", array).xa_head.value_())
    if not _is_internal_node(head):
        if head and head & 3 != _XA_INTERNAL:
            yield 0, 0, head
        return
    seen: Set[int] = set()
    # Nodes, each with its first index and the shift that it is below.
    waiting: List[Tuple[int, int, int]] = [(head, 0, 64)]
    while waiting:
        entry, low, above = waiting.pop()
        if entry in seen or len(seen) > limit:
            damage.add(f"{what} runs in a circle", f"back to {entry:016x}")
            continue
        seen.add(entry)
        try:
            if entry < _KERNEL_HALF:
                raise Unavailable(f"{entry:#x} is no node")
            node = struct_at(kernel, "struct xa_node", entry - _XA_INTERNAL)
            shift = number(node, "shift")
            slots = [int(slot.value_()) for slot in node.slots]
            if shift >= above:
                raise Unavailable(f"a node of shift {shift} lies below one of {above}")
        except TROUBLE as error:
            damage.add(f"{what} is damaged: what hangs below one pointer is missing", error)
            continue
        below = []
        for index, slot in enumerate(slots):
            first = low + (index << shift)
            # A sibling says in which slot its entry is.
            sibling = slot & 3 == _XA_INTERNAL and slot >> 2 < index
            found = slots[slot >> 2] if sibling else slot
            if shift and _is_internal_node(found):
                below.append((found, first, shift))
            elif found and found & 3 != _XA_INTERNAL:
                yield first, first + (1 << shift) - 1, found
        waiting.extend(reversed(below))


def text_at(kernel: Kernel, address: int, limit: int = 4096) -> str:
    """A string, up to its NUL or the limit; bytes that are no ASCII come as escapes.

    :raises NotInDump: its first page is not in the source.
    """
    out = b""
    while len(out) < limit:
        room = min(4096 - (address + len(out)) % 4096, limit - len(out))
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
    """Bytes of a kernel's string as text."""
    return data.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")


def text_of(obj: drgn.Object) -> str:
    """A character array of a structure, such as ``comm``."""
    return plain_text(bytes(int(c.value_()) & 0xFF for c in obj))


def possible_cpus(kernel: Kernel) -> List[int]:
    """Numbers of the CPUs that are or were set up: those possible.

    :raises Unavailable: the source does not tell.
    """
    from drgn.helpers.linux.cpumask import for_each_possible_cpu

    # The helper believes any number, and reads as many bits.
    if kernel.has_symbol("nr_cpu_ids"):
        count = kernel.value("nr_cpu_ids", 4).value
        if not 0 < count <= _MAX_CPUS:
            raise Unavailable(f"which CPUs there are cannot be read: nr_cpu_ids is {count}")
        mask = kernel.find_symbol("__cpu_possible_mask")
        if mask is not None:
            # No types are needed for a bit each.
            bits = int.from_bytes(kernel.read(mask, -(-count // 64) * 8), "little")
            return [cpu for cpu in range(count) if bits >> cpu & 1]
    try:
        found = [int(cpu) for cpu in for_each_possible_cpu(kernel.prog)]
    except TROUBLE as error:
        raise Unavailable(f"which CPUs there are cannot be read: {kernel.why(error)}") from error
    return found[:_MAX_CPUS]


def per_cpu_address(kernel: Kernel, name: str, cpu: int) -> int:
    """Address of a CPU's own copy of a per-CPU variable.

    :raises Unavailable: no such variable, or the source does not tell where CPUs keep theirs.
    """
    base = pointer_at(kernel, kernel.symbol("__per_cpu_offset") + 8 * cpu)
    return kernel.symbol(name) + base & ALL


def optional(obj: drgn.Object, member: str) -> Optional[drgn.Object]:
    """A member, None if the structure has none of that name."""
    try:
        return getattr(obj, member)
    except AttributeError:
        return None
