"""Rows whose text has a vector already get the first such vector, however the work is cut into tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from made_documents import made_text, write_documents
from numpy.typing import NDArray

from retrodb.database import Database
from retrodb.engine.progress import Progress
from retrodb.engine.run import Engine, Run
from retrodb.engine.task import P, R, Task, TaskFunction, TaskRecord
from retrodb.format.arrays import save_array
from retrodb.format.document_keys import HASH_DTYPE
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.stages.context import Context
from retrodb.stages.embed import reuse, reuse_tasks
from retrodb.stages.embed.embed_plan import EmbedPlan
from retrodb.stages.embed.pending import PendingRows
from retrodb.stages.embed.reuse_tasks import ReusableVectors, VectorFile, read_origins
from retrodb.stages.transaction import Transaction
from retrodb.store.publish import publish
from retrodb.store.storage import LocalStorage
from retrodb.store.verify import VerifiedFiles
from retrodb.view.coverage import Coverage
from retrodb.view.view import SELF

SHARD_ROWS = 20
NUM_SHARDS = 4


class Tasks:
    """Stands for a transaction: it runs tasks."""

    def __init__(self, storage: LocalStorage) -> None:
        self.run = Run(storage, "0" * 32, "embed", "")
        self.context = Context(storage)

    def run_tasks(self, tasks: Sequence[Task[P, R]], function: TaskFunction[P, R], **_: object) -> list[TaskRecord[R]]:
        return Engine().run(self.run, tasks, function, Progress())


def made_hashes(rng: np.random.Generator, size: int) -> NDArray[np.bytes_]:
    """Hashes of few texts, in all parts of the range of numbers, and some that end in zeros."""
    texts = np.random.default_rng(0).integers(0, 256, (40, 16), dtype=np.uint8)
    texts[::3, 8:] = 0
    return np.ascontiguousarray(texts[rng.integers(0, len(texts), size)]).view("S16").ravel()


def put(storage: LocalStorage, path: str, array: np.ndarray, first_chunk: int, rows: RowSet) -> FileRecord:
    return publish(storage, "runs", path, partial(save_array, array=array), first_chunk=first_chunk, rows=rows)


def random_rows(rng: np.random.Generator) -> RowSet:
    return RowSet.from_mask(rng.random(SHARD_ROWS) < 0.6)


@pytest.mark.parametrize("cut", [{}, {"_RUN_ROWS": 1}, {"_RUN_ROWS": 30, "_MIN_FILE_ROWS": 1}])
@pytest.mark.parametrize("is_filtered", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_each_row_gets_the_first_vector_of_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, is_filtered: bool, cut: dict[str, int]
) -> None:
    for name, value in cut.items():
        monkeypatch.setattr(reuse, name, value)
    if not is_filtered:
        monkeypatch.setattr(reuse_tasks, "_FILTER_ROWS", 0)
    rng, storage = np.random.default_rng(seed), LocalStorage(tmp_path)
    all_hashes = made_hashes(rng, NUM_SHARDS * SHARD_ROWS)
    files, hashes, pending_rows, sample = made_shards(rng, storage, all_hashes)
    pending = [PendingRows(SELF, file, file, str(n), len(rows)) for n, (file, rows) in enumerate(pending_rows)]
    monkeypatch.setattr(reuse_tasks, "rows_of", lambda _, __, ___, part: pending_rows[int(part.rows)][1])
    stored = VerifiedFiles(storage)
    chunks = SimpleNamespace(
        end=len(all_hashes), overlapping=lambda kind, *span: Coverage(hashes, stored).overlapping(*span)
    )
    snapshot = SimpleNamespace(number=1, transaction="")
    view = SimpleNamespace(
        chunks=chunks, snapshot=snapshot, coverage=lambda kind, space: SimpleNamespace(records=files)
    )
    plan = cast(EmbedPlan, SimpleNamespace(view=view, space="s", pending=pending))
    reusable = reuse.find_reusable(cast(Transaction, Tasks(storage)), plan, [sample])
    # By brute force: the number and position of the first row with each text.
    old_ids = [file.first_chunk + stored.rows(file).present for file in files] + [np.load(tmp_path / "runs/ids.npy")]
    first: dict[bytes, tuple[int, int]] = {}
    for number, ids in enumerate(old_ids):
        for position, text in enumerate(all_hashes[ids].tolist()):
            first.setdefault(text, (number, position))
    for number, (file, rows) in enumerate(pending_rows):
        arrays, origins = read_origins(storage, cast(ReusableVectors, reusable), number)
        places = {int(row): (int(arrays[number_of][at, 0]), int(at)) for row, number_of, at in origins}
        texts = all_hashes[file.first_chunk + rows.present].tolist()
        assert places == {row: first[text] for row, text in enumerate(texts) if text in first}
        assert origins[:, 1].tolist() == sorted(origins[:, 1].tolist())


def made_shards(
    rng: np.random.Generator, storage: LocalStorage, all_hashes: NDArray[np.bytes_]
) -> tuple[list[FileRecord], list[FileRecord], list[tuple[FileRecord, RowSet]], VectorFile]:
    """Files of vectors of the first shards, whose values are the number of the file; pending rows of all; a sample."""
    files, hashes, pending = [], [], []
    for shard in range(NUM_SHARDS):
        first, every = shard * SHARD_ROWS, RowSet.all(SHARD_ROWS)
        of_shard = all_hashes[first : first + SHARD_ROWS].view(HASH_DTYPE)
        hashes.append(put(storage, f"runs/hashes{shard}.npy", of_shard, first, every))
        if shard < 2:
            rows = random_rows(rng)
            vectors = np.full((len(rows), 2), shard, dtype=np.float16)
            files.append(put(storage, f"runs/vectors{shard}.npy", vectors, first, rows))
        pending.append((hashes[-1], random_rows(rng)))
    ids = np.sort(rng.permutation(len(all_hashes))[:7])
    ids_file = put(storage, "runs/ids.npy", ids, -1, RowSet.all(0))
    sample = put(storage, "runs/sample.npy", np.full((7, 2), len(files), np.float16), -1, RowSet.all(7))
    return files, hashes, pending, VectorFile(sample, ids_file)


def test_many_shards_reuse_vectors_in_many_tasks(
    make_database: Callable[..., Database], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {str(number): made_text(number % 4, 100 + number % 4) for number in range(12)}
    counts, vectors = [], []
    for cut in (1 << 22, 1):
        monkeypatch.setattr(reuse, "_RUN_ROWS", cut)
        database = make_database({}, f"db{cut}")
        for number in range(0, 12, 3):
            some = {name: texts[name] for name in map(str, range(number, number + 3))}
            database.ingest([write_documents(tmp_path / "in.jsonl", some)], source="made")
            result = database.embed()
            counts.append((cut, result.num_chunks, result.num_reused))
        vectors.append(database.view().vectors("default", np.arange(database.view().chunks.end)).tobytes())
    assert [c[1:] for c in counts[:4]] == [c[1:] for c in counts[4:]]
    assert counts[1][2] > 0
    assert counts[3][1] == counts[3][2], "the last documents repeat earlier ones"
    assert vectors[0] == vectors[1]
