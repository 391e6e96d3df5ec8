# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one place where strings of a kernel or of a file become harmless, before any renderer sees them.

A string may hold what a terminal obeys or what misleads its reader. Renderers of text, CSV, drawings and
pages are given reports and streams that went through here, so none of them can forget to escape one. JSON is
made of the strings as they are, and escapes all but printable ASCII itself.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from functools import cache
from typing import Any, Hashable, Iterator, List, Mapping, Sequence, Tuple, TypeVar

from kvintro.model import Batch, Stream
from kvintro.text import printable

T = TypeVar("T")
_NUMBERS = (int, float, type(None))


def inert(value: T) -> T:
    """The same report, row or value with every string in it escaped by :func:`kvintro.text.printable`.

    What has nothing to escape is returned itself.

    :raises TypeError: it holds what no report is made of.
    """
    found: Any = _inert(value)
    same: T = found
    return same


def _inert(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, _NUMBERS):
        return value
    if isinstance(value, Mapping):
        items = {_inert(key): _inert(item) for key, item in value.items()}
        return value if items == value else items
    if isinstance(value, (list, tuple)):
        parts = [_inert(item) for item in value]
        if all(new is old for new, old in zip(parts, value)):
            return value
        return parts if isinstance(value, list) else tuple(parts)
    if dataclasses.is_dataclass(value):
        return _inert_fields(value)
    raise TypeError(f"a report with a {type(value).__name__} in it")


def _inert_fields(value: Any) -> Any:
    changed = {}
    for name in _names(value.__class__):
        old = getattr(value, name)
        new = _inert(old)
        if new is not old:
            changed[name] = new
    if not changed:
        return value
    found = copy.copy(value)
    for name, new in changed.items():
        object.__setattr__(found, name, new)  # rows are frozen
    return found


@cache
def _names(row: Hashable) -> Tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(row))  # type: ignore[arg-type]


class InertStream(Stream):
    """A stream with every string in its results escaped."""

    def __init__(self, stream: Stream) -> None:
        self._of = stream
        super().__init__(
            stream.command,
            stream.kernel,
            stream.key,
            stream.fields,
            stream.text_keys,
            (),
            inert(stream.notes),
        )

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._of:
            yield dataclasses.replace(
                batch, values={key: _inert_column(values) for key, values in batch.values.items()}
            )


def _inert_column(values: Sequence[Any]) -> Sequence[Any]:
    kinds = set(map(type, values))
    if all(issubclass(kind, _NUMBERS) for kind in kinds):
        return values
    if kinds <= {str, tuple, type(None)}:
        # Of millions of values few are different. Some hold what is not hashable.
        with contextlib.suppress(TypeError):
            distinct = set(values)
            if all(_is_text(value) for value in distinct):
                known = {value: _inert(value) for value in distinct}
                return [known[value] for value in values]
    column: List[Any] = [_inert(value) for value in values]
    return column


def _is_text(value: Any) -> bool:
    return not isinstance(value, tuple) or all(type(part) is str for part in value)
