"""Results as text for people, where a table of names and values would not say it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from .output import format_count, format_duration, format_size, format_value, render_table

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
_MIN_WORD = 3  # shorter words are in every text


def verdict(result: DedupResult) -> str:
    """What a rule removes, and what it leaves although containment sees it."""
    if not result.documents:
        return f"{result.testset}: every document was held against it before; --report shows what was found"
    removes = "would remove" if result.dry_run else "removes"
    lines = [
        f"{result.testset}: {_count(result.items, 'item')} against {_count(result.documents, 'document')}",
        f"  the rule {result.rule} {removes} {_count(result.removed_documents, 'document')}"
        f" ({_count(result.removed_chunks, 'chunk')});"
        f" {_count(result.contained_items, 'test item')} {_are(result.contained_items)} contained at 0.5 or more"
        f" in {_count(result.contained_documents, 'document')}",
    ]
    if result.expected_miss:
        lines.append(
            f"  MinHash compared candidates only: about {result.expected_miss:.2%} of the pairs that the rule means are missed"
        )
    if result.short_matches:
        lines.append(f"  {_count(result.short_matches, 'text')} too short for a shingle found word for word")
    return "\n".join(lines)


def leak(hit: LeakHit) -> str:
    """A test item and a document that share shingles, side by side."""
    fate = click.style("removed", fg="red") if hit.removed else "kept"
    shared = f"{_count(hit.intersection, 'shared shingle')} in {_count(len(hit.touched_chunks), 'chunk')}"
    alike = f"jaccard {hit.jaccard:.3f}, containment {hit.containment:.3f}, {shared}"
    return "\n".join(
        [
            f"{hit.testset}/{hit.item}  and  {hit.source}/{hit.doc_id}: {fate}",
            f"  {alike if hit.intersection else 'equal word for word, and too short for a shingle'}",
            f"  item      {_excerpt(hit.item_text, hit.document_excerpt)}",
            f"  document  {_excerpt(hit.document_excerpt, hit.item_text)}",
        ]
    )


def near_verdict(result: NearDuplicatesResult) -> str:
    """What near-duplicates there are, what was done to know, and what may have been missed."""
    removes = "would remove" if result.dry_run else "removes"
    lines = [
        f"{_count(result.documents, 'document')}, {_count(result.hashed_documents, 'document')} hashed now:"
        f" {_count(result.clusters, 'cluster')}, {result.equal_documents:,} equal to an earlier one",
        f"  keeping one of each {removes} {_count(result.removed_documents, 'document')}"
        f" ({_count(result.removed_chunks, 'chunk')}); {_count(result.compared_pairs, 'new pair')} compared exactly,"
        f" {result.found_pairs:,} alike; the bands miss about {result.expected_miss:.2%}",
    ]
    if result.hot_buckets:
        lines.append(f"  {_count(result.hot_buckets, 'crowded bucket')} compared with the first document only")
    return "\n".join(lines)


def duplicate(row: Duplicate) -> str:
    """A document that went and the one that is kept, side by side."""
    alike = f"jaccard {row.jaccard:.3f}" if row.jaccard else "connected by others of the cluster"
    return "\n".join(
        [
            f"{row.source}/{row.doc_id}: {click.style('removed', fg='red')} for"
            f" {row.keeper_source}/{row.keeper_doc_id}, {alike}",
            f"  removed  {_excerpt(row.excerpt, row.keeper_excerpt)}",
            f"  kept     {_excerpt(row.keeper_excerpt, row.excerpt)}",
        ]
    )


def exposure(result: ExposureResult) -> str:
    """The exposed rows and the sum."""
    rows = [
        {
            "row": str(each.row),
            "document": each.doc_id,
            "seen": "yes" if each.is_seen else "no",
            "live": "yes" if each.is_live else "no",
            "own text": ", ".join(each.own),
            "neighbours": ", ".join(each.neighbours),
            "continuations": ", ".join(each.continuations),
        }
        for each in result.exposed
    ]
    sum_line = (
        f"{result.table} against {result.testset}: of {_count(result.rows, 'row')} {format_count(len(rows))} exposed;"
        f" {format_count(result.exposed_seen)} among the {format_count(result.consumed_samples)} seen,"
        f" {format_count(result.exposed_unseen)} not yet seen ({format_count(result.exposed_unseen_live)} of them in"
        " today's table too)"
    )
    return "\n".join([render_table(rows), sum_line] if rows else [sum_line])


def search_hit(hit: SearchHit, queries: Sequence[str] | Float32Array) -> str:
    """A chunk with its place and continuation; words that it shares with the query, if that is a text, stand out."""
    value = queries[hit.query]
    query = value if isinstance(value, str) else ""
    place = f"{hit.source}/{hit.doc_id}  chunk {hit.chunk_id} (position {hit.position})"
    lines = [f"{hit.score:.4f}  {click.style(place, bold=True)}", f"  {highlight(_flat(hit.text), query)}"]
    if hit.continuation:
        lines.append(click.style(f"  -> {_flat(hit.continuation)}", dim=True))
    if hit.rank == 0 and len(queries) > 1:
        lines.insert(0, click.style(f"query {hit.query + 1}: {_flat(query) or 'a vector'}", underline=True))
    return "\n".join(lines)


def shown_row(shown: ShownRow) -> str:
    """A row and its neighbours; token runs that they share stand out."""
    runs = [run for neighbour in shown.neighbours for run in neighbour.shared_runs]
    lines = [f"{shown.table}  {_shown_chunk(shown.row, runs)}"]
    for number, each in enumerate(shown.neighbours, 1):
        pinned = "  pinned" if each.is_pinned else ""
        lines += ["", f"{number}. {each.distance:.4f}{pinned}  {_shown_chunk(each.chunk, each.shared_runs)}"]
    if shown.bans:
        lines += ["", f"banned: {', '.join(map(str, shown.bans))}"]
    if shown.short:
        lines += ["", f"{_count(shown.short, 'row')} of the table with fewer than {_count(shown.k, 'neighbour')}"]
    return "\n".join(lines)


def _shown_chunk(chunk: ShownChunk, runs: Sequence[str]) -> str:
    place = f"{chunk.source}/{chunk.doc_id}  chunk {chunk.chunk_id} (position {chunk.position})"
    lines = [click.style(place, bold=True), f"   {_with_runs(chunk.text, runs)}"]
    if chunk.continuation:
        lines.append(f"   -> {_with_runs(chunk.continuation, runs)}")
    return "\n".join(lines)


def _with_runs(text: str, runs: Sequence[str]) -> str:
    """The text with runs in colour."""
    flat = sorted({_flat(run) for run in runs}, key=len, reverse=True)
    if not flat:
        return _flat(text)
    return re.sub("|".join(map(re.escape, flat)), lambda m: click.style(m[0], fg="yellow"), _flat(text))


def check_result(result: CheckResult) -> str:
    """Every damaged file with what to do about it, and the sum."""
    how = "every byte" if result.read_data else "existence and size"
    looked = f"snapshot {result.snapshot}: {_count(result.files, 'file')}, {format_size(result.size_bytes)}, {how}"
    bad = [f"{click.style(each.path, fg='red')}: {each.what}. {each.remedy}" for each in result.damaged]
    return "\n".join([*bad, f"{looked}: {_count(len(bad), 'damaged file') if bad else 'all is well'}"])


def demo_stage(stage: DemoStage) -> str:
    """One line: the stage, its time, and what it did."""
    return f"{stage.stage:<10} {format_duration(stage.elapsed_s):>12}  {', '.join(_counts(stage.counts))}"


def _counts(counts: Mapping[str, object]) -> Iterator[str]:
    for name, value in counts.items():
        shown = f"({', '.join(_counts(value))})" if isinstance(value, Mapping) else format_value(name, value)
        yield f"{name.removesuffix('_bytes').replace('_', ' ')} {shown}"


def demo_result(result: DemoResult) -> str:
    """The closing screen: examples, the sum, and what to type next."""
    next_lines = [
        f'retrodb search {result.database} "remove the last part of a path"',
        f"retrodb dedup {result.database} --report",
        f"retrodb stats {result.database}",
        f'retrodb sql {result.database} "select doc_id, num_chunks from documents order by num_chunks desc limit 5"',
    ]
    return "\n".join(
        [
            "",
            *(line for example in result.examples for line in (*_example(example), "")),
            f"{result.database}: {_count(result.documents, 'document')}, {_count(result.chunks, 'chunk')},"
            f" {_count(result.tokens, 'token')}, {format_size(result.size_bytes)} in {format_duration(result.elapsed_s)}",
            "",
            "What to type next:",
            *(f"  {line}" for line in next_lines),
        ]
    )


def _example(example: DemoExample) -> Iterator[str]:
    yield f"{click.style(example.doc_id, bold=True)}: {_flat(example.text)}"
    for number, neighbour in enumerate(example.neighbours, 1):
        text = highlight(_flat(neighbour.text), example.text)
        yield f"  {number}. {neighbour.doc_id} ({neighbour.score:.3f}): {text}"
        if neighbour.continuation:
            yield click.style(f"     -> {_flat(neighbour.continuation)}", dim=True)


def highlight(text: str, query: str) -> str:
    """The text with the words of the query in colour."""
    words = {word.lower() for word in re.findall(r"\w+", query) if len(word) >= _MIN_WORD}
    return re.sub(r"\w+", lambda m: click.style(m[0], fg="yellow") if m[0].lower() in words else m[0], text)


def _excerpt(text: str, other: str) -> str:
    return highlight(_flat(text)[:_EXCERPT_CHARS], other) or "-"


def _flat(text: str) -> str:
    return " ".join(text.split())


def _count(count: int, noun: str) -> str:
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
