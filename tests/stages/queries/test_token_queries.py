"""Query sets of token ids: their rows, their exclusion keys, and invalid files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text

from retrodb.database import Database
from retrodb.errors import InputError, MismatchError, UsageError
from retrodb.stages.queries.megatron import read_names

Make = Callable[..., Database]


@pytest.fixture
def database(make_database: Make) -> Database:
    database = make_database({f"d{i}": made_text(i, 200) for i in range(6)})
    database.embed()
    database.index()
    return database


def rows_of(database: Database) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of whole chunks, their tokens (Q, m), and the names of their documents."""
    chunks = database.view().chunks
    ids = np.arange(chunks.end)
    ids = ids[chunks.lengths(ids) == database.view().settings.chunk_tokens]
    names = np.array([f"{document['source']}/{document['doc_id']}" for document in chunks.documents(ids)])
    return ids, chunks.gather_tokens(ids).tokens, names


def add(
    database: Database, folder: Path, tokens: np.ndarray, names: np.ndarray | None, *, allow_unknown: bool = False
) -> None:
    np.save(folder / "t.npy", tokens)
    doc_ids = []
    if names is not None:
        np.save(folder / "d.npy", names)
        doc_ids = [folder / "d.npy"]
    database.add_packed_queries("mine", tokens=folder / "t.npy", doc_ids=doc_ids, allow_unknown=allow_unknown)
    database.embed()


def test_rows_equal_those_of_the_array_and_exclude_the_documents_that_they_name(
    database: Database, tmp_path: Path
) -> None:
    ids, tokens, names = rows_of(database)
    order = np.random.default_rng(0).permutation(len(ids))
    others = np.roll(names[order], 3)
    add(database, tmp_path, tokens[order].astype(np.uint16), np.stack([names[order], others], axis=1))
    view = database.view()
    queries = view.query_set("mine")
    np.testing.assert_array_equal(queries.gather_tokens(np.arange(len(ids))).tokens, tokens[order])
    database.neighbours(queries="mine", k=3, spare_neighbours=0, exact=True, exclude=["sequence"])
    neighbours, _ = database.neighbour_table("mine").read(np.arange(len(ids)))
    everything = np.flatnonzero(view.embeddable_mask(0, view.chunks.end))
    vectors = view.vectors("default", everything).astype(np.float64)
    queries_QD = view.vectors("default", np.arange(len(ids)), "mine").astype(np.float64)
    documents = np.array(
        [f"{document['source']}/{document['doc_id']}" for document in view.chunks.documents(everything)]
    )
    for row in range(len(ids)):
        allowed = ~np.isin(documents, [names[order][row], others[row]])
        nearest = everything[allowed][
            np.lexsort((everything[allowed], -(vectors[allowed] @ queries_QD[row]).round(5)))
        ][:3]
        np.testing.assert_allclose(
            np.sort(vectors[np.searchsorted(everything, neighbours[row])] @ queries_QD[row]),
            np.sort(vectors[np.searchsorted(everything, nearest)] @ queries_QD[row]),
            atol=1e-5,
        )
        assert not np.isin(documents[np.searchsorted(everything, neighbours[row])], documents[~allowed]).any()


def test_a_row_without_names_finds_its_own_text(database: Database, tmp_path: Path) -> None:
    ids, tokens, _ = rows_of(database)
    add(database, tmp_path, tokens[:5].astype(np.int64), None)
    database.neighbours(queries="mine", k=1, spare_neighbours=0)
    neighbours, _ = database.neighbour_table("mine").read(np.arange(5))
    np.testing.assert_array_equal(neighbours[:, 0], ids[:5])


def test_a_short_row_ends_before_its_padding_and_unknown_documents_exclude_nothing(
    database: Database, tmp_path: Path
) -> None:
    _, tokens, _ = rows_of(database)
    tokens = tokens[:2].astype(np.int32)
    tokens[1, 20:] = -1
    with pytest.raises(UsageError, match=r"none of the 1 names .* the first is '1000000000000'.*--allow-unknown"):
        add(database, tmp_path, tokens, np.array([10**12, -1]))
    add(database, tmp_path, tokens, np.array([10**12, -1]), allow_unknown=True)
    queries = database.view().query_set("mine")
    np.testing.assert_array_equal(queries.lengths(np.arange(2)), [tokens.shape[1], 20])
    assert database.neighbours(queries="mine").num_rows == 2
    assert database.neighbours(queries="mine", exclude=["sequence"]).num_unnamed_rows == 2


def test_invalid_arrays_are_refused(database: Database, tmp_path: Path) -> None:
    _, tokens, names = rows_of(database)
    tokens = tokens.astype(np.int64)
    wild, gap = tokens.copy(), tokens.copy()
    wild[1, 3], gap[0, 5] = 10**6, -1
    cases = [
        (tokens.astype(np.float32), None, InputError, "rows of token ids"),
        (tokens[0], None, InputError, "rows of token ids"),
        (tokens[:0], None, InputError, "rows of token ids"),
        (tokens[:, :-1], None, UsageError, "tokens"),
        (wild, None, MismatchError, "row 1"),
        (gap, None, MismatchError, "row 0"),
        (tokens, names[1:], InputError, "cannot name"),
        (tokens, np.full(len(tokens), np.nan), InputError, "cannot name"),
    ]
    for given, ids, error, message in cases:
        with pytest.raises(error, match=message):
            add(database, tmp_path, given, ids)
    (tmp_path / "t.npy").write_bytes(b"nothing")
    with pytest.raises(InputError, match="npy"):
        database.add_packed_queries("mine", tokens=tmp_path / "t.npy")
    with pytest.raises(UsageError, match="no such file"):
        database.add_packed_queries("mine", tokens=tmp_path / "none.npy")


def test_names_of_a_megatron_list_may_name_the_source(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes('d1\r\n\n{"id": "d\\n2", "source": "made"}\nx\x85y\n'.encode())
    assert read_names(str(tmp_path / "names")) == ["d1", "", "made/d\n2", "x\x85y"]


def test_known_names_are_counted(database: Database, tmp_path: Path) -> None:
    _, tokens, names = rows_of(database)
    np.save(tmp_path / "t.npy", tokens[:2])
    np.save(tmp_path / "d.npy", np.array([names[0], "nobody"]))
    result = database.add_packed_queries("mine", tokens=tmp_path / "t.npy", doc_ids=[tmp_path / "d.npy"])
    assert (result.num_names, result.num_known_names) == (2, 1)
    with pytest.raises(UsageError, match="'doc_ids' must be a sequence"):
        database.add_packed_queries("mine", tokens=tmp_path / "t.npy", doc_ids=str(tmp_path / "d.npy"))
