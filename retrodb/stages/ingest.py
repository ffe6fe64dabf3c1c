"""Stage ingest: files -> documents of one source -> shards.

Two passes. The first reads every split and spools what was accepted (`scan.py`). Then all keys are compared with what the
source has (`upsert.py`), which settles the fate of every record; the second pass tokenizes what is new (`cut.py`). One
commit adds the shards, tombstones what they replace, and remembers the inputs (`ingest_change.py`).

Promise: read = added + unchanged + superseded + duplicate + held out + rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from retrodb.config import IngestParams, to_mapping
from retrodb.corpus.document import Fields, Limits
from retrodb.corpus.inputs import expand_inputs, file_digest, plan_splits
from retrodb.engine.run import Run, add_counts, open_run
from retrodb.engine.task import Task, TaskRecord, make_task
from retrodb.errors import TooManyRejects, UsageError
from retrodb.format.arrays import BoolArray, map_array, save_array
from retrodb.format.ids import ID_DTYPE, IdArray
from retrodb.format.kinds import path_of
from retrodb.format.parquet import read_table
from retrodb.format.records import FileRecord
from retrodb.stages.context import Context
from retrodb.stages.cut import run_cut
from retrodb.stages.ingest_change import HELD_OUT_SET, REMOVED, SUPERSEDED, Inputs, Outcome, ingest_change
from retrodb.stages.scan import run_scan
from retrodb.stages.upsert import ADDED, HELD_OUT, OUTCOMES, SUPERSEDES, Decisions, Known, decide
from retrodb.store.commit import commit
from retrodb.store.digest import identity
from retrodb.store.publish import publish
from retrodb.view.chunk_set import ChunkSet
from retrodb.view.view import View

if TYPE_CHECKING:
    import pyarrow as pa

STAGE_VERSION = 1
_COUNTED = ("read", *OUTCOMES, "rejected", "removed", "chunks", "tokens")
_MIN_SEGMENT, _MAX_SEGMENT = 8 << 20, 160 << 20  # characters; the upper one gives shards of nearly 2^20 chunks


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
    found = _find_inputs(view, inputs, files_from, params)
    if not found.files:
        return _nothing_new(view, found, params)
    run = open_run(context.storage, "ingest", _plan(view, found, params), context.clock)
    scanned = _scan(context, run, found, params)
    rejects = _collect_rejects(context, scanned)
    decisions = decide(_new_entries(context, scanned), _known(view, params.source), params.holdout)
    counts = _count(decisions, rejects, params)
    if counts["rejected"] > params.max_reject_rate * counts["read"]:
        raise _too_many(rejects, counts, params)
    cut: list[TaskRecord] = []
    snapshot = view.snapshot
    if not dry_run:
        cut, held = _cut(context, run, scanned, decisions, params)
        outcome = Outcome(decisions, rejects, cut, held, counts)
        snapshot = commit(context.storage, view.snapshot, ingest_change(view, run, found, params, outcome))
    result = _result(snapshot.number, found, params, {**counts, **add_counts(cut)}, rejects, dry_run)
    has_file = rejects.num_rows > 0 and not dry_run
    return replace(result, rejects_path=path_of("rejects", task=run.id)) if has_file else result


def _nothing_new(view: View, found: Inputs, params: IngestParams) -> IngestResult:
    from retrodb.format.schemas import REJECTS

    return _result(view.snapshot.number, found, params, {}, REJECTS.empty_table(), False)


def _result(
    snapshot: int, found: Inputs, params: IngestParams, counts: Mapping[str, int], rejects: pa.Table, dry_run: bool
) -> IngestResult:
    numbers: dict[str, Any] = {name: counts.get(name, 0) for name in _COUNTED}
    return IngestResult(
        snapshot=snapshot,
        source=params.source,
        **numbers,
        skipped_inputs=found.num_skipped,
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
    if params.mirror and params.limit is not None:
        raise UsageError("--mirror with --limit would remove what was not read", remedy="Leave one of them out.")


def _find_inputs(view: View, inputs: Sequence[str], files_from: Sequence[str], params: IngestParams) -> Inputs:
    """The files to read: those that were not ingested whole before with the same mapping.

    With `mirror` it is all or nothing: what an unchanged file holds has to be known to tell what is missing.
    """
    files = expand_inputs(inputs, files_from, params.format)
    if not files:
        raise UsageError("no input files", remedy="Name files, folders or globs after the database.")
    digests = [identity(file_digest(f.path), f.name, f.format) for f in files]
    mapping = identity({k: v for k, v in to_mapping(params).items() if k not in ("mirror", "limit", "max_reject_rate")})
    if params.mirror:
        entry = view.snapshot.entry("source", params.source) or {}
        if entry.get("mirror") == identity(sorted(digests), mapping):
            return Inputs([], [], mapping, len(files))
        return Inputs(files, digests, mapping, 0)
    known: set[tuple[str, str]] = set()
    for record in view.manifest.files("inputs", params.source):
        rows = read_table(view.files.open(record), ["digest", "mapping"]).to_pylist()
        known |= {(row["digest"], row["mapping"]) for row in rows}
    fresh = [i for i, digest in enumerate(digests) if (digest, mapping) not in known]
    return Inputs([files[i] for i in fresh], [digests[i] for i in fresh], mapping, len(files) - len(fresh))


def _plan(view: View, found: Inputs, params: IngestParams) -> dict[str, Any]:
    entry = view.snapshot.entry("source", params.source)
    files = [[f.path, f.name, f.format, digest] for f, digest in zip(found.files, found.digests, strict=True)]
    return {"version": STAGE_VERSION, "params": to_mapping(params), "files": files, "source": entry}


def _scan(context: Context, run: Run, found: Inputs, params: IngestParams) -> list[TaskRecord]:
    """Read every split once; with a limit, one after the other until it is reached."""
    total = sum(f.size_bytes for f in found.files)
    segment = min(max(total // 8, _MIN_SEGMENT), _MAX_SEGMENT)
    tasks = [
        make_task(
            "scan",
            STAGE_VERSION,
            {**_scan_payload(run, params, segment), "split": split.to_json()},
            found.digests,
            split.size_bytes,
        )
        for split in plan_splits(found.files, segment)
    ]
    if params.limit is None:
        return context.engine.run(run, tasks, run_scan, context.progress)
    records: list[TaskRecord] = []
    left = params.limit
    for task in tasks:
        if left <= 0:
            break
        limited = make_task("scan", STAGE_VERSION, {**task.payload, "limit": left}, found.digests, task.weight)
        records += context.engine.run(run, [limited], run_scan, context.progress)
        left -= records[-1].counts["read"] + records[-1].counts["rejected"]
    return records


def _scan_payload(run: Run, params: IngestParams, segment_bytes: int) -> dict[str, Any]:
    metadata = None if params.metadata_fields is None else tuple(params.metadata_fields)
    fields = Fields(
        params.id_field, params.text_field, params.key_field, params.value_field, metadata, params.drop_metadata
    )
    limits = Limits(params.max_document_chars, params.oversize, params.max_record_bytes)
    return {
        "run": run.id,
        "source": params.source,
        "fields": asdict(fields),
        "limits": asdict(limits),
        "limit": None,
        "segment_bytes": segment_bytes,
    }


def _segments(scanned: Sequence[TaskRecord]) -> Iterator[tuple[FileRecord, FileRecord, int]]:
    """The spool file, keys file and number of records of every segment, in reading order."""
    for record in scanned:
        for segment in record.result["segments"]:
            yield record.files[segment["spool"]], record.files[segment["keys"]], segment["records"]


def _new_entries(context: Context, scanned: Sequence[TaskRecord]) -> IdArray:
    """The keys of all accepted records, numbered in reading order."""
    parts = [map_array(context.storage.local(keys.path)) for _, keys, _ in _segments(scanned)]
    entries = np.concatenate([np.empty(0, ID_DTYPE), *parts])
    entries["row"] = np.arange(len(entries))
    return entries


def _known(view: View, source: str) -> list[Known]:
    """What the source has: in the database, and among the held-out documents of all sources."""
    own = {view.shards.record(i).first_chunk for i, name in enumerate(view.shards.source) if name == source}
    known = [_known_file(view.chunks, r, is_held_out=False) for r in view.manifest.files("ids") if r.first_chunk in own]
    if view.snapshot.entry("queries", HELD_OUT_SET):
        held_out = view.query_set(HELD_OUT_SET)
        files = [r for r in view.manifest.files("queries", HELD_OUT_SET) if r.path.endswith("/ids.npy")]
        files = [r for r in files if _source_of(held_out, r) == source]
        known += [_known_file(held_out, record, is_held_out=True) for record in files]
    return known


def _source_of(held_out: ChunkSet, record: FileRecord) -> str:
    """The source of a file of held-out documents: every task wrote those of one."""
    documents = held_out.file("documents", record.first_chunk, record.num_chunks)
    return str(held_out.documents_table(documents).column("source")[0].as_py())


def _known_file(chunks: ChunkSet, record: FileRecord, *, is_held_out: bool) -> Known:
    entries = chunks.map(record)
    masks = chunks.tombstones.deleted_by_reason(record.first_chunk, record.num_chunks)
    return Known(entries, record.first_chunk, _is_current(entries, masks), is_held_out)


def _is_current(entries: IdArray, masks: Mapping[str, BoolArray]) -> BoolArray:
    current = np.ones(len(entries), dtype=bool)
    for reason in (SUPERSEDED, REMOVED):
        if reason in masks:
            current &= ~masks[reason][entries["row"]]
    return current


def _collect_rejects(context: Context, scanned: Sequence[TaskRecord]) -> pa.Table:
    import pyarrow as pa

    from retrodb.format.schemas import REJECTS

    paths = [record.files[-1].path for record in scanned if record.result["has_rejects"]]
    return pa.concat_tables([REJECTS.empty_table(), *(read_table(context.storage.local(path)) for path in paths)])


def _count(decisions: Decisions, rejects: pa.Table, params: IngestParams) -> dict[str, int]:
    counts = {name: int((decisions.outcome == code).sum()) for code, name in enumerate(OUTCOMES)}
    counts["rejected"] = rejects.num_rows
    counts["read"] = len(decisions.outcome) + rejects.num_rows
    counts["removed"] = len(decisions.stale.missing) + len(decisions.stale_held_out.missing) if params.mirror else 0
    return counts


def _by_reason(rejects: pa.Table) -> dict[str, int]:
    return dict(sorted(Counter(rejects.column("reason").to_pylist()).items()))


def _too_many(rejects: pa.Table, counts: Mapping[str, int], params: IngestParams) -> TooManyRejects:
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in _by_reason(rejects).items())
    first = rejects.slice(0, 1).to_pylist()[0]
    return TooManyRejects(
        f"{counts['rejected']:,} of {counts['read']:,} records were refused ({reasons}); nothing was committed",
        where=f"{first['path']}, {first['place']}: {first['reason']}",
        remedy=f"Mend the input, or allow it with '--max-reject-rate' (now {params.max_reject_rate:g}).",
    )


def _cut(
    context: Context, run: Run, scanned: Sequence[TaskRecord], decisions: Decisions, params: IngestParams
) -> tuple[list[TaskRecord], list[TaskRecord]]:
    """Tokenize what is new: shards for the database, and files of the held-out query set."""
    outcomes = publish(
        context.storage,
        "runs",
        path_of("runs", run=run.id, file="outcomes.npy"),
        lambda local: save_array(local, decisions.outcome),
    )
    tasks: list[Task] = []
    held_tasks: list[Task] = []
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
    done = context.engine.run(run, tasks + held_tasks, run_cut, context.progress)
    return done[: len(tasks)], done[len(tasks) :]
