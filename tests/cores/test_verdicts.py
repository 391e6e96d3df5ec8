# SPDX-License-Identifier: LGPL-2.1-or-later
"""No rule of ``check`` is "ok" unless it compared something: each runs without the data that it reads.

These are all rules of an architecture, so that a new rule is tested here, too.
"""

from __future__ import annotations

import dataclasses
import io
from typing import Any, Dict, FrozenSet, Iterator, List

import pytest

from kvintro.commands import load_command
from kvintro.delivery import exit_code
from kvintro.errors import KvintroError, Unavailable
from kvintro.kernels import Kernel
from kvintro.model import Stream
from kvintro.opening import kernel_of, open_kernel
from kvintro.parser import parse
from kvintro.queries import audit
from kvintro.queries.audit import Verdict, checks_of, running
from kvintro.queries.pages.sections import Reader
from kvintro.render import render_stream
from kvintro.reports.check import check
from kvintro.reports.info import LACKS, info
from kvintro.reports.pages import pages_report
from kvintro.source import Request
from tests.codeonly import open_code_only
from tests.conftest import Core, _open
from tests.cores.patched import Patched
from tests.cores.test_check_truth import of, rule_of
from tests.cores.test_info import PROBES
from tests.unreliable import WAYS, Unreliable

ARCHITECTURES = ("amd64", "arm64")
#: Of the built cores; tests/conftest.py chooses them.
ONE_OF_EACH_SERIES = ("amd64",)
SHIPPED_ONLY = ("arm64",)

#: The files of /proc that rules compare with, from the boot of the core.
_TRUTH = {f"/proc/{name}": name for name in ("iomem", "meminfo", "modules", "vmallocinfo")}


@pytest.fixture
def files(core: Core, monkeypatch: pytest.MonkeyPatch) -> Dict[str, List[str]]:
    """The lines of each file of /proc; a test may change them. Missing ones cannot be opened."""
    found = {path: core.truth(name).splitlines() for path, name in _TRUTH.items() if core.has_truth(name)}

    def opened(path: str) -> Any:
        if path not in found:
            raise FileNotFoundError(2, "No such file or directory")
        return io.BytesIO("".join(f"{line}\n" for line in found[path]).encode())

    monkeypatch.setattr(running, "open_kernel_file", opened)
    return found


@pytest.fixture
def unreliable(core: Core, kernel: Kernel) -> Unreliable:
    if kernel.code_only:
        pytest.skip("this kernel names its code only: most rules are unknown from the start")
    return Unreliable(core)


def known_anyway(core: Core) -> FrozenSet[str]:
    """Rules that need only VMCOREINFO."""
    found = of(_open(core.path)).without_memory
    # Without KASLR, all bounds of arm64 are constants.
    return found | {"overlap"} if core.architecture == "arm64" and not core.kaslr else found


def verdicts(source: Unreliable) -> Dict[str, Verdict]:
    return {rule.key: rule.verdict(source.kernel()) for rule in checks_of(source.arch)}


def test_sound_memory_has_a_verdict_for_every_rule(
    core: Core, unreliable: Unreliable, files: Dict[str, List[str]]
) -> None:
    """The data that the other tests remove is present before."""
    found = verdicts(unreliable)
    assert not [key for key, verdict in found.items() if verdict.state in ("failed", "unknown")], found
    for key, verdict in found.items():
        assert (verdict.compared > 0) == (verdict.state != "not-applicable"), key


@pytest.mark.parametrize("way", WAYS)
def test_no_rule_is_ok_without_memory(
    core: Core, unreliable: Unreliable, files: Dict[str, List[str]], way: str
) -> None:
    never = {key for key, verdict in verdicts(unreliable).items() if verdict.state == "not-applicable"}
    unreliable.way = way
    for rule in checks_of(unreliable.arch):
        verdict = rule.verdict(unreliable.kernel())
        if rule.key in known_anyway(core):
            assert verdict.state == "ok", verdict
        elif way == "noise":
            # Missing data may look like anything.
            assert verdict.state != "ok", (rule.key, verdict)
        elif verdict.state == "not-applicable":
            assert rule.key in never, (rule.key, verdict)
        else:
            # KASAN kernels are recognised by their symbols, and are known not to move the bases.
            wanted = ("unknown", "notice") if rule.key == "kaslr" else ("unknown",)
            assert verdict.state in wanted and verdict.missing, (rule.key, verdict)


def test_a_source_that_always_changes_is_not_ok(
    core: Core, unreliable: Unreliable, files: Dict[str, List[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No matter how often it is read, no two readings of memory agree."""
    monkeypatch.setattr(audit, "_PAUSE", 0)
    monkeypatch.setattr(audit, "_ATTEMPTS", 2)
    unreliable.way = "noise"
    report = check(unreliable.kernel())
    states = {row.key: row.state for row in report.tables[1].rows}
    assert set(states) == {rule.key for rule in checks_of(unreliable.arch)}
    found = {key for key, state in states.items() if state == "ok"}
    assert found == known_anyway(core), states
    assert report.partial or report.negative


def _asked(
    unreliable: Unreliable, files: Dict[str, List[str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Each rule for the running kernel, and the files that it reads."""
    opened = vars(running)["open_kernel_file"]  # the fixture's
    seen: List[str] = []

    def noted(path: str) -> Any:
        seen.append(path)
        return opened(path)

    monkeypatch.setattr(running, "open_kernel_file", noted)
    for rule in checks_of(unreliable.arch):
        if rule.live:
            seen.clear()
            yield rule, seen
            # Segments are read when the source is opened.
            assert set(seen) <= set(_TRUTH) and (seen or rule.key == "proc_kcore"), rule.key


@pytest.mark.parametrize("state", ["missing", "empty", "cut"])
def test_files_that_are_not_there(
    unreliable: Unreliable, files: Dict[str, List[str]], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """As in a container that masks them."""
    for path in list(files):
        if state == "missing":
            del files[path]
        else:
            files[path] = [] if state == "empty" else files[path][0][:1].splitlines()
    for rule, _ in _asked(unreliable, files, monkeypatch):
        if rule.key != "proc_kcore":
            verdict = rule.verdict(unreliable.kernel())
            # An invalid line may be a finding, but never agrees.
            assert verdict.state == "unknown" or (state, verdict.state) == ("cut", "failed"), (rule, verdict)


@pytest.mark.parametrize("hidden", [False, True], ids=["addresses", "hidden"])
def test_files_that_change_between_two_readings(
    unreliable: Unreliable, files: Dict[str, List[str]], monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    """Every other reading has half of the lines: unknown, with the advice to try again."""
    if hidden:
        name = "/proc/vmallocinfo"
        files[name] = ["0x000000001234abcd-0x00000000abcd1234" + line[37:] for line in files[name]]
    opened, turn = vars(running)["open_kernel_file"], iter(range(1 << 20))
    rules = [
        rule
        for rule, seen in _asked(unreliable, files, monkeypatch)
        if rule.verdict(unreliable.kernel()) and seen
    ]
    assert {rule.key for rule in rules} == {rule.key for rule in checks_of(unreliable.arch) if rule.live} - {
        "proc_kcore"
    }

    def changing(path: str) -> Any:
        lines = opened(path).read().splitlines(keepends=True)
        return io.BytesIO(b"".join(lines[:: 1 + next(turn) % 2]))

    monkeypatch.setattr(running, "open_kernel_file", changing)
    monkeypatch.setattr(audit, "_PAUSE", 0)
    for rule in rules:
        verdict = rule.verdict(unreliable.kernel())
        assert verdict.missing and verdict.state in ("unknown", "failed"), (rule.key, verdict)
        assert verdict.changing and "changed while it was read" in verdict.detail, (rule.key, verdict)
    states = {row.key: row.state for row in check(unreliable.kernel()).tables[1].rows}
    assert {states[rule.key] for rule in rules} == {"unknown"}, states


def test_a_file_that_settles_is_compared(
    unreliable: Unreliable, files: Dict[str, List[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, turn = vars(running)["open_kernel_file"], iter(range(1 << 20))

    def settling(path: str) -> Any:
        lines = opened(path).read().splitlines(keepends=True)
        return io.BytesIO(b"".join(lines[: -1 if next(turn) == 1 else None]))

    monkeypatch.setattr(running, "open_kernel_file", settling)
    monkeypatch.setattr(audit, "_PAUSE", 0)
    monkeypatch.setattr(audit, "checks_of", lambda arch: (rule_of(unreliable.kernel(), "proc_vmallocinfo"),))
    ((_, verdict),) = audit.audit(unreliable.kernel())
    assert verdict.state == "ok", verdict
    assert next(turn) > 3


def test_addresses_that_are_hidden_from_this_user(
    unreliable: Unreliable, files: Dict[str, List[str]]
) -> None:
    """Without CAP_SYS_ADMIN /proc/iomem has zeros, and /proc/modules with kptr_restrict."""
    files["/proc/iomem"] = ["00000000-00000000 :" + line.split(" :")[1] for line in files["/proc/iomem"]]
    assert rule_of(unreliable.kernel(), "proc_iomem").verdict(unreliable.kernel()).state == "unknown"
    files["/proc/modules"] = [
        " ".join([*line.split()[:5], "0x0000000000000000"]) for line in files["/proc/modules"]
    ]
    verdict = rule_of(unreliable.kernel(), "proc_modules").verdict(unreliable.kernel())
    assert (verdict.state, "by their names" in verdict.detail) == ("ok", True)
    del files["/proc/modules"][0]
    assert rule_of(unreliable.kernel(), "proc_modules").verdict(unreliable.kernel()).state == "failed"


def _without(what: str, core: Core, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    if what == "types":
        return open_kernel(Request(core=str(core.path), types="none"))
    if what == "names of variables":
        return open_code_only(str(core.path), monkeypatch)
    source = Unreliable(core, symbols=False).source
    source.kind = "core"
    return kernel_of(source)


@pytest.mark.parametrize("what", ["types", "names of variables", "symbols"])
def test_what_is_ok_without_types_or_symbols_was_compared(
    core: Core, kernel: Kernel, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A rule that is "ok" there also finds the change that breaks it on the whole kernel."""
    if kernel.code_only:
        pytest.skip("this kernel names its code only")
    asked = _without(what, core, monkeypatch)
    for rule in checks_of(kernel.arch):
        if rule.live:
            continue
        verdict = rule.verdict(asked)
        assert verdict.state != "failed", (rule.key, verdict)
        if verdict.state != "ok":
            continue
        if rule.key in of(kernel).elsewhere:
            # No change of memory breaks it: it compared as much as with complete data.
            assert verdict.compared == rule.verdict(kernel).compared, rule.key
            continue
        patched = Patched(kernel)
        of(kernel).breaks[rule.key](patched)
        found = rule.verdict(patched.afresh(asked))
        # A variable shows whether a page is Hyper-V's. Without types, EFI's tables are found by the entries
        # that they share with the kernel's own tables, which were changed.
        excused = ("Hyper-V", "the addresses of these regions are not known: EFI runtime services")
        known = found.state == "failed" or any(why in found.missing for why in excused)
        assert known and found.state != "ok", (rule.key, verdict, found)


def test_rules_that_are_not_applied_are_listed(core: Core, kernel: Kernel) -> None:
    """A dump is not compared with the files of another kernel, and the report says so."""
    rows = {row.key: row for row in check(kernel).tables[1].rows}
    checks = checks_of(kernel.arch)
    assert list(rows) == [rule.key for rule in checks]
    for rule in checks:
        if rule.live:
            assert (rows[rule.key].state, rows[rule.key].compared) == ("not-applicable", 0)
            assert rows[rule.key].detail
        if rows[rule.key].state == "ok":
            assert rows[rule.key].compared > 0 and rows[rule.key].unknown is None


def test_nameless_variables_are_unknown_by_name(core: Core, kernel: Kernel) -> None:
    """Unknown rules say what they could not compare."""
    for rule in checks_of(kernel.arch):
        verdict = rule.verdict(kernel)
        if verdict.state == "unknown" and not rule.live:
            assert kernel.code_only and rule.key in of(kernel).nameless
            assert verdict.missing


def test_what_raises_is_unknown(kernel: Kernel) -> None:
    def refuse(kernel: Kernel) -> Verdict:
        raise Unavailable("it is not here")

    verdict = audit.Check("new", "a new rule", refuse).verdict(kernel)
    assert (verdict.state, verdict.detail) == ("unknown", "it is not here")


# Other commands: data that was not read is not reported as none, 0 or "works"

#: Facts of ``info`` from the file, VMCOREINFO, or the symbols and types.
_NOT_OF_MEMORY = {
    *("source", "format", "size", "memory", "complete", "left_out", "release", "build_id", "arch"),
    *(
        "paging_levels",
        "kaslr",
        "image_slide",
        "vmcoreinfo",
        "symbols",
        "symbol_count",
        "types",
        "type_count",
    ),
}


@pytest.mark.parametrize("way", ["faults", "zeros"])
def test_info_without_memory(unreliable: Unreliable, way: str) -> None:
    unreliable.way = way
    facts, _, commands = info(unreliable.kernel()).tables
    known = {row.key for row in facts.rows if row.value is not None}
    assert known <= _NOT_OF_MEMORY, known - _NOT_OF_MEMORY
    assert all(row.reason for row in facts.rows if row.value is None)
    works = {row.name for row in commands.rows if row.state == "works"}
    assert works <= {name for name, lacks in LACKS.items() if not lacks}
    assert all(row.reason for row in commands.rows if row.state != "works")


#: Commands that do not read memory: one takes an entry, the other describes a file.
_WITHOUT_MEMORY = {"info", "pte", "diff"}


@pytest.mark.parametrize("way", ["faults", "zeros"])
@pytest.mark.parametrize("command", sorted(set(PROBES) - _WITHOUT_MEMORY))
def test_no_command_is_whole_without_memory(unreliable: Unreliable, way: str, command: str) -> None:
    """Each command refuses, is partial, or answers no; exit status 0 would claim a complete answer."""
    unreliable.source.kind = "core"
    unreliable.way = way
    for words in PROBES[command]:
        if "ffffffffff5ff000" in words or (way == "zeros" and "--phys" in words):
            continue  # such physical memory contains zeros
        try:
            result = load_command(command).run(unreliable.kernel(), parse([command, *words.split()]))
            if isinstance(result, Stream):
                "".join(render_stream(result, "json"))
        except KvintroError:
            continue
        assert exit_code(result) != 0, (command, words, getattr(result, "notes", ()))


def test_a_census_of_nothing_has_no_zeros(
    core: Core, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all struct pages are excluded, no row claims a number of free pages."""
    if kernel.source.types == "none":
        pytest.skip("struct pages need types")
    read = Reader.pieces
    monkeypatch.setattr(
        Reader,
        "pieces",
        lambda self, sections: (
            dataclasses.replace(piece, state="missing") for piece in read(self, sections)
        ),
    )
    report = pages_report(kernel)
    assert report.partial
    assert set(report.extra["by_type"]) == {"not_in_dump"}
    tables = {table.key: table.rows for table in report.tables}
    for key in ("zones", "nodes", "orders", "caches", "flags", "free"):
        assert not tables[key], key
