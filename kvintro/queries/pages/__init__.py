# SPDX-License-Identifier: LGPL-2.1-or-later
"""Struct pages: how they are laid out, all of them in bulk, what one is, and how many there are of what."""
