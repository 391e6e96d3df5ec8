# SPDX-License-Identifier: LGPL-2.1-or-later
"""riscv64: rules of ``kvintro check`` for this architecture only, and values repeated in VMCOREINFO."""

from __future__ import annotations

from typing import Mapping, Sequence

from kvintro.arch.riscv64.facts import riscv_facts
from kvintro.kernels import Kernel, Region
from kvintro.model import ALL, AddressRange
from kvintro.queries.audit.running import KcoreStart, start_of
from kvintro.queries.audit.verdict import Check, Finding, Said, Tally

#: No physical memory is expected to contain code because of its address.
LOW_CODE = 0
CHECKS: Mapping[str, Sequence[Check]] = {}


def unexplained(
    kernel: Kernel, region: Region, findings: Sequence[Finding], tally: Tally
) -> Sequence[Finding]:
    """See :data:`kvintro.queries.audit.rights.Unexplained`."""
    return findings


def rounded(kernel: Kernel, region: Region) -> Sequence[AddressRange]:
    """Ranges where large pages also map memory beyond that intended."""
    return ()


#: Where segments of /proc/kcore start (fs/proc/kcore.c): ``_text``, VMALLOC_START, MODULES_VADDR.
KCORE: Sequence[KcoreStart] = (
    ("vmalloc", start_of("vmalloc")),
    ("modules", lambda kernel: riscv_facts(kernel).modules.start),
    ("kernel_image", lambda kernel: kernel.text.value),
)


#: Values that the kernel recorded for dumps at boot, and also has in variables.
SAID: Sequence[Said] = (
    Said("SYMBOL(swapper_pg_dir)", "swapper_pg_dir", lambda kernel: kernel.symbol("swapper_pg_dir")),
    Said("SYMBOL(_stext)", "_stext", lambda kernel: kernel.symbol("_stext")),
    Said("SYMBOL(init_uts_ns)", "init_uts_ns", lambda kernel: kernel.symbol("init_uts_ns")),
    Said("NUMBER(phys_ram_base)", "phys_ram_base", lambda kernel: kernel.value("phys_ram_base").value),
    Said("NUMBER(PAGE_OFFSET)", "kernel_map.page_offset", lambda kernel: kernel.value("kernel_map").value),
    Said("NUMBER(MODULES_END)", "_start", lambda kernel: kernel.symbol("_start") & -kernel.form.page_size & ALL),
)
