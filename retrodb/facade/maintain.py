"""Maintaining: what keeps a database right for years."""

from __future__ import annotations

from retrodb.facade.opened import Opened


class Maintaining(Opened):
    """Maintaining: what keeps a database right for years."""
