"""The golden database: every kind of file is in it, and every group of commands works on it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from generate import PURGED, WITHDRAWN, generate, main, read_archive, write_archive
from golden_inputs import LATER_ARTICLE, article, record, write_json_lines
from tokenizers import Tokenizer

import retrodb
from retrodb.database import Database
from retrodb.errors import FormatVersionError
from retrodb.format.kinds import KINDS

MAX_SIZE_BYTES = 900_000
NOT_OF_THE_FORMAT = {"recipe.toml", "quarantine"}  # they may lie in a database's folder and are no part of it
TO_PURGE = "letter-cooper"
K = 2  # neighbours of a row


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden database and its inputs, packed."""
    folder = tmp_path_factory.mktemp("golden")
    generate(folder / "made")
    write_archive(folder / "made", folder / "golden.tar.zst")
    return folder / "golden.tar.zst"


@pytest.fixture(scope="session")
def unpacked(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the golden database and its inputs: tests only read it."""
    folder = tmp_path_factory.mktemp("unpacked")
    read_archive(archive, folder)
    return folder


@pytest.fixture(scope="session")
def golden(unpacked: Path) -> Path:
    """The golden database: tests only read it."""
    return unpacked / "db"


@pytest.fixture
def copy(unpacked: Path, tmp_path: Path) -> Path:
    """A copy of the golden database that a test may change; its inputs lie next to it."""
    return Path(shutil.copytree(unpacked, tmp_path / "copy")) / "db"


def test_it_has_every_kind_of_file_and_is_small(golden: Path) -> None:
    files = [path for path in golden.rglob("*") if path.is_file()]
    names = [path.relative_to(golden).as_posix() for path in files]
    kinds = {name: kind_of(name) for name in names if name.partition("/")[0] not in NOT_OF_THE_FORMAT}
    assert set(kinds.values()) == set(KINDS) - {"queue"}  # of a command that waits for workers
    assert sum(path.stat().st_size for path in files) < MAX_SIZE_BYTES


def test_a_second_generation_gives_the_same_bytes(archive: Path, tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "elsewhere" / "again"), "--archive", str(tmp_path / "again.tar.zst")])
    assert (tmp_path / "elsewhere" / "again" / "db" / "retrodb.toml").exists()
    assert (tmp_path / "again.tar.zst").read_bytes() == archive.read_bytes()


def test_a_check_of_every_byte_finds_no_damage(golden: Path) -> None:
    assert retrodb.open(golden).check(read_data=True).damaged == ()


def test_search_finds_every_live_document_by_its_words(golden: Path) -> None:
    db = retrodb.open(golden)
    texts = first_texts(db)
    assert [hits[0].doc_id for hits in db.search(list(texts.values()))] == list(texts)
    assert not {WITHDRAWN, PURGED} & set(texts)


def test_search_in_a_space_without_vectors_finds_every_live_document(golden: Path) -> None:
    db = retrodb.open(golden)
    texts = first_texts(db)
    answers = db.search(list(texts.values()), space="codes")
    assert all(name in [hit.doc_id for hit in hits] for name, hits in zip(texts, answers, strict=True))


def test_sql_counts_documents_and_files(golden: Path) -> None:
    db = retrodb.open(golden)
    counts = dict(db.sql("select source, count(*) from documents where live group by source").rows)
    assert counts == {"annals": 1, "articles": 7, "letters": 3, "questions": 4}
    assert db.sql(f"select count(*) from documents where doc_id = '{PURGED}'").rows == [(0,)]
    assert db.sql("select count(distinct kind) >= 20 from files").rows == [(True,)]


def test_an_arrays_export_has_the_tokens_of_every_live_chunk(golden: Path, tmp_path: Path) -> None:
    db = retrodb.open(golden)
    db.export(tmp_path / "arrays", to="arrays", is_registered=False)
    arrays = {path.stem: np.load(path) for path in (tmp_path / "arrays").glob("*.npy")}
    rows = zip(arrays["query_tokens"], arrays["query_lengths"], strict=True)
    assert decode(golden, [tokens[:length] for tokens, length in rows]) == list(live_texts(db).values())
    assert arrays["neighbours"].shape == (len(arrays["query_tokens"]), K)
    assert arrays["neighbours"].max() < len(arrays["tokens"]) == len(arrays["continuations"])


def test_a_parquet_export_has_the_rows_of_the_neighbour_table(golden: Path, tmp_path: Path) -> None:
    db = retrodb.open(golden)
    db.export(tmp_path / "parquet", to="parquet", is_registered=False)
    rows = ds.dataset(tmp_path / "parquet" / "rows").to_table().to_pylist()
    chunks = ds.dataset(tmp_path / "parquet" / "chunks").to_table().to_pylist()
    texts = live_texts(db)
    assert decode(golden, [row["tokens"] for row in rows]) == [texts[row["row"]] for row in rows]
    assert {chunk["chunk_id"] for chunk in chunks} == {n for row in rows for n in row["neighbours"]} - {-1}
    assert not {WITHDRAWN, PURGED} & {chunk["doc_id"] for chunk in chunks}


def test_an_update_adds_a_document_that_search_then_finds(copy: Path) -> None:
    write_json_lines(copy.parent / "inputs/articles/second.jsonl", [record(LATER_ARTICLE)])
    assert retrodb.open(copy).update().exit_code == 0
    db = retrodb.open(copy)
    text = first_texts(db)[LATER_ARTICLE]
    assert article(LATER_ARTICLE).startswith(text)
    for space in ("default", "codes"):
        [hits] = db.search([text], space=space)
        assert hits[0].doc_id == LATER_ARTICLE
    assert db.check(read_data=True).damaged == ()


def test_an_update_does_not_bring_a_purged_document_back(copy: Path) -> None:
    write_json_lines(copy.parent / "inputs/letters.jsonl", [record(PURGED), record("letter-new")])
    db = retrodb.open(copy)
    db.ingest([copy.parent / "inputs/letters.jsonl"], source="letters")
    found = db.sql("select doc_id from documents where live and source = 'letters'").rows
    assert ("letter-new",) in found
    assert (PURGED,) not in found


def test_a_purge_leaves_nothing_of_a_document(copy: Path) -> None:
    text = first_texts(retrodb.open(copy))[TO_PURGE]
    result = retrodb.open(copy).purge([TO_PURGE], break_pins=True)
    assert result.proof is not None
    assert result.proof.remaining == ()
    db = retrodb.open(copy)
    assert TO_PURGE not in [hit.doc_id for hit in db.search([text], k=200)[0]]
    assert TO_PURGE.encode() not in b"".join(path.read_bytes() for path in copy.rglob("*") if path.is_file())
    assert db.check(read_data=True).damaged == ()


def test_a_repair_finishes_the_one_that_was_interrupted(copy: Path) -> None:
    retrodb.open(copy).repair()
    assert not (copy / "repair.json").exists()
    assert retrodb.open(copy).check(read_data=True).damaged == ()


def test_a_newer_format_version_is_refused(copy: Path) -> None:
    settings = copy / "retrodb.toml"
    text, num_changed = re.subn(r"format_version = \d+", "format_version = 999", settings.read_text())
    assert num_changed == 1
    settings.write_text(text)
    with pytest.raises(FormatVersionError):
        retrodb.open(copy)


def kind_of(name: str) -> str | None:
    """The kind of file that has this path; None where there is none."""
    for kind in KINDS.values():
        pattern = re.sub(r"\\{(\w+)\\}", lambda part: ".+" if part[1] == "file" else "[^/]+", re.escape(kind.pattern))
        if re.fullmatch(pattern, name):
            return kind.name
    return None


def decode(golden: Path, rows: Iterable[Sequence[int]]) -> list[str]:
    """The texts that tokens stand for."""
    tokenizer = Tokenizer.from_file(str(golden / "tokenizer.json"))
    return [tokenizer.decode(list(tokens)) for tokens in rows]


def first_texts(db: Database) -> dict[str, str]:
    """The text of the first chunk of every live document, by the document's id."""
    documents = db.sql("select doc_id, first_chunk from documents where live order by first_chunk").rows
    texts = live_texts(db)
    return {name: texts[first] for name, first in documents}


def live_texts(db: Database) -> dict[int, str]:
    """The text of every live chunk by its id, ascending."""
    return dict(db.sql("select chunk_id, text from chunks where live order by chunk_id").rows)
