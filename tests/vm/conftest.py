# SPDX-License-Identifier: LGPL-2.1-or-later
"""The order of these tests."""

from __future__ import annotations

from typing import List

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Start the guest under load first, as it takes longest; the order is otherwise kept."""
    items.sort(key=lambda item: item.path.name != "test_under_load.py")
