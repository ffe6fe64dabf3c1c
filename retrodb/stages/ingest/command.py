"""Stage ingest: files -> documents of one source -> shards.

Two passes. The first reads every split and spools what was accepted (`scan.py`). Then all keys are compared with what the
source has (`upsert.py`), which settles the fate of every record; the second pass tokenizes what is new (`cut.py`). One
commit adds the shards, tombstones what they replace, and remembers the inputs (`ingest_change.py`).

Promise: read = added + unchanged + superseded + duplicate + held out + rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.config import IngestParams, to_mapping
from retrodb.engine.run import Run, add_counts, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import InputError, TooManyRejects, UsageError
from retrodb.format.arrays import BoolArray, Int64Array, map_array, save_array
from retrodb.format.entries import QueriesEntry, SourceEntry
from retrodb.format.ids import ID_DTYPE, IdArray
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.ingest.change import HELD_OUT_SET, REMOVED, SUPERSEDED, Outcome, ingest_change
from retrodb.stages.ingest.inputs import Inputs, find_inputs, keep_standard_input, shown_path
from retrodb.stages.ingest.read_inputs import CRASHED
from retrodb.stages.ingest.read_tasks import STAGE_VERSION, run_tasks, scan
from retrodb.stages.ingest.tokenize import run_tokenize
from retrodb.stages.ingest.upsert import ADDED, HELD_OUT, OUTCOMES, SUPERSEDES, Decisions, ExistingDocuments, decide
from retrodb.store.commit import commit
from retrodb.store.publish import publish
from retrodb.store.storage import Storage
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.purged import purged_keys
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

_COUNTED = ("read", *OUTCOMES, "rejected", "removed", "chunks", "tokens")


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did."""

    snapshot: int  # the snapshot it made, or the one it found nothing new against
    source: str
    read: int  # records in: the sum of the next six
    added: int
    unchanged: int
    superseded: int  # changed documents: a new version was added, the old one tombstoned
    duplicate: int  # a second record with an id of the same input
    held_out: int
    rejected: int
    removed: int  # with --mirror: documents that the input no longer has
    chunks: int  # added
    tokens: int  # added
    skipped_inputs: int  # files that were ingested whole before, by digest
    rejects_by_reason: dict[str, int]
    rejects_path: str | None = None  # file below the database with place, reason and excerpt of each
    dry_run: bool = False


def run_ingest(
    context: Context,
    inputs: Sequence[str],
    params: IngestParams,
    *,
    files_from: Sequence[str] = (),
    dry_run: bool = False,
) -> IngestResult:
    """Ingest files into one source.

    Raises:
        UsageError, InputError: for inputs or options that cannot be meant.
        TooManyRejects: above `max_reject_rate`; nothing is committed.
        ConflictError: when another ingest of the source committed first.
    """
    _check(params)
    view = context.view()
    found = find_inputs(view, inputs, files_from, params)
    if not found.files:
        return _nothing_new(view, found, params, dry_run)
    run = open_run(context.storage, "ingest", _plan(view, found, params), context.clock)
    found = keep_standard_input(context.storage, run, found)
    scanned = scan(context, run, found, params)
    rejects = _collect_rejects(context, scanned, found)
    entries = _new_entries(context, scanned)
    known, never = _known(view, params.source), purged_keys(view)
    decisions = decide(entries, known, params.holdout, mirror=params.mirror, never=never)
    counts = _count(decisions, rejects)
    _refuse(rejects, counts, params)
    result = partial(_result, view.snapshot.number, found, params, rejects=rejects)
    if dry_run:  # what was read stays: the run itself goes on from there
        return result(counts, dry_run=True)
    if params.limit is not None and not _changes(counts):
        _drop_spool(context.storage, run)
        return result(counts, dry_run=False)
    cut, held_out = _cut(context, run, scanned, decisions, params)
    outcome = Outcome(decisions, rejects, cut, held_out, counts)
    snapshot = commit(context.storage, view.snapshot, ingest_change(view, run, found, params, outcome))
    _drop_spool(context.storage, run)
    done = result({**counts, **add_counts(cut)}, dry_run=False)
    rejects_path = path_of("rejects", task=run.id) if rejects.num_rows else None
    return replace(done, snapshot=snapshot.number, rejects_path=rejects_path)


def _nothing_new(view: View, found: Inputs, params: IngestParams, dry_run: bool) -> IngestResult:
    from retrodb.format.schemas import REJECTS

    return _result(view.snapshot.number, found, params, {}, rejects=REJECTS.empty_table(), dry_run=dry_run)


def _result(
    snapshot: int,
    found: Inputs,
    params: IngestParams,
    counts: Mapping[str, int],
    *,
    rejects: pa.Table,
    dry_run: bool,
) -> IngestResult:
    numbers: dict[str, Any] = {name: counts.get(name, 0) for name in _COUNTED}
    return IngestResult(
        snapshot=snapshot,
        source=params.source,
        **numbers,
        skipped_inputs=len(found.skipped),
        rejects_by_reason=_by_reason(rejects),
        dry_run=dry_run,
    )


def _check(params: IngestParams) -> None:
    if not params.source or "/" in params.source or "\0" in params.source:
        raise UsageError(f"'{params.source}' cannot name a source", remedy="Use a short name without '/'.")
    if not 0 <= params.holdout < 1:
        raise UsageError(f"holdout of {params.holdout}", remedy="Give a share, such as '0.5%'.")
    if (params.key_field is None) != (params.value_field is None):
        raise UsageError("only one of --key-field and --value-field", remedy="A key-value database needs both.")
    for name, known in (("oversize", ("reject", "split")), ("front_matter", ("text", "metadata"))):
        if (value := getattr(params, name)) not in known:
            raise UsageError(f"{name} is '{value}'", remedy=f"It is one of: {', '.join(known)}.")
    if params.mirror and params.limit is not None:
        raise UsageError("--mirror with --limit would remove what was not read", remedy="Leave one of them out.")


def _plan(view: View, found: Inputs, params: IngestParams) -> dict[str, Any]:
    # What is allowed to fail does not change what is read: trying again with another rate goes on with the work done.
    arguments = {name: value for name, value in to_mapping(params).items() if name != "max_reject_rate"}
    entry = view.snapshot.entry(SourceEntry, params.source)
    return {"version": STAGE_VERSION, "params": arguments, "files": found.plan, "source": entry}


def _segments(scanned: Sequence[TaskRecord[Any]]) -> Iterator[tuple[FileRecord, FileRecord, int]]:
    """The spool file, keys file and number of records of every segment, in reading order."""
    for record in scanned:
        for segment in record.result["segments"]:
            yield record.files[segment["spool"]], record.files[segment["keys"]], segment["records"]


def _new_entries(context: Context, scanned: Sequence[TaskRecord[Any]]) -> IdArray:
    """The keys of all accepted records, numbered in reading order."""
    parts = [map_array(context.storage.local(keys.path)) for _, keys, _ in _segments(scanned)]
    entries = np.concatenate([np.empty(0, ID_DTYPE), *parts])
    entries["row"] = np.arange(len(entries))
    return entries


def _known(view: View, source: str) -> list[ExistingDocuments]:
    """What the source has: in the database, and among the held-out documents of all sources."""
    own = {view.shards.record(i).first_chunk for i, name in enumerate(view.shards.source) if name == source}
    known = [_known_file(view.chunks, r, is_held_out=False) for r in view.manifest.files("ids") if r.first_chunk in own]
    if view.snapshot.entry(QueriesEntry, HELD_OUT_SET):
        held_out = view.query_set(HELD_OUT_SET)
        files = [r for r in view.manifest.files("queries", HELD_OUT_SET) if r.path.endswith("/ids.npy")]
        files = [r for r in files if _source_of(held_out, r) == source]
        known += [_known_file(held_out, record, is_held_out=True) for record in files]
    return known


def _source_of(held_out: ChunkSet, record: FileRecord) -> str:
    """The source of a file of held-out documents: every task wrote those of one."""
    documents = held_out.file("documents", record.first_chunk, record.num_chunks)
    sources = held_out.documents_table(documents).column("source")
    return str(sources[0].as_py()) if len(sources) else ""  # compaction may have left nothing of it


def _known_file(chunks: ChunkSet, record: FileRecord, *, is_held_out: bool) -> ExistingDocuments:
    entries = chunks.map(record)
    return ExistingDocuments(entries, record.first_chunk, _is_current(chunks, record, entries["row"]), is_held_out)


def _is_current(chunks: ChunkSet, record: FileRecord, first_rows: Int64Array) -> BoolArray:
    """(D,) bool: neither superseded nor removed. A document that compaction dropped counts while a decision keeps it out."""
    span = record.first_chunk, record.num_chunks
    masks = chunks.tombstones.deleted_by_reason(*span)
    current = chunks.layout(chunks.file("documents", *span)).document_of(first_rows) >= 0
    for reason in masks.keys() - {SUPERSEDED, REMOVED}:
        current |= masks[reason][first_rows]
    for reason in masks.keys() & {SUPERSEDED, REMOVED}:
        current &= ~masks[reason][first_rows]
    return current


def _collect_rejects(context: Context, scanned: Sequence[TaskRecord[Any]], found: Inputs) -> pa.Table:
    """All rejects, under the names that the user gave the files."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from retrodb.format.schemas import REJECTS

    paths = [record.files[-1].path for record in scanned if record.result["has_rejects"]]
    table = pa.concat_tables([REJECTS.empty_table(), *(read_table(context.storage.local(path)) for path in paths)])
    for file in found.files:
        if shown_path(file) != file.path:
            shown = pc.replace_substring(table.column("path"), file.path, shown_path(file))
            table = table.set_column(0, REJECTS.field("path"), shown)
    return table


def _count(decisions: Decisions, rejects: pa.Table) -> dict[str, int]:
    counts = {name: int((decisions.outcome == code).sum()) for code, name in enumerate(OUTCOMES)}
    counts["rejected"] = rejects.num_rows
    counts["read"] = len(decisions.outcome) + rejects.num_rows
    counts["removed"] = len(decisions.stale.missing) + len(decisions.stale_held_out.missing)
    return counts


def _changes(counts: Mapping[str, int]) -> bool:
    return any(counts[name] for name in ("added", "superseded", "held_out", "removed", "rejected"))


def _by_reason(rejects: pa.Table) -> dict[str, int]:
    return dict(sorted(Counter(rejects.column("reason").to_pylist()).items()))


def _refuse(rejects: pa.Table, counts: Mapping[str, int], params: IngestParams) -> None:
    by_reason = _by_reason(rejects)
    if CRASHED in by_reason and params.mirror:
        raise InputError(
            "its reader crashes, and with --mirror the documents of a file that was not read would be removed",
            where=next(row["path"] for row in rejects.to_pylist() if row["reason"] == CRASHED),
            remedy="Leave the file out without '--mirror', or mend it.",
        )
    if counts["rejected"] > params.max_reject_rate * counts["read"]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in by_reason.items())
        first = rejects.slice(0, 1).to_pylist()[0]
        raise TooManyRejects(
            f"{counts['rejected']:,} of {counts['read']:,} records were refused ({reasons}); nothing was committed",
            where=f"{first['path']}, {first['place']}: {first['reason']}",
            remedy=f"Mend the input, or allow it with '--max-reject-rate' (now {params.max_reject_rate:g}).",
        )


def _drop_spool(storage: Storage, run: Run) -> None:
    """Delete what only the second pass needed. Killed before it ends, collection does it."""
    for path in storage.list(path_of("runs", run=run.id, file="spool")):
        storage.delete(path)


def _cut(
    context: Context, run: Run, scanned: Sequence[TaskRecord[Any]], decisions: Decisions, params: IngestParams
) -> tuple[list[TaskRecord[Any]], list[TaskRecord[Any]]]:
    """Tokenize what is new: shards for the database, and files of the held-out query set."""
    outcomes = publish(
        context.storage,
        "runs",
        path_of("runs", run=run.id, file="outcomes.npy"),
        lambda local: save_array(local, decisions.outcome),
    )
    tasks: list[Task[Any, Any]] = []
    held_tasks: list[Task[Any, Any]] = []
    first = 0
    for spool, keys, records in _segments(scanned):
        fate = decisions.outcome[first : first + records]
        payload = {
            "spool": spool.path,
            "keys": keys.path,
            "outcomes": outcomes.path,
            "first": first,
            "records": records,
        }
        inputs = [spool.digest.sha256.hex(), outcomes.digest.sha256.hex(), run.clock]
        for codes, queries, wanted in (((ADDED, SUPERSEDES), "", tasks), ((HELD_OUT,), HELD_OUT_SET, held_tasks)):
            if np.isin(fate, codes).any():
                details = {**payload, "keep": list(codes), "queries": queries, "source": params.source}
                wanted.append(make_task("cut", STAGE_VERSION, details, inputs, spool.digest.size_bytes))
        first += records
    done = run_tasks(context, run, tasks + held_tasks, run_tokenize, rate_of="chunks")
    return done[: len(tasks)], done[len(tasks) :]
