# SPDX-License-Identifier: LGPL-2.1-or-later
"""Standard input, output and error: closed ones, and ones that take no Unicode."""

from __future__ import annotations

import codecs
import contextlib
import io
import locale
import logging
import os
import sys
from typing import Any, List, TextIO, Tuple, Union

from kvintro.errors import NotWritten
from kvintro.text import printable

_FALLBACK = "kvintro"
# What is drawn with, in ASCII: a character for a character, so that columns stay where they are.
_ASCII = {
    "─": "-",
    "│": "|",
    "╎": ":",
    "░": ":",
    "▒": "+",
    "▓": "*",
    "█": "#",
    "·": ".",
    "…": "~",
    "–": "-",
    "×": "x",
    "≥": ">",
    "≤": "<",
    **dict.fromkeys("┌┐└┘├┤", "+"),
}


class _Closed(io.TextIOBase):
    """Standard output that was closed before the process started."""

    encoding = "utf-8"
    errors = "strict"

    def write(self, _: str) -> int:
        raise NotWritten("standard output is closed", "open it, or name a file with -o FILE")


def prepare() -> None:
    """Make the streams of this process safe to use, whatever it was started with. Call it first."""
    # The next file opened would otherwise be number 0, 1 or 2, and get what libraries write there.
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)
        if descriptor > 2:
            os.close(descriptor)
            break
    if sys.stdout is None:
        sys.stdout = _Closed()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_Inert())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="ascii" if _wants_ascii() else None, errors=_FALLBACK)


class _Inert(logging.Formatter):
    """Libraries' messages may have strings of a kernel in them."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def let_go() -> None:
    """Forget what cannot be written: Python would complain again when it flushes the streams at the end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_closed(stream: TextIO) -> bool:
    """Whether this is a standard output that was closed before the process started."""
    return isinstance(stream, _Closed)


def _wants_ascii() -> bool:
    """Whether the locale is C by its user's choice, where Python writes UTF-8 all the same (PEP 540)."""
    chosen = os.environ.get("PYTHONIOENCODING", "").split(":")[0] or os.environ.get("PYTHONUTF8")
    if chosen or "utf8" in sys._xoptions:
        return False
    return locale.setlocale(locale.LC_CTYPE) in ("C", "POSIX")


def _is_unicode(stream: Any) -> bool:
    with contextlib.suppress(LookupError, TypeError):
        return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name.startswith("utf")
    return True


def fitting(text: str, stream: TextIO, form: str) -> str:
    """The text in characters that the stream can write.

    :param form: one of :data:`kvintro.render.FORMATS`. In markup what does not fit becomes a reference, so
        that a page is the same in any encoding.
    """
    if text.isascii() or _is_unicode(stream):
        return text
    if form in ("html", "svg"):
        return text.encode("ascii", "xmlcharrefreplace").decode()
    return text.encode(stream.encoding, _FALLBACK).decode(stream.encoding)


def encoded(text: str, stream: TextIO) -> bytes:
    """The text as bytes for what shows it in the stream's place, such as a pager."""
    return text.encode(getattr(stream, "encoding", None) or "utf-8", _FALLBACK)


def _to_ascii(error: UnicodeError) -> Tuple[Union[str, bytes], int]:
    """The error handler for encoding: drawing characters become ASCII, others are escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    out: List[str] = []
    end = error.end
    for at in range(error.start, end):
        char = error.object[at]
        out.append(_ASCII.get(char) or char.encode("ascii", "backslashreplace").decode())
        if char in "≥≤" and error.object[at + 1 : at + 2] == " ":
            out[-1] += "="  # in the place of the space
            end = at + 2
            break
    return "".join(out), end


codecs.register_error(_FALLBACK, _to_ascii)
