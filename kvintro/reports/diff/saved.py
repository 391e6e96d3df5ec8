# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads one side of a comparison from a saved layout or report."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional

from kvintro.errors import NotADump
from kvintro.readers.command_line import split_options
from kvintro.reports.diff.sides import PARTS, RegionFacts, Side, why
from kvintro.source.files import open_file, read_bounded

# Maximum size of the file. Real ones have about 1 MB. Empty lists take twenty times as much memory.
_LARGEST = 32 << 20
# Maximum number of objects and lists in the file. Each takes up to 240 bytes of memory, but only two bytes of
# the file. A row takes 100 bytes or more.
_MOST_VALUES = 1 << 20
_REMEDY = "give a dump, or what kvintro --json layout or report wrote"
#: Parts that may be incomplete.
_COUNTED = ("rights", "callers", "modules", "types")

#: Result of :mod:`json`. Its types are checked when its values are used.
Document = Mapping[str, Any]


def side_of_json(path: str) -> Side:
    """Read a file saved by ``layout --json`` or ``report --json``.

    :raises NotADump: the file is neither.
    """
    try:
        with open_file(path) as file:
            content = read_bounded(file, path, "a saved report", _LARGEST)
        if content.count(b"{") + content.count(b"[") > _MOST_VALUES:
            raise NotADump(f"{path} has too many rows for a saved report", _REMEDY)
        return _side(path, json.loads(content.decode("utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        kind = type(error).__name__
        raise NotADump(f"{path} is not a layout or report of kvintro ({kind})", _REMEDY) from None


def _side(path: str, document: Document) -> Side:
    if document["schema"] == "kvintro.layout/1":
        return replace(_regions(path, document), saved_layout=True)
    if document["schema"] != "kvintro.report/1":
        raise NotADump(f"{path} is {document['schema']}, which cannot be compared", _REMEDY)
    parts = {s["key"]: s["report"] for s in document["sections"] if s["report"] is not None}
    side = _with_parts(_regions(path, parts["layout"]), parts)
    text = document["command_line"]
    if text is not None:
        return replace(side, options=split_options(str(text)))
    return replace(side, missing={**side.missing, "options": "the report has no command line"})


def _regions(path: str, layout: Document) -> Side:
    regions = {str(row["key"]): _region(row) for row in layout["regions"] if row["kind"] != "hole"}
    identity = {str(k): v for k, v in layout["kernel"].items()}
    # Older files have this value only under its former name.
    identity.setdefault("isolation", identity.get("pti"))
    return Side(label=path, identity=identity, regions=regions)


def _region(row: Document) -> RegionFacts:
    def address(text: Optional[str]) -> Optional[int]:
        return None if text is None else int(text, 16)

    def number(value: Optional[int]) -> Optional[int]:
        return None if value is None else int(value)

    used = address(row.get("used_start")) if row["key"] == "kernel_image" else None
    return RegionFacts(
        str(row["key"]),
        str(row["name"]),
        str(row["state"]),
        address(row["start"]),
        number(row["size"]),
        number(row["slide"]),
        used if used is not None else address(row["start"]),
        number(row["mapped"]),
        str(row["reason"] or ""),
    )


def _with_parts(side: Side, parts: Mapping[str, Document]) -> Side:
    """Add the parts of a report to a side.

    :param parts: reports by the key of their section.
    """

    def rows(section: str, table: str) -> Optional[List[Document]]:
        found = parts.get(section)
        return found[table] if found and table in found else None

    rights, callers, modules = (
        rows("rights", "rights"),
        rows("vmalloc", "by_caller"),
        rows("modules", "modules"),
    )
    checks, explained, pages = rows("check", "checks"), rows("explain", "regions"), parts.get("pages")
    if rights is not None:
        keys = [(str(r["region"]), str(r["page_size"]), str(r["rights"]), str(r["caching"])) for r in rights]
        side = replace(side, rights={key: int(r["size"]) for key, r in zip(keys, rights)})
    if callers is not None:
        side = replace(side, callers={str(r["name"]): (int(r["areas"]), int(r["size"])) for r in callers})
    if modules is not None:
        side = replace(side, modules={str(r["name"]): int(r["size"]) for r in modules})
    missing = _missing(parts)
    if pages and "by_type" in pages and not side.page_size:
        missing["types"] = "the file does not say how large a page is"
    elif pages and "by_type" in pages:
        side = replace(side, types={str(k): int(v) for k, v in pages["by_type"].items()})
    if checks is not None:
        side = replace(side, rules={str(r["key"]): (str(r["state"]), str(r["title"])) for r in checks})
    if explained is not None:
        side = replace(side, config=_config(explained))
    incomplete = {
        key: why([str(note) for note in parts[PARTS[key].section].get("notes", ())])
        for key in _COUNTED
        if parts.get(PARTS[key].section, {}).get("partial")
    }
    return replace(side, missing=missing, incomplete=incomplete)


def _config(regions: List[Document]) -> Dict[str, str]:
    found = [d for row in regions for d in row["definitions"] if d["kind"] == "config" and d["here"]]
    return {str(d["name"]): str(d["here"]) for d in found}


def _missing(parts: Mapping[str, Document]) -> Dict[str, str]:
    """Parts that are missing from a saved report, with the reason."""
    tables = {
        "rights": "rights",
        "callers": "by_caller",
        "modules": "modules",
        "types": "by_type",
        "rules": "checks",
        "config": "regions",
    }
    return {
        key: "the report does not have it"
        for key, table in tables.items()
        if table not in (parts.get(PARTS[key].section) or ())
    }
