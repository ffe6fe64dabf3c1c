"""Documents that are the same but for details: found as brute force finds them, in one go or shard by shard."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.database import Database
from retrodb.errors import UsageError
from retrodb.stages.dedup.clusters import cluster_keys, read_clusters

from .test_dedup import corrupted, grams, live_documents

Make = Callable[..., Database]


def family(seed: int, sizes: list[int]) -> dict[str, str]:
    """Groups of documents: an original, and copies with a word or two changed; some are so far off that they are none."""
    rng = random.Random(seed)
    documents = {}
    for group, size in enumerate(sizes):
        original = made_text(seed * 100 + group, 200)
        for copy in range(size):
            documents[f"g{group}c{copy}"] = corrupted(rng, original, rng.randrange(4)) if copy else original
    return documents


def clusters_of(texts: Mapping[str, str]) -> set[frozenset[str]]:
    """Connected components of documents at Jaccard 0.8 or more, or equal, of two or more: by comparing all."""
    sets = {name: grams(text) for name, text in texts.items()}
    groups = {name: {name} for name in texts}
    for a, b in combinations(texts, 2):
        union = len(sets[a] | sets[b])
        if texts[a] == texts[b] or (union and Fraction(len(sets[a] & sets[b]), union) >= Fraction(4, 5)):
            for member in (joined := groups[a] | groups[b]):
                groups[member] = joined
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def found_clusters(database: Database) -> set[frozenset[str]]:
    view = database.view()
    clusters = read_clusters(view)
    names = [document["doc_id"] for document in view.chunks.documents(clusters.document) if document]
    return {frozenset(n for n, label in zip(names, clusters.label, strict=True) if label == c) for c in clusters.label}


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_those_of_brute_force_and_one_of_each_is_kept(make_database: Make, seed: int) -> None:
    documents = family(seed, [1, 2, 3, 6, 1, 4])
    database = make_database(documents)
    result = database.near_duplicates()
    expected = clusters_of(documents)
    assert found_clusters(database) == expected
    kept = {min(group) for group in expected}  # ids are given in the order of the file
    assert live_documents(database) == set(documents) - set().union(*expected) | kept
    assert result.num_removed_documents == sum(len(group) - 1 for group in expected) > 3
    assert result.num_clusters == len(expected)


@pytest.mark.parametrize("keep", ["first", "longest", "newest"])
def test_the_keeper_follows_the_rule_and_the_report_names_it(make_database: Make, tmp_path: Path, keep: str) -> None:
    text = made_text(1, 200)
    versions = {"first": text, "longest": f"{text} with five words more here", "newest": f"{text} again"}
    database = make_database({"alone": made_text(2, 200)})
    for name, version in versions.items():
        database.ingest([write_documents(tmp_path / f"{name}.jsonl", {name: version})], source=name)
    database.near_duplicates(keep=keep)
    assert live_documents(database) == {"alone", keep}
    reported = database.duplicates()
    assert {row.doc_id for row in reported} == set(versions) - {keep}
    assert {(row.keeper_doc_id, row.keeper_source) for row in reported} == {(keep, keep)}
    for row in reported:
        removed, kept = grams(versions[row.doc_id]), grams(versions[keep])
        assert row.jaccard == pytest.approx(len(removed & kept) / len(removed | kept))
        assert row.excerpt
        assert versions[keep].startswith(row.keeper_excerpt)


def test_shard_by_shard_gives_what_all_at_once_gives_and_hashes_nothing_twice(
    make_database: Make, tmp_path: Path
) -> None:
    documents = list(family(3, [3, 4, 2, 5, 1, 3]).items())
    random.Random(0).shuffle(documents)
    parts = [dict(documents[i::3]) for i in range(3)]
    slowly, at_once = make_database({}, "slowly"), make_database({}, "at_once")
    for number, part in enumerate(parts):
        file = write_documents(tmp_path / f"part{number}.jsonl", part)
        for database in (slowly, at_once):
            database.ingest([file], source=f"s{number}")
        result = slowly.near_duplicates()
        assert result.num_hashed_documents == len(part)
    assert at_once.near_duplicates().num_hashed_documents == len(documents)
    ours, theirs = read_clusters(slowly.view()), read_clusters(at_once.view())
    for name in ("document", "label", "keeper", "jaccard"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert live_documents(slowly) == live_documents(at_once)
    number = len(slowly.snapshots())
    again = slowly.near_duplicates()
    assert (again.num_hashed_documents, again.num_compared_pairs) == (0, 0)
    assert again.num_removed_documents == result.num_removed_documents
    assert len(slowly.snapshots()) == number
    assert slowly.check(read_data=True).damaged == ()


def test_equal_documents_are_found_however_short_they_are(make_database: Make) -> None:
    database = make_database({"a": "Hello there", "b": "Hello there", "c": "Hello here", "d": "Hello there"})
    result = database.near_duplicates()
    assert (result.num_equal_documents, result.num_compared_pairs, result.num_clusters) == (2, 0, 1)
    assert live_documents(database) == {"a", "c"}
    assert [row.jaccard for row in database.duplicates()] == [1.0, 1.0]


def test_when_the_keeper_goes_away_another_of_its_cluster_comes_back(make_database: Make, tmp_path: Path) -> None:
    text = made_text(1, 200)
    documents = {"a": text, "b": f"{text} again", "c": text, "d": made_text(2, 200)}
    database = make_database(documents)
    database.near_duplicates()
    assert live_documents(database) == {"a", "d"}
    database.dedup([write_documents(tmp_path / "exam.jsonl", {"t": documents["b"]})])  # takes all three by its rule
    assert live_documents(database) == {"d"}
    mirrored = write_documents(tmp_path / "mirror.jsonl", {"b": documents["b"], "c": text, "d": documents["d"]})
    other = make_database(documents, "other")
    other.near_duplicates()
    other.ingest([mirrored], source="made", mirror=True)
    assert live_documents(other) == {"d"}  # until it is asked again
    result = other.near_duplicates()
    assert live_documents(other) == {"b", "d"}
    assert result.num_hashed_documents == 0


def test_other_parameters_start_afresh_with_the_bands_that_are_there(make_database: Make) -> None:
    text = made_text(1, 100)
    database = make_database({"a": text, "b": corrupted(random.Random(0), text, 1), "c": made_text(2, 100)})
    assert database.near_duplicates(jaccard=0.95).num_removed_documents == 0
    result = database.near_duplicates(jaccard=0.5)
    assert (result.num_hashed_documents, result.num_removed_documents) == (0, 1)
    assert live_documents(database) == {"a", "c"}
    assert database.near_duplicates(jaccard=0.95).num_removed_documents == 0
    assert live_documents(database) == {"a", "b", "c"}
    longest = database.near_duplicates(jaccard=0.5, keep="longest", permutations=128, bands="32x4")
    assert (longest.num_hashed_documents, longest.num_removed_documents) == (3, 1)


def test_cluster_keys_are_equal_within_a_cluster_and_tell_all_others_apart(make_database: Make) -> None:
    text = made_text(1, 200)
    database = make_database({"a": text, "other": made_text(2, 200), "b": f"{text} again"})
    view = database.view()
    ids = np.append(np.arange(view.chunks.end), -1)
    np.testing.assert_array_equal(cluster_keys(view, ids), view.chunks.document_ids(ids))
    database.near_duplicates()
    keys = cluster_keys(database.view(), ids)
    names = [document["doc_id"] if document else None for document in view.chunks.documents(ids)]
    by_name = {name: {key for n, key in zip(names, keys.tolist(), strict=True) if n == name} for name in names}
    assert by_name["a"] == by_name["b"] != by_name["other"]
    assert by_name[None] == {-1}
    assert all(len(keys) == 1 for keys in by_name.values())


def test_a_dry_run_commits_nothing(make_database: Make) -> None:
    database = make_database(family(1, [3]))
    before = database.snapshots()
    assert database.near_duplicates(dry_run=True).num_removed_documents > 0
    assert database.snapshots() == before
    assert database.duplicates() == []
    assert make_database({}, "empty").near_duplicates().num_documents == 0


@pytest.mark.parametrize("options", [{"jaccard": 0.0}, {"jaccard": 1.5}, {"keep": "best"}, {"bands": "64x8"}])
def test_parameters_that_cannot_be_meant_are_refused(make_database: Make, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        make_database({}).near_duplicates(**options)
