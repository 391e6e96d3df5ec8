# SPDX-License-Identifier: LGPL-2.1-or-later
"""The answers that a survey already has: a file for each dump, under the SHA-256 of the dump.

A dump that was moved or copied is not read again; one that was replaced is read again. A file appears only
once it is complete.
"""

from __future__ import annotations

import json
import os
from typing import Dict, Optional, Set, Tuple

from kvintro.errors import KvintroError, NotWritten
from kvintro.render.json import ascii_json
from kvintro.survey.files import digest, write_text
from kvintro.survey.rows import VERSION, Answer, Malformed, checked
from kvintro.survey.tasks import LARGEST
from kvintro.version import __version__

#: Size and time of change of a file, by which it is known to be unchanged.
Stamp = Tuple[int, int]


class Store:
    """The answers in a directory.

    :param types: the ``--types`` of this survey; answers to others are not used.
    :raises NotWritten: the directory cannot be made.
    """

    def __init__(self, directory: str, types: str) -> None:
        self._directory = directory
        self._made_by = {"survey": VERSION, "kvintro": __version__, "types": types}
        try:
            os.makedirs(directory, exist_ok=True)
            names = sorted(os.listdir(directory))
        except OSError as error:
            what = (error.strerror or str(error)).lower()
            raise NotWritten(
                f"{directory}: {what}", "name a directory that can be written: -o DIR"
            ) from error
        #: The files of each dump that were seen, by its SHA-256, and the other way round.
        self._files: Dict[str, Dict[str, Stamp]] = {}
        self._seen: Dict[Tuple[str, Stamp], str] = {}
        self._sizes: Set[int] = set()
        for name in names:
            self._load(name)

    def _place(self, sha256: str) -> str:
        return os.path.join(self._directory, f"{sha256}.json")

    def _load(self, name: str) -> None:
        sha256, _, extension = name.partition(".")
        if extension != "json":
            return
        try:
            with open(self._place(sha256), encoding="ascii") as file:
                document = json.loads(file.read(2 * LARGEST))
            files = {str(path): (int(size), int(time)) for path, (size, time) in document["files"].items()}
            same = document["made_by"] == self._made_by
            if same and checked(document["answer"]).dump.sha256 == sha256:
                for path, stamp in files.items():
                    self._note(path, stamp, sha256)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return  # it is asked again and replaced

    def find(self, path: str) -> Optional[str]:
        """The SHA-256 of a dump that was answered; None if it was not.

        A file that was not seen before is read if it is as large as one that was.
        """
        stamp = stamp_of(path)
        if stamp is None:
            return None
        if (path, stamp) in self._seen:
            return self._seen[path, stamp]
        if stamp[0] not in self._sizes:
            return None
        try:
            sha256, _ = digest(path)
        except KvintroError:
            return None
        if sha256 not in self._files:
            return None
        self.keep(path, stamp, sha256, self._text(sha256))
        return sha256

    def keep(self, path: str, stamp: Stamp, sha256: str, text: str) -> None:
        """Keep an answer.

        :param stamp: of the file, from before it was read.
        :raises NotWritten: there is no room.
        """
        self._note(path, stamp, sha256)
        document = {"made_by": self._made_by, "files": self._files[sha256], "answer": text}
        write_text(self._place(sha256), ascii_json(document))

    def _note(self, path: str, stamp: Stamp, sha256: str) -> None:
        self._files.setdefault(sha256, {})[path] = stamp
        self._seen[path, stamp] = sha256
        self._sizes.add(stamp[0])

    def _text(self, sha256: str) -> str:
        with open(self._place(sha256), encoding="ascii") as file:
            return str(json.loads(file.read())["answer"])

    def answer(self, sha256: str) -> Answer:
        """An answer that was found or kept.

        :raises NotWritten: something else removed or changed it.
        """
        try:
            return checked(self._text(sha256))
        except (OSError, ValueError, KeyError, TypeError, Malformed) as error:
            what = f"{self._place(sha256)} was changed by something else ({type(error).__name__})"
            raise NotWritten(what, "run the survey again") from error


def stamp_of(path: str) -> Optional[Stamp]:
    """Size and time of change of a file; None if there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns
