# SPDX-License-Identifier: LGPL-2.1-or-later
"""A whole survey: which dumps to read, their answers, the tables and the summary."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, replace
from typing import (
    Callable,
    ContextManager,
    Dict,
    Iterator,
    List,
    Mapping,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

from kvintro.errors import UsageError
from kvintro.model import Report
from kvintro.render import render
from kvintro.survey.files import write_text
from kvintro.survey.rows import Answer, Malformed, checked, failed
from kvintro.survey.store import Stamp, Store, stamp_of
from kvintro.survey.summary import Summary
from kvintro.survey.tables import Writer, names
from kvintro.survey.tasks import Task, performed, performed_by_dask

#: The page of a survey.
PAGE = "summary.html"
_AGAIN = "run the survey again, with a larger --timeout or --memory if that is what it lacked"


@dataclass(frozen=True)
class Limits:
    """How dumps are read.

    :ivar timeout: seconds for each dump.
    :ivar memory: megabytes for each dump.
    :ivar jobs: number of dumps at a time on this machine.
    :ivar scheduler: address of a Dask scheduler whose workers read the dumps; None for this machine.
    """

    timeout: int
    memory: int
    jobs: int
    types: str = "auto"
    sandbox: bool = True
    scheduler: Optional[str] = None


class Progress(Protocol):
    """Shows how many dumps were read."""

    def did(self, count: int = 1) -> None:
        """Add to the number of dumps that are done."""


class _Run:
    """The answers to the dumps of one survey.

    :ivar paths: the dumps as they were named, each once.
    """

    def __init__(self, dumps: Sequence[str], directory: str, limits: Limits) -> None:
        named: Dict[str, str] = {}
        for path in dumps:
            named.setdefault(os.path.abspath(path), path)
        self.paths = list(named.values())
        self._limits = limits
        self._store = Store(os.path.join(directory, "answers"), limits.types)
        self._sha256: Dict[str, str] = {}
        self._others: Dict[str, Answer] = {}
        self._stamps: Dict[str, Optional[Stamp]] = {}

    def find(self) -> List[Task]:
        """Look up the answers that are there, and return tasks for the others."""
        tasks = []
        for path in self.paths:
            there = os.path.abspath(path)
            sha256 = self._store.find(there)
            if sha256 is not None:
                self._sha256[path] = sha256
                continue
            self._stamps[there] = stamp_of(there)
            limits = self._limits
            tasks.append(Task(there, limits.types, limits.timeout, limits.memory, limits.sandbox))
        return tasks

    def perform(self, tasks: Sequence[Task], progress: Progress) -> None:
        """Read dumps and keep the answers, each as soon as it is there."""
        named = {os.path.abspath(path): path for path in self.paths}
        limits = self._limits
        results = (
            performed(tasks, limits.jobs)
            if limits.scheduler is None
            else performed_by_dask(tasks, limits.scheduler)
        )
        for task, text, problem in results:
            path, stamp = named[task.path], self._stamps[task.path]
            try:
                answer = checked(text) if not problem else failed(problem, _AGAIN, lasting=False)
            except Malformed as error:
                answer = failed(f"the answer is malformed: {error}", _AGAIN, lasting=False)
            sha256 = answer.dump.sha256
            if answer.lasting and sha256 is not None and stamp is not None:
                self._store.keep(task.path, stamp, sha256, text)
                self._sha256[path] = sha256
            else:
                self._others[path] = answer
            progress.did()

    def answers(self) -> Iterator[Tuple[str, Answer]]:
        """All answers in the order of the command line. Files with the same content are one dump."""
        first: Dict[str, str] = {}
        copies: Dict[str, int] = {}
        for path in self.paths:
            sha256 = self._sha256.get(path)
            if sha256 is not None and first.setdefault(sha256, path) != path:
                copies[sha256] = copies.get(sha256, 0) + 1
        for path in self.paths:
            sha256 = self._sha256.get(path)
            if sha256 is None:
                yield path, self._others[path]
            elif first[sha256] == path:
                answer = self._store.answer(sha256)
                yield path, replace(answer, dump=replace(answer.dump, copies=copies.get(sha256, 0)))


def survey(
    dumps: Sequence[str],
    directory: str,
    limits: Limits,
    watch: Callable[[int], ContextManager[Progress]],
) -> Report:
    """Ask all dumps, write the tables and the page to a directory, and return the summary.

    :param watch: gets the number of dumps that have to be read.
    :raises KvintroError: the files cannot be written, or the scheduler does not work. What is wrong with a
        dump is a row.
    """
    _refuse(dumps, directory)
    run = _Run(dumps, directory, limits)
    tasks = run.find()
    with watch(len(tasks)) as progress:
        run.perform(tasks, progress)
    summary = Summary()
    with Writer(directory) as writer:
        for path, answer in run.answers():
            writer.add(path, answer)
            summary.add(path, answer)
        writer.commit()
    report = summary.report()
    notes = [*report.notes, *_about_tables(writer, directory)]
    report = replace(report, notes=notes)
    write_text(os.path.join(directory, PAGE), render(report, "html"))
    extra: Mapping[str, object] = {**report.extra, "asked": len(tasks)}
    before = len(run.paths) - len(tasks)
    earlier = [f"answered in an earlier run: {before} files"] if before else []
    return replace(report, extra=extra, head=[*report.head, *earlier])


def _about_tables(writer: Writer, directory: str) -> Iterator[str]:
    if writer.clipped:
        yield f"{writer.clipped} values are too large for Parquet, and are null there"
    if not writer.parquet:
        yield "no Parquet was written: pip install 'kvintro[survey]'"
        if glob.glob(os.path.join(glob.escape(directory), "*.parquet")):
            yield "the Parquet files in the directory are of an earlier run"


def _refuse(dumps: Sequence[str], directory: str) -> None:
    """:raises UsageError: a file that the survey would write is one of the dumps."""
    there = {}
    for name in (*names(), PAGE):
        try:
            found = os.stat(os.path.join(directory, name))
        except (OSError, ValueError):
            continue
        there[found.st_dev, found.st_ino] = name
    for path in dumps if there else ():
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            continue
        name = there.get((found.st_dev, found.st_ino), "")
        if name:
            raise UsageError(
                f"{path} would be overwritten by {os.path.join(directory, name)}",
                "choose another directory; nothing was written",
            )
