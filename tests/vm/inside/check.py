# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in a guest, as root, under load: every command on /proc/kcore, compared with /proc.

``python3 -m tests.vm.inside.check RUNS SEED MODULE.ko...`` prints one JSON document with the comparisons and
errors; the test outside asserts on it.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import kvintro.opening
from kvintro import cli, prompt
from kvintro.commands import command_names
from kvintro.errors import EXIT_NEGATIVE, EXIT_OK, EXIT_PARTIAL, KvintroError
from kvintro.kernels import Kernel
from kvintro.model import Stream
from kvintro.opening import kernel_of, open_kernel
from kvintro.parser import parse
from kvintro.prompt import Answer, Listing, run_command
from kvintro.source import Request
from tests.regions import REGIONS

PAGE = 4096
#: Files that were saved of this kernel earlier, for diff; and a page of a report.
SAVED = "/tmp/kvintro-before.json"
REPORT = "/tmp/kvintro-report.html"
#: Commands with their arguments; A is an address, P a process.
RUNS: Dict[str, Sequence[str]] = {
    "aliases": ("A",),
    "check": ("",),
    "diff": (f"{SAVED} --all",),
    "explain": ("",),
    "identify": ("A",),
    "info": ("",),
    "kaslr": ("",),
    "layout": ("", "--pid P"),
    "page": ("A",),
    "pages": ("",),
    "ptdump": ("", "--wx", "--pid P --root user"),
    "pte": ("8000000003a12163",),
    "report": ("",),
    "show": REGIONS,
    "translate": ("A A --walk", "--pid P 400000"),
    "user": ("P", "--all"),
}


class Checks:
    """The results."""

    def __init__(self) -> None:
        self.compared: Dict[str, int] = {}
        self.wrong: List[str] = []
        self.runs: Dict[str, List[float]] = {}
        self.codes: Dict[str, int] = {}
        self.moving: Set[str] = set()
        self.commands = self.partial = self.load = 0
        self.source: Any = None
        #: The opened kernel that children use; None if each should read everything again.
        self.opened: Optional[Kernel] = None
        self.kernel: Dict[str, Any] = {}
        self.findings: List[str] = []

    def same(self, name: str, ours: Any, theirs: Any) -> None:
        """Record one comparison."""
        self.compared[name] = self.compared.get(name, 0) + 1
        if ours != theirs:
            self.wrong.append(f"{name}: {ours!r} is not {theirs!r}")


def ask(checks: Checks, *arguments: str) -> Any:
    """The JSON of a command line."""
    out = run(checks, ["--json", *arguments])
    return None if out is None else json.loads(out)


def progress(text: str) -> None:
    """Print a line on the guest's console, which is kept even if the guest does not finish."""
    with open("/dev/console", "w", encoding="utf-8") as console:
        console.write(f"{time.monotonic():.0f} {text}\n")


def run(checks: Checks, arguments: Sequence[str], *, installed: bool = False) -> Optional[str]:
    """The output of a command line in a separate process; None if it ended in an unexpected way.

    :param installed: run the installed program; otherwise a child of this process, which has already imported
    everything and opened the kernel. Under emulation, that takes longer than most commands.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if installed:
            code = subprocess.run(["kvintro", *arguments], stdout=out, stderr=err, check=False).returncode
        else:
            pid = os.fork()
            if pid == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
                status = 70
                kvintro.opening.open_kernel = lambda request: checks.opened or kernel_of(checks.source)
                try:
                    status = cli.main(list(arguments))
                    sys.stdout.flush()
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(status)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        printed, said = out.read().decode(), err.read().decode()
    line = " ".join(arguments)
    progress(f"{line}: {code}")
    name = next((word for word in arguments if word in command_names()), line)
    checks.commands += 1
    checks.partial += code == EXIT_PARTIAL
    checks.runs.setdefault(name, []).append(round(time.monotonic() - started, 2))
    checks.codes[line] = code
    if code not in (EXIT_OK, EXIT_NEGATIVE, EXIT_PARTIAL) or "Traceback" in said or "internal error" in said:
        checks.wrong.append(f"{line}: ended with {code}: {said[-600:]}")
        return None
    return printed


def number(text: str) -> int:
    return int(text, 16)


# Against /proc


def kcore_loads() -> List[Tuple[int, int]]:
    """(virtual, physical) address of the segments in /proc/kcore."""
    with open("/proc/kcore", "rb") as file:
        head = file.read(64)
        offset, count = struct.unpack_from("<Q", head, 32)[0], struct.unpack_from("<H", head, 56)[0]
        file.seek(offset)
        table = file.read(56 * count)
    found = []
    for at in range(0, len(table), 56):
        kind, _, _, virtual, physical, _, _, _ = struct.unpack_from("<IIQQQQQQ", table, at)
        if kind == 1:
            found.append((virtual, physical))
    return found


def kallsyms() -> Dict[str, int]:
    """The image's symbols."""
    found: Dict[str, int] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        words = line.split()
        if len(words) == 3:
            found.setdefault(words[2], int(words[0], 16))
    return found


def check_layout(checks: Checks) -> None:
    """Bounds against /proc/kcore's segments and /proc/kallsyms."""
    document = ask(checks, "layout")
    if document is None:
        return
    rows = {row["key"]: row for row in document["regions"] if row["kind"] == "region"}
    starts = {start for start, _ in kcore_loads()}
    symbols = kallsyms()
    for key in ("vmalloc", "modules"):
        checks.same(f"layout: start of {key} in /proc/kcore", number(rows[key]["start"]) in starts, True)
    checks.same("layout: _text", number(rows["kernel_image"]["used_start"]), symbols["_text"])
    low, high = number(rows["direct_map"]["start"]), number(rows["direct_map"]["end"])
    linear = {virtual - physical for virtual, physical in kcore_loads() if low <= virtual <= high}
    checks.same("layout: the direct map's base in /proc/kcore", linear, {low})
    ram = [line for line in Path("/proc/iomem").read_text().splitlines() if line.endswith(": System RAM")]
    for line in ram:
        start = int(line.split("-")[0], 16)
        checks.same("layout: RAM is in the direct map", low <= low + start <= high, True)
    previous = -1
    for row in document["regions"]:
        if row["state"] != "absent":
            checks.same("layout: covers everything", number(row["start"]), previous + 1)
            previous = number(row["end"])
    checks.same("layout: covers everything", previous, (1 << 64) - 1)
    checks.kernel = document["kernel"]
    checks.same("layout: live", document["kernel"]["live"], True)
    checks.same("layout: release", document["kernel"]["release"], os.uname().release)


def workload() -> Iterator[Tuple[int, str, int, int]]:
    """(pid, kind, start, end) of memory that sleeping processes hold."""
    for line in Path("/tmp/workload").read_text().splitlines():
        pid, _, kind, start, end = line.split()[:5]
        if int(start, 16) and Path(f"/proc/{pid}").exists():
            yield int(pid), kind, int(start, 16), int(end, 16)


def check_translate(checks: Checks) -> None:
    """Addresses of processes against /proc/PID/pagemap; their pages against /proc/kpageflags."""
    addresses: Dict[int, List[int]] = {}
    for pid, _, start, end in workload():
        addresses.setdefault(pid, []).extend(list(range(start, end, PAGE))[:6])
    for pid, wanted in addresses.items():

        def entries() -> List[int]:
            with open(f"/proc/{pid}/pagemap", "rb") as file:  # noqa: B023
                found = []
                for address in wanted:  # noqa: B023
                    file.seek(address // PAGE * 8)
                    found.append(int.from_bytes(file.read(8), "little"))
                return found

        before = entries()
        document = ask(checks, "translate", "--pid", str(pid), *[f"{address:x}" for address in wanted])
        after = entries()
        if document is None:
            continue
        for row, one, other in zip(document["results"], before, after):
            if one != other:
                continue
            mapped = bool(one >> 63)
            where = f"translate: pid {pid} {row['virtual']}"
            if mapped:
                checks.same(where, (row["state"], row["pfn"]), ("mapped", one & (1 << 55) - 1))
            elif row["state"] == "mapped":
                # Not present to the process: a mapping without rights (PROT_NONE) does not count as mapped.
                checks.same(where, row["state"], "unmapped")


def check_image(checks: Checks) -> None:
    """Symbols of the image and of modules translate, to the kernel's addresses in /proc/iomem."""
    document = ask(checks, "translate", "_text", "init_task", "jiffies_64")
    if document is None:
        return
    lines = Path("/proc/iomem").read_text().splitlines()
    code = next(line for line in lines if line.strip().endswith("Kernel code"))
    start = int(code.split("-")[0], 16)
    checks.same("translate: _text in /proc/iomem", number(document["results"][0]["physical"]), start)
    symbols = kallsyms()
    for row, name in zip(document["results"], ("_text", "init_task", "jiffies_64")):
        checks.same(f"translate: {name}", number(row["virtual"]), symbols[name])


def check_modules(checks: Checks) -> None:
    """Against /proc/modules, for modules that existed before and after."""

    def modules() -> Dict[str, int]:
        rows = (line.split() for line in Path("/proc/modules").read_text().splitlines())
        return {row[0]: int(row[5], 16) for row in rows if row[4] == "Live"}

    before = modules()
    document = ask(checks, "show", "modules")
    after = modules()
    if document is None:
        return
    bases: Dict[str, Set[int]] = {}
    for row in document["memory"]:
        bases.setdefault(row["module"], set()).add(number(row["start"]))
    for name, base in before.items():
        # Modules of the load can be unloaded and loaded again at the same place.
        if after.get(name) == base and name not in checks.moving:
            checks.same(f"show modules: {name}", base in bases.get(name, ()), True)


def check_vmalloc(checks: Checks) -> None:
    """Against /proc/vmallocinfo, for areas that existed before and after."""

    def areas() -> Set[Tuple[int, int]]:
        found = re.findall(r"^0x([0-9a-f]+)-0x([0-9a-f]+)", Path("/proc/vmallocinfo").read_text(), re.M)
        return {(int(start, 16), int(end, 16)) for start, end in found}

    def missing(wanted: Set[Tuple[int, int]]) -> Set[Tuple[int, int]]:
        document = ask(checks, "show", "vmalloc", "--table", "areas")
        ours = {(number(row["start"]), number(row["end"]) + 1) for row in document["areas"]}
        return (wanted & areas()) - ours

    wanted = areas()
    lost = missing(wanted)
    # An area can repeatedly be freed and allocated again at the same place in between.
    for _ in range(2):
        lost = lost and missing(lost)
    if lost:
        with resting(checks):
            lost = missing(lost & areas())
    for area in sorted(wanted):
        checks.same(f"show vmalloc: {area[0]:x}", area not in lost, True)


def check_user(checks: Checks) -> None:
    """Against /proc/PID/maps of processes that sleep."""
    for pid in sorted({pid for pid, *_ in workload()})[:3]:
        theirs = [
            tuple(int(part, 16) for part in line.split()[0].split("-"))
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines()
        ]
        document = ask(checks, "user", str(pid))
        if document is None:
            continue
        ours = [(number(row["start"]), number(row["end"]) + 1) for row in document["vmas"]]
        # The vsyscall page is in the file, but not in a list of the process.
        checks.same(f"user {pid}", ours, [area for area in theirs if area[0] < 1 << 63])


def check_pages(checks: Checks) -> None:
    """The census against the kernel's counters, within the changes of a busy second."""
    document = ask(checks, "pages")
    if document is None:
        return
    with open("/proc/zoneinfo", encoding="ascii") as file:
        present = sum(int(line.split()[1]) for line in file if line.strip().startswith("present "))
    total = document["total"]
    checks.same("pages: at least what zones have", total >= present * 0.98, True)


def check_ptdump(checks: Checks) -> None:
    """Against the kernel's own dump, if it has one, for lines that existed before and after."""
    path = Path("/sys/kernel/debug/page_tables/kernel")
    if not path.exists():
        return
    before = set(path.read_text().splitlines())
    ours = set((run(checks, ["ptdump"]) or "").splitlines())
    after = set(path.read_text().splitlines())
    stable = {line for line in before & after if line.strip() and not line.startswith("---")}
    missing = stable - ours
    checks.compared["ptdump"] = len(stable)
    # A line grows or shrinks with its neighbour, between one reading and the next.
    if len(missing) > len(stable) // 50:
        checks.wrong.append(f"ptdump: {len(missing)} of {len(stable)} lines, such as {sorted(missing)[:3]}")


def is_stopped(group: int) -> bool:
    """Whether no process of a group runs. One that is in a system call stops when the call is done."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        if int(its_group) == group and state not in "TZX":
            return False
    return True


@contextmanager
def resting(checks: Checks) -> Iterator[None]:
    """Pause the load."""
    os.killpg(checks.load, signal.SIGSTOP)
    try:
        while not is_stopped(checks.load):
            time.sleep(0.1)
        time.sleep(2)  # until the kernel has freed what they no longer use
        yield
    finally:
        os.killpg(checks.load, signal.SIGCONT)


def check_check(checks: Checks) -> None:
    """These kernels are healthy. Findings are allowed about data that is being changed, but not at rest."""
    document = ask(checks, "check")
    if document is not None:
        checks.findings = [f"{row['severity']}, {row['rule']}: {row['what']}" for row in document["findings"]]
    with resting(checks):
        document = ask(checks, "check")
    if document is not None:
        defects = [row for row in document["findings"] if row["severity"] == "defect"]
        checks.same("check: nothing is wrong", defects, [])
        live = {row["key"] for row in document["checks"] if row["key"].startswith("proc_")}
        states = {row["state"] for row in document["checks"] if row["key"] in live}
        checks.same("check: files of /proc are compared", (len(live), states), (5, {"ok"}))


def check_others(checks: Checks) -> None:
    """Commands without a file of /proc to compare with end as expected, and contain what was requested."""
    for name in ("info", "kaslr", "explain"):
        ask(checks, name)
    for region in RUNS["show"]:
        ask(checks, "show", region)
    saved = run(checks, ["--json", "layout"])
    Path(SAVED).write_text(saved or "")
    document = ask(checks, "diff", "--all", SAVED)
    if document is not None:
        moved = [row["key"] for row in document["regions"] if row["a_start"] != row["b_start"]]
        checks.same("diff: no region moves while the kernel runs", moved, [])
    run(checks, ["report", "-o", REPORT])
    page = Path(REPORT).read_text()
    checks.same("report: the release is in it", os.uname().release in page, True)
    code = "print(k.translate('init_task').state, prog['saved_command_line'].string_().decode())"
    said = run(checks, ["shell", "-e", code], installed=True) or ""
    checks.same("shell: /proc/cmdline", said.split(), ["mapped", *Path("/proc/cmdline").read_text().split()])
    run(checks, ["shell", "-e", "%kvintro layout --no-holes | grep -c ffff"])


# Repeated runs


def many_runs(checks: Checks, runs: int, seed: int) -> Dict[str, Any]:
    """All commands in turn in this process, which must neither raise nor stay partial."""
    chosen = random.Random(seed)
    kernel = prompt.Kernel(checks.source)
    lines = [(name, words) for name, questions in RUNS.items() for words in questions]
    if not checks.kernel.get("pti"):
        lines = [(name, words) for name, words in lines if "--root user" not in words]
    # Even with few runs, several guests together run all lines.
    chosen.shuffle(lines)
    addresses = ["init_task", "_text", *(f"{start:x}" for start, _ in kcore_loads())]
    pids = sorted({pid for pid, *_ in workload()})
    partial: Dict[str, int] = {}
    refused: Dict[str, int] = {}
    started = time.monotonic()
    for number_of_run in range(runs):
        name, words = lines[number_of_run % len(lines)]
        text = " ".join(
            {"A": chosen.choice(addresses), "P": str(chosen.choice(pids))}.get(w, w) for w in words.split()
        )
        before = time.monotonic()
        try:
            result = run_command(kernel, parse([name, *text.split()]))
            answer: Any = Listing.of(result) if isinstance(result, Stream) else Answer.of(result)
            answer.json()
            answer.text()
            if answer.partial:
                why = f"{name} {text}: {' '.join(map(str, answer.notes))[:200]}"
                partial[why] = partial.get(why, 0) + 1
        except KvintroError as error:
            why = f"{name} {text}: {error.what[:200]}"
            refused[why] = refused.get(why, 0) + 1
        except Exception:
            checks.wrong.append(f"{name} {text}: {traceback.format_exc()[-1500:]}")
        progress(f"run {number_of_run}: {name} {text}")
        checks.runs.setdefault(f"{name} (again)", []).append(round(time.monotonic() - before, 2))
    return {
        "runs": runs,
        "partial": sum(partial.values()),
        "refused": sum(refused.values()),
        "why": {**partial, **refused},
        "seconds": round(time.monotonic() - started, 1),
    }


def main(arguments: Sequence[str]) -> None:
    """Start the load, run the checks and the repeated commands, and print the report."""
    runs, seed, *modules = arguments
    checks = Checks()
    checks.moving = {Path(name).stem for name in modules}
    load = subprocess.Popen([sys.executable, "-m", "tests.vm.inside.load", *modules], start_new_session=True)
    checks.load = load.pid
    steps: List[Callable[[Checks], None]] = [
        check_layout,
        check_translate,
        check_image,
        check_modules,
        check_vmalloc,
        check_user,
        check_pages,
        check_ptdump,
        check_check,
        check_others,
    ]
    summary: Dict[str, Any] = {}
    try:
        run(checks, ["layout"], installed=True)
        checks.source = open_kernel(Request()).source
        for step in steps:
            try:
                step(checks)
            except Exception:
                checks.wrong.append(traceback.format_exc()[-2000:])
        summary = many_runs(checks, int(runs), int(seed))
    finally:
        os.killpg(load.pid, signal.SIGKILL)
    print(
        json.dumps(
            {
                "release": os.uname().release,
                "kernel": checks.kernel,
                "findings": checks.findings,
                "compared": sum(checks.compared.values()),
                "names": sorted({name.split(":")[0] for name in checks.compared}),
                "wrong": checks.wrong,
                "commands": checks.commands,
                "commands_partial": checks.partial,
                "times": checks.runs,
                "codes": checks.codes,
                **summary,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
