#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""List where shared code assumes x86-64.

    tools/x86_uses.py [FILE...]  one line for each use in all files, or in those whose names begin with FILE
    tools/x86_uses.py --counts   the number of uses of each kind in each file, and the sum

Examines the code of every module of kvintro outside ``kvintro/arch/x86_64``, but not comments, docstrings and
messages. ``ALLOWED`` lists the correct uses, each with its reason.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Collection, Dict, Iterator, List, NamedTuple, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "kvintro"

#: Names that belong to x86-64, by meaning.
_IDEAS = {
    "page size": "PAGE_SHIFT PAGE_SIZE PMD_SHIFT PUD_SHIFT P4D_SHIFT",
    "size of a table": "PTRS_PER_TABLE TABLE_SIZE",
    "bit of an entry": (
        "PRESENT RW USER PWT PCD ACCESSED DIRTY PSE PAT GLOBAL PROTNONE PAT_LARGE NX "
        "EFFECTIVE_NX EFFECTIVE_RW STALE_NX FLAG_BITS large_bit large_levels reserved_bits flags_mask"
    ),
    "width of addresses": "pfn_mask physical_mask NUMBER(sme_mask)",
    "place of the image": (
        "START_KERNEL_MAP phys_base DEFAULT_TEXT image_window NUMBER(phys_base) NUMBER(KERNEL_IMAGE_SIZE)"
    ),
    "halves and their neighbours": "guard_hole ldt_remap pgdir_shift sign_extend",
    "roots": "PTI_USER_ROOT_BIT init_top_pgt pti",
    "fixed place": (
        "CPU_ENTRY_AREA_BASE ESPFIX_BASE EFI_VA_START EFI_VA_END MODULES_END VSYSCALL_ADDR FIXADDR_TOP "
        "TOP_HOLE KASAN_SHADOW_OFFSET LDT_SLOT_STRIDE SECTION_SIZE_BITS"
    ),
    "KASLR and boot": "kaslr_slots boot_params e820_table",
    "paging form": ("X86Form PAGE_NAMES geometry __pgtable_l5_enabled NUMBER(pgtable_l5_enabled)"),
    "base variable": "page_offset_base vmalloc_base vmemmap_base",
}
NAMES: Dict[str, str] = {name: idea for idea, names in _IDEAS.items() for name in names.split()}
#: Numbers that are the size or mask of a page or a table.
NUMBERS = {4096: "page size", 0xFFF: "page size", 512: "size of a table", 511: "size of a table"}
#: Shifts that mean a page, a large page or a table.
SHIFTS = {12: "page size", 21: "page size", 9: "size of a table"}
_X86_REGIONS = {"guard_hole", "ldt_remap", "cpu_entry_area", "espfix", "efi", "vsyscall"}
_REGIONS = _X86_REGIONS | {
    *("user", "non_canonical", "direct_map", "vmalloc", "vmemmap", "kasan_shadow", "kernel_image"),
    *("modules", "fixmap"),
}
_DTYPES = re.compile(r"^[<>][uif]?[1248Q]$|^[<>]\d*[QIHB]+$")

#: (file, use; ``*`` for any) -> why it is correct there.
ALLOWED: Dict[Tuple[str, str], str] = {
    ("arch/data.py", "*"): "the byte order of the kernel's data, on all architectures that are read",
    ("arch/others.py", "<< 12"): "possible page sizes of architectures without a form",
    ("convert/__init__.py", "*"): "the format of notes, and what VMCOREINFO may say",
    ("convert/elf.py", "*"): "ELF's own format",
    ("convert/kdump.py", "*"): "makedumpfile's format",
    ("queries/pages/levels.py", "USER"): "a level of makedumpfile's",
    ("convert/target.py", "number 512"): "the unit of st_blocks",
    ("queries/pages/by_vmcoreinfo.py", "number 512"): "how many pages are looked at",
    ("queries/pages/format.py", "number 512"): "values of page types",
    ("readers/names.py", "number 512"): "KSYM_NAME_LEN",
    ("regions/vmalloc.py", "number 4096"): "VM_SPARSE",
    ("source/btf.py", "*"): "BTF's own format",
    ("source/cache.py", "number 512"): "the unit of st_blocks",
    ("source/content.py", "number 512"): "the unit of st_blocks",
    ("source/elf.py", "<< 12"): "how many headers are read at once",
    ("source/encrypted.py", "number 512"): "how many pages are looked at",
    ("source/files.py", "number 512"): "the unit of st_blocks",
    ("source/flattened.py", "*"): "makedumpfile's format",
    ("source/formats/avml.py", "number 512"): "sizes of AVML's chunks",
    ("source/formats/qcow2.py", "*"): "QEMU's format, big-endian",
    ("source/formats/unread.py", "*"): "formats of disks and other files",
    ("source/kallsyms.py", "GLOBAL"): "drgn's word for a symbol's binding",
    ("source/kallsyms.py", "number 512"): "the size of kallsyms_token_index",
    ("source/kdump.py", "*"): "diskdump's format; its blocks have the size that the header says",
    ("source/loaded_modules.py", "number 512"): "megabytes of all modules' symbols",
    ("source/loaded_modules.py", '"<IBBHQQ"'): "symbols of ELF",
    ("source/privileges.py", '"USER"'): "a variable of the environment",
    ("source/qmp.py", "number 4096"): "the longest greeting",
    ("source/scan.py", '"<III"'): "the header of BTF",
    ("source/scan.py", "<< 21"): "the most symbols",
    ("source/stream.py", "*"): "QEMU's format, big-endian, with flags and limits of its own",
    ("source/translation.py", "<< 12"): "how many tables are kept",
    ("text.py", "<< 12"): "how many texts are kept",
    ("arch/rights.py", "*"): "its USER is a right, not x86-64's bit",
    ("queries/constants.py", "*"): "MAX_ERRNO and ERESTARTSYS, the same on every architecture",
    ("arch/entry.py", '"DIRTY"'): "a bit of migration entries, the same on every architecture",
    ("arch/form.py", "number 4096"): "the smallest page that any architecture has",
    ("arch/form.py", '"<u8"'): "the form's own byte order decides",
    ("arch/form.py", '">u8"'): "the form's own byte order decides",
    ("arch/ptdump_text.py", "<< 12"): "how many texts are kept",
    ("browse/session.py", 'compared with "modules"'): "the key of a table",
    ("browse/session.py", 'compared with "user"'): "the name of a command",
    ("browse/session.py", "number 512"): "cells of a picture",
    ("commands/pages.py", "number 512"): "cells of a picture",
    ("queries/roots.py", 'compared with "efi"'): "the name of a root on the command line",
    ("queries/roots.py", 'compared with "user"'): "the name of a root on the command line",
    ("queries/translate.py", 'compared with "efi"'): "the name of a root on the command line",
    ("commands/ptdump.py", 'compared with "user"'): "the name of a root on the command line",
    ("model.py", "pti"): "a member of JSON's kernel since version 1, beside isolation",
    ("paging/broken.py", "<< 12"): "how many tables are reported",
    ("paging/tree.py", "<< 21"): "a bit of a range's key",
    ("prompt.py", '"phys_base"'): "a member of the API since version 1, beside image_offset",
    ("queries/audit/running.py", 'compared with "modules"'): "the key of a table",
    ("render/html.py", 'compared with "direct_map"'): "a row's key is all that a page has of its region",
    ("render/html.py", 'compared with "modules"'): "the key of a section",
    ("render/html.py", 'compared with "vmalloc"'): "the key of a section",
    ("render/info.py", '"pti"'): "the key of a fact since version 1",
    ("queries/coverage.py", "<< 12"): "how many sections are looked up",
    ("render/colors.py", '"ldt_remap"'): "a colour; regions without one have a colour, too",
    ("render/map.py", 'compared with "kernel_image"'): "a row's key is all that a drawing has of its region",
    ("render/map.py", "number 4096"): "where the axis begins",
    ("render/svg.py", '"ldt_remap"'): "a colour; regions without one have a colour, too",
    ("render/svg.py", 'compared with "kernel_image"'): "a row's key is all that a drawing has of its region",
    ("render/svg.py", "number 4096"): "where the axis begins",
    ("reports/bug_report.py", '"pti"'): "the key of a fact, and a parameter of kernels",
    ("reports/diff/findings.py", 'compared with "modules"'): "the key of a part",
    ("reports/diff/read.py", 'compared with "kernel_image"'): "of a saved row there is only the key",
    ("reports/diff/saved.py", '"pti"'): "a member of JSON's kernel since version 1, before isolation",
    ("reports/diff/saved.py", 'compared with "kernel_image"'): "of a saved row there is only the key",
    ("reports/info.py", '"pti"'): "the key of a fact since version 1",
    ("reports/info.py", "number 512"): "the length of a text",
    ("reports/pages.py", "number 512"): "cells of a picture",
    ("reports/show.py", "<< 12"): "how many ranges are shown",
    ("source/_variable_table.py", "*"): "types of variables, whichever a kernel has",
    ("source/blocks.py", "*"): "formats of packed files, which are little-endian on any machine",
    ("source/formats/virtualbox.py", "*"): "VirtualBox runs on x86-64",
    ("source/formats/xen_core.py", "*"): "cores of Xen's x86 guests",
    ("source/formats/xl_save.py", "*"): "save files of Xen's x86 guests",
    ("source/formats/vmware.py", "*"): "files of VMware's, which are little-endian on any machine",
}


class Use(NamedTuple):
    """A place where shared code assumes something."""

    file: str
    line: int
    what: str
    idea: str


def _docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def _number(node: ast.AST) -> Optional[int]:
    """A literal, or ``numpy.uint64(literal)``, ``u(literal)``."""
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        node = node.args[0]
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    return None


def _shift_uses(node: ast.BinOp) -> Iterator[Tuple[str, str]]:
    sign = "<<" if isinstance(node.op, ast.LShift) else ">>"
    by = _number(node.right)
    inner = node.right
    if by is None and isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Add):
        # 12 + 9 * (level - 1)
        by = _number(inner.left)
    if by in SHIFTS:
        yield f"{sign} {by}", SHIFTS[by]


def _compared_keys(node: ast.Compare) -> Iterator[Tuple[str, str]]:
    """Keys of regions that a value is compared with, or searched in."""
    for side in (node.left, *node.comparators):
        for part in ast.walk(side) if isinstance(side, (ast.Tuple, ast.Set, ast.List)) else (side,):
            if isinstance(part, ast.Constant) and part.value in _REGIONS:
                yield f'compared with "{part.value}"', "region key"


def _rights(tree: ast.AST) -> Iterator[str]:
    """Names that a file imports from kvintro.arch.rights, which are not a processor's bits."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "kvintro.arch.rights":
            yield from (alias.asname or alias.name for alias in node.names)


def _uses(tree: ast.AST) -> Iterator[Tuple[ast.AST, str, str]]:
    skipped = set(map(id, _docstrings(tree)))
    rights = set(_rights(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kvintro.arch.x86_64"):
            yield node, f"import of {node.module}", "wired architecture"
        elif isinstance(node, ast.ImportFrom) and node.module == "kvintro.arch":
            if any(alias.name.startswith("x86_64") for alias in node.names):
                yield node, "import of kvintro.arch.x86_64", "wired architecture"
        elif isinstance(node, ast.Import) and any("kvintro.arch.x86_64" in a.name for a in node.names):
            yield node, "import of kvintro.arch.x86_64", "wired architecture"
        elif isinstance(node, ast.Name) and node.id in NAMES and node.id not in rights:
            yield node, node.id, NAMES[node.id]
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node, node.attr, NAMES[node.attr]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.LShift, ast.RShift)):
            for what, idea in _shift_uses(node):
                yield node, what, idea
        elif isinstance(node, ast.Compare):
            for what, idea in _compared_keys(node):
                yield node, what, idea
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "locate":
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and argument.value in _X86_REGIONS:
                yield node, f'locate("{argument.value}")', "region key"
        elif isinstance(node, ast.Constant) and id(node) not in skipped:
            if type(node.value) is int and node.value in NUMBERS:
                yield node, f"number {node.value}", NUMBERS[node.value]
            elif isinstance(node.value, str) and node.value in NAMES:
                yield node, f'"{node.value}"', NAMES[node.value]
            elif isinstance(node.value, str) and _DTYPES.match(node.value):
                yield node, f'"{node.value}"', "byte order"


def uses(allowed: Collection[Tuple[str, str]] = tuple(ALLOWED)) -> List[Use]:
    """All uses outside kvintro/arch/x86_64 that are not allowed."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if file.startswith("arch/x86_64/"):
            continue
        # Another architecture may use the same names, but must not import from x86-64.
        own = file.startswith("arch/") and file.count("/") > 1
        for node, what, idea in _uses(ast.parse(path.read_text())):
            if own and idea != "wired architecture":
                continue
            if (file, what) not in allowed and (file, "*") not in allowed:
                found.append(Use(file, getattr(node, "lineno", 0), what, idea))
    return sorted(found)


def main(arguments: List[str]) -> int:
    """Print the list, or what the option asks for."""
    found = uses()
    if "--counts" in arguments:
        for key in ("file", "idea"):
            for name, count in sorted(Counter(getattr(use, key) for use in found).items()):
                print(f"{count:5} {name}")
        print(f"{len(found):5} in {len({use.file for use in found})} files")
        return 0
    names = tuple(name.removeprefix("kvintro/") for name in arguments) or ("",)
    for use in found:
        if use.file.startswith(names):
            print(f"kvintro/{use.file}:{use.line}: {use.what} ({use.idea})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
