"""Results as text for people, where a table of names and values is not enough.

A function has the name of the class that it prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from .output import document_name, format_count, format_duration, format_size, format_value, render_table, style

if TYPE_CHECKING:
    from retrodb.format.arrays import Float32Array
    from retrodb.maintain.check.command import CheckResult
    from retrodb.maintain.update.demo import DemoExample, DemoResult, DemoStage
    from retrodb.stages.dedup.clusters import Duplicate
    from retrodb.stages.dedup.command import DedupResult
    from retrodb.stages.dedup.exposure import ExposureResult
    from retrodb.stages.dedup.leak_report import LeakHit
    from retrodb.stages.dedup.near_duplicates import NearDuplicatesResult
    from retrodb.stages.neighbours.show import ShownChunk, ShownRow
    from retrodb.stages.search.command import SearchHit

_EXCERPT_CHARS = 300
_MIN_WORD = 3  # shorter words occur in every text, so they are not highlighted


def dedup_result(result: DedupResult) -> str:
    """What a rule deletes, and the test items that it keeps although documents contain them."""
    if not result.num_documents:
        return f"{result.testset}: all documents were compared with it before. Use --report to show the matches."
    deletes = "would delete" if result.dry_run else "deletes"
    lines = [
        f"{result.testset}: compared {_count(result.num_items, 'test item')} with {_count(result.num_documents, 'document')}",
        f"  the rule {result.rule} {deletes} {_count(result.num_removed_documents, 'document')}"
        f" ({_count(result.num_removed_chunks, 'chunk')});"
        f" {_count(result.num_contained_items, 'test item')} {_are(result.num_contained_items)} contained in"
        f" {_count(result.num_contained_documents, 'document')} with a containment of 0.5 or more",
    ]
    if result.expected_miss:
        lines.append(
            f"  MinHash compared only candidates: it misses about {result.expected_miss:.2%} of the pairs that match the rule"
        )
    if result.num_short_matches:
        count = format_count(result.num_short_matches)
        lines.append(f"  exact matches of test texts that are too short for a shingle: {count}")
    return "\n".join(lines)


def unused_text_fields(names: Sequence[str]) -> str:
    """A note about fields of a test set that were not compared."""
    return (
        f"The records of the test set have more fields with long texts, which were not compared: {', '.join(names)}."
        f" Use --text-template to compare them, such as '{{{names[0]}}}'."
    )


def leak_hit(hit: LeakHit) -> str:
    """A test item and a document that share shingles, side by side."""
    outcome = style("deleted", fg="red") if hit.is_removed else "kept"
    shared = f"{_count(hit.num_shared_shingles, 'shared shingle')} in {_count(len(hit.touched_chunks), 'chunk')}"
    alike = f"jaccard {hit.jaccard:.3f}, containment {hit.containment:.3f}, {shared}"
    return "\n".join(
        [
            f"{document_name(hit.testset, hit.item)}  and  {document_name(hit.source, hit.doc_id)}: {outcome}",
            f"  {alike if hit.num_shared_shingles else 'exact match, too short for a shingle'}",
            f"  item      {_excerpt(hit.item_text, hit.document_excerpt)}",
            f"  document  {_excerpt(hit.document_excerpt, hit.item_text)}",
        ]
    )


def near_duplicates_result(result: NearDuplicatesResult) -> str:
    """The clusters of near-duplicates, how many documents were compared, and how many pairs may be missed."""
    deletes = "would delete" if result.dry_run else "deletes"
    lines = [
        f"{_count(result.num_documents, 'document')}, {_count(result.num_hashed_documents, 'document')} hashed now:"
        f" {_count(result.num_clusters, 'cluster')}, {result.num_equal_documents:,} equal to an earlier document",
        f"  keeping one document per cluster {deletes} {_count(result.num_removed_documents, 'document')}"
        f" ({_count(result.num_removed_chunks, 'chunk')}); {_count(result.num_compared_pairs, 'new pair')} compared exactly,"
        f" {result.num_similar_pairs:,} similar; the bands miss about {result.expected_miss:.2%} of similar pairs",
    ]
    if result.num_hot_buckets:
        buckets = _count(result.num_hot_buckets, "large bucket")
        lines.append(f"  {buckets}: documents were compared only with the first one in the bucket")
    return "\n".join(lines)


def duplicate(row: Duplicate) -> str:
    """A deleted document and the one that is kept, side by side."""
    alike = f"jaccard {row.jaccard:.3f}" if row.jaccard else "similar through other documents of the cluster"
    return "\n".join(
        [
            f"{document_name(row.source, row.doc_id)}: {style('deleted', fg='red')} as a duplicate of"
            f" {document_name(row.keeper_source, row.keeper_doc_id)}, {alike}",
            f"  deleted  {_excerpt(row.excerpt, row.keeper_excerpt)}",
            f"  kept     {_excerpt(row.keeper_excerpt, row.excerpt)}",
        ]
    )


def exposure_result(result: ExposureResult) -> str:
    """The exposed rows and a summary."""
    rows = [
        {
            "row": str(row.row),
            "document": row.doc_id,
            "seen": "yes" if row.is_seen else "no",
            "live": "yes" if row.is_live else "no",
            "own text": ", ".join(row.own_items),
            "neighbours": ", ".join(row.neighbour_items),
            "continuations": ", ".join(row.continuation_items),
        }
        for row in result.exposed
    ]
    summary = (
        f"{result.table} against {result.testset}: {format_count(len(rows))} of {_count(result.num_rows, 'row')} exposed;"
        f" {format_count(result.num_exposed_seen)} of the {format_count(result.num_consumed_samples)} seen rows,"
        f" {format_count(result.num_exposed_unseen)} of the rows not yet seen"
        f" ({format_count(result.num_exposed_unseen_live)} of them in the current table)"
    )
    return "\n".join([render_table(rows), summary] if rows else [summary])


def search_hit(hit: SearchHit, queries: Sequence[str] | Float32Array) -> str:
    """A chunk with its position and continuation. Words that it shares with a text query are highlighted."""
    value = queries[hit.query]
    query = value if isinstance(value, str) else ""
    label = f"{document_name(hit.source, hit.doc_id)}  chunk {hit.chunk_id} (position {hit.position})"
    score = f"{measure_words(hit.measure)} {hit.score:.4f}"
    lines = [f"{score}  {style(label, bold=True)}", f"  {highlight(_flat(hit.text), query)}"]
    if hit.continuation:
        lines.append(style(f"  -> {_flat(hit.continuation)}", dim=True))
    if hit.rank == 0 and len(queries) > 1:
        lines.insert(0, style(f"query {hit.query + 1}: {_flat(query) or 'a vector'}", underline=True))
    return "\n".join(lines)


def measure_words(measure: str) -> str:
    """The name of a score in words."""
    return measure.replace("_", " ")


def shown_row(shown: ShownRow) -> str:
    """A row and its neighbours. Runs of tokens that they share are highlighted."""
    runs = [run for neighbour in shown.neighbours for run in neighbour.shared_runs]
    lines = [f"{shown.table}  {_shown_chunk(shown.row, runs)}"]
    for number, neighbour in enumerate(shown.neighbours, 1):
        pinned = "  pinned" if neighbour.is_pinned else ""
        chunk = _shown_chunk(neighbour.chunk, neighbour.shared_runs)
        lines += ["", f"{number}. {measure_words(neighbour.measure)} {neighbour.score:.4f}{pinned}  {chunk}"]
    if shown.bans:
        lines += ["", f"banned: {', '.join(map(str, shown.bans))}"]
    if shown.num_short:
        rows = "row of the table" if shown.num_short == 1 else "rows of the table"
        neighbours = _count(shown.k, "neighbour")
        lines += [
            "",
            f"{format_count(shown.num_short)} {rows} had fewer than {neighbours} when it was computed or repaired",
        ]
    return "\n".join(lines)


def _shown_chunk(chunk: ShownChunk, runs: Sequence[str]) -> str:
    label = f"{document_name(chunk.source, chunk.doc_id)}  chunk {chunk.chunk_id} (position {chunk.position})"
    lines = [style(label, bold=True), f"   {_with_runs(chunk.text, runs)}"]
    if chunk.continuation:
        lines.append(f"   -> {_with_runs(chunk.continuation, runs)}")
    return "\n".join(lines)


def _with_runs(text: str, runs: Sequence[str]) -> str:
    """The text with the runs highlighted."""
    flat = sorted({_flat(run) for run in runs}, key=len, reverse=True)
    if not flat:
        return _flat(text)
    return re.sub("|".join(map(re.escape, flat)), lambda m: style(m[0], fg="yellow"), _flat(text))


def check_result(result: CheckResult) -> str:
    """Every damaged file with a remedy, and a summary."""
    how = "checksums" if result.is_data_read else "existence and size"
    checked = f"snapshot {result.snapshot}: {_count(result.num_files, 'file')}, {format_size(result.size_bytes)}, {how} verified"
    damaged = [f"{style(file.path, fg='red')}: {file.fault}. {file.remedy}" for file in result.damaged]
    lines = [*damaged, f"{checked}: {_count(len(damaged), 'damaged file') if damaged else 'no damage found'}"]
    if result.foreign:
        shown = ", ".join(result.foreign[:3]) + (", ..." if len(result.foreign) > 3 else "")
        lines.append(f"{_count(len(result.foreign), 'foreign file')}, not made by retrodb and never touched: {shown}")
    return "\n".join(lines)


def demo_stage(stage: DemoStage) -> str:
    """One line: the stage, its time and its counts."""
    return f"{stage.stage:<10} {format_duration(stage.elapsed_s):>12}  {', '.join(_counts(stage.counts))}"


def _counts(counts: Mapping[str, object]) -> Iterator[str]:
    for name, value in counts.items():
        shown = f"({', '.join(_counts(value))})" if isinstance(value, Mapping) else format_value(name, value)
        yield f"{name.removesuffix('_bytes').replace('_', ' ')} {shown}"


def demo_result(result: DemoResult) -> str:
    """The end of the demo: examples, a summary, and commands to try."""
    commands = [
        f'retrodb search {result.database} "remove the last part of a path"',
        f"retrodb dedup {result.database} --report",
        f"retrodb stats {result.database}",
        f'retrodb sql {result.database} "select doc_id, num_chunks from documents order by num_chunks desc limit 5"',
    ]
    return "\n".join(
        [
            "",
            *(line for example in result.examples for line in (*_example(example), "")),
            f"{result.database}: {_count(result.num_documents, 'document')}, {_count(result.num_chunks, 'chunk')},"
            f" {_count(result.num_tokens, 'token')}, {format_size(result.size_bytes)} in {format_duration(result.elapsed_s)}",
            "",
            "Next steps:",
            *(f"  {line}" for line in commands),
        ]
    )


def _example(example: DemoExample) -> Iterator[str]:
    yield f"{style(example.doc_id, bold=True)}: {_flat(example.text)}"
    for number, neighbour in enumerate(example.neighbours, 1):
        text = highlight(_flat(neighbour.text), example.text)
        yield f"  {number}. {neighbour.doc_id} ({measure_words(neighbour.measure)} {neighbour.score:.3f}): {text}"
        if neighbour.continuation:
            yield style(f"     -> {_flat(neighbour.continuation)}", dim=True)


def highlight(text: str, query: str) -> str:
    """The text with the words of the query highlighted."""
    words = {word.lower() for word in re.findall(r"\w+", query) if len(word) >= _MIN_WORD}
    return re.sub(r"\w+", lambda m: style(m[0], fg="yellow") if m[0].lower() in words else m[0], text)


def _excerpt(text: str, other: str) -> str:
    return highlight(_flat(text)[:_EXCERPT_CHARS], other) or "-"


def _flat(text: str) -> str:
    return " ".join(text.split())


def _count(count: int, noun: str) -> str:
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
