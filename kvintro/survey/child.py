# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that reads one dump: limited, sandboxed, and with nothing to say but its answer.

It runs :data:`kvintro.survey.START`. Its standard input is the task as JSON; its standard output is the
answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import tempfile
from dataclasses import replace
from typing import Any, List, Mapping, Sequence, cast

from kvintro import isolation
from kvintro.bus_error import end_on_bus_error
from kvintro.entry_points import unforeseen
from kvintro.errors import KvintroError
from kvintro.model import Row
from kvintro.opening import open_kernel
from kvintro.render.json import ascii_json, plain
from kvintro.source import Request, sandbox, spool
from kvintro.survey import NO_MEMORY
from kvintro.survey.files import digest
from kvintro.survey.questions import ask
from kvintro.survey.rows import WHOLE, Answer, DumpRow, NoteRow, failed

_THE_FILE = "the file"
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


def main(task: Mapping[str, Any]) -> None:
    """Read the dump of a task and write the answer."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != task["parent"]:
        os._exit(1)  # it ended before
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Counts memory that the process can write, and not the mapped dump.
    resource.setrlimit(resource.RLIMIT_DATA, (task["memory"] << 20,) * 2)
    isolation.disable_drgn_plugins()
    end_on_bus_error()
    try:
        answer = _without_path(_answer(task), task["path"])
        text = ascii_json(plain_answer(answer))
    except MemoryError:
        os._exit(NO_MEMORY)
    sys.stdout.write(text)
    sys.stdout.flush()
    os._exit(0)  # nothing is left to tidy up


def plain_answer(answer: Answer) -> Mapping[str, Any]:
    """The answer as values for JSON; :func:`kvintro.survey.rows.checked` reads them."""
    tables = {name: plain(rows) for name, rows in answer.tables.items()}
    return {"dump": plain(answer.dump), "lasting": answer.lasting, **tables}


def _without_path(answer: Answer, path: str) -> Answer:
    """The answer without the name of the file, which may have other names, too."""
    notes: List[Row] = [
        replace(row, note=row.note.replace(path, _THE_FILE))
        for row in cast("Sequence[NoteRow]", answer.tables["notes"])
    ]
    dump = replace(answer.dump, error=answer.dump.error and answer.dump.error.replace(path, _THE_FILE))
    return replace(answer, dump=dump, tables={**answer.tables, "notes": notes})


def _answer(task: Mapping[str, Any]) -> Answer:
    known: Mapping[str, Any] = {}
    try:
        sha256, size = digest(task["path"])
        known = {"sha256": sha256, "size": size}
        dump = DumpRow(state=WHOLE, error=None, remedy=None, copies=0, **known)
        request = Request(
            core=task["path"], types=task["types"], cache=False, opened=_enter if task["sandbox"] else _stay
        )
        return ask(open_kernel(request), dump)
    except KvintroError as error:
        return failed(error.what, error.remedy, lasting=bool(known), known=known)
    except MemoryError:
        raise
    except Exception as error:
        return failed(
            unforeseen(error), "kvintro -c DUMP --debug info shows more", lasting=bool(known), known=known
        )


def _stay() -> None:
    return None


def _enter() -> None:
    directories = []
    with contextlib.suppress(OSError):  # there is no directory for temporary files
        directories = [tempfile.gettempdir(), spool.spool_directory()]
    sandbox.enter(directories)
