# SPDX-License-Identifier: LGPL-2.1-or-later
"""numpy's names for types of the kernel's data.

All kernels that kvintro reads are little-endian. Page tables may differ, see
:attr:`kvintro.arch.form.PagingForm.entry_dtype`.
"""

from __future__ import annotations

UINT64, UINT32, INT32 = "<u8", "<u4", "<i4"
