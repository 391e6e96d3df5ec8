# SPDX-License-Identifier: LGPL-2.1-or-later
"""`kvintro info` on every core, against the guest and QEMU."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import pytest

from kvintro.commands import command_names, run_command
from kvintro.delivery import exit_code
from kvintro.errors import KvintroError
from kvintro.kernels import Kernel
from kvintro.model import Placement, Stream
from kvintro.opening import open_kernel
from kvintro.parser import parse
from kvintro.render import render, render_stream
from kvintro.reports.info import LACKS, info
from kvintro.reports.layout import layout
from kvintro.source import Request
from tests.conftest import Core
from tests.cores.showing import needs
from tests.timing import allowed

ARCHITECTURES = ("amd64", "arm64", "riscv64")
SHIPPED_ONLY = ("arm64",)


def facts(kernel: Kernel) -> Dict[str, Any]:
    document = json.loads(render(info(kernel), "json"))
    return {row["key"]: row["value"] for row in document["facts"]}


def test_against_the_guest(core: Core, kernel: Kernel) -> None:
    found = facts(kernel)
    assert found["release"] == core.truth("release").strip()
    # /proc/version and linux_banner are printed from the same string.
    assert found["version"] == core.truth("version").strip()
    if kernel.code_only:
        reasons = {row["key"]: row["reason"] for row in json.loads(render(info(kernel), "json"))["facts"]}
        for key in ("command_line", "panic", "boot_time"):
            assert found[key] is None
            assert "names its code only" in reasons[key]
    else:
        assert found["command_line"] == core.truth("cmdline").strip()
        assert found["panic"] == ""
    assert found["paging_levels"] == core.levels
    assert found["kaslr"] is core.kaslr
    assert found["pti"] is core.isolation
    assert found["complete"] is True
    assert found["size"] == core.path.stat().st_size
    if not core.meta["kallsyms_sampled"]:
        lines = gzip.decompress((core.truth_directory / "kallsyms.gz").read_bytes()).splitlines()
        assert found["symbol_count"] == sum(len(line.split()) == 3 for line in lines)


def test_times(core: Core, kernel: Kernel) -> None:
    """Against the kernel's message when it read the clock, which QEMU sets from the host's."""
    needs(kernel, "tk_core")
    found = facts(kernel)
    form = "%Y-%m-%d %H:%M:%S UTC"
    dumped = datetime.strptime(found["dump_time"], form).replace(tzinfo=timezone.utc)
    booted = datetime.strptime(found["boot_time"], form).replace(tzinfo=timezone.utc)
    said = datetime.strptime(core.meta["dumped"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    said_by_kernel = core.truth("dmesg")
    taken = re.search(r"^(?:\[ *([\d.]+)\] )?.*setting system clock to .*\((\d+)\)$", said_by_kernel, re.M)
    stamps = [float(text) for text in re.findall(r"^\[ *(\d+\.\d+)\]", said_by_kernel, re.M)]
    second = timedelta(seconds=1)
    assert booted <= said + second
    if taken is not None:  # the driver is built in, and the messages reach back far enough
        clock = datetime.fromtimestamp(int(taken[2]), timezone.utc)
        # Under emulation on a busy host, the guest's own clock may run several times too fast, or stop.
        assert booted - second <= clock <= min(said, dumped) + second
        if taken[1] is not None:  # CONFIG_PRINTK_TIME
            # The clock of messages starts before the one that counts from boot_time on. If the TSC is
            # calibrated late, it starts again then.
            lost = sum(max(0, before - after) for before, after in zip(stamps, stamps[1:]))
            assert clock - timedelta(seconds=float(taken[1]) + lost) - second <= booted
    assert found["uptime"] >= int(max(stamps, default=0))
    assert dumped - booted == timedelta(seconds=found["uptime"])


def test_every_command_is_told_of(core: Core, kernel: Kernel) -> None:
    assert set(LACKS) == set(command_names())
    rows = json.loads(render(info(kernel), "json"))["commands"]
    if kernel.code_only:
        assert {row["state"] for row in rows} == {"works", "partly"}
        return
    # Kernels of x86-64 before 6.12 do not keep the values that the memory bases depend on. KASAN does not
    # move these.
    names = ("physmem_end", "direct_map_physmem_end", "kasan_init")
    told = any(kernel.find_symbol(name) is not None for name in names)
    told = told or core.architecture != "amd64"
    forgot = set() if told or not core.kaslr else {"browse", "kaslr", "report", "survey"}
    assert {row["name"] for row in rows if row["state"] != "works"} == forgot


def test_without_types(core: Core) -> None:
    kernel = open_kernel(Request(core=str(core.path), types="none"))
    states = {row["name"]: row["state"] for row in json.loads(render(info(kernel), "json"))["commands"]}
    found = isinstance(kernel.locate("vmemmap"), Placement)
    assert (states["layout"], states["pages"], states["pte"]) == (
        "partly",
        "partly" if found else "cannot",
        "works",
    )
    assert states["user"] == "cannot"
    document = json.loads(render(info(kernel), "json"))
    unknown = [row for row in document["facts"] if row["value"] is None]
    assert {row["key"] for row in unknown} >= {"types", "boot_time"}
    assert all(row["reason"] for row in unknown)


# The arguments with which each command is run, to verify its state. RAM is the start of memory.
PROBES: Dict[str, Sequence[str]] = {
    "aliases": ("RAM200000",),
    "check": ("",),
    "diff": ("--all CORE",),
    "explain": ("", "vmalloc", "direct_map"),
    "identify": ("RAM100000",),
    "info": ("",),
    "kaslr": ("",),
    "layout": ("",),
    "page": ("RAM200000",),
    "pages": ("",),
    "ptdump": ("", "--pid 1"),
    "pte": ("8000000000000067",),
    "read": ("--phys RAM100000", "init_task --type task_struct", "jiffies_64 --size 8"),
    "report": ("",),
    "search": ("--string GNU --in modules --limit 2",),
    "show": ("vmalloc", "modules", "fixmap", "direct_map", "kernel_image"),
    "translate": ("RAM100000", "ffffffffff5ff000", "init_task", "jiffies_64", "--pid 1 400000"),
    "user": ("1", "--all"),
}


def answered(kernel: Kernel, name: str, words: str, core: Core) -> Tuple[bool, bool, bool]:
    """Whether a command found anything, whether the answer is complete, and whether there are no notes."""
    words = re.sub(r"RAM(\w+)", lambda found: f"{core.ram_base + int(found[1], 16):x}", words)
    args = parse([name, *words.replace("CORE", str(core.path)).split()])
    args.types = "auto" if kernel.source.types != "none" else "none"
    try:
        report = run_command(kernel, args)
    except KvintroError:
        return False, False, False
    text = "".join(render_stream(report, "json")) if isinstance(report, Stream) else render(report, "json")
    document = json.loads(text)
    noted = set(document.pop("notes", ())) - set(kernel.source.warnings)
    found = any(value for value in document.values() if isinstance(value, list))
    return found, exit_code(report) in (0, 1), not noted


def _page_of_a_process(core: Core, kind: str = "") -> str:
    """Physical address (hex) of the first page in /proc/PID/pagemap, which processes map.

    :param kind: the kind of memory in the list of the workload; empty for any.
    """
    listed = {
        f"{line.split()[0]} {line.split()[3]}": line.split()[2]
        for line in core.truth("workload").splitlines()
    }
    for line in core.truth("pagemap").splitlines():
        place, entry = line.rsplit(None, 1)
        if int(entry, 16) >> 63 and (not kind or listed.get(place) == kind):
            return f"{(int(entry, 16) & (1 << 55) - 1) * core.page_size:x}"
    return ""


@pytest.mark.parametrize("without", ["nothing", "types", "symbols"])
def test_what_is_said_of_each_command_is_so(core: Core, kernel: Kernel, without: str, tmp_path: Path) -> None:
    """Each command that "works" answers completely, "partly" incompletely, and "cannot" finds nothing."""
    given: Optional[Path] = None
    if without == "symbols":
        if core.architecture != "amd64":
            pytest.skip("without _stext, VMCOREINFO does not describe a kernel of this architecture")
        lines = kernel.prog["VMCOREINFO"].string_().decode().splitlines(keepends=True)
        given = tmp_path / "vmcoreinfo"
        given.write_text("".join(line for line in lines if "kallsyms" not in line and "(_stext)" not in line))
    types = "auto" if without == "nothing" else "none"
    asked = open_kernel(Request(core=str(core.path), types=types, vmcoreinfo=str(given) if given else None))
    assert (asked.source.symbols == "none") is (without == "symbols")
    rows = {row["name"]: row["state"] for row in json.loads(render(info(asked), "json"))["commands"]}
    # convert copies all memory, whatever is known about it: test_convert. browse and survey also have tests
    # of their own.
    assert set(rows) - set(PROBES) == {"shell", "browse", "convert", "survey"} and rows["convert"] == "works"
    own = {"aliases": _page_of_a_process(core), "page": _page_of_a_process(core, "zero_page")}
    if kernel.code_only:
        own["search"] = "--string GNU --phys --limit 2"  # on arm64, where modules are is not known then
    for name, probes in PROBES.items():
        given_too = [own[name]] if own.get(name) else []
        answers = [answered(asked, name, words, core) for words in (*probes, *given_too)]
        said = rows[name]
        if name in ("check", "kaslr", "report") and core.architecture == "arm64" and core.meta["efi"]:
            continue  # the kernel does not record whether the firmware gave the stub a random number
        if said == "works":
            assert all(found and whole for found, whole, _ in answers), (name, answers)
        elif name in ("layout", "explain") and not layout(asked).partial:
            continue  # this kernel lacks what could not be read
        elif said == "partly":
            assert any(found for found, _, _ in answers), (name, answers)
            assert not all(whole and not_noted for _, whole, not_noted in answers), (name, answers)
        else:
            assert not any(found for found, _, _ in answers), (name, answers)


def test_text(core: Core, kernel: Kernel) -> None:
    text = render(info(kernel), "text")
    assert core.truth("release").strip() in text
    assert "what the commands can do with it" in text
    assert "None" not in text


def test_within_a_second(core: Core) -> None:
    """A second of processor time, which does not include other work on the machine."""
    best = 99.0
    for _ in range(3):
        command = [sys.executable, "-m", "kvintro", "-c", str(core.path), "info"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        best = min(best, usage.ru_utime + usage.ru_stime)
    assert best < allowed(1)
