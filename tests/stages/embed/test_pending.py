"""What lacks a vector is known without a look at what cannot have changed, and is always what a look at all chunks gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.errors import UsageError
from retrodb.format.entries import QueriesEntry
from retrodb.stages.context import Context
from retrodb.stages.embed import pending
from retrodb.stages.embed.pending import find_pending_rows, rows_of
from retrodb.stages.planned_view import PlannedSnapshot
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.view import SELF

Make = Callable[..., Database]


class Changing:
    """A database that random commands change."""

    def __init__(self, database: Database, folder: Path, seed: int) -> None:
        self.database, self.folder, self.random = database, folder, np.random.default_rng(seed)
        self.num_documents = 0

    def add(self) -> None:
        """Documents of which some are short, and some are held out."""
        numbers = range(self.num_documents, self.num_documents + 6)
        self.num_documents += 6
        texts = {f"d{number}": made_text(number, int(self.random.integers(3, 300))) for number in numbers}
        self.database.ingest([write_documents(self.folder / "in.jsonl", texts)], source="made", holdout=0.2)

    def delete(self) -> None:
        """Some documents, for one of two reasons."""
        live = [row[0] for row in self.database.sql("select doc_id from documents where live").rows]
        if live:
            names = self.random.choice(live, min(3, len(live)), replace=False).tolist()
            self.database.filter(doc_ids=names, reason=str(self.random.choice(["bad", "worse"])))

    def undelete(self) -> None:
        """All documents of a reason."""
        with suppress(UsageError):  # nothing was deleted for it yet
            self.database.undelete(reason="bad")

    def embed(self) -> None:
        """Every pending row."""
        self.database.embed()

    def compact(self) -> None:
        """All deleted rows."""
        self.database.compact(min_deleted=0.0001)

    def screen(self) -> None:
        """A new version of a test set, with a text of the database."""
        items = {"item": made_text(int(self.random.integers(0, self.num_documents + 1)), 40)}
        self.database.dedup([write_documents(self.folder / "test.jsonl", items)], name="test")

    def restore(self) -> None:
        """An earlier snapshot."""
        self.database.restore(int(self.random.integers(1, self.database.view().snapshot.number + 1)))


COMMANDS = ("add", "delete", "undelete", "embed", "embed", "compact", "screen", "restore")


def expected_rows(database: Database) -> dict[tuple[str, int], list[int]]:
    """The pending rows of every range, by a look at all chunks."""
    view = database.view()
    rows = {}
    for query_set in (SELF, *view.snapshot.names(QueriesEntry)):
        chunks = view.query_set(query_set)
        for span in (record.span for record in chunks.ranges):
            wanted = view.embeddable_mask(*span) if query_set == SELF else chunks.key_mask(*span)
            mask = wanted & ~view.query_vectors(query_set, "default").covered_mask(*span)
            if mask.any():
                rows[query_set, span.first_chunk] = np.flatnonzero(mask).tolist()
    return rows


def planned_rows(database: Database) -> dict[tuple[str, int], list[int]]:
    context = Context(database.view().storage)
    view = context.view()
    snapshot, rows = PlannedSnapshot.of(view), {}
    for part in find_pending_rows(context, view, "default"):
        of_part = rows_of(context.storage, snapshot, "default", part)
        assert len(of_part) == part.num_rows
        rows[part.query_set, part.chunks.first_chunk] = of_part.present.tolist()
    return rows


@pytest.mark.parametrize("seed", range(6))
def test_pending_rows_are_those_of_a_look_at_all_chunks(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    if seed % 2:
        monkeypatch.setattr(pending, "_GROUP_CHUNKS", 1)  # a task for each range
    changing = Changing(make_database({}), tmp_path, seed)
    changing.add()
    for command in changing.random.choice(COMMANDS, 16).tolist():
        getattr(changing, command)()
        expected = expected_rows(changing.database)
        assert planned_rows(changing.database) == expected, command
        assert planned_rows(changing.database) == expected, f"{command}, remembered"
    assert not [path for path in changing.database.view().storage.list("runs") if "pending" in path]


def test_ranges_without_pending_rows_are_not_looked_at_again(
    make_database: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = make_database({f"d{number}": made_text(number, 50 + number) for number in range(30)})
    database.embed()
    more = {"more": made_text(3, 300)}
    database.ingest([write_documents(tmp_path / "in.jsonl", more)], source="made")
    database.embed()
    assert any(record.rows is not None for record in database.view().manifest.files("vectors")), "short tails"
    read: list[str] = []
    real = ChunkSet._read_layout

    def counting(chunks: ChunkSet, record: object) -> object:
        read.append("layout")
        return real(chunks, record)  # type: ignore[arg-type]

    monkeypatch.setattr(ChunkSet, "_read_layout", counting)
    assert database.embed().num_chunks == 0
    assert not read
    database.filter(doc_ids=["d3"], reason="bad")
    read.clear()
    assert database.embed().num_chunks == 0
    assert not read, "the counts of the shard with the new tombstone say enough"
