# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names of inodes. Paths begin at the root of the file system, because an inode has no mount point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.model import ALL
from kvintro.readers.structures import TROUBLE, number, offset_of, struct_at, text_at

_MAX_DEPTH = 256
_MAX_NAME = 256  # NAME_MAX + 1
_MINOR_BITS = 20  # include/linux/kdev_t.h


@dataclass(frozen=True)
class FileName:
    """An inode.

    :ivar path: path from the root of its file system; None if no directory entry is in memory.
    :ivar file_system: type of the file system, such as ``ext4``.
    :ivar device: ``major:minor``, as in /proc/PID/maps.
    """

    path: Optional[str]
    file_system: str
    device: str
    inode: int


def file_of(kernel: Kernel, inode: int) -> FileName:
    """Find the name of an inode.

    :param inode: address of the ``struct inode``.
    :raises Unavailable: the inode cannot be read.
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
    """Path of a directory entry, from its ``d_alias``: fs/d_path.c, within one file system."""
    try:
        offset = offset_of(kernel, "struct dentry", "d_u.d_alias")
    except Unavailable:
        # Since 6.19 the union has no name.
        offset = offset_of(kernel, "struct dentry", "d_alias")
    address = alias - offset & ALL
    names: List[str] = []
    for _ in range(_MAX_DEPTH):
        entry = struct_at(kernel, "struct dentry", address)
        # A file's name has up to 255 bytes. It is in the entry itself or in separate memory.
        name = text_at(kernel, int(entry.d_name.name.value_()), _MAX_NAME)
        parent = number(entry, "d_parent")
        if parent == address:
            # Files outside any directory (memfd, pipes) have a name that begins no path.
            return "/" + "/".join(reversed(names)) if names else name
        names.append(name)
        address = parent
    return ".../" + "/".join(reversed(names[:8]))
