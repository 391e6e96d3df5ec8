# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernels whose variables have no names: the data that kvintro still finds, against the truth.

One core of the matrix has such a kernel (CONFIG_KALLSYMS_ALL off). For the other cores, the tests remove all
names except those of code, to cover every layout of the kernel's data, and KASLR.
"""

from __future__ import annotations

import gzip
import json
import re
from typing import Any, Iterator, Set, Tuple

import pytest

from kvintro.arch.x86_64.facts import x86_facts
from kvintro.arch.x86_64.regions.cpu_entry_area import areas_of, member_at
from kvintro.cli import main
from kvintro.commands import run_command
from kvintro.delivery import exit_code
from kvintro.errors import Unavailable, UsageError
from kvintro.kernels import Kernel
from kvintro.parser import parse
from kvintro.readers.damage import Damage
from kvintro.readers.processes import processes
from kvintro.readers.structures import text_of
from kvintro.regions.modules import each_module
from kvintro.render import render
from kvintro.reports.info import info
from kvintro.reports.layout import layout
from kvintro.source.unnamed import Unnamed
from tests.codeonly import open_code_only
from tests.conftest import Core
from tests.cores.showing import all_symbols, processors, registers

#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64", "arm64")

#: kvintro/source/unnamed.py says how each is found.
FOUND = (
    *("init_task", "init_pid_ns", "linux_banner", "modules", "boot_params", "node_states", "vmap_nodes"),
    *("__start_init_stack", "__end_init_stack", "init_uts_ns", "node_data", "contig_page_data", "prb"),
)


@pytest.fixture(scope="module")
def bare(core: Core, kernel: Kernel) -> Iterator[Kernel]:
    """The core without names of variables."""
    if kernel.source.kallsyms is None:
        pytest.skip("there are no symbols to take any away from")
    with pytest.MonkeyPatch.context() as patch:
        found = kernel if kernel.code_only else open_code_only(str(core.path), patch)
    assert found.code_only
    yield found


def test_variables_are_where_the_kernel_says(core: Core, kernel: Kernel, bare: Kernel) -> None:
    if kernel.code_only:
        pytest.skip("this kernel does not say where its variables are")
    said: Set[Tuple[str, int]] = set(all_symbols(core))
    names = {name for name, _ in said}
    found = {name: bare.find_symbol(name) for name in FOUND}
    for name, address in found.items():
        assert address is None or name not in names or (name, address) in said, name
    must = {"init_task", "init_pid_ns", "linux_banner", "modules", "init_uts_ns", "prb"}
    # EFI's stub makes its own parameters, without the signatures.
    must |= set() if core.meta["efi"] else {"boot_params"}
    must |= {"vmap_nodes"} & {name for name in FOUND if kernel.find_symbol(name) is not None}
    assert {name for name in must if found[name] is None} == set()
    if kernel.find_symbol("nr_vmap_nodes") is not None:
        assert bare.number_of("nr_vmap_nodes", 4) == kernel.value("nr_vmap_nodes", 4).value


def test_nodes_and_the_first_task_without_vmcoreinfo_naming_nodes(kernel: Kernel, bare: Kernel) -> None:
    """As on arm64, where VMCOREINFO does not have node_data."""
    if kernel.code_only:
        pytest.skip("this kernel does not say where its variables are")
    unnamed = Unnamed(bare.prog)
    assert kernel.symbol("init_task") in {task.value_() for task in unnamed._swappers()}
    # Without CONFIG_NUMA it does not exist, although many places have pointers to the only node.
    there = kernel.find_symbol("node_data") is not None
    assert unnamed._node_data() == (kernel.symbol("node_data") if there else None)


def test_processes_and_modules(core: Core, bare: Kernel) -> None:
    damage = Damage()
    ours = {process.pid for process in processes(bare, damage)}
    lines = [line.split() for line in core.truth("proc-list").splitlines() if not line.startswith("#")]
    assert not damage
    # Kernel threads start and end between the list and the dump.
    theirs = {int(fields[0]) for fields in lines if fields[2].startswith(("kv-", "probe", "kthreadd"))}
    assert theirs <= ours
    assert len(ours ^ {int(fields[0]) for fields in lines}) <= 4
    names = {text_of(module.name) for _, module in each_module(bare, damage)}
    assert names == {line.split()[0] for line in core.truth("modules").splitlines()}
    assert not damage


def test_version_and_end_of_memory(core: Core, bare: Kernel) -> None:
    facts = {row["key"]: row["value"] for row in json.loads(render(info(bare), "json"))["facts"]}
    assert facts["version"] == core.truth("version").strip()
    assert core.has_truth("kpageflags.gz")
    flags = gzip.decompress((core.truth_directory / "kpageflags.gz").read_bytes())
    end = bare.max_pfn.value
    lasts = re.findall(r"^\w+-(\w+) : System RAM$", core.truth("iomem"), re.M)
    ends = [(int(last, 16) + 1) >> 12 for last in lasts]
    # The file has a word for each page frame below max_pfn, in steps of sections, which are blocks here.
    sections, behind = -(-end // 32768), len(flags) // 8 - end
    if behind in (0, sections * 32768 - end):
        assert end == ends[-1]
        return
    # Nodes do not include memory that was plugged in and left offline.
    blocks = dict(line.split()[:2] for line in core.truth("memory-blocks").splitlines())
    assert end in ends and behind == (len(blocks) - list(blocks).index(f"{sections:08x}")) * 32768
    assert {state for number, state in blocks.items() if int(number, 16) >= sections} == {"offline"}


def test_cpus(core: Core, bare: Kernel) -> None:
    """QEMU's registers give the addresses of each CPU's GDT and TSS."""
    damage = Damage()
    areas = {cpu: start for cpu, _, start in areas_of(bare, damage)}
    held = registers(core)
    # Each CPU that was started contains its own number.
    silent = processors(core) - len(held)
    assert len(damage.notes) == min(silent, 1)
    assert all("does not contain the number of its CPU" in note for note in damage.notes)
    assert set(areas) == set(held)
    for cpu, bases in held.items():
        for name, member in (("GDT", "gdt"), ("TR", "tss")):
            found = member_at(bare, areas[cpu], bases[name])
            assert found is not None
            assert found[:2] == (member, bases[name])


def test_nothing_is_said_to_be_absent_for_want_of_a_name(kernel: Kernel, bare: Kernel) -> None:
    """Each region has the same place as with all names, or is unknown, or is absent in both."""
    full = {row.key: row for row in layout(kernel).tables[0].rows if row.kind == "region"}
    report = layout(bare)
    for row in report.tables[0].rows:
        if row.kind != "region":
            continue
        other = full[row.key]
        if row.state == "unknown":
            assert "CONFIG_KALLSYMS_ALL" in (row.reason or "")
            continue
        assert row.state == other.state, row.key
        assert (row.start, row.slide) == (other.start, other.slide), row.key
        assert row.mapped == other.mapped, row.key
        if row.used_end is not None and row.key != "kernel_image":
            if bare.max_pfn.value == kernel.max_pfn.value:
                assert row.used_end == other.used_end
            else:
                assert row.used_end < (other.used_end or 0) and row.used_note != other.used_note
    assert report.partial


def test_the_image_ends_where_its_bss_does(core: Core, bare: Kernel) -> None:
    """/proc/iomem has the physical end of the bss; after it come the brk area and the padding to 2 MB."""
    (row,) = (row for row in layout(bare).tables[0].rows if row.key == "kernel_image")
    bss = re.search(r"^ *\w+-(\w+) : Kernel bss$", core.truth("iomem"), re.M)
    assert bss
    assert row.used_end is not None
    behind = (
        row.used_end - 0xFFFFFFFF80000000 + x86_facts(bare).phys_base.value - int(bss[1], 16) & (1 << 64) - 1
    )
    assert 0 <= behind < 4 << 20


def test_what_is_missing_is_said(core: Core, bare: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unavailable, match="names its code only") as caught:
        bare.symbol("jiffies_64")
    assert caught.value.remedy == "give -s VMLINUX"
    with pytest.raises(Unavailable, match="names its code only"):
        bare.has_symbol("efi_mm")
    assert not bare.has_symbol("no_such_function", code=True)
    with pytest.raises(UsageError, match="CONFIG_KALLSYMS_ALL"):
        run_command(bare, parse(["translate", "jiffies_64"]))
    for words, code in {
        "layout": 4,
        "translate schedule init_task": 0,
        "translate --pid 1 400000": 0,
        "ptdump": 0,
        "show vsyscall": 4,
        "show kernel_image": 4,
        "show modules": 4,
        "user 1": 4,
        "pages": 4,
        "check": 4,
        "kaslr": 4,
    }.items():
        report = run_command(bare, parse(words.split()))
        assert exit_code(report) == code, words
        assert report.kernel is not None and report.kernel.symbols.endswith(
            "(code only: CONFIG_KALLSYMS_ALL is off)"
        )
    rows = {row["name"]: row for row in json.loads(render(info(bare), "json"))["commands"]}
    assert (rows["ptdump"]["state"], rows["pte"]["state"]) == ("works", "works")
    assert {row["state"] for row in rows.values()} == {"works", "partly"}
    assert "there are no symbols" not in json.dumps(rows)


def test_slabs_that_may_be_kfences(bare: Kernel) -> None:
    """KFENCE's pool is found only by name; without it, no slab is attributed to a cache with certainty."""
    note = "the slabs of KFENCE are not known"
    built_in = bare.find_symbol("__kfence_alloc") is not None
    task = max(processes(bare, Damage()), key=lambda process: process.pid).task
    for words in ("pages", f"page {task:x}"):
        report: Any = run_command(bare, parse(words.split()))
        said = json.loads(render(report, "json"))
        assert (note in json.dumps(said)) == built_in, words
        assert report.partial or not built_in, words


def test_on_the_command_line(core: Core, kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    if not kernel.code_only:
        pytest.skip("this kernel's variables have names")
    assert main(["-c", str(core.path), "translate", "jiffies_64"]) == 2
    what, remedy = capsys.readouterr().err.splitlines()
    assert "jiffies_64 cannot be found: this kernel names its code only" in what
    assert "give -s VMLINUX" in remedy


def test_code_has_its_names(core: Core, bare: Kernel) -> None:
    """As in /proc/kallsyms: by name, and by an address inside a function."""
    functions = [(name, address) for name, address in all_symbols(core, whole=True) if name in CODE]
    assert functions
    for name, address in functions:
        assert bare.symbol(name) == address
        assert bare.prog.symbol(address + 1).name == name


CODE = ("schedule", "kfree", "vmalloc_noprof", "vmalloc", "do_exit", "start_kernel", "load_module")
