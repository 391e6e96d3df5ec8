# SPDX-License-Identifier: LGPL-2.1-or-later
"""One dump as a task: a child process with limits. The tasks run here or on Dask's workers.

This module is imported on workers, so it imports no parser of dumps: only child processes parse.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import IO, Any, Iterator, Optional, Sequence, Set, Tuple

from kvintro.errors import KvintroError, SourceError, UsageError
from kvintro.survey import NO_MEMORY, START
from kvintro.version import __version__

#: Largest answer in bytes. Real ones have less than one megabyte.
LARGEST = 64 << 20
#: Seconds to wait for a worker.
_PATIENCE = 30
_LAST_WORDS = 2000
_running: Set["subprocess.Popen[bytes]"] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Task:
    """A dump to read.

    :ivar timeout: seconds.
    :ivar memory: megabytes.
    """

    path: str
    types: str
    timeout: int
    memory: int
    sandbox: bool


def perform(task: Task, stopped: Optional[threading.Event] = None) -> Tuple[str, str]:
    """Read a dump in a child process.

    :param stopped: whether the survey was given up.
    :returns: the answer as JSON and "", or "" and why there is none: such an error need not occur again.
    """
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as words:
        with _lock:
            if stopped is not None and stopped.is_set():
                return "", "the survey was given up"
            child = _started(answer, words)
            _running.add(child)
        try:
            problem = _waited(child, task)
        finally:
            _end(child)
        if problem:
            return "", problem
        if child.returncode:
            return "", _why(child.returncode, words, task)
        if os.fstat(answer.fileno()).st_size > LARGEST:
            return "", f"the answer is larger than {LARGEST >> 20} MB"
        answer.seek(0)
        return answer.read().decode("ascii", "replace"), ""


def _started(answer: IO[bytes], words: IO[bytes]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-I", "-c", START],
        stdin=subprocess.PIPE,
        stdout=answer,
        stderr=words,
        # Threads of numpy's libraries would take memory, and keep the sandbox off.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def _waited(child: "subprocess.Popen[bytes]", task: Task) -> str:
    request = json.dumps({"search": sys.path, "parent": os.getpid(), **asdict(task)}).encode()
    try:
        child.communicate(request, timeout=task.timeout)
    except subprocess.TimeoutExpired:
        return f"it took longer than {task.timeout} s"
    return ""


def _end(child: "subprocess.Popen[bytes]") -> None:
    """End a child and the programs that it started."""
    with _lock:
        _running.discard(child)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _why(code: int, words: IO[bytes], task: Task) -> str:
    if code == NO_MEMORY:
        return f"it needs more than {task.memory} MB of memory"
    if code < 0:
        return f"the process that read it was ended by {signal.Signals(-code).name}"
    words.seek(max(0, os.fstat(words.fileno()).st_size - _LAST_WORDS))
    lines = words.read().decode("utf-8", "replace").splitlines()
    said = next((line for line in lines if line.startswith("kvintro: ")), lines[-1] if lines else "")
    return said.partition("kvintro: ")[2] or said or f"the process that read it ended with status {code}"


def performed(tasks: Sequence[Task], jobs: int) -> Iterator[Tuple[Task, str, str]]:
    """Perform tasks on this machine and yield each with its result, in the order in which they end."""
    pool, stopped = ThreadPoolExecutor(jobs), threading.Event()
    try:
        futures = {pool.submit(perform, task, stopped): task for task in tasks}
        for future in as_completed(futures):
            yield (futures.pop(future), *future.result())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        with _lock:
            stopped.set()
            left = list(_running)
        for child in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        pool.shutdown()


def performed_by_dask(tasks: Sequence[Task], address: str) -> Iterator[Tuple[Task, str, str]]:
    """As :func:`performed`, on the workers of a Dask scheduler, which gives the tasks of a lost worker to
    others.

    :raises KvintroError: there is no such scheduler, or its workers cannot do this.
    """
    dask = _dask()
    try:
        client = dask.Client(address, timeout=_PATIENCE)
    except (OSError, ValueError, dask.TimeoutError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise SourceError(
            f"no scheduler at {address}: {what}", f"start one: dask scheduler; {_HOW}"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except dask.TimeoutError:
            raise SourceError(f"the scheduler at {address} has no workers", _HOW) from None
        # Not pure: results of an earlier survey are not used again.
        submitted = client.map(_perform_there, tasks, [__version__] * len(tasks), pure=False)
        futures = dict(zip(submitted, tasks))
        del submitted
        for future in dask.as_completed(list(futures), raise_errors=False):
            yield (futures.pop(future), *_result(future, dask, address))


def _dask() -> Any:
    """The package, without its messages about workers that come and go.

    :raises UsageError: it is not installed.
    """
    try:
        import distributed
    except ImportError:
        raise UsageError("--scheduler needs Dask", "pip install 'kvintro[survey]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    return distributed


def _result(future: Any, dask: Any, address: str) -> Tuple[str, str]:
    """The result of :func:`perform` on a worker.

    :raises KvintroError: the worker cannot do this.
    """
    if future.status == "finished":
        answer, problem = future.result()
        return str(answer), str(problem)
    failure = future.exception() if future.status == "error" else None
    if isinstance(failure, dask.scheduler.KilledWorker):
        return "", "each worker that read it was lost"
    if isinstance(failure, KvintroError):
        raise failure
    what = " ".join(str(failure or future.status).split())[:300]
    raise SourceError(f"a worker of {address} failed: {what}", f"every worker needs kvintro {__version__}")


_HOW = "start workers on machines that have kvintro and the dumps: dask worker ADDRESS"


def _perform_there(task: Task, version: str) -> Tuple[str, str]:
    """:func:`perform` on a worker.

    :raises SourceError: it has another version of kvintro.
    """
    if version != __version__:
        raise SourceError(
            f"a worker has kvintro {__version__}, and this is {version}", "install the same there"
        )
    return perform(task)
