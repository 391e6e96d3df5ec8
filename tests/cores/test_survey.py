# SPDX-License-Identifier: LGPL-2.1-or-later
"""``kvintro survey`` of a sample core and damaged copies of it: here, interrupted, and on Dask."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from kvintro.survey.rows import TABLES
from tests.conftest import ROOT
from tests.cores.test_schema import check

CORE = ROOT / "vmcores" / "oracle-6.12" / "core.kdump"
PATIENCE = 300

pytestmark = [
    pytest.mark.skipif(not CORE.exists(), reason="the sample dump is not there"),
    pytest.mark.xdist_group("survey"),
]


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> List[str]:
    """The core, a copy, two that differ in one bit, parts of it, and files that are no dumps."""
    directory, data, chosen = tmp_path_factory.mktemp("dumps"), CORE.read_bytes(), random.Random(7)
    files: Dict[str, bytes] = {"whole": data, "copy": data}
    for name in ("bit1", "bit2"):
        at = chosen.randrange(len(data) // 2, len(data))
        files[name] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    files.update({f"cut{n}": data[: chosen.randrange(5000, len(data) // 3)] for n in range(3)})
    files.update({f"rubbish{n}": chosen.randbytes(5000) for n in range(3)}, text=b"no dump\n", empty=b"")
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return [str(directory / name) for name in (*files, "missing")]


def _command(*words: str) -> List[str]:
    return [sys.executable, "-m", "kvintro", "--json", "survey", *words]


def _survey(dumps: List[str], out: Path, *more: str) -> Any:
    done = subprocess.run(
        _command(*dumps, "-o", str(out), *more), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 4 and not done.stderr, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here(dumps: List[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a survey on this machine."""
    out = tmp_path_factory.mktemp("here")
    report = _survey(dumps, out)
    check(report)
    assert report["asked"] == len(dumps) and report["copies"] == 1
    return out


def _rows(out: Path, table: str) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (out / f"{table}.ndjson").read_text().splitlines()]


def _tables(out: Path) -> Dict[str, str]:
    return {table: (out / f"{table}.ndjson").read_text() for table in TABLES}


def test_each_dump_is_a_row(dumps: List[str], here: Path) -> None:
    rows = {Path(row["path"]).name: row for row in _rows(here, "dumps")}
    assert list(rows) == [Path(path).name for path in dumps if not path.endswith("copy")]
    assert rows["whole"]["state"] == "whole" and rows["whole"]["copies"] == 1
    truth = json.loads((CORE.parent / "meta.json").read_text())
    assert rows["whole"]["release"] == truth["release"]
    for name, row in rows.items():
        path = next(path for path in dumps if Path(path).name == name)
        read = os.path.exists(path) and os.path.getsize(path) > 0
        assert row["sha256"] == (hashlib.sha256(Path(path).read_bytes()).hexdigest() if read else None)
        assert (row["error"] is None) == (row["state"] != "failed")
    assert all(
        rows[name]["state"] == "failed" for name in rows if name[:4] in ("rubb", "text", "empt", "miss")
    )
    assert "no such file" in rows["missing"]["error"] and "empty" in rows["empty"]["error"]


@pytest.mark.parametrize(
    ("words", "key", "table"),
    [
        (["layout", "--no-holes"], "regions", "regions"),
        (["kaslr"], "bases", "bases"),
        (["show", "vmalloc"], "by_caller", "callers"),
    ],
)
def test_rows_are_those_of_the_commands(here: Path, words: List[str], key: str, table: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvintro", "-c", str(CORE), "--json", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    rows = [row for row in _rows(here, table) if row.pop("path").endswith("/whole")]
    assert rows == json.loads(done.stdout)[key]


def test_queries_of_the_documentation(here: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB is missing (pip install duckdb)")
    text = (ROOT / "docs" / "survey.md").read_text()
    queries = text.partition("```sql\n")[2].partition("```")[0].split(";")
    with duckdb.connect() as connection:
        connection.execute(f"SET file_search_path = '{here}'")
        for query in filter(str.strip, queries):
            connection.sql(query).fetchall()
        rows = connection.sql("SELECT count(*), count(DISTINCT path) FROM 'dumps.parquet'").fetchall()
    assert rows == [(len(_rows(here, "dumps")),) * 2]


def _kept(out: Path) -> List[str]:
    answers = out / "answers"
    return sorted(path.name for path in answers.iterdir()) if answers.exists() else []


def _wait(out: Path, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the first answers are there."""
    end = time.monotonic() + PATIENCE
    while len(_kept(out)) < 2 and process.poll() is None:
        assert time.monotonic() < end, "no answer yet"
        time.sleep(0.01)


def test_a_killed_survey_goes_on(dumps: List[str], here: Path, tmp_path: Path) -> None:
    command = _command(*reversed(dumps), "-o", str(tmp_path), "--jobs", "1")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _wait(tmp_path, process)
        process.kill()
    before = _kept(tmp_path)
    assert all(json.loads((tmp_path / "answers" / name).read_text()) for name in before)
    # Nothing else has a name yet, not even a temporary one.
    assert [path.name for path in tmp_path.iterdir()] == ["answers"]
    report = _survey(dumps, tmp_path, "--jobs", "1")
    assert before and report["asked"] == len(dumps) - len(before)
    assert _tables(tmp_path) == _tables(here)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    """A Dask scheduler and two workers on loopback: (address, workers)."""
    pytest.importorskip("distributed", reason="Dask is missing (pip install '.[test]')")
    started: List["subprocess.Popen[bytes]"] = []

    def start(*words: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *words, "--scheduler-file", str(tmp_path / "scheduler.json")],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        worker = ("worker", "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard")
        workers = [start(*worker, "--local-directory", str(tmp_path / name)) for name in "ab"]
        end = time.monotonic() + PATIENCE
        while not (tmp_path / "scheduler.json").exists():
            assert time.monotonic() < end and started[0].poll() is None, "the scheduler does not start"
            time.sleep(0.05)
        yield json.loads((tmp_path / "scheduler.json").read_text())["address"], workers
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGKILL)
            process.wait()


def test_a_lost_worker_on_dask(dumps: List[str], here: Path, tmp_path: Path, cluster: Any) -> None:
    """No dump is lost or counted twice, and the tables are those of one machine."""
    address, workers = cluster
    out = tmp_path / "out"
    command = _command(*dumps, "-o", str(out), "--scheduler", address)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        _wait(out, process)
        workers[0].kill()
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
    assert process.returncode == 4 and report["asked"] == len(dumps)
    assert _tables(out) == _tables(here)
    assert _kept(out) == _kept(here)
