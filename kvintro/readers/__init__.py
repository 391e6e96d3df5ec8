# SPDX-License-Identifier: LGPL-2.1-or-later
"""A kernel's data, read without trust in it, for regions and queries."""
