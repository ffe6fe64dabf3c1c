"""Files that an ingest skips, refuses whole, or reads only once."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrodb.config import IngestParams
from retrodb.corpus.chunking import Chunks
from retrodb.errors import InputError, TooManyRejects
from retrodb.format.parquet import read_table
from retrodb.stages.context import Context
from retrodb.stages.ingest import read_tasks, tokenize
from retrodb.stages.ingest.command import run_ingest

from .ingest_model import documents, ingest, new_database, write_json_lines

TEXTS = {f"d{n}": f"Document {n} holds words, and their continuations. " * (n % 5 + 1) for n in range(60)}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return new_database(tmp_path / "db")


def parquet_with_damage(path: Path) -> None:
    """Twenty row groups; a byte of a text in the last but one is flipped."""
    table = pa.table({"id": [f"p{n}" for n in range(400)], "text": [f"text {n} " * 20 for n in range(400)]})
    pq.write_table(table, path, row_group_size=20, write_page_checksum=True, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[content.index(b"text 370 ")] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("segment", [2048, 1 << 20])
def test_damaged_file_is_refused_whole_and_the_run_goes_on(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    monkeypatch.setattr(read_tasks, "_MIN_SEGMENT", segment)
    data = tmp_path / "data"
    data.mkdir()
    write_json_lines(data / "a.jsonl", TEXTS)
    parquet_with_damage(data / "b.parquet")
    (data / "c.csv").write_text("text,text\na,b\n")
    write_json_lines(data / "d.jsonl", {"last": "The last one."})
    with pytest.raises(TooManyRejects, match=r"b\.parquet: not a readable Parquet file.*2 of 63 records"):
        ingest(context, data)
    assert context.view().snapshot.number == 0
    result = ingest(context, data, max_reject_rate=0.1)
    assert (result.num_read, result.num_added, result.num_rejects_by_reason) == (63, 61, {"unreadable-file": 2})
    assert {key for _, key in documents(context)} == {*TEXTS, "last"}
    assert result.rejects_path is not None
    rows = read_table(context.storage.local(result.rejects_path)).to_pylist()
    assert [(row["path"], row["place"]) for row in rows] == [(str(data / n), "file") for n in ("b.parquet", "c.csv")]
    assert "columns 1 and 2 are both named 'text'" in rows[1]["excerpt"]
    with pytest.raises(InputError, match=r"not a readable Parquet file.*, and --mirror would remove"):
        ingest(context, data, max_reject_rate=0.1, mirror=True)
    table = pa.table({"id": ["p0"], "text": ["corrected"]})
    pq.write_table(table, data / "b.parquet")
    (data / "c.csv").write_text("text,title\nwords,b\n")
    corrected = ingest(context, data)
    assert (corrected.num_skipped_inputs, corrected.num_added) == (2, 2)


def test_limit_counts_records_after_a_damaged_file(context: Context, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8bcut")
    whole = write_json_lines(tmp_path / "b.jsonl", TEXTS)
    result = ingest(context, tmp_path / "a.jsonl.gz", whole, limit=10, max_reject_rate=0.5)
    assert (result.num_read, result.num_added, result.num_rejected) == (10, 9, 1)


def test_pictures_are_skipped_with_a_note_and_patterns_choose(context: Context, tmp_path: Path) -> None:
    site = tmp_path / "site"
    for name in ("a.md", "docs/b.md", "docs/c.md"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(f"# Page {name}\n")
    (site / "logo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    result = ingest(context, site)
    assert (result.num_added, result.num_rejected) == (3, 0)
    assert result.notes == (f"Skipped 1 file that is not text (1 .png). The first is {site}/logo.png.",)
    again = run_ingest(context, [str(site)], IngestParams("t", include=("docs",), exclude=("c.md", "*.rst")))
    assert again.num_added == 1
    assert again.notes == ("No input file matches the pattern '*.rst'.",)
    assert run_ingest(context, [str(site)], IngestParams("t")).num_skipped_inputs == 1
    with pytest.raises(TooManyRejects, match=r"logo\.png.*unknown-format"):
        ingest(context, site / "logo.png")


@pytest.mark.parametrize("segment", [2048, 1 << 20])
def test_pictures_in_an_archive_are_skipped_with_a_note(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    monkeypatch.setattr(read_tasks, "_MIN_SEGMENT", segment)
    site = tmp_path / "site"
    site.mkdir()
    for number in range(8):
        (site / f"{number}.md").write_text(f"# Page {number}\n")
        (site / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    for mode, name in (("w", "site.tar"), ("w:gz", "site.tar.gz")):
        with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
            archive.add(site, ".")
        result = run_ingest(context, [str(tmp_path / name)], IngestParams(name))
        assert (result.num_read, result.num_added, result.num_rejected) == (8, 8, 0)
        assert len(result.notes) == 1
        assert result.notes[0].startswith("Skipped 8 files that are not text (8 .png). The first is ")
        assert run_ingest(context, [str(tmp_path / name)], IngestParams(name)).num_skipped_inputs == 1
    with tarfile.open(tmp_path / "pictures.tar", "w") as archive:
        archive.add(site / "1.png", "1.png")
    with pytest.raises(InputError, match=r"pictures\.tar!1\.png: none of the 1 files in the archives is read"):
        run_ingest(context, [str(tmp_path / "pictures.tar")], IngestParams("pictures"))


def test_a_text_that_the_tokenizer_fails_at_is_named(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_at_31(documents: pa.Table, *others: object) -> Chunks:
        if "d31" in documents.column("doc_id").to_pylist():
            raise InputError("the tokenizer fails at a text (stack overflow)")
        return chunks(documents, *others)  # type: ignore[arg-type]

    chunks = tokenize._chunks
    monkeypatch.setattr(tokenize, "_chunks", fails_at_31)
    file = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(InputError, match=r"^document 'd31': the tokenizer fails at a text .*Leave this document out"):
        ingest(context, file)
    assert context.view().snapshot.number == 0


def test_pipes_are_read_once_as_files(context: Context, tmp_path: Path) -> None:
    content = write_json_lines(tmp_path / "a.jsonl", TEXTS).read_bytes()
    pipes = [tmp_path / "one.jsonl", tmp_path / "two.csv"]
    writers = []
    for pipe, data in zip(pipes, (content, b"id,text\nx,words of a table\n"), strict=True):
        os.mkfifo(pipe)
        writers.append(threading.Thread(target=pipe.write_bytes, args=(data,), daemon=True))
        writers[-1].start()
    result = run_ingest(context, [*map(str, pipes), str(pipes[0])], IngestParams("s"))
    for writer in writers:
        writer.join()
    assert result.num_added == 61
    assert {key for _, key in documents(context)} == {*TEXTS, "x"}
    assert not context.storage.list("tmp")


@pytest.mark.parametrize(
    "how", ["<(cat {0})", "/dev/stdin < {0}", "/dev/fd/0 < {0}", "/dev/stdin < <(cat {0})", "- < {0}"]
)
def test_shell_may_give_its_own_pipes(tmp_path: Path, how: str) -> None:
    context = new_database(tmp_path / "db")
    path = write_json_lines(tmp_path / "a.jsonl", TEXTS)
    start = "import sys; from retrodb_cli.main import main; sys.exit(main())"
    program = f"{sys.executable} -c '{start}' ingest {tmp_path}/db --source s --workers 2 {how.format(path)}"
    subprocess.run(["bash", "-c", program], check=True, cwd=Path(__file__).parents[3])
    assert documents(context) == {("s", key): text for key, text in TEXTS.items()}


@pytest.mark.usefixtures("context")
def test_names_that_are_not_utf8_are_stored_escaped(context: Context, tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    for name, content in ((b"caf\xe9.txt", b"words"), (b"\xff.txt", b"bad \xff"), (b"\xfe.jsonl.gz", b"\x1f\x8bcut")):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(content)
    result = ingest(context, folder, max_reject_rate=1.0)
    assert set(documents(context)) == {("s", "caf\\xe9.txt")}
    assert result.rejects_path is not None
    rows = read_table(context.storage.local(result.rejects_path)).to_pylist()
    assert {os.path.basename(row["path"]) for row in rows} == {"\\xff.txt", "\\xfe.jsonl.gz"}
    assert ingest(context, folder, max_reject_rate=1.0).num_skipped_inputs == 2


def test_many_small_ingests_keep_few_files_of_inputs_and_forget_none(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.stages.ingest.change._MAX_INPUTS_FILES", 3)
    files = [write_json_lines(tmp_path / f"{number}.jsonl", {f"d{number}": f"text {number}"}) for number in range(8)]
    for file in files:
        ingest(context, file)
        assert len(context.view().manifest.files("inputs", "s")) <= 3
    assert ingest(context, *files).num_skipped_inputs == len(files)
