# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro survey`` without dumps: its statistics, its limits, and answers that are not trusted."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import pytest

from kvintro.arch.x86_64 import ARCHITECTURE
from kvintro.arch.x86_64.slots import region_draws
from kvintro.errors import KvintroError, SourceError, UsageError
from kvintro.model import Address, Displacement, Randomised, Report, Size
from kvintro.parser import parse
from kvintro.render import render
from kvintro.reports.pages import TypeRow
from kvintro.survey import fleet, tasks
from kvintro.survey.child import plain_answer
from kvintro.survey.fleet import Limits, survey
from kvintro.survey.rows import TABLES, WHOLE, Answer, DumpRow, Malformed, NoteRow, checked, failed
from kvintro.survey.statistics import evenness, ks_p_value, scores
from kvintro.survey.store import Store, stamp_of
from kvintro.survey.summary import Summary
from kvintro.survey.tables import columns, names
from kvintro.survey.tasks import Task, perform, performed
from tests import kaslr_simulation as sim
from tests.hostile import HOSTILE, assert_inert

ROOT = Path(__file__).parent.parent.parent
LIMITS = Limits(timeout=60, memory=2048, jobs=2)


# Statistics


@pytest.mark.parametrize(
    ("n", "distance", "p"),
    [
        # Critical values for p = 0.05 and 0.01: Miller (1956), Table of Percentage Points of Kolmogorov
        # Statistics, table 1.
        (5, 0.56328, 0.05),
        (10, 0.40925, 0.05),
        (20, 0.29408, 0.05),
        (50, 0.18845, 0.05),
        (100, 0.13403, 0.05),
        (10, 0.48893, 0.01),
        (40, 0.25205, 0.01),
    ],
)
def test_known_values_of_the_distribution(n: int, distance: float, p: float) -> None:
    assert ks_p_value(n, distance) == pytest.approx(p, rel=2e-3)


@pytest.mark.parametrize("n", [1, 2, 7, 20, 99, 300, 500, 501, 5000])
def test_the_distribution_is_that_of_scipy(n: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is missing (pip install '.[test]')")
    for number in range(1, 60):
        distance = number / 60
        expected = float(stats.kstwo.sf(distance, n))
        found = ks_p_value(n, distance)
        # Below this they are zero for all purposes. Above 140 values scipy's are approximations, too.
        if expected > 1e-6:
            near = 1e-6 if n <= 140 else 1e-4 if n <= 500 else 0.05
            assert found == pytest.approx(expected, rel=near), (n, distance)
        else:
            assert found < 2e-6


def test_the_distance_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is missing (pip install '.[test]')")
    chosen = random.Random(5)
    for n in (1, 20, 77, 400):
        values = [chosen.random() for _ in range(n)]
        distance, p = evenness([(value, value) for value in values])
        expected = stats.kstest(values, "uniform")
        assert (distance, p) == pytest.approx((expected.statistic, expected.pvalue))


def test_scores_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is missing (pip install '.[test]')")
    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 500.0]
    unit = stats.median_abs_deviation(values, scale="normal")
    assert scores(values) == pytest.approx([(value - 3.0) / unit for value in values], rel=3e-3)


def test_scores_where_most_values_are_equal() -> None:
    assert scores([7, 7, 7, 7]) == [0, 0, 0, 0]
    found = scores([7] * 20 + [9])
    assert found[:20] == [0] * 20 and found[20] > 3.5


def _base(key: str, place: int, slots: int, bound: str = "", actual: int = 0) -> Randomised:
    return Randomised(
        key=key,
        what=key,
        state="on",
        default=Address(0),
        actual=Address(actual or place),
        displacement=Displacement(place),
        granularity=Size(1),
        slots=slots,
        bound=bound,
        bits=1.0,
        provenance="",
        computed="",
        note="",
        place=place,
    )


def _dump(**values: Any) -> DumpRow:
    return DumpRow(**{**failed("", "", lasting=True).dump.__dict__, "state": WHOLE, "error": None, **values})


def _answer(dump: DumpRow, **tables: List[Any]) -> Answer:
    return Answer(dump, {name: tables.get(name, []) for name in TABLES if name != "dumps"})


def _summary(answers: Sequence[Answer]) -> Dict[str, List[Any]]:
    summary = Summary()
    for number, answer in enumerate(answers):
        summary.add(f"/dumps/{number}", answer)
    report: Report = summary.report()
    return {table.key: list(table.rows) for table in report.tables if table.rows}


def _simulated(chosen: random.Random, levels: int) -> List[Randomised]:
    """The rows of one boot whose places the kernel's own steps chose."""
    memory = sim.Memory(levels, chosen.randrange(1 << 18, 1 << 24), 64)
    bases, places = sim.kernel_randomize_memory(memory, lambda: chosen.getrandbits(64))
    sizes = [size << 40 for size in memory.size_tb]
    draws = region_draws(ARCHITECTURE.form(levels, (1 << 52) - 1), sizes, bases)
    assert [draw.slots for draw in draws] == places
    keys = ("direct_map", "vmalloc", "vmemmap")
    found = [
        _base(key, (draw.base - draw.earliest) >> 30, draw.slots, actual=draw.base)
        for key, draw in zip(keys, draws)
    ]
    image = chosen.randrange(480)
    return [*found, _base("image_virtual", image, chosen.choice((475, 480)), "at least", 0x81000000 + image)]


@pytest.mark.parametrize("boots", [20, 200, 2000])
def test_what_the_kernel_chooses_is_even(boots: int) -> None:
    chosen = random.Random(boots)
    answers = [_answer(_dump(), bases=_simulated(chosen, chosen.choice((4, 5)))) for _ in range(boots)]
    for row in _summary(answers)["places"]:
        assert row.boots == boots and row.p > 0.01 and row.verdict == "nothing against an even choice", row
        assert sum(row.bins) == boots and len(row.spread) == 16


def _uneven(chosen: random.Random, way: str) -> List[Randomised]:
    if way == "few places":
        place = chosen.randrange(8) << 12
    elif way == "lower half":
        place = chosen.randrange(1 << 14)
    else:
        place = int(chosen.betavariate(4, 4) * (1 << 15))
    return [_base("direct_map", place, 1 << 15), _base("vmalloc", chosen.randrange(1 << 15), 1 << 15)]


@pytest.mark.parametrize("way", ["few places", "lower half", "middle"])
def test_a_choice_that_is_not_even(way: str) -> None:
    chosen = random.Random(1)
    rows = _summary([_answer(_dump(), bases=_uneven(chosen, way)) for _ in range(400)])["places"]
    assert [row.verdict for row in rows] == ["not even", "nothing against an even choice"]


def test_dumps_of_one_boot_count_once() -> None:
    """The dumps of a machine that crashed again and again after one boot say nothing about randomness."""
    chosen = random.Random(3)
    same = _simulated(chosen, 4)
    answers = [_answer(_dump(host="a", boot_time="t"), bases=same) for _ in range(100)]
    answers += [_answer(_dump(host="b", boot_time="u"), bases=_simulated(chosen, 4)) for _ in range(5)]
    tables = _summary(answers)
    assert {row.boots for row in tables["places"]} == {6}
    assert {row.verdict for row in tables["places"]} == {"too few boots: 6, and 20 are needed"}
    (row,) = tables["same"]
    assert (row.dumps, row.hosts, row.boot_times) == (100, 1, 1)
    assert tables["builds"][0].boots == 6


def test_what_no_dump_shows_is_not_counted_as_zero() -> None:
    same = _simulated(random.Random(3), 4)
    tables = _summary([_answer(_dump(host=None, boot_time=None), bases=same) for _ in range(2)])
    (row,) = tables["same"]
    assert (row.dumps, row.hosts, row.boot_times) == (2, None, None)
    assert _summary([_answer(_dump())])["builds"][0].boots is None


def test_places_that_are_only_bounds_are_not_tested() -> None:
    rows = _summary([_answer(_dump(), bases=[_base("image_virtual", 5, 9), _base("x", 5, 50, "at most")])])
    assert rows["places"][1].verdict.startswith("not tested") and rows["places"][1].p is None


def test_a_machine_that_stands_out() -> None:
    def pages(slab: int) -> List[TypeRow]:
        sizes = {"free": (1 << 30) - slab, "slab": slab}
        return [TypeRow(name, size >> 12, Size(size), 0.0, "") for name, size in sizes.items()]

    chosen = random.Random(2)
    answers = [_answer(_dump(), pages=pages(chosen.randrange(90 << 20, 110 << 20))) for _ in range(30)]
    assert "outliers" not in _summary(answers)
    answers[7] = _answer(_dump(), pages=pages(500 << 20))
    found = {(row.path, row.name) for row in _summary(answers)["outliers"]}
    assert found == {("/dumps/7", "slab"), ("/dumps/7", "free")}
    # What could not be counted completely is not compared.
    answers[7].tables["notes"].append(NoteRow("pages", "some", True))
    assert "outliers" not in _summary(answers)


# Answers


def _whole() -> Dict[str, Any]:
    note = NoteRow("pages", "x", True)
    answer = _answer(_dump(sha256="0" * 64, size=Size(5)), bases=[_base("a", 1, 2)], notes=[note])
    found: Dict[str, Any] = json.loads(json.dumps(plain_answer(answer)))
    return found


def test_an_answer_is_read_as_it_was_written() -> None:
    answer = checked(json.dumps(_whole()))
    assert plain_answer(answer) == _whole()
    (base,) = answer.tables["bases"]
    assert isinstance(base.actual, Address) and isinstance(base.granularity, Size)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("dump", "size"), "5"),
        (("dump", "size"), True),
        (("dump", "copies"), None),
        (("dump", "state"), 7),
        (("dump", "kaslr"), 1),
        (("dump", "release"), ["x"]),
        (("bases", 0, "actual"), 7),
        (("bases", 0, "actual"), "0x12"),
        (("bases", 0, "actual"), "0xzzzzzzzzzzzzzzzz"),
        (("bases", 0, "bits"), float("nan")),
        (("bases", 0, "more"), 1),
        (("bases", 0), None),
        (("bases",), 3),
        (("dump",), []),
        (("notes", 0, "missing"), "yes"),
    ],
)
def test_answers_of_another_form_are_refused(place: Sequence[Any], value: object) -> None:
    document = _whole()
    within: Any = document
    for key in place[:-1]:
        within = within[key]
    within[place[-1]] = value
    with pytest.raises(Malformed):
        checked(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100000, "1" * 10000, '{"dump": {}}'])
def test_texts_that_are_no_answers_are_refused(text: str) -> None:
    with pytest.raises(Malformed):
        checked(text)


def _task(path: str = "/x", **values: Any) -> Task:
    return dataclasses.replace(Task(path, "auto", 30, 2048, True), **values)


@pytest.mark.parametrize(
    ("code", "timeout", "problem"),
    [
        ("import time; time.sleep(60)", 1, "it took longer than 1 s"),
        ("import os; os.kill(os.getpid(), 11)", 30, "the process that read it was ended by SIGSEGV"),
        ("raise SystemExit(9)", 30, "it needs more than 2048 MB of memory"),
        (
            "import sys; sys.exit('kvintro: a file was truncated while it was read')",
            30,
            "a file was truncated",
        ),
        ("import os; os._exit(5)", 30, "the process that read it ended with status 5"),
        ("print('x' * 5000)", 30, "the answer is larger than 0 MB"),
    ],
)
def test_what_becomes_of_the_process(
    monkeypatch: pytest.MonkeyPatch, code: str, timeout: int, problem: str
) -> None:
    monkeypatch.setattr(tasks, "START", code)
    monkeypatch.setattr(tasks, "LARGEST", 1000)
    answer, found = perform(_task(timeout=timeout))
    assert answer == "" and found.startswith(problem)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_programs_that_a_process_started_end_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time; "
        f"p = subprocess.Popen(['sleep', '600']); open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); "
        "time.sleep(600)"
    )
    monkeypatch.setattr(tasks, "START", code)
    assert "longer" in perform(_task(timeout=5))[1]
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 60
    while _runs(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_process_is_left_when_a_survey_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tasks, "START", "import sys, json, time; t = json.load(sys.stdin); time.sleep(t['timeout'])"
    )
    results = performed([_task(timeout=1), *(_task(path=f"/{n}", timeout=600) for n in range(5))], 2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not tasks._running


# Whole surveys, with processes that do not read dumps


def _answering(monkeypatch: pytest.MonkeyPatch, log: Path, **values: Any) -> None:
    """Let each process answer at once, and log which file it was asked about."""
    document = {**_whole(), "dump": {**_whole()["dump"], **values}}
    code = (
        "import hashlib, json, sys\n"
        "path = json.load(sys.stdin)['path']\n"
        f"answer = json.loads({json.dumps(document)!r})\n"
        "data = open(path, 'rb').read()\n"
        "answer['dump'].update(sha256=hashlib.sha256(data).hexdigest(), size=len(data))\n"
        f"open({str(log)!r}, 'a', errors='replace').write(path + '\\n')\n"
        "print(json.dumps(answer))\n"
    )
    monkeypatch.setattr(tasks, "START", code)


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def did(self, count: int = 1) -> None:
        """Nothing."""


def _survey(dumps: Sequence[Path], directory: Path) -> Report:
    return survey([str(path) for path in dumps], str(directory), LIMITS, lambda total: _Silent())


def _lines(directory: Path, table: str) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (directory / f"{table}.ndjson").read_text().splitlines()]


def test_what_is_done_is_not_done_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    dumps = [tmp_path / name for name in "abc"]
    for number, path in enumerate(dumps):
        path.write_text(f"dump {number}")
    _answering(monkeypatch, log)

    def asked() -> List[str]:
        report = _survey(dumps, out)
        found = [Path(line).name for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        assert report.extra["asked"] == len(found)
        assert [Path(row["path"]).name for row in _lines(out, "dumps")] == [path.name for path in dumps]
        return sorted(found)

    assert asked() == ["a", "b", "c"] and asked() == []
    dumps[0].rename(tmp_path / "moved")  # another place, the same content
    dumps[0] = tmp_path / "moved"
    assert asked() == []
    dumps[1].write_text("dump 9")  # the same place and size, another content
    os.utime(dumps[1], ns=(1, 1))
    assert asked() == ["b"]
    (next((out / "answers").iterdir())).write_text("{")  # damaged
    assert len(asked()) == 1 and asked() == []


def test_a_dump_counts_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _answering(monkeypatch, tmp_path / "log")
    (tmp_path / "a").write_text("dump")
    (tmp_path / "b").write_text("dump")
    (tmp_path / "c").write_text("other")
    (tmp_path / "link").symlink_to("a")
    named = [tmp_path / name for name in ("a", "b", "link", "c")]
    for _ in range(2):
        report = _survey([*named, tmp_path / "a"], tmp_path / "out")
        assert (report.extra["dumps"], report.extra["copies"]) == (2, 2)
        rows = _lines(tmp_path / "out", "dumps")
        assert [(Path(row["path"]).name, row["copies"]) for row in rows] == [("a", 2), ("c", 0)]


def test_errors_that_need_not_occur_again_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("dump")
    monkeypatch.setattr(tasks, "START", "raise SystemExit(9)")
    report = _survey([tmp_path / "a", tmp_path / "none"], tmp_path / "out")
    assert report.partial and report.extra["states"] == {"whole": 0, "partly": 0, "failed": 2}
    assert "2048 MB of memory" in _lines(tmp_path / "out", "dumps")[0]["error"]
    _answering(monkeypatch, tmp_path / "log")
    (tmp_path / "none").write_text("here it is")
    assert not _survey([tmp_path / "a", tmp_path / "none"], tmp_path / "out").partial


def test_strings_of_dumps_are_inert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _answering(monkeypatch, tmp_path / "log", release=HOSTILE, build_id=HOSTILE, host=HOSTILE)
    name = "a\x1b[31m<img src=x>\udcff"
    (tmp_path / name).write_text("dump")
    report = _survey([tmp_path / name], tmp_path / "out")
    page = (tmp_path / "out" / "summary.html").read_text()
    for text in (page, render(report, "text"), render(report, "html")):
        assert_inert(text)
    assert "<script>document" not in page and "<img" not in page
    lines = (tmp_path / "out" / "dumps.ndjson").read_text()
    assert lines.isascii() and lines.count("\n") == 1
    # Programs that read the tables print them.
    assert_inert(json.loads(lines)["release"] + json.loads(lines)["path"])


def test_both_forms_of_the_tables_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing (pip install '.[test]')")
    _answering(monkeypatch, tmp_path / "log", release="6.1", memory=(1 << 64) - 1)
    (tmp_path / "a").write_text("dump")
    _survey([tmp_path / "a"], tmp_path / "out")
    for table in TABLES:
        rows = parquet.read_table(tmp_path / "out" / f"{table}.parquet").to_pylist()
        lines = _lines(tmp_path / "out", table)
        assert rows == [
            {key: int(v, 16) if str(v).startswith("0x") else v for key, v in line.items()} for line in lines
        ]
    assert _lines(tmp_path / "out", "dumps")[0]["memory"] == (1 << 64) - 1


def test_a_value_that_does_not_fit_is_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is missing (pip install '.[test]')")
    _answering(monkeypatch, tmp_path / "log", uptime=1 << 70)
    (tmp_path / "a").write_text("dump")
    report = _survey([tmp_path / "a"], tmp_path / "out")
    assert parquet.read_table(tmp_path / "out" / "dumps.parquet").to_pylist()[0]["uptime"] is None
    assert "1 values are too large for Parquet, and are null there" in report.notes


def test_without_pyarrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("kvintro.survey.tables._arrow", lambda: None)
    _answering(monkeypatch, tmp_path / "log")
    (tmp_path / "a").write_text("dump")
    report = _survey([tmp_path / "a"], tmp_path / "out")
    assert any("kvintro[survey]" in note for note in report.notes)
    assert len(_lines(tmp_path / "out", "dumps")) == 1 and not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize("name", ["dumps.ndjson", "pages.parquet", "summary.html"])
def test_no_dump_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a dump")
    with pytest.raises(UsageError, match="would be overwritten"):
        _survey([tmp_path / name], tmp_path)
    assert (tmp_path / name).read_text() == "a dump"


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("dump")
    with pytest.raises(KvintroError, match=r"exists|not a directory"):
        _survey([tmp_path / "a"], tmp_path / "a" / "out")


def test_answers_of_other_types_are_not_used(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("dump")
    store, path = Store(str(tmp_path / "out"), "auto"), str(tmp_path / "a")
    stamp = stamp_of(path)
    assert stamp is not None
    store.keep(path, stamp, "0" * 64, json.dumps(_whole()))
    assert Store(str(tmp_path / "out"), "auto").find(path) == "0" * 64
    assert Store(str(tmp_path / "out"), "none").find(path) is None


# The command line


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (["-c", "x", "survey", "y"], "survey opens the dumps that it is given"),
        (["survey", "y", "-s", "vmlinux"], "survey opens the dumps that it is given"),
        (["survey", "y", "--scheduler", "z", "--jobs", "2"], "the workers decide"),
    ],
)
def test_command_lines_that_are_refused(line: List[str], what: str) -> None:
    from kvintro.commands.survey import run

    with pytest.raises(UsageError, match=what):
        run(None, parse(line))


@pytest.mark.parametrize("line", [["--jobs", "0"], ["--timeout", "-1"], ["--memory", "5"], ["--memory", "x"]])
def test_numbers_that_are_refused(line: List[str]) -> None:
    with pytest.raises(UsageError):
        parse(["survey", "x", *line])


@pytest.mark.parametrize(("data", "found"), [(b"a\nb c\n\n", ["a", "b c"]), (b"a\nb\0c\0", ["a\nb", "c"])])
def test_a_list_on_standard_input(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes, found: List[str]
) -> None:
    from kvintro.commands import survey as command

    (tmp_path / "list").write_bytes(data)
    with open(tmp_path / "list", "rb") as file:
        monkeypatch.setattr(command, "standard_input", file.fileno)
        assert command._dumps(["x", "-"]) == ["x", *found]


@pytest.mark.parametrize("address", ["nonsense://x", "tcp://127.0.0.1:1"])
def test_no_scheduler(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    pytest.importorskip("distributed", reason="Dask is missing (pip install '.[test]')")
    monkeypatch.setattr(tasks, "_PATIENCE", 1)
    with pytest.raises(SourceError, match=f"no scheduler at {address}"):
        list(tasks.performed_by_dask([_task()], address))


def test_a_worker_with_another_version() -> None:
    with pytest.raises(SourceError, match="a worker has kvintro"):
        tasks._perform_there(_task(), "0.0")


# Documentation


def _documented() -> Dict[str, List[Tuple[str, str]]]:
    text = (ROOT / "docs" / "survey.md").read_text()
    found = {}
    for table, part in re.findall(r"^### `(\w+)`$(.*?)(?=^##|\Z)", text, re.M | re.S):
        found[table] = re.findall(r"^\| `(\w+)` \| (\w+) \|", part, re.M)
    return found


def test_every_column_is_documented() -> None:
    assert _documented() == {table: list(columns(table).items()) for table in TABLES}


def test_the_page_is_not_a_table() -> None:
    assert fleet.PAGE not in names()
