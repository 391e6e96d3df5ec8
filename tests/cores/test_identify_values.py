# SPDX-License-Identifier: LGPL-2.1-or-later
"""``identify`` on values that are not addresses, aliases of symbols, and memory of a process."""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

import pytest
from drgn.helpers.linux.pid import find_task

from kvintro.errors import UsageError
from kvintro.kernels import Kernel
from kvintro.model import Thing
from kvintro.queries.names import pid_named
from kvintro.queries.pages.meaning import KPF_RESERVED
from kvintro.readers.cpus import per_cpu_address, possible_cpus
from kvintro.reports.identify import identify
from tests.conftest import Core
from tests.cores.showing import kallsyms, needs
from tests.cores.test_layout_truth import has_alias
from tests.cores.test_pages_truth import words
from tests.cores.test_show_user import pids

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)


def things(kernel: Kernel, text: str, kind: str, pid: Optional[int] = None) -> List[Thing]:
    """The identities of one kind of an address."""
    (row,) = identify(kernel, [text], pid=pid).tables[0].rows
    return [thing for thing in row.identities if thing.kind == kind]


def init_task(core: Core, kernel: Kernel) -> Tuple[int, int]:
    """The address of init_task, and the physical address to which the page tables map it."""
    address = kallsyms(core, "init_task").get("init_task")
    if address is None:
        pytest.skip("the kernel's kallsyms does not name init_task")
    physical = kernel.walk(address).physical
    assert physical is not None
    return address, physical


def test_the_image_by_physical_address(core: Core, kernel: Kernel) -> None:
    needs(kernel, "_end")
    image, physical = init_task(core, kernel)
    (row,) = identify(kernel, [f"{physical + 8:x}"], form="physical").tables[0].rows
    if not has_alias(core, kernel, image):
        assert (
            row.address == image + 8 and row.note == "mapped in the kernel image, and not in the direct map"
        )
        assert [thing.text for thing in row.identities if thing.kind == "symbol"] == ["symbol: init_task+0x8"]
        return
    (found,) = (thing for thing in row.identities if thing.kind == "alias")
    assert found.text == "direct map of init_task+0x8"
    assert found.details["image"] == image + 8


def test_per_cpu_memory_ends_where_the_kernel_says(core: Core, kernel: Kernel) -> None:
    """The kernel's log has the bytes that each CPU was given. The kernel freed the rest of the CPU's unit."""
    needs(kernel, "__per_cpu_offset")
    if kernel.source.types == "none":
        pytest.skip("without types, kvintro only knows where the variables are")
    line = re.search(r"percpu: Embedded \d+ pages/cpu s(\d+) r(\d+) d(\d+) u(\d+)", core.truth("dmesg"))
    assert line is not None
    *parts, unit = map(int, line.groups())
    used, page = sum(parts), kernel.form.page_size
    flags = words(core, "kpageflags").tolist()
    for cpu in possible_cpus(kernel):
        first = per_cpu_address(kernel, "__per_cpu_start", cpu)
        places = {first: True, first + used - 1: True, first + used: used == unit and None}
        # Memory that the page allocator has is no longer reserved.
        for address in range(first, first + unit, page):
            physical = kernel.walk(address).physical
            if physical is not None and not flags[physical // page] >> KPF_RESERVED & 1:
                places[address] = False
        rows = identify(kernel, [f"{address:x}" for address in places]).tables[0].rows
        for row, expected in zip(rows, places.values()):
            found = any(thing.kind == "per_cpu" for thing in row.identities)
            assert expected is None or found is expected, row.input


def test_one_bit_off(core: Core, kernel: Kernel) -> None:
    needs(kernel, "_end")
    image, _ = init_task(core, kernel)
    for bit in (58, 60, 62):
        (found,) = things(kernel, f"{image ^ 1 << bit:016x}", "one_bit_off")
        assert found.start == image and found.details["bit"] == bit
        assert found.text.endswith("kernel_image: init_task")


def test_error_values_and_poison(kernel: Kernel) -> None:
    assert things(kernel, "fffffffffffffff4", "error_value")[0].details["name"] == "ENOMEM"
    assert things(kernel, "6b6b6b6b6b6b6b6b", "poison")[0].details["name"] == "POISON_FREE"
    assert not things(kernel, "ffff800000000000", "poison")


def test_the_canary_of_a_task(kernel: Kernel) -> None:
    needs(kernel, "_end")
    task = find_task(kernel.prog, 1)
    if not hasattr(task, "stack_canary"):
        pytest.skip("this kernel has no stack canaries")
    canary = task.stack_canary.value_()
    if not canary or kernel.form.is_canonical(canary):
        pytest.skip("the canary of process 1 looks like an address")
    (found,) = things(kernel, f"{canary:016x}", "stack_canary")
    assert found.details["pid"] == 1


def test_the_memory_of_a_process(core: Core, kernel: Kernel) -> None:
    needs(kernel, "_end")
    pid = pids(core)[0]
    for line in core.truth(f"proc/{pid}/maps").splitlines():
        bounds, *_ = line.split()
        name = line[73:]
        start, end = (int(part, 16) for part in bounds.split("-"))
        if start in kernel.form.user:
            (found,) = things(kernel, f"{end - 1:x}", "memory_area", pid=pid)
            assert found.start == start and found.size == end - start
            assert not name or name in found.text


def test_a_process_by_its_name(kernel: Kernel) -> None:
    needs(kernel, "_end")
    task = find_task(kernel.prog, 1)
    assert pid_named(kernel, task.comm.string_().decode()) == 1
    with pytest.raises(UsageError, match="there is no process"):
        pid_named(kernel, "no such name")
