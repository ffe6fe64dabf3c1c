"""What readers see of a database, for tests to compare."""

from __future__ import annotations

import numpy as np

from retrodb.database import Database


def live_texts(database: Database, as_of: int | None = None) -> dict[str, str]:
    """The live documents by id, each as the text of its live chunks."""
    view = database.view(as_of)
    ids = np.arange(view.snapshot.next_chunk)
    ids = ids[view.chunks.is_live(ids)]
    texts: dict[str, str] = {}
    for document, text in zip(view.chunks.documents(ids), view.chunks.texts(ids), strict=True):
        assert document is not None
        texts[document["doc_id"]] = texts.get(document["doc_id"], "") + text
    return texts
