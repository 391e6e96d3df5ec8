# SPDX-License-Identifier: LGPL-2.1-or-later
"""volatility3 as a reference: physical memory as it reads it from the tests' files."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest


class Volatility:
    """A file, read by one of volatility3's layers.

    :param kind: module and class of the layer, below ``volatility3.framework.layers``.
    :param meta: the file that gives the places of memory, for VMware.
    """

    def __init__(self, kind: str, path: Path, meta: Path = Path()) -> None:
        try:
            contexts = import_module("volatility3.framework.contexts")
        except ImportError:
            pytest.skip("volatility3 is missing (pip install volatility3)")
        physical = import_module("volatility3.framework.layers.physical")
        import_module("volatility3.symbols")
        context = contexts.Context()
        for name, file in (("base", path), ("meta", meta)):
            if file != Path():
                context.config[f"{name}.location"] = file.as_uri()
                context.add_layer(physical.FileLayer(context, name, name))
        context.config["top.base_layer"] = "base"
        context.config["top.meta_layer"] = "meta"
        module, name = kind.split(".")
        layer = getattr(import_module(f"volatility3.framework.layers.{module}"), name)
        context.add_layer(layer(context, "top", "top"))
        self._layer: Any = context.layers["top"]

    def read(self, address: int, size: int) -> bytes:
        """Physical memory."""
        data: bytes = self._layer.read(address, size)
        return data
