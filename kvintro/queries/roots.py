# SPDX-License-Identifier: LGPL-2.1-or-later
"""Roots of page-table trees by what people call them."""

from __future__ import annotations

from kvintro.arch.x86_64 import PTI_USER_ROOT_BIT
from kvintro.errors import Unavailable, UsageError
from kvintro.kernel import Kernel
from kvintro.model import Absent, Placement
from kvintro.readers.structures import TROUBLE
from kvintro.regions import Root
from kvintro.regions.ldt_remap import table_of


def kernel_root(kernel: Kernel) -> Root:
    """The kernel's own."""
    return Root(kernel.root.value, "init_top_pgt")


def process_root(kernel: Kernel, pid: int) -> Root:
    """A process's.

    :raises UsageError: there is no such process, or it has no user memory.
    :raises Unavailable: the source does not tell.
    """
    from drgn.helpers.linux.pid import find_task

    if kernel.source.types == "none":
        raise Unavailable("processes cannot be found without types", "give -s VMLINUX or --btf FILE")
    try:
        task = find_task(kernel.prog, pid)
        if not task:
            raise UsageError(f"there is no process {pid}", "give the pid of a process that exists")
        if not task.mm:
            raise UsageError(
                f"pid {pid} is a kernel thread and maps no user memory",
                "omit --pid for the kernel's own",
            )
        return Root(table_of(kernel, task.mm.pgd.value_()), f"pid {pid}")
    except TROUBLE as error:
        raise Unavailable(f"process {pid} cannot be found: {error}") from error


def user_half(kernel: Kernel, root: Root) -> Root:
    """What user mode runs on under page-table isolation, given the root that the kernel runs on.

    :raises UsageError: this kernel has no such thing.
    """
    if not kernel.pti.value:
        raise UsageError(
            f"page-table isolation is off ({kernel.pti.provenance}): there is one root for both modes",
            "leave away what asks for the user half",
        )
    return Root(root.table | PTI_USER_ROOT_BIT, f"{root.owner}, user half")


def efi_root(kernel: Kernel) -> Root:
    """The one that firmware's runtime services run on.

    :raises UsageError: this kernel has none.
    :raises Unavailable: the source does not tell.
    """
    region = next(r for r in kernel.regions if r.key == "efi")
    found = kernel.locate(region)
    if isinstance(found, Absent):
        raise UsageError(f"there are no EFI page tables: {found.reason}", "choose another root")
    if not isinstance(found, Placement):
        raise Unavailable(found.reason)
    return region.roots(kernel)[0]
