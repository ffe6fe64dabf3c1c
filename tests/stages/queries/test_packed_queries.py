"""Query sets of packed sequences: the rows are the chunks of the samples of a trainer, in its order."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from made_documents import made_text

from retrodb.corpus.special_tokens import special_ids
from retrodb.corpus.tokenizer_files import resolve_tokenizer
from retrodb.database import Database
from retrodb.errors import InputError, UsageError
from retrodb.stages.queries.megatron import MegatronPacking, MegatronSequences

Make = Callable[..., Database]
needs_megatron = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None, reason="megatron-core is not installed: 'make peers' installs it"
)
SEQ = 128


def write_megatron(prefix: Path, documents: list[list[int]]) -> None:
    """A `.bin` and `.idx` of token lists, one document each."""
    lengths = np.array([len(d) for d in documents], dtype=np.int64)
    pointers = (np.cumsum(lengths) - lengths) * 2
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(documents), len(documents) + 1)
    ends = np.arange(len(documents) + 1, dtype=np.int64)
    prefix.with_suffix(".idx").write_bytes(
        head + lengths.astype(np.int32).tobytes() + pointers.tobytes() + ends.tobytes()
    )
    np.concatenate([np.array(d, dtype=np.uint16) for d in documents]).tofile(prefix.with_suffix(".bin"))


@pytest.fixture
def training(tmp_path: Path, made_tokenizer: Path) -> list[Path]:
    """Two corpora with an end-of-document token behind every document, and the names of these."""
    tokenizer = resolve_tokenizer(made_tokenizer)
    end = special_ids(tokenizer.to_bytes(), tokenizer.vocab_size).end
    prefixes = [tmp_path / "first", tmp_path / "second"]
    for number, prefix in enumerate(prefixes):
        texts = [made_text(100 * number + i, 20 + 7 * i) for i in range(12)]
        write_megatron(prefix, [[*tokenizer.encode_batch([text]).tokens.tolist(), end] for text in texts])
        prefix.with_suffix(".names").write_text("".join(f"made/{number}-{i}\n" for i in range(12)))
    return prefixes


def rows_of(database: Database, name: str) -> tuple[list[list[int]], list[str], list[list[str]]]:
    """Tokens and texts of all rows, and the names of the documents in the sequence of each."""
    chunks = database.view().query_set(name)
    rows = np.arange(chunks.end)
    batch = chunks.gather_tokens(rows)
    tokens = [row[:length].tolist() for row, length in zip(batch.tokens, batch.lengths, strict=True)]
    documents = [orjson.loads(d["metadata"])["documents"] for d in chunks.documents(rows) if d]
    return tokens, chunks.texts(rows), documents


@needs_megatron
def test_rows_equal_the_chunks_of_megatrons_blended_samples_over_two_epochs(
    make_database: Make, training: list[Path], tmp_path: Path
) -> None:
    database = make_database({})
    blend = f"0.7 {training[0]} 0.3 {training[1]}"
    options = {"seq_length": SEQ, "split": "90,10,0", "seed": 7, "train_samples": 60}
    names = [str(prefix.with_suffix(".names")) for prefix in training]
    result = database.add_packed_queries("training", blend=blend, doc_ids=names, allow_unknown=True, **options)
    assert result.num_rows == 60 * SEQ // 64
    from megatron.core.datasets.retro.query.gpt_chunk_dataset import GPTChunkDataset  # warns when it comes first

    packing = MegatronPacking(tuple(map(str, training)), (0.7, 0.3), **options)
    theirs = GPTChunkDataset(MegatronSequences.open(packing, tmp_path / "other-cache").dataset, SEQ, 64)
    tokens, texts, documents = rows_of(database, "training")
    seen = [0, 0]
    for row in range(result.num_rows):
        sample = theirs[row]
        assert tokens[row] == sample["text"].tolist()
        whole = theirs.sample_dataset[row // 2]
        prefix = int(whole["dataset_id"])
        seen[prefix] += 1
        assert documents[row] == [f"made/{prefix}-{d}" for d in sorted(set(sample["doc_ids"].tolist()))]
    num_tokens = [prefix.with_suffix(".bin").stat().st_size // 2 for prefix in training]
    assert seen[0] * 64 > 1.5 * 0.9 * num_tokens[0], "the first corpus is read more than once"
    assert any("\n" in text for text in texts), "documents end inside chunks"


@needs_megatron
def test_no_document_of_a_sequence_is_its_neighbour(make_database: Make, training: list[Path]) -> None:
    database = make_database({f"0-{i}": made_text(i, 20 + 7 * i) for i in range(12)})
    names = [str(training[0].with_suffix(".names"))]
    database.add_packed_queries(
        "training", megatron=str(training[0]), seq_length=SEQ, train_samples=9, split="1,0,0", doc_ids=names
    )
    with pytest.raises(UsageError, match="leaves nothing"):
        database.add_packed_queries(
            "none", megatron=str(training[0]), seq_length=SEQ, train_samples=9, split="1,0,0", subset="test"
        )
    database.embed()
    database.index()
    database.neighbours(queries="training", k=9, spare_neighbours=0)
    table = database.neighbour_table("training")
    ids, _ = table.read(table.rows())
    _, _, documents = rows_of(database, "training")
    for row, neighbours in enumerate(ids.tolist()):
        names = {f"made/{d['doc_id']}" for d in table.view.chunks.documents(np.array(neighbours)) if d}
        assert names, "there are others"
        assert not names & set(documents[row]), "no document of the sequence is its neighbour"


@pytest.mark.parametrize("length", [64, 192])
def test_packing_own_documents_loses_no_token(make_database: Make, length: int, tmp_path: Path) -> None:
    texts = {str(i): made_text(i, n) for i, n in enumerate([1, 30, 64, 150, 400, 2])}
    database = make_database(texts)
    result = database.add_packed_queries("packed", sequences=length)
    again = database.add_packed_queries("packed", sequences=length)
    assert again.snapshot == result.snapshot, "nothing is committed twice"
    tokenizer = resolve_tokenizer(tmp_path / "db")
    end = special_ids(tokenizer.to_bytes(), tokenizer.vocab_size).end
    stream = [t for text in texts.values() for t in [*tokenizer.encode_batch([text]).tokens.tolist(), end]]
    tokens, shown, documents = rows_of(database, "packed")
    assert [t for row in tokens for t in row] == stream
    assert result.num_rows == len(tokens) == -(-len(stream) // 64)
    assert "".join(shown) == "".join(text + "\n" for text in texts.values())
    assert {name for row in documents for name in row} == {f"made/{name}" for name in texts}
    position = np.cumsum([0, *(len(tokenizer.encode_batch([text]).tokens) + 1 for text in texts.values())])
    for row, named in enumerate(documents):
        first = row * 64 // length * length
        inside = [i for i in range(len(texts)) if position[i] < first + length and position[i + 1] > first]
        assert named == [f"made/{i}" for i in inside]


def test_the_size_of_tasks_changes_no_row(make_database: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    database = make_database({str(i): made_text(i, 90) for i in range(9)})
    database.add_packed_queries("whole", sequences=64)
    monkeypatch.setattr("retrodb.stages.queries.packed._TASK_CHUNKS", 3)
    database.add_packed_queries("pieces", sequences=64)
    assert rows_of(database, "whole") == rows_of(database, "pieces")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"sequences": 100}, "do not divide into chunks"),
        ({"sequences": 64, "blend": "1 x"}, "takes none"),
        ({}, "give exactly one"),
        ({"blend": "1 x 2", "seq_length": 64, "train_samples": 5}, "is not a blend"),
        ({"megatron": "x", "seq_length": 64}, "--train-samples"),
        ({"megatron": "x", "seq_length": 64, "train_samples": 5, "subset": "all"}, "unknown subset"),
    ],
)
def test_invalid_options_are_refused(make_database: Make, options: dict[str, object], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        make_database({"a": made_text(1, 5)}).add_packed_queries("q", **options)


@needs_megatron
@pytest.mark.parametrize(("num_documents", "subset"), [(16, "test"), (16, "valid"), (300, "test")])
def test_a_split_that_leaves_a_subset_no_document_is_refused(
    make_database: Make, tmp_path: Path, num_documents: int, subset: str
) -> None:
    """With Megatron's default split, 969,30,1: its own builder repeats the empty subset without an end."""
    prefix = tmp_path / "small"
    write_megatron(prefix, [[1, 2, 3]] * num_documents)
    options = {"megatron": str(prefix), "seq_length": SEQ, "train_samples": 2, "subset": subset}
    with pytest.raises(UsageError, match=f"leaves no document of {num_documents} for {subset}"):
        make_database({}).add_packed_queries("small", **options)


@needs_megatron
@pytest.mark.parametrize("content", [b"", b"MMIDIDX", b"no index, but long enough to be a header of one"])
def test_a_file_that_is_no_index_is_refused(make_database: Make, tmp_path: Path, content: bytes) -> None:
    for end in ("bin", "idx"):
        (tmp_path / f"other.{end}").write_bytes(content)
    options = {"megatron": str(tmp_path / "other"), "seq_length": SEQ, "train_samples": 2}
    with pytest.raises(InputError, match=r"other\.idx.*no index of a Megatron data set"):
        make_database({}).add_packed_queries("other", **options)
