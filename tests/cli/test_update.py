"""`retrodb build`, `update` and `schedule` from the command line."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from retrodb import errors
from retrodb.store.lock import advisory_lock
from retrodb.store.storage import LocalStorage

from .conftest import document, json_lines, ok, run


@pytest.fixture(scope="module")
def built_folder(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files and a database that was built of them."""
    folder = tmp_path_factory.mktemp("first day")
    json_lines(folder / "files.jsonl", *map(document, range(12)))
    arguments = [folder / "files.jsonl", "--tokenizer", tokenizer, "--encoder", "hashing:32", "--workers", 1]
    folder.joinpath("out").write_text(ok("build", folder / "db", *arguments, "--yes").out)
    return folder


def test_build_shows_documents_and_estimates_before_the_stages(built_folder: Path) -> None:
    out = (built_folder / "out").read_text()
    places = [
        out.index(each)
        for each in ("d0  text from 'text'", "1 file,", "total: about", "ingest          done", "Next steps:")
    ]
    assert places == sorted(places)
    assert "12 documents" in out


def test_build_asks_once(tmp_path: Path, tokenizer: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["build", tmp_path / "db", corpus, "--tokenizer", tokenizer, "--encoder", "hashing:32", "--workers", 1]
    refused = run(*arguments)
    assert (refused.code, refused.out) == (errors.EXIT_USAGE, "")
    assert "--yes" in refused.err
    ok(*arguments, "--dry-run")
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    declined = run(*arguments)
    assert declined.code == errors.EXIT_ERROR
    assert "Nothing was written." in declined.err
    assert not (tmp_path / "db").exists()


def test_build_without_a_tokenizer_suggests_some(tmp_path: Path, corpus: Path) -> None:
    done = run("build", tmp_path / "db", corpus, "--yes")
    assert done.code == errors.EXIT_USAGE
    assert "--tokenizer gpt2" in done.err
    assert "--tokenizer train" in done.err


def test_update_continues_a_build(built_folder: Path) -> None:
    assert ok("update", built_folder / "db", "--workers", 1, "--json").rows[-1]["outcome"] == "nothing new"
    json_lines(built_folder / "files.jsonl", *map(document, range(14)))
    plan = ok("update", built_folder / "db", "--workers", 1, "--dry-run", "--json").row
    assert (plan["num_documents"], plan["stages"][0]["stage"]) == (2, "ingest")
    assert "total: about" in ok("update", built_folder / "db", "--workers", 1, "--dry-run").out
    *steps, result = ok("update", built_folder / "db", "--workers", 1, "--json").rows
    assert {row["message_type"] for row in steps} == {"update_step"}
    assert (result["message_type"], result["outcome"]) == ("update_result", "done")
    assert "nothing to do" in ok("update", built_folder / "db", "--workers", 1, "--dry-run").out


def test_the_device_reaches_the_neighbour_tables(built_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[neighbours.more]\nk = 3\n")
    options = ("--config", tmp_path / "recipe.toml", "--workers", 1, "--device", "abacus", "--json")
    done = run("update", built_folder / "db", *options)
    failed = next(row for row in done.rows if row["outcome"] == "failed")
    assert (done.code, failed["stage"], failed["name"]) == (2, "neighbours", "more"), failed["error"]


def test_too_little_memory_is_refused_before_an_update_begins(built_folder: Path) -> None:
    refused = run("update", built_folder / "db", "--memory", "100MiB")
    assert refused.code == errors.EXIT_USAGE
    assert "'update' needs at least 320MiB of memory, and the limit is 100MiB. Give --memory 320MiB" in refused.err


def test_update_ends_with_the_code_of_the_first_failure(built_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "recipe.toml"
    config.write_text('[sources.other]\ninputs = ["nowhere"]\n')
    done = run("update", built_folder / "db", "--config", config, "--workers", 1)
    assert done.code == errors.EXIT_ERROR
    assert "no such file or folder" in done.out
    config.write_text("[souces.other]\n")
    assert "Did you mean 'sources'?" in run("update", built_folder / "db", "--config", config).err
    assert run("update", built_folder / "db", "--config", config).code == errors.EXIT_USAGE


def test_update_shows_the_notes_of_an_ingest(built_folder: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    lines = json_lines(inputs / "more.jsonl", {"id": "more", "text": "A text of the second source."})
    lines.write_text(lines.read_text() + '{"id": "cut off\n')
    (inputs / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(99))
    config = tmp_path / "recipe.toml"
    config.write_text(f'[sources.more]\ninputs = ["{inputs}"]\nmax_reject_rate = 1.0\n')
    done = run("update", built_folder / "db", "--config", config, "--workers", 1, "--json")
    assert done.code == errors.EXIT_REJECTS
    step = done.rows[0]
    skipped, rejected = step["notes"]
    assert "picture.png" in skipped
    assert rejected.startswith(f"1 of 2 records were rejected. See {built_folder / 'db'}/")
    lines.write_text(lines.read_text() + "{}\n")
    shown = run("update", built_folder / "db", "--config", config, "--workers", 1).out
    assert "2 of 3 records were rejected" in shown
    assert "picture.png" in shown


def test_overlapping_updates_end_with_11(built_folder: Path) -> None:
    with advisory_lock(LocalStorage(built_folder / "db"), "update", "update"):
        done = run("update", built_folder / "db")
    assert done.code == errors.EXIT_CONFLICT
    assert "another command is running: update" in done.err


def test_schedule_prints_and_writes_units(built_folder: Path, tmp_path: Path) -> None:
    out = ok("schedule", built_folder / "db", "--print", "systemd", "--every", "6h", "--out", tmp_path).out
    assert "OnCalendar=*-*-* 0/6:00:00" in out
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".service", ".timer"]
    assert ok("schedule", built_folder / "db", "--print", "cron", "--json").row["name"] == "retrodb-db.cron"
    assert run("schedule", built_folder / "db", "--print", "cron", "--every", "5h").code == errors.EXIT_USAGE


def test_a_build_that_added_nothing_can_be_run_again_with_other_options(tokenizer: Path, tmp_path: Path) -> None:
    database, encoder = tmp_path / "db", ["--encoder", "hashing:8", "--yes", "--workers", 1]
    (tmp_path / "empty").mkdir()
    done = run("build", database, tmp_path / "empty", "--tokenizer", tokenizer, *encoder)
    assert (done.code, "no file to read" in done.err) == (errors.EXIT_ERROR, True)
    assert not database.exists()
    bad = json_lines(tmp_path / "bad.jsonl", document(1), *[b"broken"] * 60)
    done = run("build", database, bad, "--tokenizer", "train", *encoder)
    assert done.code == errors.EXIT_ERROR
    assert "Next steps" not in done.out
    assert "can be run again with other options" in done.out
    good = json_lines(tmp_path / "good.jsonl", *({**document(n), "note": "x"} for n in range(9)))
    wrong = ["--key-field", "text", "--value-field", "nto"]
    done = run("build", database, good, "--tokenizer", tokenizer, *wrong, *encoder)
    assert "its fields are: id, text, year, note" in done.err
    done = ok("build", database, good, "--tokenizer", tokenizer, "--encoder", "hashing:16", "--yes", "--workers", 1)
    assert "Next steps" in done.out
    assert ok("check", database, "--read-data", "--json").row["damaged"] == []
    assert run("build", database, bad, "--tokenizer", tokenizer, *encoder).code == errors.EXIT_CONFLICT


def test_a_build_keeps_a_recipe_that_somebody_wrote(empty: Path, corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    database = Path(shutil.copytree(empty, tmp_path / "db"))
    recipe = '# mine\n[sources.s]\ninputs = ["x"]\n'
    (database / "recipe.toml").write_text(recipe)
    options = ["--tokenizer", tokenizer, "--encoder", "hashing:8", "--yes", "--workers", 1]
    assert run("build", database, corpus, *options).code == errors.EXIT_CONFLICT
    assert (database / "recipe.toml").read_text() == recipe


def test_a_build_trains_its_tokenizer_on_keys_and_values(tmp_path: Path) -> None:
    pairs = json_lines(
        tmp_path / "pairs.jsonl", *({"id": n, "ask": "why why", "say": "zygote " * 20} for n in range(9))
    )
    options = ["--key-field", "ask", "--value-field", "say", "--encoder", "hashing:8", "--yes", "--workers", 1]
    ok("build", tmp_path / "db", pairs, "--tokenizer", "train", *options)
    assert "zygote" in (tmp_path / "db" / "tokenizer.json").read_text()
