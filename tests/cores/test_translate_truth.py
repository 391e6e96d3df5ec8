# SPDX-License-Identifier: LGPL-2.1-or-later
"""Translations against the emulator's own MMU, and against the pagemap that processes read of themselves."""

from __future__ import annotations

import gzip
import json
import random
import re
from typing import Dict, List, Tuple

import numpy
import pytest

from kvintro.arch.x86_64.facts import x86_facts
from kvintro.errors import Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.model import ALL, Placement
from kvintro.paging import MAPPED
from kvintro.paging.bulk import STATES
from kvintro.queries.translate import FORMS, Input, Translator
from kvintro.reports.translate import translate, translate_stream
from tests.conftest import Core
from tests.cores.showing import needs

ARCHITECTURES = ("amd64", "arm64", "riscv64")
# include/uapi/linux/fs.h, Documentation/admin-guide/mm/pagemap.rst
PAGEMAP_PRESENT = 1 << 63
PAGEMAP_SWAP = 1 << 62
PAGEMAP_PFN = (1 << 55) - 1


@pytest.fixture(scope="module")
def emulated(core: Core) -> Dict[int, "int | None"]:
    """QEMU's gva2gpa for kernel addresses over all regions; None if it would fault."""
    asked = json.loads(core.truth("gva2gpa.json"))
    return {
        int(virtual, 16): int(physical, 16) if str(physical).startswith("0x") else None
        for virtual, physical in asked.items()
    }


def test_kernel_addresses_are_where_the_emulator_has_them(
    kernel: Kernel, emulated: Dict[int, "int | None"]
) -> None:
    translator = Translator(kernel, form="virtual")
    wrong = {}
    for virtual, physical in emulated.items():
        found = translator.translate(Input("", virtual, "virtual"))
        # The emulator used the processor's current tables, and not efi_mm or other processes' LDTs.
        if found.root == "init_top_pgt" and found.physical != physical:
            wrong[virtual] = (physical, found)
    assert not wrong
    assert sum(physical is not None for physical in emulated.values()) > 300


def test_many_at_once_are_where_the_emulator_has_them(
    kernel: Kernel, emulated: Dict[int, "int | None"]
) -> None:
    addresses = list(emulated)
    physical, states = kernel.translate_array(numpy.array(addresses, numpy.uint64))
    for virtual, found, state in zip(addresses, physical.tolist(), states.tolist()):
        expected = emulated[virtual]
        assert (found if STATES[state] == "mapped" else None) == expected, hex(virtual)


def test_kernel_addresses_are_where_drgn_has_them(kernel: Kernel) -> None:
    """follow_phys(), which walks init_mm's tables with masks of its own."""
    needs(kernel, "init_mm")
    from drgn.helpers.linux.mm import follow_phys

    if kernel.source.types == "none":
        pytest.skip("drgn's helper needs types")
    if kernel.arch.name == "riscv64":
        pytest.skip("drgn has no page-table walker for riscv64")
    memory = kernel.prog["init_mm"].address_of_()
    chosen = random.Random(3)
    mapped = [(start, end) for start, end, key in kernel.kernel_ranges if key & MAPPED]
    addresses = [address for start, end in mapped for address in (start, end, chosen.randint(start, end))]
    physical, states = kernel.translate_array(numpy.array(addresses, numpy.uint64))
    assert {STATES[state] for state in states.tolist()} == {"mapped"}
    for address, found in zip(addresses, physical.tolist()):
        assert follow_phys(memory, address).value_() == found, hex(address)


def pagemaps(core: Core) -> Dict[int, List[Tuple[int, int]]]:
    """/proc/PID/pagemap of some processes: (virtual address, entry) by pid."""
    found: Dict[int, List[Tuple[int, int]]] = {}
    for line in core.truth("pagemap").splitlines():
        pid, virtual, entry = line.split()[:3]
        found.setdefault(int(pid), []).append((int(virtual, 16), int(entry, 16)))
    return found


def test_user_addresses_are_what_pagemap_says(core: Core, kernel: Kernel) -> None:
    """Anonymous, file, shared and huge pages, hugetlb, PROT_NONE with content, copies after fork."""
    checked = 0
    for pid, entries in pagemaps(core).items():
        try:
            translator = Translator(kernel, pid=pid)
        except (UsageError, Unavailable) as error:
            pytest.skip(f"process {pid}: {error}")
        for virtual, entry in entries:
            found = translator.translate(Input("", virtual, "virtual"))
            if entry & PAGEMAP_PRESENT:
                assert (found.state, found.pfn) == ("mapped", entry & PAGEMAP_PFN), (pid, hex(virtual))
                checked += 1
            else:
                assert found.state == "unmapped", (pid, hex(virtual))
                assert found.physical is None
    assert checked > 1000


def test_entries_of_swapped_pages_are_what_pagemap_says(core: Core, kernel: Kernel) -> None:
    """fs/proc/task_mmu.c:pte_to_pagemap_entry: bits 0-4 the type, 5-54 the offset or page frame."""
    checked = 0
    for pid, entries in pagemaps(core).items():
        swapped = [(v, e) for v, e in entries if e & PAGEMAP_SWAP and not e & PAGEMAP_PRESENT]
        if not swapped:
            continue
        translator = Translator(kernel, pid=pid)
        for virtual, entry in swapped:
            steps = translator.translate(Input("", virtual, "virtual")).walk
            value, level = steps[-1].value, kernel.form.levels + 1 - len(steps)
            assert value is not None
            found = kernel.entries.decode(value, level, half="user").swap
            assert found is not None, (pid, hex(virtual))
            offset = found.offset if found.pfn is None else found.pfn
            assert (found.type, offset) == (entry & 31, entry >> 5 & (1 << 50) - 1), (pid, hex(virtual))
            checked += 1
    if not checked:
        pytest.skip("nothing was swapped out in this guest")


def test_huge_pages_of_processes_are_huge(core: Core, kernel: Kernel) -> None:
    """Those of hugetlbfs according to the workload, transparent ones according to smaps of the same area."""
    pages = [line.split()[:4] for line in core.truth("workload").splitlines()]
    huge = {(int(pid), int(start, 16)) for pid, _, kind, start in pages if kind == "hugetlb"}
    assert huge
    huge_size = 1 << kernel.form.shift(2)
    transparent = set()
    for pid, start in {(int(pid), start) for pid, _, kind, start in pages if kind == "thp"}:
        text = core.truth(f"proc/{pid}/smaps").partition(f"{start.lstrip('0')}-")[2]
        if re.search(rf"AnonHugePages: +{huge_size >> 10} kB", text.partition("VmFlags")[0]):
            transparent.add((pid, int(start, 16)))
    for pid, place in huge | transparent:
        found = Translator(kernel, pid=pid).translate(Input("", place + 0x12345, "virtual"))
        assert (found.state, found.page_size) == ("mapped", huge_size), (pid, hex(place))
        assert found.physical is not None
        assert found.physical % huge_size == 0x12345
    if not transparent:
        pytest.skip("the lab's guests of before had no transparent huge pages: hugetlb's were compared")


def test_freed_init_has_no_physical_address(core: Core, kernel: Kernel) -> None:
    try:
        start, end = kernel.symbol("__init_begin"), kernel.symbol("__init_end")
    except Unavailable as error:
        pytest.skip(error.what)
    if not kernel.isolation.value:
        pytest.skip("without page-table isolation the image's alias stays (init.c:free_kernel_image_pages)")
    translator = Translator(kernel)
    for address in (start, start + 0x123, (start + end) // 2):
        found = translator.translate(Input("", address, "virtual"))
        assert (found.state, found.physical, found.pfn, found.page) == ("unmapped", None, None, None)
        assert found.region == "kernel_image"
    report = translate(kernel, translator, [f"{start:x}"])
    assert report.negative
    assert not report.partial


def test_there_and_back_again(core: Core, kernel: Kernel) -> None:
    """Virtual to physical to page and back gives the original address, all over the direct map."""
    place = kernel.locate("direct_map")
    if not isinstance(place, Placement):
        pytest.skip(place.reason)
    translator = Translator(kernel)
    chosen = random.Random(7)
    ram = min(start for start, _ in kernel.node_spans()) * kernel.form.page_size
    shift = kernel.form.page_shift
    for _ in range(200):
        physical = ram // (1 << 27) * (1 << 27) + chosen.randrange(0, 128 << 20)
        virtual = kernel.linear_offset.value + physical & ALL
        forward = translator.translate(Input("", virtual, "virtual"))
        back = translator.translate(Input("", physical, "physical"))
        if forward.state != "mapped":
            # A hole (memfd_secret, for one): known to exist, but not mapped. arm64's 7.3 maps the data of its
            # image in the image only.
            if back.state == "mapped" and core.architecture == "arm64":
                assert back.region == "kernel_image" and back.virtual is not None
                image = translator.translate(Input("", back.virtual, "virtual"))
                assert image.physical == physical
            else:
                assert (back.state, back.virtual) == ("unmapped", None)
            continue
        assert forward.physical == physical
        assert forward.method == "linear"
        assert back.virtual == virtual
        if forward.page is None:
            continue
        page = translator.translate(Input("", forward.page, "page"))
        assert (page.physical, page.pfn) == (physical >> shift << shift, physical >> shift)
        by_pfn = translator.translate(Input("", physical >> shift, "pfn"))
        assert by_pfn.virtual == virtual >> shift << shift
        assert by_pfn.page == forward.page


def test_a_stream_says_what_single_answers_say(kernel: Kernel) -> None:
    chosen = random.Random(11)
    starts = [p.range.start for p in map(kernel.locate, kernel.regions) if isinstance(p, Placement)]
    numbers = [chosen.choice(starts) + chosen.randrange(1 << 27) & ALL for _ in range(1500)]
    numbers += [chosen.randrange(1 << 28) for _ in range(200)] + [
        chosen.randrange(1 << 64) for _ in range(200)
    ]
    numbers += [0, ALL, 1 << 63, (1 << 63) - 1]
    texts = [f"{number:x}" for number in numbers]
    for options in ({}, {"form": "pfn"}, {"below": "virtual", "plain_virtual": True}):
        translator = Translator(kernel, **options)
        columns: Dict[str, List[object]] = {}
        for batch in translate_stream(kernel, translator, [texts[:700], texts[700:]]):
            for key, values in batch.values.items():
                columns.setdefault(key, []).extend(values)
        for i, text in enumerate(texts):
            one = translator.translate(translator.parse(text))
            for key in (
                "input",
                "taken_as",
                "state",
                "region",
                "virtual",
                "physical",
                "pfn",
                "page",
                "page_size",
            ):
                assert columns[key][i] == getattr(one, key), (text, key, options)
            assert columns["method"][i] == one.method


def test_symbols_are_where_kallsyms_has_them(core: Core, kernel: Kernel) -> None:
    if kernel.source.symbols == "none":
        pytest.skip("no symbols")
    path = core.truth_directory / "kallsyms.gz"
    if not path.exists():
        pytest.skip("taken without kallsyms")
    translator = Translator(kernel)
    seen = 0
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        fields = line.split()
        if len(fields) != 3 or fields[2] not in ("init_task", "vprintk", "kfree", "vfs_read", "_stext"):
            continue
        asked = translator.parse(f"{fields[2]}+0x10")
        assert asked.value == int(fields[0], 16) + 0x10
        seen += 1
    assert seen >= 2


def test_every_input_form_is_understood(kernel: Kernel) -> None:
    translator = Translator(kernel)
    for text, value in (
        ("1000", 0x1000),
        ("0x1000", 0x1000),
        ("0XAbC", 0xABC),
        ("ffff888000000000", 0xFFFF888 << 36),
    ):
        assert translator.parse(text).value == value
    for nonsense in (
        "",
        "0x",
        "%",
        "1 2",
        "12345678901234567",
        "nosuchsymbol",
        "init_task+",
        "-5",
        "1_0",
        "\x1b[2J",
    ):
        with pytest.raises(UsageError):
            translator.parse(nonsense)
    assert set(FORMS) == {"virtual", "physical", "pfn", "page"}


# What pgtable_types.h (arch/x86) of Debian's linux-source packages has: the bit of SOFTW4, whether it is
# DEVMAP, whether there is _PAGE_KERNEL_4K, and the name of userfaultfd's bit.
ENTRY_BITS = {
    "5.10.": (58, True, False, "UFFD_WP"),
    "6.1.": (58, True, False, "UFFD_WP"),
    "6.12.": (57, True, False, "UFFD_WP"),
    "7.3.": (57, False, True, "UFFD"),
}


def test_entries_are_read_as_that_kernel_writes_them(core: Core, kernel: Kernel) -> None:
    if core.architecture != "amd64":
        pytest.skip("tests/cores/test_aarch64.py compares the entries of arm64")
    if core.meta["oracle"]:
        pytest.skip("without CONFIG_FS_DAX nothing says whether there is DEVMAP")
    expected = next(bits for series, bits in ENTRY_BITS.items() if core.meta["release"].startswith(series))
    dialect = x86_facts(kernel).entry_dialect
    assert (dialect.softw4_bit, dialect.devmap, dialect.kernel_4k, dialect.uffd) == expected


def test_user_half_of_isolated_tables(kernel: Kernel) -> None:
    if not kernel.isolation.value:
        with pytest.raises(UsageError):
            Translator(kernel, user=True)
        return
    inside, outside = Translator(kernel, user=True), Translator(kernel)
    if not kernel.form.shared_root:
        pytest.skip("tests/cores/test_aarch64.py compares the trampoline's tables")
    # Both roots have cpu_entry_area, but only the kernel's has the direct map.
    area = Input("", 0xFFFFFE0000000000, "virtual")
    assert inside.translate(area).physical == outside.translate(area).physical is not None
    memory = Input("", kernel.linear_offset.value + 0x10_0000, "virtual")
    assert outside.translate(memory).state == "mapped"
    assert inside.translate(memory).state == "unmapped"
