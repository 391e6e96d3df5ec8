# SPDX-License-Identifier: LGPL-2.1-or-later
"""A user's script: every call that docs/api.md and docs/prompt.md show.

tests/cores/test_public_api.py runs it, and has mypy --strict check it as a user would.
"""

from __future__ import annotations

import sys
from typing import List, Optional, Sequence

import drgn
import numpy

import kvintro
import kvintro.types
from kvintro import kernel
from kvintro.answers import Answer, Listing
from kvintro.errors import KvintroError, Unavailable
from kvintro.model import Absent, Address, Fact, Placement
from kvintro.prompt import Kernel
from kvintro.reports.layout import RegionRow


def commands(k: Kernel, prog: drgn.Program) -> None:
    """The methods for commands, and what they return."""
    layout = k.layout(holes=False)
    rows: Sequence[RegionRow] = layout.regions
    first: RegionRow = layout[0]
    names: List[str] = [row.name for row in layout]
    assert len(layout) == len(rows) == len(names) and first.key == "user"
    assert sum(row.mapped or 0 for row in layout) > 0
    assert layout.json()["kernel"]["release"]
    assert layout.text() and layout.text(width=80)
    assert layout.partial in (True, False) and layout.negative is False

    found = k.translate("init_task", walk=True)
    address: Optional[Address] = found[0].physical
    assert address is not None and hex(found.physical) == hex(address)
    assert k.translate(prog["init_task"]).physical == address
    assert k.vtop([prog.symbol("init_task").address, 0xFFFF800000000000])[1].state == "unmapped"
    assert k.ptov(address)[0].virtual

    page = k.page(address, form="physical", mappings=False)
    assert k.page(page[0].pfn).type == page.type
    assert k.aliases(address)
    assert k.identify("init_task").text()
    assert k.pte(0x8000000003A12163, level="pte").entries
    assert k.pages(by="type", top=3)
    assert k.show("vmalloc", table="areas", top=3).rows
    assert k.explain("vmalloc").text()
    assert k.kaslr().bases
    assert k.info().facts
    assert k.user(1).rows
    assert k.check().checks
    listing: Listing = k.ptdump(range="kernel_image", wx=False)
    assert listing.rows[0]["start"] is not None
    answer = k.run("layout")
    assert isinstance(answer, Answer)


def regions(k: Kernel, prog: drgn.Program) -> None:
    """Regions by attribute, and a loop over all regions."""
    vmalloc = k.regions.vmalloc
    assert vmalloc.start is not None and vmalloc.end is not None and vmalloc.range is not None
    assert vmalloc.size > 0 and (vmalloc.slide is None or vmalloc.slide >= 0)
    assert isinstance(vmalloc.place, Placement) and vmalloc.reason is None
    assert prog["init_task"] in k.regions.kernel_image
    assert isinstance(k.regions.kasan_shadow.place, Absent) and k.regions.kasan_shadow.reason
    assert vmalloc.areas(top=3).rows and vmalloc.table("areas").rows and vmalloc.show(top=1).rows
    assert vmalloc.explain().text()
    assert "vmalloc" in [region.key for region in k.regions]


def memory(k: Kernel, prog: drgn.Program) -> None:
    """Facts, memory and arrays."""
    base: Fact[int] = k.value("page_offset_base")
    assert base.value == k.page_offset_base.value and base.provenance
    assert k.phys_base.provenance and k.levels.value in (4, 5) and k.root.value and k.max_pfn.value
    assert k.pti.value is k.isolation.value and k.image_slide.value >= 0
    assert k.linear_offset.value and k.image_offset.value
    assert k.read(prog["init_task"].comm, 9) == b"swapper/0"
    assert k.read_physical(k.walk("_text").physical or 0, 4)
    assert k.walk(prog["init_task"]).page_size
    assert k.identity.live is False and k.prog is prog
    addresses = numpy.array([k.symbol("_text"), k.symbol("_end")], numpy.uint64)
    physical, states = k.translate_array(addresses)
    assert physical.tolist()[0] == k.walk("_text").physical and states.tolist() == [1, 1]
    walked = k.walk_array(addresses, root=k.root.value)
    assert walked.values.shape[0] == 2 and walked.depths.tolist() and walked.page_shifts.tolist()
    try:
        k.value("no_such_symbol")
    except Unavailable as error:
        assert isinstance(error, KvintroError) and error.what


def main(path: str) -> None:
    """Run everything on a dump."""
    prog = drgn.Program(drgn.Platform(drgn.Architecture.X86_64))
    prog.set_core_dump(path)
    installed = kvintro.types.install(prog)
    assert installed.types == "BTF" and installed.symbols_missing is None
    k = kernel(prog)
    commands(k, prog)
    regions(k, prog)
    memory(k, prog)
    assert kvintro.open(path).identity.release == k.identity.release
    assert kvintro.open(prog).symbol("_text") == k.symbol("_text")
    assert kvintro.__version__


if __name__ == "__main__":
    main(sys.argv[1])
