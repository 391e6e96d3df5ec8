# SPDX-License-Identifier: LGPL-2.1-or-later
"""Installed components: kvintro, its requirements, and its optional packages."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

from kvintro.version import __version__

_NEEDED = ("numpy", "Jinja2", "tqdm")
#: Optional packages, each with its purpose.
_OPTIONAL = (
    ("cramjam", "AVML"),
    ("zstandard", "zstd"),
    ("lz4", "lz4"),
    ("textual", "browse"),
    ("pyarrow", "Parquet"),
    ("distributed", "Dask"),
)


def components() -> List[Tuple[str, str]]:
    """Names and versions for a bug report, including missing components."""
    from drgn.cli import version_header

    there = [f"{name} {version}" for name, _ in _OPTIONAL for version in [_version(name)] if version]
    missing = [f"{name} ({use})" for name, use in _OPTIONAL if _version(name) is None]
    return [
        ("kvintro", __version__),
        # Versions of Python, elfutils, libkdumpfile and others, in parentheses.
        ("drgn", version_header().split("\n", 1)[0].partition("drgn ")[2]),
        ("packages", ", ".join(f"{name} {_version(name) or 'missing'}" for name in _NEEDED)),
        ("optional packages", _list(there)),
        ("not installed", _list(missing)),
    ]


def _list(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"


def _version(package: str) -> Optional[str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
