# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an inode is called. Paths are within the file system: an inode does not know where that is mounted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional

from kvintro.arch.x86_64 import ALL
from kvintro.errors import Unavailable
from kvintro.kernel import Kernel
from kvintro.readers.structures import TROUBLE, number, offset_of, struct_at, text_at

_MAX_DEPTH = 256
_MAX_NAME = 256  # NAME_MAX + 1
_MINOR_BITS = 20  # include/linux/kdev_t.h


@dataclass(frozen=True)
class FileName:
    """An inode.

    :ivar path: from the root of its file system; None if no directory entry is in memory.
    :ivar file_system: type of the file system, such as ``ext4``.
    :ivar device: ``major:minor``, as in /proc/PID/maps.
    """

    path: Optional[str]
    file_system: str
    device: str
    inode: int


def file_of(kernel: Kernel, inode: int) -> FileName:
    """The name of an inode.

    :param inode: address of the ``struct inode``.
    :raises Unavailable: it cannot be read.
    """
    try:
        found = struct_at(kernel, "struct inode", inode)
        block = struct_at(kernel, "struct super_block", number(found, "i_sb"))
        kind = struct_at(kernel, "struct file_system_type", number(block, "s_type"))
        device = number(block, "s_dev")
        entry = int(found.i_dentry.first.value_())
        return FileName(
            path=_path(kernel, entry) if entry else None,
            file_system=text_at(kernel, number(kind, "name"), _MAX_NAME),
            device=f"{device >> _MINOR_BITS:02x}:{device & (1 << _MINOR_BITS) - 1:02x}",
            inode=number(found, "i_ino"),
        )
    except TROUBLE as error:
        raise Unavailable(f"the file cannot be read: {error}") from error


def _path(kernel: Kernel, alias: int) -> str:
    """The path of the directory entry whose ``d_alias`` that is: fs/d_path.c, within one file system."""
    try:
        offset = offset_of(kernel, "struct dentry", "d_u.d_alias")
    except Unavailable:
        # 6.19 took the union's name away.
        offset = offset_of(kernel, "struct dentry", "d_alias")
    address = alias - offset & ALL
    names: List[str] = []
    for _ in range(_MAX_DEPTH):
        entry = struct_at(kernel, "struct dentry", address)
        # A file's name may be up to 255 bytes, and lies in the entry itself or in memory of its own.
        name = text_at(kernel, int(entry.d_name.name.value_()), _MAX_NAME)
        parent = number(entry, "d_parent")
        if parent == address:
            # Files that no directory has (memfd, pipes) have a name that starts no path.
            return "/" + "/".join(reversed(names)) if names else name
        names.append(name)
        address = parent
    return ".../" + "/".join(reversed(names[:8]))
