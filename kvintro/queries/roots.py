# SPDX-License-Identifier: LGPL-2.1-or-later
"""Roots of page-table trees by their common names."""

from __future__ import annotations

from typing import Callable, Mapping, Tuple

from kvintro.arch import part
from kvintro.arch.form import PagingForm
from kvintro.errors import Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.model import Absent, Placement, Root
from kvintro.readers.processes import physical_of
from kvintro.readers.structures import TROUBLE

#: Roots that every architecture can have, and those that only aarch64 has.
NAMES = ("kernel", "user", "efi", "tramp", "idmap", "reserved")


def kernel_root(kernel: Kernel) -> Root:
    """The kernel's own root."""
    return kernel.kernel_root


def process_root(kernel: Kernel, pid: int) -> Root:
    """The root of a process.

    :raises UsageError: there is no such process, or it has no user memory.
    :raises Unavailable: the source does not contain it.
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
        return Root(physical_of(kernel, task.mm.pgd.value_()), f"pid {pid}")
    except TROUBLE as error:
        raise Unavailable(f"process {pid} cannot be found: {error}") from error


def user_half(kernel: Kernel, root: Root) -> Root:
    """Return user mode's root under page-table isolation, from kernel mode's root.

    :raises UsageError: page-table isolation is off.
    """
    isolation = kernel.isolation
    table = kernel.facts.user_root(root.table)
    if table is None:
        raise UsageError(
            f"page-table isolation is off ({isolation.provenance}): there is one root for both modes"
            if not isolation.value
            else "user mode runs on the tables of its process",
            "omit the option for the user half",
        )
    return Root(table, f"{root.owner}, user half")


def efi_root(kernel: Kernel) -> Root:
    """Return the root of firmware's runtime services.

    :raises UsageError: this kernel has no such root.
    :raises Unavailable: the source does not contain it.
    """
    region = kernel.regions.named("efi")
    if region is not None:
        found = kernel.locate(region)
        if isinstance(found, Placement):
            return region.roots(kernel)[0]
    else:
        root = kernel.facts.firmware_root()
        if isinstance(root, Root):
            return root
        found = root
    if isinstance(found, Absent):
        raise UsageError(f"there are no EFI page tables: {found.reason}", "choose another root")
    raise Unavailable(found.reason)


def named_root(kernel: Kernel, name: str) -> Root:
    """A root of :data:`NAMES`.

    :raises UsageError: this kernel has no such root.
    :raises Unavailable: the source does not contain it.
    """
    if name == "kernel":
        return kernel_root(kernel)
    if name == "user":
        return user_half(kernel, kernel_root(kernel))
    if name == "efi":
        return efi_root(kernel)
    known: Mapping[str, Callable[[Kernel], Tuple[Root, PagingForm]]] = {}
    try:
        known = part(kernel.arch, "roots").ROOTS
    except ModuleNotFoundError as error:
        if error.name != f"{kernel.arch.package}.roots":
            raise
    if name not in known:
        raise UsageError(f"kernels of {kernel.arch.name} have no page tables {name}", "choose another root")
    root, form = known[name](kernel)
    kernel.forms[root.table] = form
    return root
