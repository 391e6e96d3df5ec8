# SPDX-License-Identifier: LGPL-2.1-or-later
"""KFENCE's pool: objects of slab caches, each in its own page, with unmapped pages between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, NamedTuple, Optional, Tuple

from kvintro.errors import Unavailable
from kvintro.readers.structures import TROUBLE, number, offset_of, size_of, struct_at, text_at, type_of

if TYPE_CHECKING:
    from kvintro.kernels import Kernel

_MAX_OBJECTS = 65535  # lib/Kconfig.kfence: KFENCE_NUM_OBJECTS
_STATES = {
    "KFENCE_OBJECT_UNUSED": "unused",
    "KFENCE_OBJECT_ALLOCATED": "allocated",
    "KFENCE_OBJECT_RCU_FREEING": "about to be freed",
    "KFENCE_OBJECT_FREED": "freed",
}


class KfenceObject(NamedTuple):
    """The object in a page of the pool.

    :ivar number: number as in /sys/kernel/debug/kfence/objects.
    :ivar state: ``unused``, ``allocated``, ``about to be freed``, ``freed``.
    :ivar address: address of the object, which is at one end of its page.
    :ivar size: requested size.
    :ivar cache: address of its ``struct kmem_cache``, 0 if it was never used.
    """

    number: int
    state: str
    address: int
    size: int
    cache: int


@dataclass(frozen=True)
class KfencePool:
    """The pool in the direct map. ``start`` is its first address, ``end`` is exclusive."""

    start: int
    end: int
    objects: Tuple[KfenceObject, ...]
    page_size: int

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end

    def object_at(self, address: int) -> Optional[KfenceObject]:
        """The object of an address's page, None in a guard page (mm/kfence/kfence.h:kfence_init_pool).

        Page 0 is a guard. After it come pairs of a guard page and an object's page.
        """
        page = (address - self.start) // self.page_size
        return self.objects[page // 2 - 1] if page >= 2 and not page % 2 else None

    def text(self, address: int) -> str:
        """Describe what is at an address."""
        found = self.object_at(address)
        return "KFENCE guard" if found is None else f"KFENCE object, {found.state}"

    @property
    def frames(self) -> int:
        """Number of page frames."""
        return (self.end - self.start) // self.page_size


def cache_name(kernel: Kernel, cache: int) -> Optional[str]:
    """Name of a slab cache, None if it cannot be read."""
    try:
        return text_at(kernel, number(struct_at(kernel, "struct kmem_cache", cache), "name"), 256)
    except TROUBLE:
        return None


def kfence_pool(kernel: Kernel) -> Optional[KfencePool]:
    """Find the pool; None if the kernel has none: KFENCE was not built in, or was never enabled.

    Its size is a build-time constant (``CONFIG_KFENCE_NUM_OBJECTS``). It is found by counting the entries of
    ``kfence_metadata`` whose object is in the expected page.

    :raises Unavailable: the pool cannot be read.
    """
    nameless = kernel.code_only and kernel.find_symbol("__kfence_alloc") is not None
    if kernel.find_symbol("__kfence_pool") is None and not nameless:
        return None
    start = kernel.value("__kfence_pool").value
    if not start:
        return None
    # A pointer since 6.6; before that, the array itself.
    table, page = kernel.symbol("kfence_metadata"), kernel.form.page_size
    for first in (kernel.value("kfence_metadata").value, table):
        objects = _objects(kernel, start, first)
        if objects:
            return KfencePool(start, start + 2 * page * (len(objects) + 1), objects, page)
    # riscv64 makes room for the pool at boot even if it is never enabled. mm/kfence/core.c:kfence_init_pool
    # unmaps its first page.
    if not kernel.value("kfence_metadata").value and kernel.walk(start).physical is not None:
        return None
    raise Unavailable("the objects of KFENCE's pool cannot be found")


def known_pool(kernel: Kernel) -> Tuple[Optional[KfencePool], str]:
    """Like :func:`kfence_pool`, with a note about slabs if the pool cannot be read, else ""."""
    try:
        return kfence_pool(kernel), ""
    except Unavailable as error:
        return None, f"the slabs of KFENCE are not known: {error.what}"


def _objects(kernel: Kernel, start: int, table: int) -> Tuple[KfenceObject, ...]:
    """Objects of a table, up to the first that is not in its expected page."""
    name = "struct kfence_metadata"
    size = size_of(kernel, name)
    at = {member: offset_of(kernel, name, member) for member in ("addr", "size", "cache", "state")}
    states, page = _states(kernel), kernel.form.page_size
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
        if words["addr"] // page != start // page + 2 * (index + 1):
            break
        state = states.get(words["state"], f"state {words['state']}")
        found.append(KfenceObject(index, state, words["addr"], words["size"], words["cache"]))
    return tuple(found)


def _states(kernel: Kernel) -> Dict[int, str]:
    """Names of the states by number. 6.12 changed the numbers."""
    try:
        enumerators = type_of(kernel, "enum kfence_object_state").enumerators or ()
    except TROUBLE as error:
        raise Unavailable(f"states of KFENCE's objects: {error}") from error
    return {int(each.value): _STATES.get(each.name, each.name) for each in enumerators}
