#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make kvintro/schema/COMMAND.json, the JSON Schema of every command's JSON, from the types of its rows.

    tools/gen_schemas.py [--check]

:func:`kvintro.render.json.document` makes a command's document from its report: the rows of each table, which
are dataclasses, and the report's extra values, which are listed here. With --check nothing is written, and
the exit status is 1 if a file is out of date.

The schemas that are written accept unknown members and values, because these may be added within a version.
The strict schemas, which only tests use, refuse members that are not declared.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
import typing
from collections.abc import Mapping as AbstractMapping
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvintro.arch import architectures  # noqa: E402
from kvintro.model import Address, Displacement, Identity, Size  # noqa: E402

TARGET = ROOT / "kvintro" / "schema"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

ADDRESS = {"$ref": "#/$defs/address"}
NULL: Dict[str, Any] = {"type": "null"}
TEXT: Dict[str, Any] = {"type": "string"}
COUNT: Dict[str, Any] = {"type": "integer", "minimum": 0}
FLAG: Dict[str, Any] = {"type": "boolean"}
COUNTS: Dict[str, Any] = {"type": "object", "additionalProperties": COUNT}


def either(*forms: Mapping[str, Any]) -> Dict[str, Any]:
    """A schema that accepts one of several forms."""
    return {"anyOf": list(forms)}


@dataclasses.dataclass(frozen=True)
class Document:
    """The members of a command's JSON that not every document has.

    :ivar about: one sentence.
    :ivar tables: for each key the classes of its rows, as ``module:Class``.
    :ivar extra: schemas of other values.
    :ivar optional: keys that may be absent.
    :ivar more: further members, for commands whose tables differ from region to region.
    """

    about: str
    tables: Mapping[str, Sequence[str]]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optional: Sequence[str] = ()
    more: Sequence[str] = ()


def region_rows() -> List[str]:
    """Rows of all regions' contents."""
    found = ["kvintro.regions:RangeRow"]
    packages = ["kvintro.regions", *(f"{arch.package}.regions" for arch in architectures())]
    names = [
        f"{package}.{info.name}"
        for package in packages
        if importlib.util.find_spec(package) is not None
        for info in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ]
    for module in map(importlib.import_module, names):
        found += [
            f"{module.__name__}:{name}"
            for name, value in vars(module).items()
            if inspect.isclass(value)
            and dataclasses.is_dataclass(value)
            and name.endswith("Row")
            and value.__module__ == module.__name__
        ]
    return sorted(found)


IDENTITY_OR_NULL = either({"$ref": "#/$defs/Identity"}, NULL)
SIDE = {
    "type": "object",
    "required": ["label", "release", "paging_levels", "kaslr", "pti"],
    "properties": {"label": TEXT},
}
DOCUMENTS: Dict[str, Document] = {
    "layout": Document(
        "The whole address space: every region and hole, from 0 to 2^64-1.",
        {"regions": ["kvintro.reports.layout:RegionRow"]},
    ),
    "info": Document(
        "Which dump this is, and what each command can do with it.",
        {
            "facts": ["kvintro.reports.info:FactRow"],
            "kernels": ["kvintro.reports.info:KernelRow"],
            "commands": ["kvintro.reports.info:CommandRow"],
        },
    ),
    "explain": Document(
        "What regions are for, with this kernel's values.",
        {"regions": ["kvintro.reports.explain:ExplainRow"]},
        {"introduction": {"type": "array", "items": TEXT}, "in_full": FLAG},
    ),
    "kaslr": Document(
        "Every base that is randomised.",
        {"bases": ["kvintro.readers.randomness:Randomised"]},
        {
            "enabled": either(FLAG, NULL),
            "enabled_provenance": TEXT,
            "enabled_reason": TEXT,
            "image_only": FLAG,
            "memory_bits": either({"type": "number"}, NULL),
        },
        ("enabled_provenance", "enabled_reason", "image_only"),
    ),
    "survey": Document(
        "What many dumps say together.",
        {
            "builds": ["kvintro.survey.summary:BuildRow"],
            "places": ["kvintro.survey.summary:PlaceRow"],
            "same": ["kvintro.survey.summary:SameRow"],
            "outliers": ["kvintro.survey.summary:OutlierRow"],
            "broken": ["kvintro.survey.summary:BrokenRow"],
            "failures": ["kvintro.survey.summary:FailureRow"],
        },
        {"dumps": COUNT, "states": COUNTS, "copies": COUNT, "asked": COUNT},
    ),
    "translate": Document(
        "Addresses in all their forms.",
        {"results": ["kvintro.queries.translate:Translation"]},
        {"walk": FLAG},
        ("walk",),
    ),
    "convert": Document(
        "What was written of a source's memory to a new dump.",
        {"pages": ["kvintro.reports.convert:PagesRow"]},
        {
            "path": TEXT,
            "format": {"type": "string"},
            **dict.fromkeys(("level", "size", "real"), COUNT),
        },
    ),
    "pte": Document(
        "Page-table entries decoded.",
        {"entries": ["kvintro.reports.pte:EntryRow"]},
    ),
    "aliases": Document(
        "Every virtual address of a page.",
        {"aliases": ["kvintro.reports.aliases:AliasRow"]},
        {
            "input": TEXT,
            "physical": either(ADDRESS, NULL),
            "pfn": either(COUNT, NULL),
            "page": either(ADDRESS, NULL),
        },
    ),
    "identify": Document(
        "Everything known about addresses.",
        {"results": ["kvintro.reports.identify:IdentifiedRow"]},
    ),
    "show": Document(
        "What is inside a region; which tables there are depends on the region.",
        {},
        {
            "region": {"$ref": "#/$defs/RegionHead"},
            "totals": {"type": "object"},
            "table": TEXT,
        },
        ("table",),
        region_rows(),
    ),
    "user": Document(
        "One process's memory, or a line for each process.",
        {},
        {"totals": {"type": "object"}, "pid": either(COUNT, NULL), "maps": FLAG, "table": TEXT},
        ("maps", "table"),
        region_rows(),
    ),
    "page": Document("Struct pages decoded.", {"pages": ["kvintro.reports.page:PageRow"]}),
    "pages": Document(
        "A census of all struct pages.",
        {
            "types": ["kvintro.reports.pages:TypeRow"],
            "zones": ["kvintro.reports.pages:ZoneRow"],
            "nodes": ["kvintro.reports.pages:NodeRow"],
            "orders": ["kvintro.reports.pages:OrderRow"],
            "caches": ["kvintro.reports.pages:CacheRow"],
            "flags": ["kvintro.reports.pages:FlagsRow"],
            "free": ["kvintro.reports.pages:FreeRow"],
            "map": ["kvintro.reports.pages:CellRow"],
            "excluded": ["kvintro.reports.excluded:ExcludedRow"],
        },
        {
            **dict.fromkeys(("total", "holes", "unmapped", "missing", "cell_size"), COUNT),
            "seconds": {"type": "number"},
            "rate": either(COUNT, NULL),
            "by": either(TEXT, NULL),
            "unknown_flags": {"type": "array", "items": TEXT},
            **dict.fromkeys(("by_type", "by_zone", "by_node"), COUNTS),
            **dict.fromkeys(("left_out", "filter_level", "recorded_level"), either(COUNT, NULL)),
        },
    ),
    "read": Document(
        "Memory as words, or as the members of a type.",
        {"words": ["kvintro.queries.memory:MemoryWord"], "members": ["kvintro.queries.members:Member"]},
        {
            "address": ADDRESS,
            "size": COUNT,
            "space": TEXT,
            "type": either(TEXT, NULL),
            "identities": {"type": "array", "items": {"$ref": "#/$defs/Thing"}},
        },
        ("words", "members"),
    ),
    "search": Document(
        "Where a value, a string or a pointer is in memory.",
        {"hits": ["kvintro.reports.search:HitRow"]},
        {
            "pattern": TEXT,
            "space": TEXT,
            "regions": {"type": "array", "items": TEXT},
            **dict.fromkeys(("total", "searched", "missing", "stretches"), COUNT),
            "first_missing": either(ADDRESS, NULL),
            "complete": FLAG,
        },
    ),
    "check": Document(
        "The kernel against itself: findings, and the rules that were applied.",
        {
            "findings": ["kvintro.reports.check:FindingRow"],
            "checks": ["kvintro.reports.check:CheckRow"],
        },
        {"counts": COUNTS},
    ),
    "rights": Document(
        "Mapped bytes of every region by page size and rights; a part of report.",
        {"rights": ["kvintro.reports.report:RightsRow"]},
    ),
    "diff": Document(
        "What differs between two kernels; without --all only what differs is in the tables, and a table in "
        "which nothing does is omitted.",
        {
            "findings": ["kvintro.reports.diff:FindingRow"],
            "regions": ["kvintro.reports.diff:RegionDiffRow"],
            **{key: ["kvintro.reports.diff:AmountRow"] for key in ("rights", "vmalloc", "modules", "types")},
        },
        {
            "a": SIDE,
            "b": SIDE,
            "same": {**either(FLAG, NULL), "description": "null: no difference, but not all was compared"},
            "compared": COUNTS,
            "not_compared": {"type": "array", "items": TEXT},
        },
        ("rights", "vmalloc", "modules", "types"),
    ),
    "report": Document(
        "Everything: the documents of the other commands, each under the section that it makes.",
        {},
        {
            "command_line": either(TEXT, NULL),
            "linear_offset": either(ADDRESS, NULL),
            "sections": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["key", "title", "problem", "report"],
                    "properties": {
                        "key": TEXT,
                        "title": TEXT,
                        "problem": either(TEXT, NULL),
                        "report": either({"type": "object", "required": ["schema"]}, NULL),
                    },
                },
            },
        },
    ),
}
# The parts of a stream's results are not dataclasses.
PTDUMP = {
    "type": "object",
    "required": ["start", "end", "size", "level", "state", "flags", "effective", "marker"],
    "properties": {
        "start": ADDRESS,
        "end": {**ADDRESS, "description": "inclusive"},
        "size": COUNT,
        "level": {**TEXT, "examples": ["pte", "pmd", "pud", "p4d", "pgd"]},
        "state": {**TEXT, "examples": ["present", "not-present", "not-in-dump", "over-limit"]},
        "flags": {"type": "array", "items": TEXT},
        "effective": {"type": "array", "items": TEXT},
        "marker": TEXT,
    },
}


def plain_text(text: str) -> str:
    """A docstring's paragraph in one line, without Sphinx's markup."""
    text = re.sub(r":[\w:]+:`(?:[^`<]*<)?[~!]?(?:[\w.]*\.)?([^`>]+)>?`", r"\1", " ".join(text.split()))
    return re.sub(r"`+([^`]*)`+", r"\1", text)


class Maker:
    """Schemas of Python types; dataclasses become definitions."""

    def __init__(self) -> None:
        self.definitions: Dict[str, Any] = {
            "address": {
                "type": "string",
                "pattern": "^0x[0-9a-f]{16}$",
                "description": "an address, or 64 bits that are shown like one",
            }
        }
        self._names: Dict[type, str] = {}

    def of(self, hint: Any) -> Dict[str, Any]:
        """The schema of a type."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint is Address:
            return dict(ADDRESS)
        if hint is Size:
            return {**COUNT, "description": "bytes"}
        if hint is Displacement:
            return {"type": "integer", "description": "bytes, with a sign"}
        simple = {
            bool: FLAG,
            int: {"type": "integer"},
            float: {"type": "number"},
            str: TEXT,
            type(None): NULL,
        }
        if hint in simple:
            return dict(simple[hint])
        if origin is Union:
            return either(*(self.of(a) for a in arguments))
        if origin in (tuple, list) or (origin is not None and origin.__name__ == "Sequence"):
            return {"type": "array", "items": self.of(arguments[0])}
        if origin in (dict, AbstractMapping):
            return {"type": "object", "additionalProperties": self.of(arguments[1])}
        if dataclasses.is_dataclass(hint):
            return {"$ref": f"#/$defs/{self.define(hint)}"}
        if hint is Any:
            return {}
        raise TypeError(f"no schema for {hint}")

    def define(self, row: Any) -> str:
        """Add a dataclass to the definitions; return its name there."""
        if row in self._names:
            return self._names[row]
        name: str = row.__name__
        if name in self.definitions:
            # Rows of two regions may have the same name.
            name = f"{row.__module__.rsplit('.', 1)[-1]}.{name}"
        self._names[row] = name
        self.definitions[name] = {}
        hints = typing.get_type_hints(row)
        about = inspect.getdoc(row) or ""
        told = dict(re.findall(r":ivar (\w+): (.*?)(?=\n:ivar|\n\n|\Z)", about, re.S))
        properties = {}
        for field in dataclasses.fields(row):
            schema = self.of(hints[field.name])
            if field.name in told:
                schema["description"] = plain_text(told[field.name]).rstrip(".")
            properties[field.name] = schema
        self.definitions[name] = {
            "type": "object",
            "description": plain_text(about.split("\n\n")[0]),
            "required": list(properties),
            "properties": properties,
        }
        return name


def load(path: str) -> Any:
    """A class by ``module:Class``."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def closed(schema: Any) -> Any:
    """A copy of a schema that refuses undeclared members."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(part) for key, part in schema.items()}
    # If a part of a schema only requires members, another part declares them.
    if found.get("type") == "object" and set(found.get("required", ())) <= set(found.get("properties", ())):
        found.setdefault("additionalProperties", "properties" not in found)
    return found


def schema_of(command: str, document: Optional[Document], *, strict: bool = False) -> Dict[str, Any]:
    """The schema of one command.

    :param strict: refuse members that are not declared.
    """
    maker = Maker()
    maker.define(Identity)
    properties: Dict[str, Any] = {"schema": {"const": f"kvintro.{command}/1"}, "kernel": IDENTITY_OR_NULL}
    optional: Sequence[str] = ()
    more: Dict[str, Any] = {}
    about = "Page tables as ranges."
    if document is None:
        properties["ranges"] = {"type": "array", "items": PTDUMP}
    else:
        about, optional = document.about, document.optional
        if "region" in document.extra:
            maker.define(load("kvintro.reports.show:RegionHead"))
        properties.update(document.extra)
        for key, rows in document.tables.items():
            properties[key] = _rows(maker, rows)
        if document.more:
            shapes = _rows(maker, document.more)
            kinds = "tables, whose rows are of the kinds below whose names end in Row"
            more = {"additionalProperties": shapes if strict else {"description": kinds}}
    properties["notes"] = {"type": "array", "items": TEXT}
    properties["partial"] = {**FLAG, "description": "something that should be here could not be read"}
    schema = {
        "$schema": DIALECT,
        "$id": f"kvintro.{command}/1",
        "title": f"kvintro {command} --json",
        "description": about,
        "type": "object",
        "required": [key for key in properties if key not in optional],
        "properties": properties,
        **more,
        "$defs": maker.definitions,
    }
    return closed(schema) if strict else schema


def _rows(maker: Maker, rows: Sequence[str]) -> Dict[str, Any]:
    names = [maker.define(load(row)) for row in rows]
    forms = [{"$ref": f"#/$defs/{name}"} for name in names]
    return {"type": "array", "items": forms[0] if len(forms) == 1 else either(*forms)}


def all_schemas(*, strict: bool = False) -> Dict[str, Dict[str, Any]]:
    """The schema of each command."""
    found: List[Tuple[str, Optional[Document]]] = [*DOCUMENTS.items(), ("ptdump", None)]
    return {command: schema_of(command, document, strict=strict) for command, document in found}


def schemas() -> Dict[str, str]:
    """The text of each file by its name."""
    return {f"{command}.json": json.dumps(found, indent=2) + "\n" for command, found in all_schemas().items()}


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if something is out of date")
    check = parser.parse_args().check
    TARGET.mkdir(exist_ok=True)
    stale = 0
    for name, text in schemas().items():
        path = TARGET / name
        if not path.exists() or path.read_text() != text:
            stale += 1
            print(f"{'stale' if check else 'made'}: {path.relative_to(ROOT)}")
            if not check:
                path.write_text(text)
    return int(bool(check and stale))


if __name__ == "__main__":
    sys.exit(main())
