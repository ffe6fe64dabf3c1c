"""The answers of every reading command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from retrodb.database import Database
from retrodb.errors import RetroDBError


def answers(database: Database) -> dict[str, Any]:
    """The answer of every reading command; the exception when it refuses."""
    view_rows = np.arange(400)
    asks: dict[str, Callable[[], Any]] = {
        "stats": lambda: database.stats().num_live_chunks,
        "search": lambda: [(h.chunk_id, h.text, h.continuation) for h in database.search(["ban kaban lodor"], k=4)[0]],
        "self": lambda: _table(database, "self", view_rows),
        "training": lambda: _table(database, "training", view_rows[:20]),
        "texts": lambda: database.view().chunks.texts(view_rows),
        "tokens": lambda: database.view().chunks.gather_tokens(view_rows).tokens.tolist(),
        "heldout": lambda: database.view().query_set("heldout").texts(view_rows[:40]),
        "sql": lambda: sorted(database.sql("select doc_id, live, metadata from documents").rows),
        "sql_chunks": lambda: database.sql("select chunk_id, text, live from chunks order by 1").rows,
        "filter": lambda: database.filter(where="odd > 0 or num_tokens < 3", dry_run=True).num_documents_by_source,
        "leaks": lambda: [(leak.doc_id, leak.item) for leak in database.leaks()],
        "duplicates": lambda: [(each.doc_id, each.keeper_doc_id) for each in database.duplicates()],
        "exposure": lambda: [each.row for each in database.exposure("exam", table="training").exposed],
    }
    results: dict[str, Any] = {}
    for name, ask in asks.items():
        try:
            results[name] = ask()
        except RetroDBError as error:
            results[name] = error
    return results


def _table(database: Database, name: str, rows: Any) -> Any:
    table = database.neighbour_table(name)
    ids, distances = table.read(rows)
    return table.rows().tolist(), ids.tolist(), distances.tolist()
