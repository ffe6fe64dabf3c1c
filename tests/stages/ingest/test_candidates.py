"""Candidates and outcomes that are written in partitions are those of the whole input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrodb.engine.run import Run
from retrodb.format.arrays import map_array, save_array
from retrodb.format.document_keys import ID_DTYPE, IdArray
from retrodb.stages.ingest import candidates, upsert
from retrodb.stages.ingest.candidates import write_candidates, write_outcomes
from retrodb.stages.ingest.read_inputs import Segment
from retrodb.stages.ingest.upsert import ADDED, DUPLICATE, UNCHANGED, first_of_each_id
from retrodb.store.publish import publish
from retrodb.store.storage import LocalStorage


def made_segments(run: Run, sizes: list[int]) -> tuple[list[Segment], IdArray]:
    """Segments with keys from the whole range, some of which occur several times; and all their entries."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 1 << 64, 40, dtype=np.uint64)
    entries = np.zeros(sum(sizes), ID_DTYPE)
    entries["key_hi"] = rng.choice(keys, len(entries))
    entries["key_lo"] = rng.integers(0, 2, len(entries))
    segments = []
    for number, part in enumerate(np.split(entries, np.cumsum(sizes)[:-1])):
        file = publish(
            run.storage, "runs", f"runs/{run.id}/{number}.npy", lambda local, part=part: save_array(local, part)
        )
        segments.append(Segment(file, file, len(part)))
    entries["row"] = np.arange(len(entries))
    return segments, entries


@pytest.mark.parametrize("sizes", [[], [1], [30, 1, 69], [100]])
@pytest.mark.parametrize("partition", [1, 7, 1 << 24])
def test_partitions_give_the_files_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], partition: int
) -> None:
    run = Run(LocalStorage(tmp_path), "run", "ingest", "")
    segments, entries = made_segments(run, sizes) if sizes else ([], np.zeros(0, ID_DTYPE))
    monkeypatch.setattr(candidates, "_LEAST_ENTRIES", partition)
    monkeypatch.setattr(candidates, "_MOST_ENTRIES", partition)
    monkeypatch.setattr(candidates, "_BLOCK_RECORDS", partition)
    monkeypatch.setattr(upsert, "_BLOCK_CANDIDATES", partition)
    record = write_candidates(run, segments)
    found = map_array(tmp_path / record.path)
    expected = first_of_each_id(entries)
    assert found.tolist() == expected.tolist()
    assert [path.name for path in (tmp_path / "runs/run/spool").iterdir()] == ["candidates.npy"]
    known = np.stack([np.arange(0, len(expected), 3), np.full(len(expected[::3]), UNCHANGED)], axis=1)
    file, counts = write_outcomes(run, len(entries), found, [known], 0.0, expected[:0])
    codes = np.full(len(entries), DUPLICATE, np.uint8)
    codes[expected["row"]] = ADDED
    codes[expected["row"][::3]] = UNCHANGED
    assert map_array(tmp_path / file.path).tolist() == codes.tolist()
    assert counts == tuple(np.bincount(codes, minlength=5).tolist())
    save_array(tmp_path / "whole.npy", codes)
    assert (tmp_path / file.path).read_bytes() == (tmp_path / "whole.npy").read_bytes()
