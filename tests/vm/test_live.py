# SPDX-License-Identifier: LGPL-2.1-or-later
"""Booted guests: kvintro inside them as root and as a user, under load; and from outside over QMP.

Under load some guests run a few commands each. KVINTRO_LIVE_RUNS=N runs N in every guest; KVINTRO_LIVE_SEED=S
chooses others; KVINTRO_LIVE_RECORD=FILE adds what came of it to a file, from which
tools/gen_live.py makes the table in docs/live.md.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest

from kvintro.errors import WrongVmcoreinfo
from kvintro.kernel import open_kernel
from kvintro.prompt import PromptKernel
from kvintro.source import Request
from tests.conftest import VMCORES

sys.path.insert(0, str(VMCORES))

#: Runs of commands in each guest, after each has run once and been compared; 0: a few, in some guests.
RUNS = int(os.environ.get("KVINTRO_LIVE_RUNS", "0"))
FEW = 15
SEED = int(os.environ.get("KVINTRO_LIVE_SEED", "0"))
RECORD = os.environ.get("KVINTRO_LIVE_RECORD")
#: Modules that the load loads and unloads; nothing else uses them.
LOADED = ("dummy", "nbd", "crc7")

#: A dump of an earlier boot, and what its kernel said.
EARLIER = VMCORES / "debian-6.12"

needs_lab = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("qemu-system-x86_64") is None or not (VMCORES / "lab").exists(),
    reason="booting guests needs root, QEMU and the lab in vmcores/",
)


def _entries() -> List[Any]:
    """Each series, 4 and 5 levels, with and without page-table isolation; by name for the test's id."""
    try:
        from lab import matrix
        from lab.packages import Archive

        rows = {row.name: row for row in matrix.entries(Archive().newest_series(matrix.NEWEST_MAJOR))}
    except Exception:
        return []
    wanted = ["6.1-4level-kaslr", "6.12-4level-kaslr", "6.12-5level-kaslr", "6.12-4level-kaslr-nopti"]
    chosen = [rows[f"debian-{name}"] for name in wanted if f"debian-{name}" in rows]
    newest = [row for row in rows.values() if row.series not in ("6.1", "6.12", "5.10")]
    newest = [row for row in newest if row.kaslr and not row.furnished]
    return [*chosen, *newest, *[row for name, row in rows.items() if name == "oracle-6.12-4level"]]


ENTRIES = _entries()
#: The oldest and the newest with 5 levels, where things differ most: a guest takes some five minutes.
_MOST_DIFFERENT = {entry.name for entry in ENTRIES if entry.series == "6.1"}
_MOST_DIFFERENT |= {entry.name for entry in ENTRIES[-2:] if entry.levels == 5 and not entry.oracle}
BUSY = [entry for entry in ENTRIES if RUNS or entry.name in _MOST_DIFFERENT]
#: Those whose layout is not looked at there.
QUIET = [entry for entry in ENTRIES if entry not in BUSY]


def _module_files(entry: Any) -> Dict[str, bytes]:
    from lab import boot
    from lab.packages import Archive

    directory = boot.find_kernel(entry, Archive()).modules
    found = {}
    for name in LOADED:
        for path in sorted(Path(directory).rglob(f"{name}.ko")):
            found[f"modules/{name}.ko"] = path.read_bytes()
    return found


def _run(entry: Any, *commands: str, extra: "Dict[str, bytes] | None" = None, busy: int = 0) -> Any:
    """Run commands in a guest, with time for as many runs under load."""
    from lab import live

    return live.run_live(entry, commands, timeout=3600 + 30 * busy, extra=extra or {})


_SEGMENTS = """
import struct
file = open("/proc/kcore", "rb")
head = file.read(64)
at, (size, count) = struct.unpack_from("<Q", head, 32)[0], struct.unpack_from("<HH", head, 54)
for number in range(count):
    file.seek(at + number * size)
    fields = struct.unpack("<IIQQQQQQ", file.read(56))
    if fields[0] == 1:
        print(*fields[3:5], fields[6])
"""


@needs_lab
@pytest.mark.parametrize("entry", QUIET, ids=lambda entry: entry.name)
def test_layout_inside(entry: Any) -> None:
    """``kvintro layout`` as root on /proc/kcore, against that guest's own /proc."""
    files = {"segments.py": _SEGMENTS.encode()}
    commands = [
        "kvintro layout --json",
        "python3 /lab/segments.py",
        "grep -E ' (_text|_end)$' /proc/kallsyms",
        "uname -r",
    ]
    if entry.name == "debian-6.12-4level-kaslr":
        files["earlier.kdump"] = (EARLIER / "core.kdump").read_bytes()
        commands += ["kvintro --json diff --all /lab/earlier.kdump", "cut -d' ' -f1 /proc/modules"]
    layout, segments, symbols, release, *compared = _run(entry, *commands, extra=files)
    assert layout.code == 0, layout.stderr
    document = json.loads(layout.stdout)
    rows = {row["key"]: row for row in document["regions"]}
    assert document["kernel"]["release"] == release.stdout.strip()
    assert document["kernel"]["paging_levels"] == entry.levels
    assert document["kernel"]["pti"] is entry.pti
    assert document["kernel"]["live"] is True
    loads = [tuple(map(int, line.split())) for line in segments.stdout.splitlines()]
    starts = {virtual for virtual, _, _ in loads}
    assert int(rows["vmalloc"]["start"], 16) in starts
    assert int(rows["modules"]["start"], 16) in starts
    base, end = int(rows["direct_map"]["start"], 16), int(rows["direct_map"]["end"], 16)
    ram = [(virtual, physical) for virtual, physical, _ in loads if base <= virtual <= end]
    assert ram
    assert {virtual - physical for virtual, physical in ram} == {base}
    places = {line.split()[2]: int(line.split()[0], 16) for line in symbols.stdout.splitlines()}
    assert int(rows["kernel_image"]["used_start"], 16) == places["_text"]
    assert int(rows["kernel_image"]["used_end"], 16) >= places["_end"] - 1
    if compared:
        difference, modules = compared
        assert difference.code == 0, difference.stderr
        found = json.loads(difference.stdout)
        # What is mapped where comes from the dump and from /proc/kcore, in the order of the command line.
        now = {
            "direct_map": base,
            "vmalloc": int(rows["vmalloc"]["start"], 16),
            "kernel_image": places["_text"],
        }
        _is_between(found, now, release.stdout.strip(), set(modules.stdout.split()))


def _is_between(found: Dict[str, Any], now: Dict[str, int], release: str, modules: Set[str]) -> None:
    """``kvintro diff`` of the dump and the running kernel, against what each said of itself."""
    truth = EARLIER / "truth"
    assert (found["a"]["live"], found["b"]["live"]) == (False, True)
    assert found["a"]["release"] == (truth / "release").read_text().strip()
    assert found["b"]["release"] == release
    symbols = gzip.decompress((truth / "kallsyms.gz").read_bytes()).decode()
    values = dict(line.split()[::3] for line in (truth / "values").read_text().splitlines()[1:])
    before = {
        "direct_map": int(values["page_offset_base"], 16),
        "vmalloc": int(values["vmalloc_base"], 16),
        "kernel_image": next(int(line[:16], 16) for line in symbols.splitlines() if line.endswith(" _text")),
    }
    rows = {row["key"]: row for row in found["regions"]}
    for key, start in now.items():
        assert (int(rows[key]["a_start"], 16), int(rows[key]["b_start"], 16)) == (before[key], start)
        assert rows[key]["moved"] == start - before[key]
        assert (
            sum(row["kind"] == "base" and f"{start:016x} in B" in row["text"] for row in found["findings"])
            == 1
        )
    loaded = {line.split()[0] for line in (truth / "modules").read_text().splitlines()}
    assert {row["name"] for row in found["modules"] if row["a"] is not None} == loaded
    assert {row["name"] for row in found["modules"] if row["b"] is not None} == modules
    (more,) = [row["change"] for row in found["types"] if row["name"] == "free"]
    assert more > 0  # the guest has several times the memory


@needs_lab
@pytest.mark.parametrize("entry", BUSY, ids=lambda entry: entry.name)
def test_inside_under_load(entry: Any) -> None:
    modules = _module_files(entry)
    files = " ".join(f"/lab/{name}" for name in modules)
    # Each guest has its own, so that together they run what is to be run.
    seed = f"{SEED}{ENTRIES.index(entry)}"
    started = time.monotonic()
    (result,) = _run(
        entry, f"python3 -m tests.vm.inside.check {RUNS or FEW} {seed} {files}", extra=modules, busy=RUNS
    )
    assert result.code == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    found.update(
        entry=entry.name,
        levels=entry.levels,
        pti=entry.pti,
        date=time.strftime("%Y-%m-%d"),
        total_seconds=round(time.monotonic() - started),
        wrong_count=len(found["wrong"]),
    )
    if RECORD:
        with open(RECORD, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
    shown = (
        "entry",
        "release",
        "compared",
        "commands",
        "runs",
        "partial",
        "refused",
        "seconds",
        "total_seconds",
    )
    print(
        json.dumps({key: found[key] for key in shown}),
        json.dumps([found["why"], found["findings"]], indent=1),
    )
    said = found["kernel"]
    assert (said["paging_levels"], said["pti"], said["live"]) == (entry.levels, entry.pti, True)
    assert not found["wrong"], "\n".join(found["wrong"][:10])
    assert found["compared"] > 150
    assert found["runs"] == (RUNS or FEW)
    # Marked as partial is what may happen, now and then; refused is what nobody should see.
    assert found["partial"] <= max(2, found["runs"] // 10), found["why"]
    assert not found["refused"], found["why"]


_STATUS = """
import os
lines = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
print(lines["Uid"].split(), lines["Gid"].split(), int(lines["CapEff"], 16), int(lines["CapPrm"], 16))
print(k.layout().partial, k.source.live, k.source.symbols, os.environ["HOME"])
try:
    open("/proc/kcore", "rb")
    print("opened")
except PermissionError:
    print("not permitted")
"""

# sudo finds an ordinary installation: by root, where everyone may read it.
_PREPARE = """
cp -r /lab/tree/kvintro /usr/lib/python3/dist-packages/ && install -m 755 /lab/bin/kvintro /usr/bin/kvintro
useradd -m bob && echo 'bob ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/bob && chmod 440 /etc/sudoers.d/bob
echo 127.0.0.1 "$(hostname)" >>/etc/hosts; unset PYTHONPATH
"""


@needs_lab
def test_privileges() -> None:
    """The process while it parses, by its /proc/PID/status; and who owns what it writes."""
    entry = next((row for row in ENTRIES if row.name == "debian-6.12-4level-kaslr"), None)
    if entry is None:
        pytest.skip("the lab has no such entry")
    as_bob = "cd /tmp; chmod 644 /lab/status.py; su bob -c"
    evil = "import os\nos.write(1, b'LOADED')\n"
    results = _run(
        entry,
        _PREPARE + f"{as_bob} 'sudo kvintro shell /lab/status.py'",
        f"{as_bob} 'sudo kvintro layout -o /tmp/bobs && stat -c %U /tmp/bobs'",
        f"{as_bob} 'kvintro layout'",
        f"{as_bob} 'kvintro --sudo shell /lab/status.py'",
        f"{as_bob} 'sudo kvintro --keep-root shell /lab/status.py'",
        "mkdir /tmp/evil; for m in numpy tabulate drgn plugin; do cp /lab/evil.py /tmp/evil/$m.py; done; "
        "chmod -R a+rX /tmp/evil; cd /tmp/evil; "
        "su bob -c 'sudo PYTHONPATH=/tmp/evil DRGN_PLUGINS=x=/tmp/evil/plugin.py kvintro layout'",
        "su bob -c 'sudo kvintro show modules --json; sudo kvintro check --json; sudo kvintro pages --json' "
        "| grep -c schema",
        extra={"status.py": _STATUS.encode(), "evil.py": evil.encode()},
    )
    bob = "['1000', '1000', '1000', '1000'] ['1000', '1000', '1000', '1000'] 0 0"
    by_sudo, output, user, helper, kept, planted, others = results
    for result in (by_sudo, helper):
        assert result.code == 0, result.stderr
        status, state, opened = result.stdout.splitlines()[-3:]
        assert status == bob
        assert state == "False True kallsyms /home/bob"
        assert opened == "not permitted"
    assert output.stdout.split() == ["bob"], output.stderr
    assert user.code == 3
    assert "--sudo" in user.stderr and len(user.stderr.splitlines()) == 2
    assert kept.stdout.startswith("['0', '0', '0', '0']")
    assert planted.code == 0, planted.stderr
    assert "LOADED" not in planted.stdout
    assert others.stdout.strip() == "3", others.stderr


@needs_lab
@pytest.mark.parametrize("device", [True, False], ids=["vmcoreinfo device", "no device"])
@pytest.mark.parametrize("entry", ENTRIES[:1] + ENTRIES[2:3], ids=lambda entry: entry.name)
def test_from_outside(entry: Any, device: bool) -> None:
    """Over QMP, while the guest runs, and whether it has said which kernel it is or not."""
    from lab import boot, initramfs, qemu
    from lab.packages import Archive

    kernel = boot.find_kernel(entry, Archive())

    def attempt() -> None:
        with tempfile.TemporaryDirectory(prefix="kvintro-") as scratch:
            work = Path(scratch)
            (work / "kernel").symlink_to(kernel.image)
            ramdisk = initramfs.build("init", kernel.modules, boot.MODULES, ("workload", "probe"))
            (work / "initramfs").write_bytes(ramdisk)
            options = [*boot.guest_options(replace(entry, memory_mb=256)), "-initrd", "initramfs"]
            if not device:
                at = options.index("vmcoreinfo")
                del options[at - 1 : at + 1]
            with qemu.Qemu(work, [*options, "-qmp", "unix:second,server=on,wait=off"]) as guest:
                guest.wait_for(boot.READY, boot.BOOT_TIMEOUT)
                _look_from_outside(work)
                _choose_from_outside(work, device)

    # A guest that dies while it boots says nothing about kvintro; a wrong answer is not asked for again.
    qemu.persistently(attempt)


def _source_outside(**request: Any) -> "Tuple[Dict[str, str], str]":
    """VMCOREINFO and where it comes from. QEMU talks to one client at a time, so the source is given up."""
    gc.collect()
    source = open_kernel(Request(**request)).source
    return source.vmcoreinfo, source.vmcoreinfo_origin


def _choose_from_outside(work: Path, device: bool) -> None:
    """VMCOREINFO is where the kernel says that it is; what is given is compared with the guest."""
    from lab import qemu

    where = int(qemu.read_stream(work / "stream")["vmcoreinfo"].split()[0], 16)
    address = str(work / "second")
    expected, origin = _source_outside(qemu=address)
    assert origin == (f"the note of {address}" if device else f"found in memory at physical {where:#x}")
    right, wrong = work / "right", work / "wrong"
    right.write_text("".join(f"{key}={value}\r\n" for key, value in expected.items()))
    wrong.write_text(_earlier_note())
    assert _source_outside(qemu=address, vmcoreinfo=str(right)) == (expected, "--vmcoreinfo")
    assert _source_outside(qemu=address, vmcoreinfo_at=where)[0] == expected
    with pytest.raises(WrongVmcoreinfo) as caught:
        _source_outside(qemu=address, vmcoreinfo=str(wrong))
    assert "without --vmcoreinfo" in caught.value.remedy
    del caught
    with pytest.raises(WrongVmcoreinfo):
        _source_outside(qemu=address, vmcoreinfo_at=where + 0x1000)


def _earlier_note() -> str:
    lines = open_kernel(Request(core=str(EARLIER / "core.kdump"), types="none")).source.vmcoreinfo
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def _look_from_outside(work: Path) -> None:
    from lab import qemu

    truth = qemu.read_stream(work / "stream")
    k = PromptKernel(open_kernel(Request(qemu=str(work / "second"))).source)
    layout = k.layout()
    assert layout.kernel is not None and layout.kernel.live
    assert layout.kernel.release == truth["release"].decode().strip()
    assert not layout.partial, layout.notes
    loads = [line.split() for line in truth["kcore-phdrs"].decode().splitlines()]
    starts = {int(words[2], 16) for words in loads if words and words[0] == "LOAD"}
    rows = {row.key: row for row in layout}
    assert rows["vmalloc"].start in starts
    assert rows["modules"].start in starts
    for name in ("check", "ptdump", "pages"):
        assert k.run(name).json()
    for region in ("vmalloc", "modules", "kernel_image"):
        assert not k.show(region).partial
    assert k.translate("init_task").state == "mapped"
