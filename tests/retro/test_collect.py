from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.retro.collect import sample_rows
from retrodb.view.chunk_set import ChunkSet


def test_a_sample_of_rows_reads_only_the_shards_that_give_some(
    make_database: Callable[..., Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database({})
    for number in range(8):
        documents = {f"{number}-{i}": made_text(10 * number + i, 40) for i in range(3)}
        database.ingest([write_documents(tmp_path / f"{number}.jsonl", documents)], source=f"s{number}")
    chunks = database.view().chunks
    everything = sample_rows(chunks, 10**9, 0)
    assert everything.tolist() == np.flatnonzero(chunks.live_mask(0, chunks.end)).tolist()
    read: list[int] = []
    real = ChunkSet.live_mask

    def counted(self: ChunkSet, first: int, count: int) -> np.ndarray:
        read.append(first)
        return real(self, first, count)

    monkeypatch.setattr(ChunkSet, "live_mask", counted)
    rows = sample_rows(chunks, 2, 0)
    assert 1 <= len(read) <= 2 < len(chunks.ranges)
    assert sample_rows(chunks, 2, 0).tolist() == rows.tolist()
    documents_of_rows = chunks.document_ids(rows)
    assert len(rows) == np.isin(chunks.document_ids(everything), documents_of_rows).sum(), "documents are whole"
    assert len({tuple(sample_rows(chunks, 2, seed)) for seed in range(8)}) > 1
