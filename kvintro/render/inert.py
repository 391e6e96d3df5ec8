# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes strings of a kernel or a file harmless before a renderer sees them. No other module does so.

A string may contain characters that control a terminal or mislead a reader. The renderers of text, CSV,
drawings and pages get reports and streams that have been processed here, so they cannot forget to escape one.
The JSON renderer gets the strings unchanged and escapes everything except printable ASCII itself.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Dict, Iterator, Sequence, TypeVar, cast

from kvintro.model import Batch, Row, Stream
from kvintro.render.values import names_of
from kvintro.text import printable

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

T = TypeVar("T")
_NUMBERS = (int, float, type(None))


def inert(value: T) -> T:
    """Return the same report, row or value with every string escaped by :func:`kvintro.text.printable`.

    A value with nothing to escape is returned unchanged.

    :raises TypeError: it contains a type that reports never contain.
    """
    return cast(T, _inert(value))


def _inert(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, _NUMBERS):
        return value
    if isinstance(value, Mapping):
        items = {_inert(key): _inert(item) for key, item in value.items()}
        return value if items == value else items
    if isinstance(value, (list, tuple)):
        known: Dict[int, object] = {}
        parts = [_inert_fields(item, known) if _is_row(item) else _inert(item) for item in value]
        if all(new is old for new, old in zip(parts, value)):
            return value
        return parts if isinstance(value, list) else tuple(parts)
    if _is_row(value):
        return _inert_fields(value, {})
    raise TypeError(f"a report with a {type(value).__name__} in it")


def _is_row(value: object) -> TypeGuard[Row]:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _inert_fields(value: Row, known: Dict[int, object]) -> Row:
    """Make a row inert.

    :param known: the results for values of earlier rows, by identity: rows share their texts.
    """
    changed = {}
    for name in names_of(value.__class__):
        old = getattr(value, name)
        if isinstance(old, _NUMBERS):
            continue
        new = known.get(id(old))
        if new is None:
            new = known[id(old)] = _inert(old)
        if new is not old:
            changed[name] = new
    if not changed:
        return value
    found = copy.copy(value)
    for name, new in changed.items():
        object.__setattr__(found, name, new)  # rows are frozen
    return found


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


def _inert_column(values: Sequence[object]) -> Sequence[object]:
    kinds = set(map(type, values))
    if all(issubclass(kind, _NUMBERS) for kind in kinds):
        return values
    if kinds <= {str, tuple, type(None)}:
        # Millions of values have few distinct ones. Some are not hashable.
        with contextlib.suppress(TypeError):
            distinct = set(values)
            if all(_is_text(value) for value in distinct):
                known = {value: _inert(value) for value in distinct}
                return [known[value] for value in values]
    return [_inert(value) for value in values]


def _is_text(value: object) -> bool:
    return not isinstance(value, tuple) or all(type(part) is str for part in value)
