# SPDX-License-Identifier: LGPL-2.1-or-later
"""``page_type`` and zones by VMCOREINFO, in every form that kernels have had.

The numbers are from the kernel's sources of each version (include/linux/page-flags.h,
kernel/crash_core.c, kernel/vmcore_info.c): there are cores of only some of these kernels.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Dict

import pytest

from kvintro.errors import Unavailable
from kvintro.kernels import Kernel
from kvintro.queries.pages import by_vmcoreinfo
from kvintro.queries.pages.by_vmcoreinfo import _nodes_and_zones, _order, _types


def kernel(keys: Dict[str, int]) -> Any:
    """A kernel that has only VMCOREINFO."""
    source = SimpleNamespace(types="none", vmcoreinfo={key: str(value) for key, value in keys.items()})
    made: Any = SimpleNamespace(source=source, find_symbol=lambda name: None)
    made.number = lambda key: Kernel.number(made, key)
    return made


def mapcounts(**values: int) -> Dict[str, int]:
    """``NUMBER(PAGE_..._MAPCOUNT_VALUE)``."""
    return {f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)": value for name, value in values.items()}


#: By kernel: the keys' values, page_type of a page of each type, and of a page of a type without a name.
FORMS = {
    # ~PG_buddy and so on; PG_table is 0x200 (5.11 to 6.8).
    "6.8": ({"buddy": -129, "offline": -257}, {"buddy": 0xFFFFFF7F, "offline": 0xFFFFFEFF}, 0xFFFFFDFF),
    # PG_hugetlb is 0x800 (d99e3140a4d3), PG_slab 0x1000 (46df8e73a4a3).
    "6.10": (
        {"buddy": -129, "offline": -257, "hugetlb": -2049, "slab": -4097},
        {"buddy": 0xFFFFFF7F, "hugetlb": 0xFFFFF7FF, "slab": 0xFFFFEFFF},
        0xFFFFFDFF,
    ),
    # Bits from 0x40000000 down; PG_table is 0x10000000.
    "6.11": (
        {"buddy": ~0x40000000, "offline": ~0x20000000, "hugetlb": ~0x04000000, "slab": ~0x02000000},
        {"buddy": 0xBFFFFFFF, "hugetlb": 0xFBFFFFFF, "slab": 0xFDFFFFFF},
        0xEFFFFFFF,
    ),
    # enum pagetype; PGTY_table is 0xf2.
    "6.12": (
        {"buddy": -268435456, "offline": -251658240, "hugetlb": -201326592, "slab": -184549376},
        {"buddy": 0xF0FFFFFF, "hugetlb": 0xF4000000, "slab": 0xF5000020},
        0xF2FFFFFF,
    ),
}


def code(form: Any, page_type: int) -> int:
    """The part of ``page_type`` that a state keeps."""
    if form.inverted:
        return (
            (~page_type & 0xFFFFFFFF) >> form.shift & form.bits if page_type & form.base == form.base else 0
        )
    top = page_type >> 24
    return top if 0x80 <= top < 0xFF else 0


@pytest.mark.parametrize("name", FORMS)
def test_types(name: str) -> None:
    keys, pages, nameless = FORMS[name]
    form = _types(kernel(mapcounts(**keys)))
    for kind, value in pages.items():
        assert [other for other in form.codes if form.is_type(code(form, value), other)] == [kind]
        assert not form.is_nameless(code(form, value))
    assert form.is_nameless(code(form, nameless))
    assert not any(form.is_type(code(form, nameless), kind) for kind in form.codes)
    # No type, mapped once, mapped a thousand times.
    for count in (0xFFFFFFFF, 0, 999):
        assert code(form, count) == 0 and not form.is_nameless(0)


@pytest.mark.parametrize("values", [{"buddy": -130}, {"buddy": 0}, {"buddy": -129, "offline": -129}])
def test_types_that_make_no_sense(values: Dict[str, int]) -> None:
    with pytest.raises(Unavailable, match="are invalid"):
        _types(kernel(mapcounts(**values)))


def zones(nr_zones: int, zone: int, nodes: int) -> Any:
    keys = {"OFFSET(pglist_data.node_zones)": 0, "OFFSET(pglist_data.nr_zones)": nr_zones, "SIZE(zone)": zone}
    return kernel({**keys, "LENGTH(node_data)": nodes} if nodes else keys)


@pytest.mark.parametrize(
    "nr_zones, zone, nodes, expected",
    [
        (171552, 1536, 1024, (1024, 5)),  # Debian's 6.1 and 6.12
        (173152, 1856, 1024, (1024, 5)),  # Debian's 7.3
        (5 * 1536 + 16 * (5 + 1), 1536, 0, (1, 5)),  # without CONFIG_NUMA there is one list
        (11232, 1728, 0, (16, 5)),  # Debian's 6.12 for arm64, which does not give the number of nodes
    ],
)
def test_zones(nr_zones: int, zone: int, nodes: int, expected: Any) -> None:
    assert _nodes_and_zones(zones(nr_zones, zone, nodes)) == expected


def test_zones_that_fit_with_and_without_numa(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"OFFSET(pglist_data.node_zones)": 0, "OFFSET(pglist_data.nr_zones)": 10016, "SIZE(zone)": 1984}
    monkeypatch.setattr(by_vmcoreinfo, "_zones_by_content", lambda kernel: ())
    with pytest.raises(Unavailable, match="several numbers fit"):
        _nodes_and_zones(kernel(keys))
    assert _nodes_and_zones(kernel({**keys, "SYMBOL(contig_page_data)": 1 << 63})) == (1, 5)


@pytest.mark.parametrize(
    "names, expected",
    # CONFIG_NODES_SHIFT is 4, and there is no CONFIG_ZONE_DEVICE; or 1, with CONFIG_ZONE_DEVICE.
    [(("DMA", "DMA32", "Normal", "Movable"), (16, 4)), (by_vmcoreinfo._ZONES, (2, 5))],
)
def test_zones_by_their_names(names: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers of Debian's 6.1 for arm64."""
    monkeypatch.setattr(by_vmcoreinfo, "_zones_by_content", lambda kernel: names)
    assert _nodes_and_zones(zones(8992, 1728, 0)) == expected


def test_zones_that_do_not_fit() -> None:
    with pytest.raises(Unavailable, match="the number of zones of a node is unknown"):
        _nodes_and_zones(zones(171552 + 8, 1536, 1024))


def test_the_order_of_compound_pages() -> None:
    """A member of struct page, of struct folio (6.3), then the low byte of the second page (6.6)."""
    flags = {"OFFSET(page.flags)": 0}
    assert _order(kernel({**flags, "OFFSET(page.compound_order)": 17}), 64) == 81
    assert _order(kernel({**flags, "OFFSET(folio._folio_order)": 80}), 64) == 80
    assert _order(kernel(flags), 64) == 64
