# SPDX-License-Identifier: LGPL-2.1-or-later
"""KFENCE's pool: a few objects of slab caches, each in a page of its own between two that nothing maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Optional, Tuple

from kvintro.arch.x86_64 import PAGE_SIZE
from kvintro.errors import Unavailable
from kvintro.readers.structures import TROUBLE, number, offset_of, size_of, slab_cache_at, text_at, type_of

if TYPE_CHECKING:
    from kvintro.kernel import Kernel

_MAX_OBJECTS = 65535  # lib/Kconfig.kfence: KFENCE_NUM_OBJECTS
_STATES = {
    "KFENCE_OBJECT_UNUSED": "unused",
    "KFENCE_OBJECT_ALLOCATED": "allocated",
    "KFENCE_OBJECT_RCU_FREEING": "about to be freed",
    "KFENCE_OBJECT_FREED": "freed",
}


@dataclass(frozen=True)
class KfenceObject:
    """What a page of the pool holds.

    :ivar number: as /sys/kernel/debug/kfence/objects has it.
    :ivar state: ``unused``, ``allocated``, ``about to be freed``, ``freed``.
    :ivar address: of the object, which lies at one end of its page.
    :ivar size: that was asked for.
    :ivar cache: the ``struct kmem_cache`` that it stands in for, 0 if it never did for any.
    """

    number: int
    state: str
    address: int
    size: int
    cache: int


@dataclass(frozen=True)
class KfencePool:
    """Where the pool lies, in the direct map: ``start`` up to but not including ``end``."""

    start: int
    end: int
    objects: Tuple[KfenceObject, ...]

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def object_at(self, address: int) -> Optional[KfenceObject]:
        """Whose page an address is in, None in a guard page (mm/kfence/kfence.h:kfence_init_pool).

        Page 0 is a guard, then come pairs of a guard and a page with an object.
        """
        page = (address - self.start) // PAGE_SIZE
        return self.objects[page // 2 - 1] if page >= 2 and not page % 2 else None

    def text(self, address: int) -> str:
        """What is there, in words."""
        found = self.object_at(address)
        return "KFENCE guard" if found is None else f"KFENCE object, {found.state}"

    @property
    def frames(self) -> int:
        """How many page frames it has."""
        return (self.end - self.start) // PAGE_SIZE


def cache_name(kernel: Kernel, cache: int) -> Optional[str]:
    """Name of a slab cache, None if it cannot be read."""
    try:
        return text_at(kernel, number(slab_cache_at(kernel, cache), "name"), 256)
    except TROUBLE:
        return None


def kfence_pool(kernel: Kernel) -> Optional[KfencePool]:
    """The pool, None where the kernel has none: KFENCE was not built in, or was never switched on.

    How large it is only its makers know (``CONFIG_KFENCE_NUM_OBJECTS``): it has as many objects as
    ``kfence_metadata`` has entries that lie in the page where the next one belongs.

    :raises Unavailable: it cannot be read.
    """
    nameless = kernel.code_only and kernel.find_symbol("__kfence_alloc") is not None
    if kernel.find_symbol("__kfence_pool") is None and not nameless:
        return None
    start = kernel.value("__kfence_pool").value
    if not start:
        return None
    # A pointer since 6.6, before that the array itself.
    table = kernel.symbol("kfence_metadata")
    for first in (kernel.value("kfence_metadata").value, table):
        objects = _objects(kernel, start, first)
        if objects:
            return KfencePool(start, start + 2 * PAGE_SIZE * (len(objects) + 1), objects)
    raise Unavailable("the objects of KFENCE's pool cannot be found")


def known_pool(kernel: Kernel) -> Tuple[Optional[KfencePool], str]:
    """As :func:`kfence_pool`, and why slabs may be taken for others where it cannot be read, "" elsewhere."""
    try:
        return kfence_pool(kernel), ""
    except Unavailable as error:
        return None, f"which slabs are KFENCE's is not known: {error.what}"


def _objects(kernel: Kernel, start: int, table: int) -> Tuple[KfenceObject, ...]:
    """The objects of a table, as far as they lie where they should."""
    name = "struct kfence_metadata"
    size = size_of(kernel, name)
    at = {member: offset_of(kernel, name, member) for member in ("addr", "size", "cache", "state")}
    states = _states(kernel)
    found = []
    for index in range(_MAX_OBJECTS):
        try:
            data = kernel.read(table + index * size, size)
        except Unavailable:
            break
        words = {
            member: int.from_bytes(data[offset : offset + (4 if member == "state" else 8)], "little")
            for member, offset in at.items()
        }
        if words["addr"] // PAGE_SIZE != start // PAGE_SIZE + 2 * (index + 1):
            break
        state = states.get(words["state"], f"state {words['state']}")
        found.append(KfenceObject(index, state, words["addr"], words["size"], words["cache"]))
    return tuple(found)


def _states(kernel: Kernel) -> Dict[int, str]:
    """Names of the states by their numbers, which have moved (6.12)."""
    try:
        enumerators = type_of(kernel, "enum kfence_object_state").enumerators or ()
    except TROUBLE as error:
        raise Unavailable(f"states of KFENCE's objects: {error}") from error
    return {int(each.value): _STATES.get(each.name, each.name) for each in enumerators}
