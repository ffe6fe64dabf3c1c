"""Proving: what shows that the database helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from retrodb.config import ValidateParams
from retrodb.facade.opened import Opened, params_of

if TYPE_CHECKING:
    from retrodb.retro.validate import ValidateResult


class Proving(Opened):
    """Proving: what shows that the database helps."""

    def validate(self, *, table: str | None = None, heldout: str | None = None, **options: Any) -> ValidateResult:
        """Train the bundled RETRO model for a bounded time and tell whether retrieval helps. Options: `ValidateParams`.

        Args:
            table: the neighbour table to train with; None is that of the database's own chunks.
            heldout: the table of held-out documents; None is the first of a foreign query set.
        """
        from retrodb.retro.validate import run_validate

        params = params_of(ValidateParams, options)
        return run_validate(self.view(), self._context.progress, params, table=table, heldout=heldout)
