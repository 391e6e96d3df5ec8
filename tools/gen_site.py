#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Collect the pages of the site in a directory, for Sphinx: ``make site``.

    tools/gen_site.py DIRECTORY

Copies docs/*.md and the pages at the top of the repository, and adapts their links. Runs the notebook in
docs/ and makes a page of it. Adds the Python reference, a page for each JSON Schema, a gallery, and an index
that reaches every page.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import notebook  # noqa: E402

#: Pages outside docs/, and their names on the site.
OTHERS = {
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
    "CODE_OF_CONDUCT.md": "code-of-conduct",
    "GOVERNANCE.md": "governance",
    "examples/README.md": "examples",
    "vmcores/README.md": "vmcores",
}
#: The contents, in order. Pages of docs/ that are not named here are commands.
GROUPS = {
    "First steps": ["tutorial", "questions", "gallery", "live"],
    "Commands": [],
    "Dumps": ["formats", "performance"],
    "For programs": ["api", "notebook", "reference", "json", "schemas", "extending", "examples"],
    "Security": ["security", "privileges", "untrusted", "threat-model"],
    "The project": [
        *(
            "changelog",
            "versions",
            "contributing",
            "architecture",
            "vmcores",
            "governance",
            "code-of-conduct",
        ),
    ],
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
_REFERENCE = """\
# Python reference

[The Python API](api.md) has examples. [Versions](versions.md) says what is public.

## Opening

```{eval-rst}
.. autofunction:: kvintro.open
.. autofunction:: kvintro.kernel
.. autofunction:: kvintro.types.install
.. autofunction:: kvintro.bus_error.end_on_bus_error
```

## Commands

```{eval-rst}
.. autoclass:: kvintro.methods.Commands
   :no-undoc-members:
```

## Errors

```{eval-rst}
.. automodule:: kvintro.errors
```
"""
_GALLERY = """\
# Gallery

## The map

`kvintro -c vmcore layout --format svg`: the address space of a kernel, with the regions that KASLR moved to
true scale.

![the map of a kernel's address space](images/map.svg)

## The report

`kvintro -c vmcore report -o vmcore.html`: everything on one page, which needs no network.

![the report](images/report.png)

![the report on a dark screen](images/report-dark.png)
"""


def pages() -> Dict[Path, str]:
    """All hand-written pages: the key is the file, the value the name on the site."""
    # Sphinx uses these names for its own pages.
    taken = {"search": "search-command", "genindex": "genindex-page"}
    docs = sorted((*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")))
    own = {path: taken.get(path.stem, path.stem) for path in docs}
    return {**own, **{ROOT / name: page for name, page in OTHERS.items()}}


def linked(text: str, path: Path, known: Mapping[Path, str]) -> str:
    """A page whose links lead to pages of the site. Links to other files become plain text."""

    def link(match: "re.Match[str]") -> str:
        words, target, anchor = match[1], match[2], match[3] or ""
        if not target or "://" in target:
            return match[0]
        file = Path(os.path.normpath(path.parent / target))
        if file == ROOT / "README.md":
            return f"[{words}](index.md)"
        return f"[{words}]({known[file]}.md{anchor})" if file in known else words

    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(part if index % 2 else _LINK.sub(link, part) for index, part in enumerate(parts))


def index(names: List[str]) -> str:
    """The first page: the beginning of README.md, and the contents."""
    readme = (ROOT / "README.md").read_text()
    groups = {title: [name for name in group if name in names] for title, group in GROUPS.items()}
    listed = {name for group in groups.values() for name in group}
    groups["Commands"] = sorted(set(names) - listed)
    text = readme[: readme.index("\n## Install")].replace("](docs/images/", "](images/")
    for title, group in groups.items():
        rows = "\n".join(group)
        text += f"\n\n```{{toctree}}\n:caption: {title}\n:hidden:\n\n{rows}\n```"
    return linked(text, ROOT / "README.md", pages()) + "\n"


def kind(schema: Mapping[str, Any]) -> str:
    """A description of a schema, in Markdown."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(kind(each) for each in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{json.dumps(each)}`" for each in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    if isinstance(schema.get("type"), list):
        return " or ".join(schema["type"])
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object with any keys, values: {kind(schema['additionalProperties'])}"
    return str(schema.get("type", "anything"))


def members(schema: Mapping[str, Any]) -> Iterator[str]:
    """The members of an object as a table."""
    if not schema.get("properties"):
        yield kind(schema)
        return
    yield "| Member | Value | Meaning |\n|---|---|---|"
    for name, each in schema["properties"].items():
        optional = "" if name in schema.get("required", ()) else "; may be missing"
        about = each.get("description", "").replace("|", "\\|")
        yield f"| `{name}` | {kind(each)}{optional} | {about} |"


def schema_page(schema: Mapping[str, Any], command: str) -> str:
    """A page about the JSON of one command."""
    lines = [
        f"# {command}",
        "",
        f"`{schema['$id']}`: {schema.get('description', '')}",
        "",
        *members(schema),
        "",
    ]
    for name, each in sorted(schema.get("$defs", {}).items()):
        lines += [f"## {name}", "", each.get("description", ""), "", *members(each), ""]
    lines += ["## Schema", "", "```json", json.dumps(schema, indent=2), "```", ""]
    return "\n".join(lines)


def main() -> int:
    """Write everything; return the exit status."""
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    (target / "schema").mkdir(parents=True)
    shutil.copytree(ROOT / "docs/images", target / "images")
    known = pages()
    for path, name in known.items():
        text = path.read_text() if path.suffix == ".md" else notebook.page(path)
        (target / f"{name}.md").write_text(linked(text, path, known))
    (target / "reference.md").write_text(_REFERENCE)
    (target / "gallery.md").write_text(_GALLERY)
    schemas = sorted((ROOT / "kvintro/schema").glob("*.json"))
    for path in schemas:
        (target / f"schema/{path.stem}.md").write_text(schema_page(json.loads(path.read_text()), path.stem))
    rows = "\n".join(f"schema/{path.stem}" for path in schemas)
    (target / "schemas.md").write_text(
        "# JSON Schemas\n\nWhat `--json` writes, command by command. [json.md](json.md) describes what all "
        "have in common.\n\n"
        f"```{{toctree}}\n{rows}\n```\n"
    )
    (target / "index.md").write_text(index([*known.values(), "reference", "gallery", "schemas"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
