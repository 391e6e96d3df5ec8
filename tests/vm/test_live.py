# SPDX-License-Identifier: LGPL-2.1-or-later
"""Booted guests: the layout inside them as root, and from outside over QMP."""

from __future__ import annotations

import gc
import gzip
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Set, Tuple

import pytest

from kvintro import prompt
from kvintro.errors import WrongVmcoreinfo
from kvintro.opening import open_kernel
from kvintro.source import Request
from kvintro.source.guest import Guest
from kvintro.source.guest import ram as guest_ram
from kvintro.source.privileges import peer_pid
from kvintro.source.qmp import Monitor, connect
from tests.browsing import Driver, browse
from tests.vm.guests import EARLIER, ENTRIES, QUIET, needs_lab, run

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
    layout, segments, symbols, release, *compared = run(entry, *commands, extra=files)
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
        # The mapped sizes come from the dump and from /proc/kcore, in the order of the command line.
        now = {
            "direct_map": base,
            "vmalloc": int(rows["vmalloc"]["start"], 16),
            "kernel_image": places["_text"],
        }
        _is_between(found, now, release.stdout.strip(), set(modules.stdout.split()))


def _is_between(found: Dict[str, Any], now: Dict[str, int], release: str, modules: Set[str]) -> None:
    """``kvintro diff`` of the dump and the running kernel, against the truth of each."""
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
@pytest.mark.parametrize("device", [True, False], ids=["vmcoreinfo device", "no device"])
@pytest.mark.parametrize("entry", ENTRIES[:1] + ENTRIES[2:3], ids=lambda entry: entry.name)
def test_from_outside(entry: Any, device: bool) -> None:
    """Over QMP, while the guest runs, with and without the vmcoreinfo device."""
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
                if device:
                    _browse_from_outside(guest, str(work / "second"))

    # A guest that dies during boot is booted again, because this does not depend on kvintro; a wrong answer
    # is not retried.
    qemu.persistently(attempt)


def _source_outside(**request: Any) -> "Tuple[Dict[str, str], str]":
    """VMCOREINFO and where it comes from. QEMU serves one client at a time, so the source is closed."""
    gc.collect()
    source = open_kernel(Request(**request)).source
    return source.vmcoreinfo, source.vmcoreinfo_origin


def _choose_from_outside(work: Path, device: bool) -> None:
    """VMCOREINFO is at the address that the kernel reports; a given one is compared with the guest."""
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
    gc.collect()
    _read_both_ways(address, expected)


def _read_both_ways(address: str, lines: Dict[str, str]) -> None:
    """The kernel's code, from QEMU's process and from its monitor."""
    code = int(lines["SYMBOL(_stext)"], 16) - 0xFFFFFFFF80000000 + int(lines["NUMBER(phys_base)"])
    connection = connect(address)
    pid = peer_pid(connection)
    monitor = Monitor(address, connection)
    ram = guest_ram(address, monitor)
    both = [Guest(monitor, ram, number) for number in (pid, 0)]
    assert [memory.direct for memory in both] == [True, False]
    # Its beginning is never patched, while its end may be at any moment.
    assert both[0].read(code, 256) == both[1].read(code, 256) != bytes(256)


def _browse_from_outside(guest: Any, address: str) -> None:
    """The browser marks what the guest changed, with QEMU's value, and nothing while it is stopped."""
    gc.collect()
    kernel = open_kernel(Request(qemu=address))
    physical = kernel.walk(kernel.symbol("jiffies_64")).physical

    def jiffies() -> str:
        word: str = guest.monitor(f"xp /1gx {physical:#x}").split()[-1]
        return word[2:]

    async def walk(go: Driver) -> None:
        await go.goto("jiffies_64")
        await go.press("4")
        guest.command("stop")
        await go.press("r")
        before = jiffies()
        assert before in go.detail
        await go.press("r")
        assert not go.app.detail.changed and "nothing changed" in go.head
        guest.command("cont")
        while jiffies() == before:
            pass
        guest.command("stop")
        await go.press("r")
        assert any(jiffies() in line.text for line in go.app.detail.changed), go.detail
        assert before not in go.detail
        guest.command("cont")
        await go.tap("a")
        after = go.detail
        await go.until(lambda: go.detail != after and bool(go.app.detail.changed))
        await go.tap("a")
        await go.press("u")
        assert "kv-memory" in go.map

    browse(kernel, walk)


def _earlier_note() -> str:
    lines = open_kernel(Request(core=str(EARLIER / "core.kdump"), types="none")).source.vmcoreinfo
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def _look_from_outside(work: Path) -> None:
    from lab import qemu

    truth = qemu.read_stream(work / "stream")
    k = prompt.Kernel(open_kernel(Request(qemu=str(work / "second"))).source)
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
