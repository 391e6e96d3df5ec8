# SPDX-License-Identifier: LGPL-2.1-or-later
"""CPUs of a kernel, and their copies of per-CPU variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

from kvintro.errors import Unavailable
from kvintro.model import ALL
from kvintro.readers.structures import TROUBLE, number, pointer_at, struct_at

if TYPE_CHECKING:
    from kvintro.kernels import Kernel


_MAX_CPUS = 8192  # NR_CPUS_RANGE_END with MAXSMP


def possible_cpus(kernel: Kernel) -> List[int]:
    """Numbers of the possible CPUs, which have their own memory even if they are offline.

    :raises Unavailable: the source does not contain them.
    """
    # The helper does not check the number of CPUs.
    if kernel.has_symbol("nr_cpu_ids"):
        count = kernel.value("nr_cpu_ids", 4).value
        if not 0 < count <= _MAX_CPUS:
            raise Unavailable(f"the list of CPUs cannot be read: nr_cpu_ids is {count}")
        mask = kernel.find_symbol("__cpu_possible_mask")
        if mask is not None:
            # One bit per CPU: no types are needed.
            bits = int.from_bytes(kernel.read(mask, -(-count // 64) * 8), "little")
            return [cpu for cpu in range(count) if bits >> cpu & 1]
    from drgn.helpers.linux.cpumask import for_each_possible_cpu

    try:
        found = [int(cpu) for cpu in for_each_possible_cpu(kernel.prog)]
    except TROUBLE as error:
        raise Unavailable(f"the list of CPUs cannot be read: {kernel.why(error)}") from error
    return found[:_MAX_CPUS]


def per_cpu_address(kernel: Kernel, name: str, cpu: int) -> int:
    """Address of a CPU's copy of a per-CPU variable.

    :raises Unavailable: there is no such variable, or the source does not say where the copies are.
    """
    base = pointer_at(kernel, kernel.symbol("__per_cpu_offset") + 8 * cpu)
    return kernel.symbol(name) + base & ALL


def per_cpu_unit_size(kernel: Kernel) -> int:
    """Bytes of the first chunk of per-CPU memory that each CPU has: its variables and the first dynamic ones.

    The units of the CPUs are often far apart: ``pcpu_unit_size`` is up to 2 MB, and the kernel frees the part
    of each unit that it does not use (mm/percpu.c:pcpu_embed_first_chunk).

    :raises Unavailable: the source does not say how large it is.
    """
    chunk = struct_at(kernel, "struct pcpu_chunk", pointer_at(kernel, kernel.symbol("pcpu_first_chunk")))
    base = pointer_at(kernel, kernel.symbol("pcpu_base_addr"))
    size = number(chunk, "base_addr") + number(chunk, "nr_pages") * kernel.form.page_size - base
    if not 0 < size <= kernel.value("pcpu_unit_size", 4).value:
        raise Unavailable(f"the first chunk of per-CPU memory has {size} bytes, which cannot be right")
    return size
