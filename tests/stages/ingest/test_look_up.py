"""Looking new documents up in the old ones gives what a comparison of every pair gives, and reads next to nothing."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import numpy as np
import pytest

from retrodb.engine.local import LocalEngine
from retrodb.format.arrays import BoolArray, Int64Array
from retrodb.format.document_keys import ID_DTYPE, IdArray, sort_ids
from retrodb.stages.context import Context
from retrodb.stages.ingest import look_up, plan, upsert
from retrodb.stages.ingest.upsert import (
    ADDED,
    DUPLICATE,
    HELD_OUT,
    OUTCOMES,
    SUPERSEDES,
    UNCHANGED,
    compare,
    decide,
    first_of_each_id,
    last_of_each_position,
)

from .ingest_model import documents, held_out_documents, ingest, new_database, write_json_lines

FILES = 3


def made_entries(rng: np.random.Generator, count: int) -> IdArray:
    """Entries with few keys and contents, so that ids repeat and different keys share their upper halves."""
    entries = np.empty(count, dtype=ID_DTYPE)
    for name, values in (("key_hi", 4), ("key_lo", 3), ("hash_hi", 2), ("hash_lo", 2)):
        entries[name] = rng.integers(0, values, count)
    entries["row"] = np.arange(count)
    return entries


def key(entry: IdArray) -> tuple[int, int]:
    return int(entry["key_hi"]), int(entry["key_lo"])


def content(entry: IdArray) -> tuple[int, int]:
    return int(entry["hash_hi"]), int(entry["hash_lo"])


def expected_decisions(
    new: IdArray, files: list[IdArray], current: list[BoolArray], mirror: bool
) -> tuple[list[int], set[int], set[int]]:
    """The outcomes of the records, and the superseded and missing documents, by comparing every pair."""
    first = {}
    for entry in new:
        first.setdefault(key(entry), entry)
    outcome, superseded, missing = dict.fromkeys(first, ADDED), set(), set()
    for number, (entries, is_current) in enumerate(zip(files, current, strict=True)):
        of_file: dict[tuple[int, int], set[int]] = {}
        for entry in entries:
            row = int(entry["row"])
            if not is_current[row]:
                continue
            if key(entry) not in first:
                missing.add(100 * number + row)
            elif content(entry) == content(first[key(entry)]):
                of_file.setdefault(key(entry), set()).add(UNCHANGED)
            else:
                of_file.setdefault(key(entry), set()).add(SUPERSEDES)
                superseded.add(100 * number + row)
        for changed, codes in of_file.items():
            outcome[changed] = SUPERSEDES if SUPERSEDES in codes else UNCHANGED
    outcomes = [outcome[key(entry)] if first[key(entry)]["row"] == entry["row"] else DUPLICATE for entry in new]
    return outcomes, superseded, missing if mirror else set()


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_decisions_are_those_of_comparing_every_pair(seed: int, mirror: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    new = made_entries(rng, int(rng.integers(0, 12)))
    files = [sort_ids(made_entries(rng, int(rng.integers(0, 12)))) for _ in range(FILES)]
    current = [rng.random(len(file)) < 0.7 for file in files]

    def is_current(number: int) -> object:
        return lambda rows: current[number][rows]

    candidates = first_of_each_id(new)
    comparisons = [
        compare(candidates, file, 100 * number, is_current(number), mirror=mirror)  # type: ignore[arg-type]
        for number, file in enumerate(files)
    ]
    codes = np.full(len(new), DUPLICATE, np.uint8)
    monkeypatch.setattr(upsert, "_BLOCK_CANDIDATES", 1 + seed % 7)
    counts = decide(codes, candidates, [last_of_each_position(c.outcomes) for c in comparisons], holdout=0)
    outcomes, superseded, missing = expected_decisions(new, files, current, mirror)
    assert codes.tolist() == outcomes
    assert counts == tuple(outcomes.count(code) for code in range(len(OUTCOMES)))
    assert sorted(np.concatenate([c.superseded for c in comparisons]).tolist()) == sorted(superseded)
    assert sorted(np.concatenate([c.missing for c in comparisons]).tolist()) == sorted(missing)


def test_changed_held_out_documents_stay_held_out_and_purged_ones_stay_out() -> None:
    new = made_entries(np.random.default_rng(0), 3)
    new["key_lo"] = [0, 1, 2]
    candidates, old = first_of_each_id(new), sort_ids(new.copy())
    old["hash_hi"] += 7
    held_out = compare(candidates, old[:1], 0, everything_is_current, changed=HELD_OUT)
    codes = np.full(len(new), DUPLICATE, np.uint8)
    decide(codes, candidates, [last_of_each_position(held_out.outcomes)], holdout=0, purged_keys=old[1:2])
    by_key = dict(zip(map(key, new), codes.tolist(), strict=True))
    assert [by_key[key(entry)] for entry in old] == [HELD_OUT, UNCHANGED, ADDED]


def everything_is_current(rows: Int64Array) -> BoolArray:
    return np.ones(len(rows), dtype=bool)


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_decide_as_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    kept_documents = []
    for in_tasks in (False, True):
        context = new_database(tmp_path / f"{in_tasks}")
        context = Context(context.storage, LocalEngine(workers), clock=context.clock)
        if in_tasks:
            monkeypatch.setattr(look_up, "_GROUP_BYTES", 1)
            monkeypatch.setattr("retrodb.stages.ingest.read_tasks._SMALL_BYTES", {})
        for number in range(3):  # three shards, and held-out files
            file = write_json_lines(tmp_path / "in.jsonl", {f"{number}-{i}": f"text {i} of {number}" for i in range(9)})
            ingest(context, file, holdout=0.3)
        kept = {f"{number}-{i}": f"text {i + (i == 3)} of {number}" for number in (0, 2) for i in range(8)}
        result = ingest(context, write_json_lines(tmp_path / "in.jsonl", kept), mirror=True, holdout=0.3)
        assert (result.num_removed, result.num_unchanged) == (11, 14)
        kept_documents.append((documents(context), held_out_documents(context)))
    assert kept_documents[0] == kept_documents[1]


def test_a_document_without_an_older_version_reads_no_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = new_database(tmp_path / "db")
    for number in range(2):
        ingest(
            context,
            write_json_lines(tmp_path / "in.jsonl", {f"{number}-{i}": f"text {i}" for i in range(9)}),
            holdout=0.3,
        )

    def refuse(*arguments: object) -> None:
        raise AssertionError("documents of the database were read")

    for method in ("_read_layout", "_read_documents"):
        monkeypatch.setattr(f"retrodb.view.chunk_set.ChunkSet.{method}", refuse)
    new = write_json_lines(tmp_path / "in.jsonl", {"another": "text"})
    planned = plan.plan_ingest(context, [str(new)], plan.IngestParams("s"))
    assert planned.result.num_added == 1


def test_the_files_of_many_tasks_are_not_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = new_database(tmp_path / "db")
    for name in ("shard", "tokenize"):
        monkeypatch.setattr(f"retrodb.stages.ingest.{name}.MAX_SHARD_CHUNKS", 1)
    monkeypatch.setattr(look_up, "_GROUP_BYTES", 1)
    ingest(context, write_json_lines(tmp_path / "in.jsonl", {f"{i}": f"text {i}" for i in range(80)}))
    assert len(context.view().shards) == 80
    changed = write_json_lines(tmp_path / "in.jsonl", {f"{i}": f"text {i + i % 2}" for i in range(80)})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, limits[1]))
    try:
        planned = plan.plan_ingest(context, [str(changed)], plan.IngestParams("s"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert planned.result.num_superseded == planned.result.num_unchanged == 40
