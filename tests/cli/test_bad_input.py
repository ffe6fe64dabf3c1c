"""What is refused, and how: the exit code, what is wrong and where, and what to do about it."""

from __future__ import annotations

import errno
import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from retrodb import errors, open
from retrodb.format import FORMAT_VERSION
from retrodb.stages.embed.space_encoder import load_encoder
from retrodb.store import conflict_keys, storage
from retrodb.store.lock import advisory_lock

from .conftest import document, json_lines, ok, run

Fresh = Callable[[Path], Path]
LENIENT = ["--source", "s", "--workers", 1, "--max-reject-rate", "100%"]

BAD_RECORDS = {
    "no-text-field": [b'{"id": 1}', b'{"id": 2, "text": null}'],
    "text-not-a-string": [b'{"id": 3, "text": 7}', b'{"id": 4, "text": ["a"]}'],
    "empty": [b'{"id": 5, "text": ""}', b'{"id": 6, "text": " \\n\\t "}'],
    "lone-surrogate": [b'{"id": 7, "text": "\\ud83d alone"}'],
    "invalid-utf8": [b'{"id": 8, "text": "\xff\xfe"}'],
    "not-json": [b'{"id": 9, "text": "cut', b"{"],
    "nested-too-deep": [b"[" * 100_000, b'{"text": "x", "m": ' + b"[" * 300 + b"]" * 300 + b"}"],
    "duplicate-field": [b'{"text": "a", "text": "b"}'],
    "not-an-object": [b"[1, 2]"],
}


@pytest.mark.parametrize("reason", BAD_RECORDS)
def test_bad_records_are_rejected_by_reason(reason: str, empty: Path, fresh: Fresh, tmp_path: Path) -> None:
    bad = BAD_RECORDS[reason]
    done = run("ingest", fresh(empty), json_lines(tmp_path / "in.jsonl", document(1), *bad), *LENIENT, "--json")
    assert done.code == errors.EXIT_REJECTS
    assert (done.row["num_added"], done.row["num_rejects_by_reason"]) == (1, {reason: len(bad)})


def test_too_many_rejects_commit_nothing(empty: Path, fresh: Fresh, tmp_path: Path) -> None:
    database = fresh(empty)
    bad = json_lines(tmp_path / "in.jsonl", document(1), b"oops")
    done = run("ingest", database, bad, "--source", "s")
    assert done.code == errors.EXIT_ERROR
    assert f"{bad}, byte" in done.err
    assert "--max-reject-rate" in done.err
    assert len(ok("snapshots", database, "--json").rows) == 1


def test_a_text_of_50_mb_is_rejected_above_the_cap_and_split_on_request(
    empty: Path, fresh: Fresh, tmp_path: Path
) -> None:
    database = fresh(empty)
    long = json_lines(tmp_path / "in.jsonl", {"id": "long", "text": "word " * 10_000_000}, document(1))
    done = run("ingest", database, long, *LENIENT, "--max-document-chars", 1_000_000, "--json")
    assert done.row["num_rejects_by_reason"] == {"too-long": 1}
    short = json_lines(tmp_path / "short.jsonl", {"id": "long", "text": "word " * 1_000})
    row = ok("ingest", database, short, *LENIENT, "--max-document-chars", 2_000, "--oversize", "split", "--json").row
    assert row["num_added"] == 3


def test_nul_is_text_like_any_other(empty: Path, fresh: Fresh, tmp_path: Path) -> None:
    database = fresh(empty)
    ok("ingest", database, json_lines(tmp_path / "in.jsonl", {"id": "nul", "text": "a\0b and more"}), *LENIENT)
    assert ok("sql", database, "select text from chunks", "--json").row["text"] == "a\0b and more"


def test_blank_lines_do_not_end_the_file(empty: Path, fresh: Fresh, tmp_path: Path) -> None:
    lines = json_lines(tmp_path / "in.jsonl", document(1), b"", b"  ", document(2), b"", document(3))
    assert ok("ingest", fresh(empty), lines, *LENIENT, "--json").row["num_added"] == 3


@pytest.mark.parametrize(("ending", "pack"), [("gz", gzip.compress), ("zst", zstandard.compress)])
def test_truncated_compressed_input_is_refused_whole(
    ending: str, pack: Callable[[bytes], bytes], empty: Path, fresh: Fresh, tmp_path: Path
) -> None:
    database = fresh(empty)
    plain = json_lines(tmp_path / "in.jsonl", *({**document(n), "noise": os.urandom(99).hex()} for n in range(200)))
    packed = tmp_path / f"in.jsonl.{ending}"
    packed.write_bytes(pack(plain.read_bytes())[:-100])
    done = run("ingest", database, packed, "--source", "s")
    assert done.code == errors.EXIT_ERROR
    assert f"{packed}: " in done.err
    assert "cut off" in done.err
    assert len(ok("snapshots", database, "--json").rows) == 1
    done = run("ingest", database, packed, json_lines(tmp_path / "b.jsonl", document(1)), *LENIENT, "--json")
    assert done.code == errors.EXIT_REJECTS
    assert (done.row["num_added"], done.row["num_rejects_by_reason"]) == (1, {"unreadable-file": 1})


def test_duplicate_ids_of_one_input_are_counted(empty: Path, fresh: Fresh, tmp_path: Path) -> None:
    twice = json_lines(tmp_path / "in.jsonl", document(1), document(1), {**document(1), "text": "something else"})
    row = ok("ingest", fresh(empty), twice, *LENIENT, "--json").row
    assert (row["num_read"], row["num_added"], row["num_duplicate"]) == (3, 1, 2)


def test_files_that_are_not_there_are_named(empty: Path, tmp_path: Path) -> None:
    for command in (["ingest", empty, tmp_path / "none.jsonl", "--source", "s"], ["dedup", empty, "--against", "none"]):
        done = run(*command)
        assert done.code == errors.EXIT_ERROR
        assert "none" in done.err
    assert run("ingest", empty, "--source", "s").code == errors.EXIT_USAGE


def test_unknown_tokenizer_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    done = run("init", tmp_path / "db", "--tokenizer", "no-such/tokenizer")
    assert done.code == errors.EXIT_ERROR
    assert "no-such/tokenizer" in done.err
    assert not (tmp_path / "db").exists()


def test_another_encoder_is_refused_with_both_fingerprints(built: Path) -> None:
    done = run("embed", built, "--encoder", "hashing:64")
    assert done.code == errors.EXIT_ERROR
    assert "was embedded with another encoder" in done.err
    assert "--space NAME" in done.err


def test_changed_weights_of_an_encoder_are_refused(built: Path, fresh: Fresh, tmp_path: Path) -> None:
    import torch
    import transformers

    model = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        )
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxy"]
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    database = fresh(built)
    assert ok("embed", database, "--space", "own", "--encoder", folder, "--workers", 1, "--json").row["dimension"] == 16
    assert ok("embed", database, "--space", "own", "--json").row["num_chunks"] == 0
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    model.save_pretrained(folder)
    load_encoder.cache_clear()  # as in the next process
    done = run("embed", database, "--space", "own")
    assert done.code == errors.EXIT_ERROR
    assert "weights" in done.err


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["neighbours", "{db}"], "retrodb embed"),
        (["index", "{db}"], "retrodb embed"),
        (["search", "{db}", "text"], "retrodb embed"),
        (["export", "{db}", "{out}"], "retrodb neighbours"),
        (["validate", "{db}"], "retrodb neighbours"),
    ],
)
def test_a_command_that_runs_too_early_names_the_missing_step(
    arguments: list[str], missing: str, empty: Path, tmp_path: Path
) -> None:
    done = run(*(each.format(db=empty, out=tmp_path / "out") for each in arguments))
    assert done.code == errors.EXIT_ERROR
    assert f"'{missing}" in done.err


def test_neighbours_between_embed_and_index_asks_for_index(empty: Path, corpus: Path, fresh: Fresh) -> None:
    database = fresh(empty)
    ok("ingest", database, corpus, *LENIENT)
    ok("embed", database, "--workers", 1)
    assert "'retrodb index" in run("neighbours", database).err


def test_a_second_writer_of_a_source_is_refused(empty: Path, corpus: Path, fresh: Fresh) -> None:
    database = fresh(empty)
    with advisory_lock(storage.LocalStorage(database), conflict_keys.ingest("s").lock, "ingest"):
        done = run("ingest", database, corpus, *LENIENT)
        assert done.code == errors.EXIT_CONFLICT
        assert f"another command is running: ingest (process {os.getpid()}" in done.err
    ok("ingest", database, corpus, *LENIENT)


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (errno.ENOSPC, errors.EXIT_NO_SPACE, "Free some space and run the same command again"),
        (errno.EROFS, errors.EXIT_ERROR, "the file system is mounted read-only"),
    ],
)
def test_a_full_or_read_only_disk_keeps_the_old_snapshot_and_a_rerun_succeeds(
    number: int, code: int, message: str, empty: Path, corpus: Path, fresh: Fresh, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = fresh(empty)
    writes = 0

    def refuse(path: Path) -> None:
        nonlocal writes
        writes += 1
        if writes > 6:
            raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_sync_file", refuse)
        done = run("ingest", database, corpus, *LENIENT)
    assert done.code == code
    assert message in done.err
    assert len(ok("snapshots", database, "--json").rows) == 1
    assert ok("ingest", database, corpus, *LENIENT, "--json").row["num_added"] == 40
    ok("check", database, "--read-data")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    tmp_path.chmod(0o555)
    done = run("init", tmp_path / "db", "--tokenizer", tokenizer)
    assert done.code == errors.EXIT_ERROR
    assert "the file system is mounted read-only" in done.err


def test_a_newer_format_is_refused(empty: Path, fresh: Fresh) -> None:
    database = fresh(empty)
    settings = database / "retrodb.toml"
    text = settings.read_text()
    settings.write_text(text.replace(f"format_version = {FORMAT_VERSION}", "format_version = 99"))
    done = run("stats", database)
    assert done.code == errors.EXIT_NO_DATABASE
    assert "format version 99 is newer" in done.err
    assert "pip install --upgrade retrodb" in done.err


def test_an_older_format_is_refused_with_what_to_do(empty: Path, fresh: Fresh) -> None:
    database = fresh(empty)
    settings = database / "retrodb.toml"
    settings.write_text(settings.read_text().replace(f"format_version = {FORMAT_VERSION}", "format_version = 1"))
    for command in ("stats", "check", "search"):
        done = run(command, database, *(["words"] if command == "search" else []))
        assert done.code == errors.EXIT_NO_DATABASE
        assert "format version 1, which this retrodb does not read" in done.err
        assert "retrodb build" in done.err


def test_a_damaged_file_is_refused_by_name_before_it_is_used(built: Path, fresh: Fresh) -> None:
    database = fresh(built)
    [part] = (database / "documents").iterdir()
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    done = run("sql", database, "select doc_id from documents", "--json")
    assert done.code == errors.EXIT_DAMAGE
    assert f"documents/{part.name}: checksum mismatch" in done.errors[-1]["message"]


def test_text_in_any_script_is_split_without_loss(empty: Path, fresh: Fresh, tmp_path: Path) -> None:
    database = fresh(empty)
    texts = [
        "数据库检索增强语言模型，文本分块。" * 20,
        "👩‍👩‍👧 and 🇩🇪, 한국어 문장을 나눈다. " * 20,
        "ภาษาไทยไม่มีช่องว่าง" * 20,
    ]
    records = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    ok("ingest", database, json_lines(tmp_path / "in.jsonl", *records), *LENIENT)
    rows = ok("sql", database, "select text, position = 0 as begins from chunks order by chunk_id", "--json").rows
    joined: list[str] = []
    for row in rows:
        joined = [*joined, row["text"]] if row["begins"] else [*joined[:-1], joined[-1] + row["text"]]
    assert joined == texts
    db = open(database)
    import numpy as np

    from retrodb.corpus.lm_tokenizer import Tokenizer

    chunks = db.view().chunks
    batch = chunks.gather_tokens(np.arange(chunks.end))
    tokens = np.concatenate([own[:length] for own, length in zip(batch.tokens, batch.lengths, strict=True)])
    assert Tokenizer.load(database / "tokenizer.json").decode_bytes(tokens).decode() == "".join(texts)


def test_tokenizer_training_needs_documents_and_an_existing_folder(corpus: Path, tmp_path: Path) -> None:
    nothing = json_lines(tmp_path / "in.jsonl", {"id": 1})
    done = run("tokenizer", "train", nothing, "--out", tmp_path / "tokenizer.json")
    assert (done.code, "no document in the input files" in done.err) == (errors.EXIT_ERROR, True)
    assert not (tmp_path / "tokenizer.json").exists()
    done = run("tokenizer", "train", corpus, "--out", tmp_path / "none" / "tokenizer.json")
    assert (done.code, "no such folder" in done.err) == (errors.EXIT_USAGE, True)
