# SPDX-License-Identifier: LGPL-2.1-or-later
"""The sessions in the documentation show the real output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.transcripts import ROOT, SAMPLE, Session, rewritten

PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_transcripts(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (ROOT / SAMPLE).exists():
        pytest.skip("the sample dump is not there")
    monkeypatch.chdir(ROOT)
    text = page.read_text(encoding="utf-8")
    assert rewritten(text, Session(SAMPLE)) == text, f"python -m tests.transcripts docs/{page.name}"


def test_there_are_transcripts() -> None:
    assert {"prompt.md", "api.md"} <= {page.name for page in PAGES}
