# SPDX-License-Identifier: LGPL-2.1-or-later
"""Linked lists and binary trees of a kernel whose memory cannot be trusted.

drgn's own iterators follow any pointer and never leave a circle. These stop at a node that they have already
visited, at one that is not in the source, and at a limit that no real kernel reaches. They report it to a
:class:`~kvintro.readers.damage.Damage`; the entries found until then are kept.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Sequence, Set, Tuple, TypeVar

import drgn

from kvintro.errors import Unavailable
from kvintro.model import ALL
from kvintro.readers.damage import Damage
from kvintro.readers.structures import (
    KERNEL_HALF,
    TROUBLE,
    Read,
    has_member,
    member_reader,
    number,
    offset_of,
    pointer_at,
    size_of,
    struct_around,
    struct_at,
    struct_reader,
)

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

#: Entries of one list or tree. A machine with a million vmalloc areas would be the first to reach it.
LIMIT = 1 << 20
_LINKS = 8  # bytes of the smallest link structure, a struct llist_node
_WORD = 8

E = TypeVar("E")


def claims(kernel: Kernel, kind: str, size: int, owner: int) -> Callable[[int], None]:
    """Return a function to call with the address of each entry of a list or tree.

    It raises Unavailable for an entry that overlaps another or is in another list, which no kernel has.

    :param kind: type of the entries, and the member that links them.
    :param size: minimum size of an entry in bytes. The type can be larger: the kernel allocates ``struct
        task_struct`` and ``struct kmem_cache`` without the end that a machine does not need.
    :param owner: address of the list's head.
    """
    problem_of = kernel.claims.problem

    def claim(node: int) -> None:
        problem = problem_of(kind, node, size, owner)
        if problem:
            raise Unavailable(problem)

    return claim


def list_entries(
    kernel: Kernel, head: int, type_name: str, member: str, damage: Damage, what: str, *, limit: int = LIMIT
) -> Iterator[Tuple[int, drgn.Object]]:
    """Entries of a ``struct list_head`` list, each with its address and as a value.

    A broken list is continued from its other end, in reverse order, so that one bad pointer costs only the
    entries around it.

    :param head: address of the list's head.
    :param member: member of the entries with the links.
    :param what: name of the list in notes: ``the list of modules``.
    """
    offset = offset_of(kernel, type_name, member)
    read = struct_reader(kernel, type_name)

    def links(entry: drgn.Object, way: str) -> int:
        return int(getattr(getattr(entry, member), way).value_())

    claim = claims(kernel, f"{type_name}.{member}", offset + _LINKS, head)
    return _list(kernel, head, offset, claim, read, links, damage, what, limit)


def list_members(
    kernel: Kernel,
    head: int,
    type_name: str,
    member: str,
    wanted: Sequence[str],
    damage: Damage,
    what: str,
    *,
    limit: int = LIMIT,
) -> Iterator[Tuple[int, Tuple[Any, ...]]]:
    """Like :func:`list_entries`, but with the values of some members, as :func:`member_reader` reads them."""
    offset = offset_of(kernel, type_name, member)
    read = member_reader(kernel, type_name, f"{member}.next", f"{member}.prev", *wanted)
    claim = claims(kernel, f"{type_name}.{member}", offset + _LINKS, head)
    for address, entry in _list(kernel, head, offset, claim, read, _link, damage, what, limit):
        yield address, entry[2:]


def _link(entry: Tuple[Any, ...], way: str) -> int:
    return int(entry[0] if way == "next" else entry[1])


def list_words(
    kernel: Kernel,
    head: int,
    type_name: str,
    member: str,
    wanted: Sequence[str],
    damage: Damage,
    what: str,
    *,
    limit: int = LIMIT,
    read: Read,
) -> Iterator[Tuple[int, ...]]:
    """Like :func:`list_entries`, but yields the values of some members: several times faster for long lists.

    :param wanted: members of eight bytes; one that this kernel's structure lacks is 0.
    :param read: reads memory, see :func:`near_reader`.
    """
    offset = offset_of(kernel, type_name, member)
    # The links first, then the wanted members.
    places = [offset + offset_of(kernel, "struct list_head", way) for way in ("next", "prev")]
    places += [offset_of(kernel, type_name, m) if has_member(kernel, type_name, m) else -1 for m in wanted]
    present = sorted({place for place in places if place >= 0})
    first, size = present[0], present[-1] + _WORD - present[0]
    gaps = [f"{after - before - _WORD}x" for before, after in zip(present, present[1:])]
    unpack = struct.Struct("<" + "".join(f"Q{gap}" for gap in [*gaps, ""])).unpack
    order = [present.index(place) if place >= 0 else len(present) for place in places]

    def words_at(address: int) -> Tuple[int, ...]:
        words = (*unpack(read(address + first & ALL, size)), 0)
        return tuple([words[index] for index in order])

    claim = claims(kernel, f"{type_name}.{member}", offset + _LINKS, head)
    for _, entry in _list(kernel, head, offset, claim, words_at, _link, damage, what, limit):
        yield entry[2:]


def _list(
    kernel: Kernel,
    head: int,
    offset: int,
    claim: Callable[[int], None],
    read: Callable[[int], E],
    links: Callable[[E, str], int],
    damage: Damage,
    what: str,
    limit: int,
) -> Iterator[Tuple[int, E]]:
    """Yield address and content of the entries of a ``struct list_head`` list.

    :param offset: offset of the links in an entry.
    :param read: reads an entry at an address.
    :param links: returns the target of an entry's ``next`` or ``prev``.
    """
    seen: Set[int] = {head}
    for way in ("next", "prev"):
        count = 0
        try:
            node = pointer_at(kernel, head + offset_of(kernel, "struct list_head", way))
        except Unavailable as error:
            damage.add(f"{what} has no head here", error.what)
            return
        if node == 0 and way == "next":
            return  # never initialised, because the list was never used
        while node not in seen:
            if len(seen) > limit:
                damage.add(f"{what} does not end", f"given up after {limit} entries")
                return
            seen.add(node)
            try:
                claim(node)
                if node < KERNEL_HALF:
                    raise Unavailable(f"{node:016x} is not a kernel address")
                entry = read(node - offset)
            except Unavailable as error:
                damage.add(f"{what} ends early", f"after {count} entries: {error.what}")
                break
            yield node - offset & ALL, entry
            count += 1
            node = links(entry, way)
        else:
            if node == head or way == "prev":
                return
            damage.add(f"{what} contains a cycle", f"after {count} entries back to {node:016x}")


def list_nodes(kernel: Kernel, head: int, damage: Damage, what: str, *, limit: int = LIMIT) -> Iterator[int]:
    """Addresses of the links of a ``struct list_head`` list; no types are needed.

    :param head: address of the list's head.
    :param what: name of the list in notes.
    """
    following = offset_of(kernel, "struct list_head", "next")
    seen: Set[int] = {head}
    try:
        node = pointer_at(kernel, head + following)
        while node != head:
            if node in seen or node < KERNEL_HALF:
                damage.add(f"{what} is damaged", f"after {len(seen) - 1} entries it leads to {node:016x}")
                return
            if len(seen) > limit:
                damage.add(f"{what} does not end", f"given up after {limit} entries")
                return
            seen.add(node)
            yield node
            node = pointer_at(kernel, node + following)
    except Unavailable as error:
        damage.add(f"{what} ends early", f"after {len(seen) - 1} entries: {error.what}")


def chain_entries(
    kernel: Kernel, head: int, type_name: str, member: str, damage: Damage, what: str, *, limit: int = LIMIT
) -> Iterator[Tuple[int, drgn.Object]]:
    """Like :func:`list_entries`, for lists that end with NULL: ``llist_head``, ``hlist_head``."""
    offset = offset_of(kernel, type_name, member)
    claim = claims(kernel, f"{type_name}.{member}", offset + _LINKS, head)
    try:
        first = pointer_at(kernel, head)
    except Unavailable as error:
        damage.add(f"{what} has no head here", error.what)
        return
    yield from _chain(
        kernel,
        first,
        type_name,
        offset,
        lambda e: int(getattr(e, member).next.value_()),
        claim,
        damage,
        what,
        limit,
    )


def linked_entries(
    kernel: Kernel, first: int, type_name: str, member: str, owner: int, damage: Damage, what: str, limit: int
) -> Iterator[Tuple[int, drgn.Object]]:
    """Structures that are linked by a pointer; the last one has NULL.

    :param first: address of the first one; 0 if there is none.
    :param member: the pointer to the next one.
    :param owner: address of the structure that contains the list.
    """
    claim = claims(kernel, type_name, size_of(kernel, type_name), owner)
    return _chain(
        kernel, first, type_name, 0, lambda entry: number(entry, member), claim, damage, what, limit
    )


def _chain(
    kernel: Kernel,
    node: int,
    type_name: str,
    offset: int,
    following: Callable[[drgn.Object], int],
    claim: Callable[[int], None],
    damage: Damage,
    what: str,
    limit: int,
) -> Iterator[Tuple[int, drgn.Object]]:
    seen: Set[int] = set()
    while node:
        if node in seen:
            damage.add(f"{what} contains a cycle", f"back to {node:016x}")
            return
        if len(seen) > limit:
            damage.add(f"{what} does not end", f"given up after {len(seen)} entries")
            return
        seen.add(node)
        try:
            claim(node)
            entry = struct_around(kernel, type_name, node, offset)
        except Unavailable as error:
            damage.add(f"{what} ends early", f"after {len(seen) - 1} entries: {error.what}")
            return
        yield node - offset & ALL, entry
        node = following(entry)


def nested_entries(
    kernel: Kernel,
    first: int,
    type_name: str,
    sibling: str,
    child: str,
    damage: Damage,
    what: str,
    *,
    limit: int,
    max_depth: int,
) -> Iterator[Tuple[drgn.Object, int]]:
    """Structures that point to their next sibling and their first child, each with its depth, parents first.

    :param first: address of the first one at depth 0.
    """
    seen: Set[int] = set()
    waiting: List[Tuple[int, int]] = [(first, 0)]
    while waiting:
        address, depth = waiting.pop()
        if not address:
            continue
        if address in seen or depth > max_depth or len(seen) >= limit:
            damage.add(f"{what} contains a cycle", f"back to {address:016x}")
            continue
        seen.add(address)
        try:
            entry = struct_at(kernel, type_name, address)
        except Unavailable as error:
            damage.add(f"{what} ends early", error.what)
            continue
        yield entry, depth
        waiting.append((number(entry, sibling), depth))
        waiting.append((number(entry, child), depth + 1))


def interval_entries(
    kernel: Kernel,
    node: int,
    type_name: str,
    member: str,
    last_member: str,
    wanted: Tuple[int, int],
    span: Callable[[drgn.Object], Tuple[int, int]],
    damage: Damage,
    what: str,
) -> Iterator[drgn.Object]:
    """Entries of an interval tree (include/linux/interval_tree_generic.h) that overlap a span.

    :param node: address of the root's links, 0 if the tree is empty.
    :param member: member of an entry with the links; a dot separates nested members.
    :param last_member: member with the last index in the entry's subtree.
    :param wanted: first and last index.
    :param span: returns the first and last index of an entry.
    """
    offset = offset_of(kernel, type_name, member)
    seen: Set[int] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if not node:
            continue
        if node in seen:
            damage.add(f"{what} contains a cycle", f"back to {node:016x}")
            continue
        if len(seen) > LIMIT:
            damage.add(f"{what} does not end", f"given up after {LIMIT} entries")
            return
        seen.add(node)
        try:
            entry = struct_around(kernel, type_name, node, offset)
            links, subtree_last = _member(entry, member), int(_member(entry, last_member).value_())
            if subtree_last < wanted[0]:
                continue
            start, end = span(entry)
        except TROUBLE as error:
            damage.add(f"{what} is damaged: what hangs below one pointer is missing", error)
            continue
        # Entries are ordered by their start. Ends are known only for whole subtrees.
        waiting.append(int(links.rb_left.value_()))
        if start <= wanted[1]:
            waiting.append(int(links.rb_right.value_()))
            if end >= wanted[0]:
                yield entry


def _member(obj: drgn.Object, path: str) -> drgn.Object:
    for name in path.split("."):
        obj = getattr(obj, name)
    return obj
