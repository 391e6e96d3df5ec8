# SPDX-License-Identifier: LGPL-2.1-or-later
"""The JSON of every command against its schema, and the schemas against the types of the rows."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from functools import cache
from importlib import resources
from typing import Any, Dict, Iterator, List

import pytest

from kvintro.commands import command_names, load_command
from kvintro.kernels import Kernel
from kvintro.model import Report, Stream
from kvintro.parser import parse
from kvintro.render import render, render_stream
from tests.conftest import ROOT
from tests.regions import REGIONS

jsonschema = pytest.importorskip("jsonschema", reason="Python's jsonschema is missing")

LINES: List[List[str]] = [
    ["layout"],
    ["layout", "--no-holes", "--pid", "1"],
    ["info"],
    ["explain"],
    ["explain", "vmalloc", "hole"],
    ["kaslr"],
    ["translate", "init_task", "1000", "0", "ffff800000000000", "8000000000000000"],
    ["translate", "--walk", "init_task", "ffffffffff600000"],
    ["vtop", "--pid", "1", "400000"],
    ["ptov", "1000"],
    ["pte", "8000000003a12163", "7fffe00000000200", "0"],
    ["pte", "--level", "pmd", "80000000076000e3"],
    ["aliases", "init_task"],
    ["aliases", "ffff800000000000"],
    ["identify", "init_task", "1000", "ffffffffff600000", "init_top_pgt"],
    ["read", "init_task", "--size", "64"],
    ["rd", "init_task", "--type", "struct task_struct"],
    ["read", "--pid", "1", "400000"],
    ["search", "init_task", "--in", "kernel_image", "--limit", "3"],
    ["ptdump", "--range", "modules"],
    ["ptdump", "--wx"],
    *(["show", region] for region in REGIONS),
    ["show", "vmalloc", "--table", "areas", "--top", "3"],
    ["user", "--all"],
    ["user", "1"],
    ["user", "1", "--maps"],
    ["page", "1000"],
    ["page", "100", "200"],
    ["pages"],
    ["pages", "--by", "zone"],
    ["check"],
    ["report"],
]
#: Commands without their own JSON.
NONE = {"shell", "browse"}
#: Other tests compare the JSON of these with the schema: test_convert, test_survey.
ELSEWHERE = {"diff", "convert", "survey"}


@cache
def validator(command: str) -> Any:
    """The validator for documents of a command, as users have it."""
    schema = json.loads((resources.files("kvintro") / "schema" / f"{command}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@cache
def generator() -> Any:
    """tools/gen_schemas.py."""
    spec = importlib.util.spec_from_file_location("gen_schemas", ROOT / "tools" / "gen_schemas.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def strict(command: str) -> Any:
    """The same, but it refuses undeclared members, so that none of ours is forgotten."""
    return jsonschema.Draft202012Validator(generator().all_schemas(strict=True)[command])


def check(document: Dict[str, Any]) -> None:
    """Fail with the first few places that contradict the schema."""
    command = document["schema"].split(".")[1].split("/")[0]
    problems = [
        f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for judge in (validator(command), strict(command))
        for error in judge.iter_errors(document)
    ]
    assert not problems, problems[:5]


def document(kernel: Kernel, line: List[str]) -> Any:
    """The output of a command line, parsed."""
    args = parse(["-c", "x", "--json", *line])
    result = load_command(args.command).run(kernel, args)
    if isinstance(result, Stream):
        return json.loads("".join(render_stream(result, "json")))
    assert isinstance(result, Report)
    return json.loads(render(result, "json"))


def test_every_command_is_here() -> None:
    told = {parse(["-c", "x", *line]).command for line in LINES} | ELSEWHERE | NONE
    assert set(command_names()) <= told


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_as_the_schema_says(kernel: Kernel, line: List[str]) -> None:
    if kernel.source.types == "none" and line[0] not in ("layout", "explain", "check", "report"):
        pytest.skip("this kernel's VMCOREINFO does not lead to its types")
    found = document(kernel, line)
    check(found)
    for section in found["sections"] if line == ["report"] else ():
        if section["report"] is not None:
            check(section["report"])


def test_diff_as_the_schema_says(kernel: Kernel) -> None:
    from kvintro.reports.diff import diff, side_of_kernel

    side = side_of_kernel(kernel, "A")
    for everything in (False, True):
        check(json.loads(render(diff(side, side, everything=everything), "json")))


def test_a_schema_refuses(kernel: Kernel) -> None:
    """A wrong document is refused."""
    good = document(kernel, ["layout"])
    changes: Any = ({"partial": "no"}, {"regions": [{}]}, {"kernel": {"release": 3}})
    for change in changes:
        assert list(validator("layout").iter_errors({**good, **change}))


def _with_news(value: Any) -> Iterator[Any]:
    """The document with an undeclared member in each object in turn; in a list, only in the first object."""
    if isinstance(value, dict):
        yield {**value, "news": {"of": 1}}
        yield {**value, "more_news": [1, "x"]}
        for key, item in value.items():
            for changed in _with_news(item):
                yield {**value, key: changed}
    elif isinstance(value, list):
        for changed in _with_news(value[0]) if value else ():
            yield [changed, *value[1:]]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_members_may_be_added_within_a_version(kernel: Kernel, line: List[str]) -> None:
    """A program that validates with today's schema must accept tomorrow's document."""
    if kernel.source.types == "none" and line[0] not in ("layout", "explain", "check", "report"):
        pytest.skip("this kernel's VMCOREINFO does not lead to its types")
    good = document(kernel, line)
    command = good["schema"].split(".")[1].split("/")[0]
    small = {key: value[:1] if isinstance(value, list) else value for key, value in good.items()}
    for changed in _with_news(small):
        typed = [e for e in validator(command).iter_errors(changed) if not _is_of_counts(e)]
        assert not typed, typed[0].message[:300]


def _is_of_counts(error: Any) -> bool:
    """Objects whose keys are data (counts by name) have values of one type, and stay so."""
    return (
        "news" in str(error.absolute_path) and list(error.absolute_schema_path)[-2] == "additionalProperties"
    )


def test_strict_schemas_refuse_what_is_not_declared(kernel: Kernel) -> None:
    good = document(kernel, ["layout"])
    first, *rest = good["regions"]
    for changed in (
        {**good, "surprise": 1},
        {**good, "regions": [{**first, "surprise": 1}, *rest]},
        {**good, "kernel": {**good["kernel"], "surprise": None}},
    ):
        assert not list(validator("layout").iter_errors(changed))
        assert list(strict("layout").iter_errors(changed))


def test_schemas_are_open_and_plain() -> None:
    """No object is closed, no value is enumerated, and no description contains Sphinx's markup."""

    def parts(schema: Any) -> Iterator[Dict[str, Any]]:
        if isinstance(schema, dict):
            yield schema
        for part in (
            schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
        ):
            yield from parts(part)

    for path in (resources.files("kvintro") / "schema").iterdir():
        for part in parts(json.loads(path.read_text())):
            assert part.get("additionalProperties") is not False
            assert not part.get("unevaluatedProperties") and "enum" not in part
            text = part.get("description", "")
            if isinstance(text, str):
                assert not re.search(r"`|:\w+:|\*\w", text), text


def test_plain_text() -> None:
    plain_text = generator().plain_text
    assert (
        plain_text("See :class:`~kvintro.model.Absent`, ``a b`` and\n  :ivar:`size`.")
        == "See Absent, a b and size."
    )
    assert plain_text(":py:func:`x.y.z` of :ref:`a title <there>`; 1:2:3") == "z of there; 1:2:3"


def test_schemas_are_up_to_date() -> None:
    """They equal the output of tools/gen_schemas.py, which names those that do not."""
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "gen_schemas.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
