# SPDX-License-Identifier: LGPL-2.1-or-later
"""Maple trees and xarrays: trees that map an index to a pointer. See :mod:`kvintro.readers.lists`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Iterator, List, Set, Tuple

from kvintro.errors import Unavailable
from kvintro.model import ALL
from kvintro.readers.damage import Damage
from kvintro.readers.lists import LIMIT, claims
from kvintro.readers.structures import KERNEL_HALF, TROUBLE, number, struct_at

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


# lib/maple_tree.c, include/linux/maple_tree.h
_MAPLE_NODE_MASK, _MAPLE_NODE_SIZE = 255, 256

_MAPLE_TYPE_SHIFT, _MAPLE_TYPE_MASK = 3, 15

_MAPLE_DENSE, _MAPLE_LEAF, _MAPLE_RANGE, _MAPLE_ARANGE = range(4)

_XA_LARGEST_VALUE = 4 << 10  # include/linux/xarray.h:xa_is_node
_XA_INTERNAL = 2


def maple_entries(
    kernel: Kernel, tree: int, damage: Damage, what: str, *, limit: int = LIMIT
) -> Iterator[Tuple[int, int, int]]:
    """(first index, last index, pointer) of the entries of a ``struct maple_tree``, in order.

    :param tree: address of the tree.
    """
    root = int(struct_at(kernel, "struct maple_tree", tree).ma_root.value_())
    if not _is_internal_node(root):
        if root & 3 != _XA_INTERNAL and root:
            yield 0, 0, root
        return
    claim = claims(kernel, "struct maple_node", _MAPLE_NODE_SIZE, tree)
    seen: Set[int] = set()
    # (encoded node, first index, last index) of nodes to visit; the last one is next.
    waiting: List[Tuple[int, int, int]] = [(root, 0, ALL)]
    while waiting:
        encoded, low, high = waiting.pop()
        node = encoded & ~_MAPLE_NODE_MASK & ALL
        if node in seen or len(seen) > limit:
            damage.add(f"{what} contains a cycle", f"back to {node:016x}")
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
            # Below the root, nodes have no mark of their own; the kind of their parent identifies them.
            if entry >= KERNEL_HALF:
                waiting.append((entry, first, last))
            else:
                damage.add(
                    f"{what} is damaged: what hangs below one pointer is missing", f"{entry:#x} is not a node"
                )


def _is_internal_node(entry: int) -> bool:
    """xa_is_node()."""
    return entry & 3 == _XA_INTERNAL and entry > _XA_LARGEST_VALUE


def _maple_slots(
    kernel: Kernel, encoded: int, low: int, high: int
) -> Tuple[List[Tuple[int, int, int]], bool]:
    """(first index, last index, content) of the used slots, and whether the node is a leaf."""
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
        # A pivot of 0 after the first slot ends the used ones; the last slot has no pivot.
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
    """(first index, last index, entry) of the entries of a ``struct xarray``, in order. A large entry comes
    in parts, one for each slot that it takes. Entries with bit 0 set are values, others pointers.

    :param array: address of the xarray.
    """
    head = int(struct_at(kernel, "struct xarray", array).xa_head.value_())
    if not _is_internal_node(head):
        if head and head & 3 != _XA_INTERNAL:
            yield 0, 0, head
        return
    seen: Set[int] = set()
    # Nodes to visit, each with its first index and the shift of its parent.
    waiting: List[Tuple[int, int, int]] = [(head, 0, 64)]
    while waiting:
        entry, low, above = waiting.pop()
        if entry in seen or len(seen) > limit:
            damage.add(f"{what} contains a cycle", f"back to {entry:016x}")
            continue
        seen.add(entry)
        try:
            if entry < KERNEL_HALF:
                raise Unavailable(f"{entry:#x} is not a node")
            node = struct_at(kernel, "struct xa_node", entry - _XA_INTERNAL)
            shift = number(node, "shift")
            slots = [int(slot.value_()) for slot in node.slots]
            if shift >= above:
                raise Unavailable(f"a node of shift {shift} is below a node of shift {above}")
        except TROUBLE as error:
            damage.add(f"{what} is damaged: what hangs below one pointer is missing", error)
            continue
        below = []
        for index, slot in enumerate(slots):
            first = low + (index << shift)
            # A sibling holds the slot number of its entry.
            sibling = slot & 3 == _XA_INTERNAL and slot >> 2 < index
            found = slots[slot >> 2] if sibling else slot
            if shift and _is_internal_node(found):
                below.append((found, first, shift))
            elif found and found & 3 != _XA_INTERNAL:
                yield first, first + (1 << shift) - 1, found
        waiting.extend(reversed(below))
