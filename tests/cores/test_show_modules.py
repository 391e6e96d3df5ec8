# SPDX-License-Identifier: LGPL-2.1-or-later
"""`show modules` against /proc/modules, /sys/module/*/sections and the kernel's own page-table dump."""

from __future__ import annotations

import gzip
import re
import time
from typing import Any, Dict, List, Tuple

import pytest

from kvintro.kernels import Kernel
from kvintro.model import Asked
from kvintro.readers.names import Names
from kvintro.reports.show import Selection, show
from tests.conftest import Core
from tests.cores.showing import (
    WILD,
    all_symbols,
    clean,
    document,
    fresh,
    merged,
    needs,
    number,
    overlay,
    ptdump_in,
)
from tests.timing import allowed

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)


@pytest.fixture(scope="module")
def modules(kernel: Kernel) -> Any:
    return document(kernel, "modules")


def test_proc_modules(core: Core, modules: Any) -> None:
    ours = [
        (
            row["name"],
            row["size"],
            row["references"],
            "".join(f"{user}," for user in row["users"]) or "-",
            row["state"],
            number(row["address"]),
            row["taints"],
        )
        for row in modules["modules"]
    ]
    theirs = []
    for line in core.truth("modules").splitlines():
        name, size, references, users, state, address, *taints = line.split()
        theirs.append((name, int(size), int(references), users, state, int(address, 16), "".join(taints)))
    assert ours == theirs


def test_sections(core: Core, modules: Any) -> None:
    theirs: Dict[Tuple[str, str], int] = {}
    for line in core.truth("module-sections").splitlines():
        module, section, address = line.split()
        theirs[module, section] = int(address, 16)
    ours = {(row["module"], row["section"]): number(row["start"]) for row in modules["sections"]}
    # The truth was listed while the last modules were being loaded; its modules must be here.
    assert theirs
    assert {key: ours.get(key) for key in theirs} == theirs
    loaded = {module for module, _ in theirs}
    assert {key for key in ours if key[0] in loaded} == set(theirs)


def test_sections_lie_where_their_names_say(modules: Any) -> None:
    kinds = {
        ".text": "text",
        ".exit.text": "text",
        ".rodata": "rodata",
        ".data": "data",
        ".bss": "data",
        ".data..ro_after_init": "ro_after_init",
    }
    seen = set()
    for row in modules["sections"]:
        if row["section"] in kinds:
            assert row["kind"] == kinds[row["section"]], row
            seen.add(row["section"])
        if row["section"].startswith(".init."):
            assert row["kind"] is None, "init memory is freed"
    assert modules["modules"] == [] or ".text" in seen


def test_rights_and_mappings(modules: Any, kernel: Kernel) -> None:
    needs(kernel, "bpf_kallsyms")
    clean(modules)
    by_kind = {row["kind"]: set() for row in modules["memory"]}  # type: Dict[str, set[str]]
    for row in modules["memory"]:
        by_kind[row["kind"]].update(row["rights"])
    for kind, expected in (("text", {"r-x"}), ("rodata", {"r--"}), ("data", {"rw-"})):
        assert by_kind.get(kind, expected) == expected


def test_the_kernels_own_dump(core: Core, modules: Any) -> None:
    """Every piece of a module lies in lines of ptdump with exactly its rights."""
    lines = merged((line.start, line.end, line.rights) for line in ptdump_in(core, modules))
    for row in modules["memory"]:
        start, end = number(row["start"]), number(row["end"]) + 1
        assert any(
            low <= start and end <= high and rights == row["expected"] for low, high, rights in lines
        ), row
    if modules["modules"]:
        assert sum(high - low for low, high, _ in lines) == modules["totals"]["mapped"]


def test_free_space(core: Core, modules: Any) -> None:
    theirs = []
    for line in core.truth("vmallocinfo").splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if number(modules["region"]["start"]) <= start <= number(modules["region"]["end"]):
            theirs.append((start, end))
    assert modules["totals"]["allocated"] == sum(end - start for start, end in theirs)
    assert modules["totals"]["free"] == modules["region"]["size"] - modules["totals"]["allocated"]
    assert sum(row["size"] for row in modules["by_caller"]) == modules["totals"]["allocated"]
    assert sum(row["areas"] for row in modules["by_caller"]) == len(theirs)


def test_names_of_code_in_modules(core: Core, kernel: Kernel, modules: Any) -> None:
    """%pS of an address in a module: its nearest symbol in /proc/kallsyms, up to the next one."""
    all_symbols(core, whole=True)
    text = gzip.decompress((core.truth_directory / "kallsyms.gz").read_bytes()).decode()
    symbols: Dict[str, List[Tuple[int, str]]] = {}
    for line in text.splitlines():
        fields = line.split()
        # %pS leaves out labels of the assembler (include/linux/module_symbol.h:is_mapping_symbol).
        if len(fields) == 4 and fields[1] in "tT" and not fields[2].startswith((".L", "$")):
            symbols.setdefault(fields[3].strip("[]"), []).append((int(fields[0], 16), fields[2]))
    names = Names(kernel)
    checked = 0
    for row in modules["memory"]:
        if row["kind"] != "text" or row["module"] not in symbols:
            continue
        found = sorted(symbols[row["module"]])
        addresses = [address for address, _ in found]
        for (address, name), following in zip(found, addresses[1:]):
            # For functions with several names, or followed by data, any of these may be the nearest.
            if addresses.count(address) > 1 or following - address < 8:
                continue
            text = names.code(address + 4)
            assert text.endswith(f" [{row['module']}]")
            assert text.startswith(f"{name}+0x4/")
            checked += 1
    assert checked or not modules["modules"]


# Code that does not belong to a module


def made_at_run_time(core: Core) -> Dict[str, Dict[int, str]]:
    """Names by address, by the word in brackets in /proc/kallsyms."""
    all_symbols(core)
    found: Dict[str, Dict[int, str]] = {}
    for line in gzip.decompress((core.truth_directory / "kallsyms.gz").read_bytes()).decode().splitlines():
        fields = line.split()
        if len(fields) == 4 and fields[3] in ("[bpf]", "[__builtin__ftrace]", "[__builtin__kprobes]"):
            found.setdefault(fields[3], {})[int(fields[0], 16)] = fields[2]
    if core.meta["kallsyms_sampled"]:
        # The sample has no pages of kprobes, but arm64 has an area for each.
        for start in re.findall(r"^0x(\w+)-.* alloc_insn_page\+", core.truth("vmallocinfo"), re.M):
            found.setdefault("[__builtin__kprobes]", {})[int(start, 16)] = ""
    return found


def test_code_is_what_kallsyms_has(core: Core, kernel: Kernel, modules: Any) -> None:
    if kernel.code_only:
        assert not modules["code"] and modules["partial"]
        pytest.skip(f"{core.name} has no names of the lists of this code")
    theirs = made_at_run_time(core)
    kinds = {"bpf": "[bpf]", "ftrace": "[__builtin__ftrace]", "kprobe": "[__builtin__kprobes]"}
    ours: Dict[str, Dict[int, str]] = {}
    for row in modules["code"]:
        ours.setdefault(kinds[row["kind"].split()[0]], {})[number(row["start"])] = row["name"]
    assert set(ours) == set(theirs)
    assert ours.get("[bpf]") == theirs.get("[bpf]")
    for kind in theirs:
        assert set(ours[kind]) == set(theirs[kind])


def test_code_of_bpf_programs(core: Core, modules: Any) -> None:
    """The bounds that the kernel reported to the guest that loaded them."""
    theirs = {}
    for line in core.truth("code").splitlines():
        _, first, last, name = line.split()
        theirs[int(first, 16)] = int(last, 16), name
    ours = {number(row["start"]): row for row in modules["code"] if row["kind"] == "bpf program"}
    assert set(ours) == set(theirs) and len(theirs) == 5
    for start, (end, name) in theirs.items():
        assert number(ours[start]["end"]) + 1 == end
        # The second function of one program has its own name.
        assert ours[start]["name"].endswith((f"_{name}", "_F"))
    assert modules["totals"]["bpf_programs"] == 5
    assert modules["totals"]["trampolines"] == sum(
        "trampoline" in name for names in made_at_run_time(core).values() for name in names.values()
    )


def test_the_cache_of_executable_memory(core: Core, modules: Any) -> None:
    """Memory from the huge pages is executable, and contains modules' code and BPF programs."""
    if "cache" not in modules:
        pytest.skip("this kernel has no such cache, or does not use it")
    for row in modules["cache"]:
        assert all("w" not in rights for rights in row["rights"])
    stretches = [(number(row["start"]), number(row["end"])) for row in modules["cache"]]
    for row in modules["memory"]:
        if row["kind"] == "text" and row["page_sizes"] == {"2M": 1}:
            assert any(low <= number(row["start"]) and number(row["end"]) <= high for low, high in stretches)


@pytest.mark.parametrize("spoiled", ["a loop", *WILD])
def test_a_damaged_list_of_bpf_programs(core: Core, spoiled: str) -> None:
    core.truth("code")
    kernel = fresh(core)
    from drgn.helpers.linux.list import list_for_each

    head = kernel.prog.object("bpf_kallsyms").address_of_()
    nodes = [int(node.value_()) for node in list_for_each(head)]
    overlay(kernel, nodes[2], nodes[0] if spoiled == "a loop" else WILD[spoiled])
    started = time.process_time()
    report = show(kernel, "modules", Asked(), Selection(table="code"))
    assert time.process_time() - started < allowed(10)
    assert report.partial and report.notes
    assert sum(row.kind.startswith("bpf") for row in report.tables[0].rows) == len(nodes)


@pytest.mark.parametrize("spoiled", ["a loop", *WILD])
def test_a_damaged_list(core: Core, spoiled: str) -> None:
    kernel = fresh(core)
    from drgn.helpers.linux.list import list_for_each

    nodes = [int(node.value_()) for node in list_for_each(kernel.prog["modules"].address_of_())]
    if len(nodes) < 3:
        pytest.skip("hardly any modules here")
    overlay(kernel, nodes[1], nodes[0] if spoiled == "a loop" else WILD[spoiled])
    started = time.process_time()
    report = show(kernel, "modules", Asked(), Selection(table="modules"))
    assert time.process_time() - started < allowed(10)
    assert report.partial and report.notes
    assert len(report.tables[0].rows) == len(nodes)
