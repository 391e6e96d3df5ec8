# SPDX-License-Identifier: LGPL-2.1-or-later
"""Special values that the kernel stores instead of addresses, the same on every architecture."""

from __future__ import annotations

import errno
import os
from typing import Iterator, Mapping

from kvintro.model import ALL, Thing

_MAX_ERRNO = 4095  # include/linux/err.h:MAX_ERRNO
# include/linux/errno.h: codes that no program sees.
_INTERNAL = {
    512: "ERESTARTSYS",
    513: "ERESTARTNOINTR",
    514: "ERESTARTNOHAND",
    515: "ENOIOCTLCMD",
    516: "ERESTART_RESTARTBLOCK",
    517: "EPROBE_DEFER",
    518: "EOPENSTALE",
    519: "ENOPARAM",
    521: "EBADHANDLE",
    522: "ENOTSYNC",
    523: "EBADCOOKIE",
    524: "ENOTSUPP",
    525: "ETOOSMALL",
    526: "ESERVERFAULT",
    527: "EBADTYPE",
    528: "EJUKEBOX",
    529: "EIOCBQUEUED",
    530: "ERECALLCONFLICT",
    531: "ENOGRACE",
}
# include/linux/poison.h, with CONFIG_ILLEGAL_POINTER_VALUE of 64-bit kernels.
_DELTA = 0xDEAD << 48
_POINTERS = {
    0x100: "LIST_POISON1: next of a list entry that was deleted",
    0x122: "LIST_POISON2: prev of a list entry that was deleted",
    0x200: "LIST_POISON2 before 4.15: prev of a list entry that was deleted",
    0x300: "TIMER_ENTRY_STATIC: a timer that is not queued",
    0x400: "TAIL_MAPPING: mapping of the tail of a compound page",
}
# Fill bytes of memory: include/linux/poison.h, and mm/slub.c.
_BYTES = {
    0x22: "MUTEX_DEBUG_FREE: a mutex that was destroyed",
    0x5A: "POISON_INUSE: slab memory that was never written",
    0x6B: "POISON_FREE: slab memory that was freed",
    0xA5: "POISON_END: the last byte of poisoned slab memory",
    0xAA: "PAGE_POISON: a page that was freed",
    0xBB: "SLUB_RED_INACTIVE: the red zone of a free slab object",
    0xBD: "KEY_DESTROY: a key that was destroyed",
    0xCC: "SLUB_RED_ACTIVE: the red zone of a slab object, or POISON_FREE_INITMEM: freed __init memory",
}
_ONES = ALL // 255  # 0x0101010101010101
_NEAR = 1024  # maximum distance of a member from a poisoned pointer


def constants(value: int) -> Iterator[Thing]:
    """Identities of a 64-bit value that the kernel stores instead of an address."""
    code = -value & ALL
    if 0 < code <= _MAX_ERRNO:
        name = errno.errorcode.get(code) or _INTERNAL.get(code)
        text = f"error value: -{name or code}"
        if name is not None and code in errno.errorcode:
            text += f" ({os.strerror(code)})"
        yield Thing("error_value", text, details={"errno": -code, "name": name})
    near = max((base for base in _POINTERS if _DELTA + base <= value), default=None)
    if near is not None and value - _DELTA - near < _NEAR:
        yield _poison(_POINTERS[near], value - _DELTA - near)
    for byte, text in _BYTES.items():
        offset = value - byte * _ONES
        if 0 <= offset < _NEAR:
            yield _poison(text, offset)
    if value == (0xA5 << 56 | 0x6B * _ONES & ALL >> 8):
        yield _poison("POISON_FREE up to POISON_END: the end of slab memory that was freed", 0)


def _poison(text: str, offset: int) -> Thing:
    name = text.partition(":")[0]
    details: Mapping[str, object] = {"name": name, "offset": offset}
    shown = f"poison: {text}" if not offset else f"poison: {name} +{offset:#x}{text[len(name) :]}"
    return Thing("poison", shown, details=details)
