"""Planning an ingest: read the inputs, compare them with the source, and decide what happens to each record.

What happens to a record depends on its id and content, so the plan reads all inputs. The records that were read are stored
in the run's folder, and `execute_ingest` and any later run of the same command continue from there. No other file of the
database is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from retrodb.config import IngestParams
from retrodb.corpus.document import MISSING_FIELD
from retrodb.corpus.readers import UNREADABLE_FILE
from retrodb.corpus.skipped_files import SkippedFiles, add_skipped
from retrodb.engine.run import Run, open_run
from retrodb.errors import InputError, TooManyRejects, UsageError
from retrodb.format.arrays import map_array
from retrodb.format.entries import SourceEntry
from retrodb.format.json_codec import JsonObject, to_plain_object
from retrodb.format.parquet import read_table
from retrodb.format.schemas import REJECTS
from retrodb.stages.context import Context
from retrodb.stages.ingest.candidates import write_candidates, write_outcomes
from retrodb.stages.ingest.change import HELD_OUT_SET, REMOVED, SUPERSEDED
from retrodb.stages.ingest.inputs import Inputs, find_inputs, keep_streams, shown_path
from retrodb.stages.ingest.look_up import look_up
from retrodb.stages.ingest.read_inputs import CRASHED, STAGE_VERSION, WHOLE_FILE, Segment
from retrodb.stages.ingest.read_tasks import ReadRecord, read_files
from retrodb.stages.ingest.remembered import ChangeCounts, refuse_change, resolve_options
from retrodb.stages.ingest.upsert import ADDED, HELD_OUT, OUTCOMES, Decisions
from retrodb.view.purged import purged_keys
from retrodb.view.view import SELF, View

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class IngestResult:
    """What an ingest did."""

    snapshot: int  # the new snapshot, or the one that had everything already
    source: str
    num_read: int  # records in the input: the sum of the next six
    num_added: int
    num_unchanged: int
    num_superseded: int  # changed documents: the new version is added, the old one deleted
    num_duplicate: int  # further records with an id of the same input
    num_held_out: int
    num_rejected: int
    num_removed: int  # with --mirror: documents that the input no longer has
    num_chunks: int  # added
    num_tokens: int  # added
    num_skipped_inputs: int  # files that were ingested whole before
    num_rejects_by_reason: dict[str, int]
    rejects_path: str | None = None  # file below the database with position, reason and excerpt of each
    dry_run: bool = False
    notes: tuple[str, ...] = ()  # about the inputs: binary files that were skipped, patterns that matched no file

    def all_notes(self, database: str) -> list[str]:
        """The notes, and one about rejected records with the path of their list."""
        if not self.num_rejected:
            return list(self.notes)
        hint = f" See {database}/{self.rejects_path} for the place and reason of each." if self.rejects_path else ""
        return [*self.notes, f"{self.num_rejected:,} of {self.num_read:,} records were rejected.{hint}"]


@dataclass(frozen=True)
class FirstPass:
    """What reading the inputs gave."""

    run: Run
    segments: tuple[Segment, ...]  # of accepted records, in reading order
    rejects: pa.Table  # schema `REJECTS`
    decisions: Decisions
    counts: Mapping[str, int]  # of records by outcome, for the history


@dataclass(frozen=True)
class IngestPlan:
    """What an ingest is going to do."""

    view: View
    params: IngestParams
    inputs: Inputs
    first_pass: FirstPass | None  # None: all files were ingested whole before
    result: IngestResult  # of a dry run

    @property
    def has_changes(self) -> bool:
        """Whether any record or document changes the database; else only the inputs are remembered."""
        counts = self.first_pass.counts if self.first_pass else {}
        return any(counts.get(name) for name in ("added", "superseded", "held_out", "removed", "rejected"))


def plan_ingest(
    context: Context,
    inputs: Sequence[str],
    params: IngestParams,
    *,
    files_from: Sequence[str] = (),
    given: Collection[str] | None = None,
    change_options: bool = False,
) -> IngestPlan:
    """Read the inputs, and decide what happens to each record.

    Args:
        given: names of the options that the caller gave. The others are those of the source's last ingest, as far as they
            decide how files are read. None: all were given.
        change_options: whether options that differ from those of the last ingest may replace or remove documents.

    Raises:
        UsageError, InputError: for invalid inputs or options, or options that differ from those of the last ingest.
        TooManyRejects: more records are rejected than `max_reject_rate` allows.
    """
    view = context.view()
    options = resolve_options(view, params, given)
    params = options.params
    _check(params)
    files = find_inputs(view, inputs, files_from, params)
    files = replace(files, notes=(*options.notes, *files.notes))
    if not files.files:
        return IngestPlan(view, params, files, None, _result(view, files, params, {}, REJECTS.empty_table()))
    run = open_run(context.storage, "ingest", _identity(view, files, params), context.clock)
    files = keep_streams(context.storage, run, files)
    records = read_files(context, run, files, params)
    segments = tuple(segment for record in records for segment in record.result.segments)
    rejects = _read_rejects(context, records, files)
    decisions = _decide(context, view, run, params, segments)
    counts = _count(decisions, rejects)
    skipped = add_skipped(record.result.skipped for record in records)
    if skipped:
        _refuse_nothing(skipped, counts)
        files = replace(files, notes=(*files.notes, str(skipped)))
    _refuse(rejects, counts, params, options.notes)
    if not change_options:
        refuse_change(params.source, options.changes, _change_counts(decisions, files))
    first_pass = FirstPass(run, segments, rejects, decisions, counts)
    return IngestPlan(view, params, files, first_pass, _result(view, files, params, counts, rejects))


def _check(params: IngestParams) -> None:
    if not params.source or "/" in params.source or "\0" in params.source:
        raise UsageError(f"'{params.source}' cannot name a source", remedy="Use a short name without '/'.")
    if not 0 <= params.holdout < 1:
        raise UsageError(f"holdout of {params.holdout}", remedy="Give a fraction, such as '0.5%'.")
    if (params.key_field is None) != (params.value_field is None):
        raise UsageError("only one of --key-field and --value-field", remedy="A key-value database needs both.")
    for name, valid in (("oversize", ("reject", "split")), ("front_matter", ("text", "metadata"))):
        if (value := getattr(params, name)) not in valid:
            raise UsageError(f"{name} is '{value}'", remedy=f"Valid values: {', '.join(valid)}.")
    if params.mirror and params.limit is not None:
        raise UsageError("--mirror with --limit would remove what was not read", remedy="Leave one of them out.")


def _identity(view: View, inputs: Inputs, params: IngestParams) -> JsonObject:
    # The allowed rate of rejects does not change what is read: another attempt with a higher rate continues the same run.
    arguments = {name: value for name, value in to_plain_object(params).items() if name != "max_reject_rate"}
    entry = view.snapshot.entry(SourceEntry, params.source)
    source = to_plain_object(entry) if entry else None
    return {"version": STAGE_VERSION, "params": arguments, "files": inputs.plan, "source": source}


def _decide(context: Context, view: View, run: Run, params: IngestParams, segments: Sequence[Segment]) -> Decisions:
    """Compare the records of the input with the documents of the source, in the database and held out."""
    candidates = write_candidates(run, segments)
    existing, held_out = (
        look_up(context, view, run, params.source, candidates, query_set, mirror=params.mirror)
        for query_set in (SELF, HELD_OUT_SET)
    )
    local = context.storage.local
    of_candidates = (map_array(local(found.outcomes.path)) for found in (*existing, *held_out))  # one at a time
    outcomes, num_by_outcome = write_outcomes(
        run,
        sum(segment.num_records for segment in segments),
        map_array(local(candidates.path)),
        of_candidates,
        params.holdout,
        purged_keys(view),
    )
    stale, stale_held_out = (tuple(item for found in both for item in found.stale) for both in (existing, held_out))
    return Decisions(outcomes, num_by_outcome, stale, stale_held_out)


def _read_rejects(context: Context, records: Sequence[ReadRecord], inputs: Inputs) -> pa.Table:
    """All rejects, with the paths as the user gave them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    files = [record.result.rejects for record in records if record.result.rejects]
    tables = [read_table(context.storage.local(file.path)) for file in files]
    table = pa.concat_tables([REJECTS.empty_table(), *tables])
    for file in inputs.files:
        if shown_path(file) != file.path:
            shown = pc.replace_substring(table.column("path"), file.path, shown_path(file))
            table = table.set_column(0, REJECTS.field("path"), shown)
    return table


def _count(decisions: Decisions, rejects: pa.Table) -> dict[str, int]:
    counts = dict(zip(OUTCOMES, decisions.num_by_outcome, strict=True))
    counts["rejected"] = rejects.num_rows
    counts["read"] = sum(decisions.num_by_outcome) + rejects.num_rows
    counts["removed"] = _num_stale(decisions, REMOVED)
    return counts


def _num_stale(decisions: Decisions, reason: str) -> int:
    stale = (*decisions.stale, *decisions.stale_held_out)
    return sum(documents.num_documents for documents in stale if documents.reason == reason)


def _change_counts(decisions: Decisions, files: Inputs) -> ChangeCounts:
    num_new = decisions.num_by_outcome[ADDED] + decisions.num_by_outcome[HELD_OUT]
    return ChangeCounts(
        num_superseded=_num_stale(decisions, SUPERSEDED),
        num_removed=_num_stale(decisions, REMOVED),
        num_added=num_new if files.num_reread else 0,  # perhaps the same documents again, by other ids
    )


def _refuse(rejects: pa.Table, counts: Mapping[str, int], params: IngestParams, notes: Sequence[str]) -> None:
    by_reason = _by_reason(rejects)
    unread = next((row for row in rejects.to_pylist() if row["reason"] in WHOLE_FILE), None)
    if unread is not None and params.mirror:
        fault = "its reader crashes" if unread["reason"] == CRASHED else unread["excerpt"]
        raise InputError(
            f"{fault}, and --mirror would remove the documents of a file that was not read",
            where=unread["path"],
            remedy="Leave the file out without '--mirror', or repair it.",
        )
    if counts["rejected"] > params.max_reject_rate * counts["read"]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in by_reason.items())
        first = rejects.slice(0, 1).to_pylist()[0]
        where, fault = f"{first['path']}, {first['place']}: {first['reason']}", ""
        if first["reason"] == UNREADABLE_FILE:
            where, fault = first["path"], f"{first['excerpt']}; "
        raise TooManyRejects(
            f"{fault}{counts['rejected']:,} of {counts['read']:,} records were rejected ({reasons}); nothing was committed",
            where=where,
            remedy=" ".join([*notes, _remedy(first["reason"], first["excerpt"], params.max_reject_rate)]),
        )


def _refuse_nothing(skipped: SkippedFiles, counts: Mapping[str, int]) -> None:
    if not counts["read"]:
        what = f"none of the {skipped.num_files:,} files in the archives is read: they are binary files of an unknown format"
        raise InputError(what, where=skipped.first, remedy="Check the inputs.")


def _remedy(reason: str, excerpt: str, rate: float) -> str:
    fields = f"In the first record, {excerpt}. " if reason in MISSING_FIELD else ""
    allowed = (
        f"allow it with '--max-reject-rate' of 'ingest' and 'build', or max_reject_rate in a recipe (now {rate:g})"
    )
    return f"{fields}Repair the input, or {allowed}."


def _by_reason(rejects: pa.Table) -> dict[str, int]:
    return dict(sorted(Counter(rejects.column("reason").to_pylist()).items()))


def _result(
    view: View, inputs: Inputs, params: IngestParams, counts: Mapping[str, int], rejects: pa.Table
) -> IngestResult:
    return IngestResult(
        snapshot=view.snapshot.number,
        source=params.source,
        num_read=counts.get("read", 0),
        num_added=counts.get("added", 0),
        num_unchanged=counts.get("unchanged", 0),
        num_superseded=counts.get("superseded", 0),
        num_duplicate=counts.get("duplicate", 0),
        num_held_out=counts.get("held_out", 0),
        num_rejected=counts.get("rejected", 0),
        num_removed=counts.get("removed", 0),
        num_chunks=0,
        num_tokens=0,
        num_skipped_inputs=len(inputs.skipped),
        num_rejects_by_reason=_by_reason(rejects),
        dry_run=True,
        notes=inputs.notes,
    )
