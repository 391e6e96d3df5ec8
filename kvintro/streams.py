# SPDX-License-Identifier: LGPL-2.1-or-later
"""Standard input, output and error, including closed ones and ones that cannot encode Unicode."""

from __future__ import annotations

import codecs
import colorsys
import contextlib
import io
import locale
import logging
import os
import re
import shutil
import sys
from functools import lru_cache
from typing import Any, List, TextIO, Tuple, Union

from kvintro.errors import NotWritten
from kvintro.text import printable

_FALLBACK = "kvintro"
# ASCII for each drawing character, one for one, so that columns stay aligned.
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
    "›": ">",
    "‹": "<",
    "←": "<",
    "→": ">",
    **dict.fromkeys("▌▎▏▍▐▕", "|"),
    **dict.fromkeys("▁▂▃▄▅▆▇▀▔", "#"),
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
    """Make the standard streams safe to use, however the process was started. Call this first."""
    # Otherwise the next opened file would become number 0, 1 or 2, and libraries would write into it.
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
    """Formats messages of libraries, which may contain strings of a kernel."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def let_go() -> None:
    """Discard output that cannot be written. Otherwise Python complains again when it flushes at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_closed(stream: TextIO) -> bool:
    """Whether a stream is a standard output that was closed before the process started."""
    return isinstance(stream, _Closed)


def _wants_ascii() -> bool:
    """Whether the user chose the C locale, in which Python still writes UTF-8 (PEP 540)."""
    chosen = os.environ.get("PYTHONIOENCODING", "").split(":")[0] or os.environ.get("PYTHONUTF8")
    if chosen or "utf8" in sys._xoptions:
        return False
    return locale.setlocale(locale.LC_CTYPE) in ("C", "POSIX")


def _is_unicode(stream: Any) -> bool:
    with contextlib.suppress(LookupError, TypeError):
        return codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name.startswith("utf")
    return True


def fitting(text: str, stream: TextIO, form: str) -> str:
    """Replace characters that a stream cannot encode.

    :param form: one of :data:`kvintro.render.FORMATS`. In markup such characters become references, so that a
        page is the same in any encoding.
    """
    if text.isascii() or _is_unicode(stream):
        return text
    if form in ("html", "svg"):
        return text.encode("ascii", "xmlcharrefreplace").decode()
    return text.encode(stream.encoding, _FALLBACK).decode(stream.encoding)


_COLOR = re.compile("38;5;([0-9]+)(?=[;m])")
# Names of terminals with a palette of more than 16 colours.
_MANY_COLORS = re.compile(
    "256color|direct|kitty|alacritty|foot|ghostty|wezterm|konsole|iterm|vte|truecolor|24bit"
)
# Those of the 16 colours that are legible on both black and white, by the first hue of each in degrees.
_HUES = ((0, "95"), (15, "33"), (70, "32"), (160, "36"), (200, "94"), (255, "35"), (345, "95"))


def in_its_colors(text: str) -> str:
    """Replace colours of the 256-colour palette if the terminal has only 16."""
    kind = f"{os.environ.get('TERM', '')} {os.environ.get('COLORTERM', '')}"
    if "38;5;" not in text or _MANY_COLORS.search(kind):
        return text
    return _COLOR.sub(lambda found: _basic(int(found[1])), text)


@lru_cache(maxsize=256)
def _basic(number: int) -> str:
    """Code of the most similar of the 16 colours. Red is kept for pure red, the colour of defects."""
    if number >= 232:
        return "90"
    levels = (0, 95, 135, 175, 215, 255)
    red, green, blue = (levels[(number - 16) // step % 6] / 255 for step in (36, 6, 1))
    hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
    if saturation < 0.15:
        return "90"
    if (red, green, blue)[1:] == (0, 0):
        return "31"
    return next(code for first, code in reversed(_HUES) if hue * 360 >= first)


def takes_unicode(stream: TextIO) -> bool:
    """Whether a stream can encode every character."""
    return not _wants_ascii() and _is_unicode(stream)


def encoded(text: str, stream: TextIO) -> bytes:
    """Encode text for a program that shows it in the stream's place, such as a pager."""
    return text.encode(getattr(stream, "encoding", None) or "utf-8", _FALLBACK)


def in_ascii(char: str) -> str:
    """Replace a drawing character with its ASCII substitute, any other character with an escape."""
    return _ASCII.get(char) or char.encode("ascii", "backslashreplace").decode()


def _to_ascii(error: UnicodeError) -> Tuple[Union[str, bytes], int]:
    """Error handler for encoding: drawing characters become ASCII, others are escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    out: List[str] = []
    end = error.end
    for at in range(error.start, end):
        char = error.object[at]
        out.append(in_ascii(char))
        if char in "≥≤" and error.object[at + 1 : at + 2] == " ":
            out[-1] += "="  # replaces the space
            end = at + 2
            break
    return "".join(out), end


codecs.register_error(_FALLBACK, _to_ascii)


def terminal_width(stream: TextIO) -> int:
    """Number of columns of a stream's terminal; 0 if the stream is not a terminal."""
    return shutil.get_terminal_size().columns if stream.isatty() else 0
