# SPDX-License-Identifier: LGPL-2.1-or-later
"""`show vmalloc` against /proc/vmallocinfo, line by line, and on damaged lists."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from typing import Any, Dict, List

import pytest

from kvintro.kernels import Kernel
from kvintro.model import Asked
from kvintro.render import render
from kvintro.reports.show import Selection, show
from tests.conftest import Core
from tests.cores.showing import WILD, clean, document, fresh, needs, number, overlay, text_of
from tests.timing import allowed

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)

HASHED = re.compile(r"^0x0000\w+-0x0000\w+ ")


@pytest.fixture(scope="module")
def vmalloc(kernel: Kernel) -> Any:
    return document(kernel, "vmalloc")


def areas_of(kernel: Kernel) -> List[str]:
    return text_of(show(kernel, "vmalloc", Asked(), Selection(table="areas")))


def test_line_by_line(core: Core, kernel: Kernel) -> None:
    theirs = core.truth("vmallocinfo").splitlines()
    ours = areas_of(kernel)
    if ours[-1].startswith("note: recently freed areas cannot be listed"):
        assert kernel.code_only
        theirs = [line for line in theirs if not line.endswith("unpurged vm_area")]
        ours = [line for line in ours if line.startswith("0x")]
    assert len(ours) == len(theirs)
    # Before 5.12 the kernel hashes the addresses of unpurged areas, so only sizes are compared.
    hidden = [line for line in theirs if HASHED.match(line)]
    if hidden:
        assert all(line.endswith("unpurged vm_area") for line in hidden)
        sizes = sorted(line.split(None, 1)[1] for line in hidden)
        assert sorted(line.split(None, 1)[1] for line in ours if line.endswith("unpurged vm_area")) == sizes
        theirs = [line for line in theirs if not HASHED.match(line)]
        ours = [line for line in ours if not line.endswith("unpurged vm_area")]
    changed = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
    # The kernel wrote its file before the dump. Stacks that it freed in between are not purged yet. Each CPU
    # keeps NR_CACHED_STACKS of them, and only further ones are freed.
    assert all(line.endswith("unpurged vm_area") for line in changed[0])
    assert all(" kernel_clone+" in line or " dup_task_struct+" in line for line in changed[1])
    places = [sorted(line.split(None, 1)[0] for line in lines.elements()) for lines in changed]
    assert places[0] == places[1] and len(places[0]) <= 2


def test_the_order_is_the_kernels_where_it_has_one_list(core: Core, kernel: Kernel) -> None:
    if kernel.find_symbol("vmap_area_list") is None:
        pytest.skip("this kernel keeps a list for each node and prints them one after the other")
    theirs = [
        line for line in core.truth("vmallocinfo").splitlines() if not line.endswith("unpurged vm_area")
    ]
    assert areas_of(kernel)[: len(theirs)] == theirs


def test_every_area_agrees_with_the_page_tables(kernel: Kernel, vmalloc: Any) -> None:
    if kernel.code_only:
        assert all(note.startswith("recently freed areas cannot be listed") for note in vmalloc["notes"])
    else:
        clean(vmalloc)
    for row in vmalloc["areas"]:
        if row["kind"] == "ioremap":
            # An ioremap is uncached or write-combined, except memory that firmware reports as RAM.
            assert row["mapped"] == row["size"] - row["guard"]
        if row["kind"] == "unpurged":
            assert row["mapped"] == 0


def test_pages_of_several_nodes(core: Core, vmalloc: Any) -> None:
    """Another test compares whole lines. Here: there are some, and their sums are right."""
    if not core.meta.get("furnished"):
        pytest.skip(f"{core.name} has one node")
    counted = [row for row in vmalloc["areas"] if row["nodes"]]
    for row in counted:
        assert sum(row["nodes"].values()) == row["pages"]
    assert {node for row in counted for node in row["nodes"]} == {"0", "1"}
    assert any(set(row["nodes"]) == {"0", "1"} for row in counted)


def test_areas_that_are_mapped_in_part(core: Core, vmalloc: Any) -> None:
    """Against the lab's workload: XFS keeps one directory in a block of 64 KB, and a program has touched a
    number of pages of an arena that it shares with BPF."""
    kind = core.meta.get("furnished")
    if not kind:
        pytest.skip(f"{core.name} has no such areas")
    blocks = [row for row in vmalloc["areas"] if row["kind"] == "vm_map_ram"]
    # A block that was completely used and freed disappears; whether one of erofs remains is chance.
    assert blocks or kind == "erofs"
    assert sum(row["mapped"] for row in blocks) == {"xfs": 64 << 10, "erofs": 0}[kind]
    arenas = [row for row in vmalloc["areas"] if row["kind"] == "sparse"]
    assert [row["mapped"] for row in arenas] == ([] if "absent" in arena_of(core) else [8192])
    by_kind = {row["name"]: row["areas"] for row in vmalloc["by_kind"]}
    said = core.truth("vmallocinfo")
    assert by_kind.get("vm_map_ram", 0) == len(blocks) == said.count(" vm_map_ram")
    assert by_kind.get("unpurged", 0) == said.count(" unpurged")


def arena_of(core: Core) -> str:
    return next(line for line in core.truth("workload").splitlines() if line.split()[2] == "arena")


def test_vmalloc_used(core: Core, vmalloc: Any) -> None:
    used = re.search(r"^VmallocUsed: +(\d+) kB", core.truth("meminfo"), re.M)
    assert used
    # nr_vmalloc_pages counts the pages of vmalloc() alone.
    pages = sum(row["pages"] for row in vmalloc["areas"] if "vmalloc" in row["flags"])
    assert pages * core.page_size >> 10 == int(used[1])


def test_the_free_space_is_what_the_kernel_counts(vmalloc: Any, kernel: Kernel) -> None:
    """Gaps between areas, against the independent free_vmap_area_list and the nodes' pools."""
    needs(kernel, "free_vmap_area_list")
    totals = vmalloc["totals"]
    assert totals["free_by_the_kernel"] + totals["pooled"] == totals["free"]
    assert totals["free"] + totals["in_region"] == vmalloc["region"]["size"]
    assert sum(gap["size"] for gap in vmalloc["gaps"]) == totals["free"]


def test_sums(vmalloc: Any) -> None:
    for key in ("by_caller", "by_kind"):
        for column in ("size", "pages", "guard", "mapped"):
            assert sum(row[column] for row in vmalloc[key]) == sum(row[column] for row in vmalloc["areas"])
    stacks = [
        row for row in vmalloc["areas"] if (row["caller"] or "").startswith(("kernel_clone", "fork_idle"))
    ]
    named = [row for row in vmalloc["by_caller"] if row["name"] in ("kernel_clone", "fork_idle")]
    assert sum(row["areas"] for row in named) == len(stacks)


def test_selection(kernel: Kernel, vmalloc: Any) -> None:
    one = vmalloc["areas"][3]
    start, end = number(one["start"]), number(one["end"]) + 1

    def rows(**chosen: Any) -> Any:
        report = show(kernel, "vmalloc", Asked(), Selection(table="areas", **chosen))
        return json.loads(render(report, "json"))["areas"]

    from kvintro.model import AddressRange

    assert rows(within=AddressRange(start, end - 1)) == [one]
    assert rows(match=re.compile("irq_init_percpu_irqstack")) == [
        row for row in vmalloc["areas"] if (row["caller"] or "").startswith("irq_init_percpu_irqstack")
    ]
    sizes = [row["size"] for row in rows(top=5)]
    assert sizes == sorted((row["size"] for row in vmalloc["areas"]), reverse=True)[:5]
    assert [row["start"] for row in rows(sort="start", reverse=True)] == sorted(
        (row["start"] for row in vmalloc["areas"]), reverse=True
    )


# A damaged list.


def nodes_of(kernel: Kernel) -> List[int]:
    """Addresses of the vmap_areas of the longest list in order, followed by its head."""
    from drgn.helpers.linux.list import list_for_each

    prog = kernel.prog
    if kernel.find_symbol("vmap_area_list") is not None:
        heads = [kernel.symbol("vmap_area_list")]
    else:
        count = kernel.value("nr_vmap_nodes", 4).value
        base = kernel.value("vmap_nodes").value
        type_ = prog.type("struct vmap_node *")
        import drgn

        heads = [drgn.Object(prog, type_, base)[i].busy.head.address_ for i in range(count)]
    import drgn

    lists: Dict[int, List[int]] = {}
    for head in heads:
        anchor = drgn.Object(prog, "struct list_head *", head)
        lists[head] = [int(node.value_()) for node in list_for_each(anchor)]
    head, nodes = max(lists.items(), key=lambda item: len(item[1]))
    return [*nodes, head]


@pytest.mark.parametrize("spoiled", ["a loop", *WILD])
def test_a_damaged_list(core: Core, spoiled: str, kernel: Kernel) -> None:
    needs(kernel, "vmap_zone_size")
    kernel = fresh(core)
    *nodes, _ = nodes_of(kernel)
    whole = len(show(kernel, "vmalloc", Asked(), Selection(table="areas")).tables[0].rows)
    middle = len(nodes) // 2
    overlay(kernel, nodes[middle], nodes[2] if spoiled == "a loop" else WILD[spoiled])
    started = time.process_time()
    report = show(kernel, "vmalloc", Asked(), Selection(table="areas"))
    assert time.process_time() - started < allowed(10)
    assert report.partial
    assert any("cycle" in note or "ends early" in note for note in report.notes)
    # The list is also read from its other end, so that nothing is lost.
    assert len(report.tables[0].rows) == whole


def test_a_list_damaged_at_both_ends(core: Core, kernel: Kernel) -> None:
    needs(kernel, "vmap_zone_size")
    kernel = fresh(core)
    *nodes, head = nodes_of(kernel)
    whole = len(show(kernel, "vmalloc", Asked(), Selection(table="areas")).tables[0].rows)
    overlay(kernel, nodes[2], nodes[1])  # next
    overlay(kernel, nodes[-3] + 8, nodes[-2])  # prev
    report = show(kernel, "vmalloc", Asked(), Selection(table="areas"))
    assert report.partial
    assert len(report.tables[0].rows) == whole - (len(nodes) - 6)
    overlay(kernel, head, head + 8)
    overlay(kernel, head + 8, 0x1234)
    report = show(kernel, "vmalloc", Asked(), Selection())
    assert report.partial


def test_an_area_with_impossible_numbers(core: Core, kernel: Kernel) -> None:
    needs(kernel, "vmap_zone_size")
    kernel = fresh(core)
    *nodes, _ = nodes_of(kernel)
    import drgn

    areas = (
        drgn.container_of(
            drgn.Object(kernel.prog, "struct list_head *", node), kernel.prog.type("struct vmap_area"), "list"
        )
        for node in nodes
    )
    area = next(area for area in areas if area.vm and area.vm.nr_pages)
    # It has 4 or 8 bytes.
    overlay(kernel, area.vm.nr_pages.address_, 0x8000_0007_8000_0007)
    overlay(kernel, area.vm.caller.address_, 0xDEAD)
    overlay(kernel, area.vm.pages.address_, 0xDEAD_0000_0000)
    report = show(kernel, "vmalloc", Asked(), Selection())
    assert report.partial
    overlay(kernel, area.vm.size.address_, (1 << 64) - 4096)
    report = show(kernel, "vmalloc", Asked(), Selection())
    assert report.partial
