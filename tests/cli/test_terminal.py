"""Every command on terminals that are narrow or not UTF-8, and with text that is meant to control a terminal."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest

from retrodb import errors
from retrodb.engine.progress import LineProgress
from retrodb_cli.main import COMMANDS, cli, main
from retrodb_cli.output import ConsoleOutput, printable, render_table, style

from .conftest import Done, json_lines, ok, run

HOSTILE = "Zürich 漢字 \U0001f600 \u202edrowssap\u202c \x1b]0;title\x07\x1b[31mred\x1b[0m\u200b\u2028\x9b2J"
ID = f"id {HOSTILE}"


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that is no group, and of the default command of a group."""
    if not isinstance(command, click.Group):
        yield words
        return
    if words and hasattr(command, "default"):
        yield words
    for name in click.Group.list_commands(command, click.Context(command)) if words else COMMANDS:
        child = command.get_command(click.Context(command), name)
        assert child is not None
        yield from leaves(child, (*words, name))


# Commands that read run for real. The others make a plan, or show their help where they have no --dry-run.
ARGUMENTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("plan",): ("{db}", "--tokens", "1e9"),
    ("build",): ("{new}", "{corpus}", "--tokenizer", "{tokenizer}", "--encoder", "hashing:8", "--dry-run"),
    ("demo",): ("--help",),
    ("init",): ("{new}", "--tokenizer", "{tokenizer}", "--encoder", "hashing:8", "--dry-run"),
    ("tokenizer", "train"): ("--help",),
    ("ingest",): ("{db}", "{corpus}", "--source", "new ü", "--dry-run"),
    ("dedup",): ("{db}", "--report"),
    ("tag",): ("{db}", "--name", "zs", "--regex", "[Zz]", "--dry-run"),
    ("filter",): ("{db}", "--where", "text like '%Z%'", "--dry-run"),
    ("undelete",): ("{db}", "--reason", "hostile", "--dry-run"),
    ("embed",): ("{db}", "--dry-run"),
    ("space", "list"): ("{db}",),
    ("space", "default"): ("{db}", "default", "--dry-run"),
    ("space", "drop"): ("--help",),
    ("index",): ("{db}", "--dry-run"),
    ("queries", "add"): ("{db}", "{corpus}", "--name", "more ü", "--dry-run"),
    ("neighbours",): ("{db}", "--dry-run"),
    ("neighbours", "show"): ("{db}", "--row", "{row}"),
    ("neighbours", "edit"): ("{db}", "--row", "{row}", "--ban", "0", "--dry-run"),
    ("export",): ("{db}", "{new}", "--dry-run"),
    ("validate",): ("--help",),
    ("retro", "train"): ("--help",),
    ("retro", "fit"): ("--help",),
    ("retro", "eval"): ("--help",),
    ("retro", "generate"): ("--help",),
    ("work",): ("{db}", "--idle-exit", "1s", "--workers", "1"),
    ("runs", "list"): ("{db}",),
    ("runs", "show"): ("--help",),
    ("runs", "retry"): ("--help",),
    ("runs", "cancel"): ("--help",),
    ("runs", "commit"): ("--help",),
    ("search",): ("{db}", "Zürich 漢字", "harbour", "--k", "3"),
    ("stats",): ("{db}",),
    ("snapshots",): ("{db}",),
    ("diff",): ("{db}", "1", "{head}", "--documents"),
    ("testsets",): ("{db}",),
    ("exposure",): ("{db}", "--testset", "exam"),
    ("leakage",): ("{db}", "--queries", "exam"),
    ("compare",): ("--help",),
    ("eval-retrieval",): ("{db}", "--queries", "{queries}", "--qrels", "{qrels}"),
    ("check",): ("{db}", "--read-data"),
    ("sql",): ("{db}", "select doc_id, metadata, text from documents join chunks using (first_chunk)"),
    ("bench", "recall"): ("--help",),
    ("bench", "throughput"): ("--help",),
    ("update",): ("--help",),
    ("schedule",): ("--help",),
    ("compact",): ("{db}", "--dry-run"),
    ("gc",): ("{db}", "--dry-run"),
    ("purge",): ("{db}", "--doc-ids", "{ids}", "--dry-run"),
    ("pin",): ("{db}", "--name", "run-7", "--dry-run"),
    ("restore",): ("{db}", "1", "--dry-run"),
    ("copy",): ("{db}", "{new}", "--dry-run"),
}


@pytest.fixture(scope="module")
def places(built: Path, corpus: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A database with hostile documents, and what else the commands are given."""
    folder = tmp_path_factory.mktemp("hostile ü")
    db = Path(shutil.copytree(built, folder / "db 漢"))
    documents = json_lines(
        folder / "hostile.jsonl",
        {"id": ID, "text": f"Z {HOSTILE} harbour " * 9, HOSTILE: HOSTILE},
        {"id": "z", "text": f"Zz {HOSTILE} granite " * 9},
    )
    ok("ingest", db, documents, "--source", "made ü", "--workers", 1)
    ok("filter", db, "--where", "doc_id = 'z'", "--reason", "hostile")
    ok("embed", db, "--workers", 1)
    ok("index", db, "--workers", 1)
    ok("neighbours", db, "--repair", "--workers", 1)
    [row] = ok("sql", db, "select first_chunk from documents where doc_id like 'id %'", "--json").rows
    return {
        "db": str(db),
        "new": str(folder / "new ü"),
        "corpus": str(documents),
        "tokenizer": str(tokenizer),
        "row": str(row["first_chunk"]),
        "head": str(ok("stats", db, "--json").row["snapshot"]),
        "ids": str(json_lines(folder / "ids.jsonl", {"id": ID, "source": "made ü"})),
        "queries": str(json_lines(folder / "q.jsonl", {"id": "q ü", "text": HOSTILE})),
        "qrels": str(json_lines(folder / "r.jsonl", {"query-id": "q ü", "corpus-id": ID, "score": 1})),
    }


def run_with(encoding: str, *arguments: str) -> Done:
    """`retrodb` with streams of an encoding that raise for what it does not have."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(arguments))
    return Done(code, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err)))  # type: ignore[attr-defined]


def test_every_command_is_tried() -> None:
    assert set(ARGUMENTS) == set(leaves(cli))


@pytest.mark.parametrize("words", ARGUMENTS, ids=" ".join)
@pytest.mark.parametrize(("encoding", "columns"), [("ascii", 80), ("iso-8859-1", 80), ("utf-8", 40)])
def test_no_output_breaks_a_terminal(
    words: tuple[str, ...], encoding: str, columns: int, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = run_with(encoding, *words, *(argument.format(**places) for argument in ARGUMENTS[words]))
    assert done.code == 0, done.err
    shown = done.out + done.err
    assert shown
    assert not [character for character in shown if is_unsafe(character)]


@pytest.mark.parametrize(
    "variables",
    [
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "iso-8859-1"},
        {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_processes_with_other_locales_print_and_refuse(variables: dict[str, str], places: dict[str, str]) -> None:
    program = [sys.executable, "-c", "from retrodb_cli.main import run; run()"]
    environment = {**os.environ, **variables}
    query = "select doc_id from documents order by doc_id"
    shown = subprocess.run([*program, "sql", places["db"], query], capture_output=True, env=environment, check=False)
    if "PYTHONUTF8" in variables:  # the path of the database cannot be read as ASCII
        assert (shown.returncode, b"PYTHONUTF8=1" in shown.stderr) == (errors.EXIT_USAGE, True)
    else:
        assert (shown.returncode, shown.stderr) == (0, b"")
        assert b"\\u202edrowssap" in shown.stdout
    assert b"\x1b" not in shown.stdout
    bad = subprocess.run([*program, "stats", b"caf\xe9"], capture_output=True, env=environment, check=False)
    assert bad.returncode in (errors.EXIT_USAGE, errors.EXIT_NO_DATABASE)
    assert b"Traceback" not in bad.stderr
    bad.stderr.decode("utf-8")


@pytest.mark.parametrize("arguments", [
    ("stats", "caf\udce9"), ("search", "{db}", "caf\udce9"), ("ingest", "{db}", "caf\udce9.txt", "--source", "s"),
    ("ingest", "{db}", "{corpus}", "--source", "caf\udce9"), ("filter", "{db}", "--reason", "caf\udce9", "--where", "true"),
    ("sql", "{db}", "select 'caf\udce9'"), ("init", "caf\udce9", "--tokenizer", "x"), ("caf\udce9",),
])  # fmt: skip
@pytest.mark.parametrize("json_flag", [(), ("--json",)])
def test_arguments_that_are_not_utf8_are_refused_with_the_text_escaped(
    arguments: tuple[str, ...], json_flag: tuple[str, ...], places: dict[str, str]
) -> None:
    done = run(*(argument.format(**places) for argument in arguments), *json_flag)
    assert done.code == errors.EXIT_USAGE
    assert ("caf\\\\udce9" if json_flag else "caf\\udce9") in done.err


def is_unsafe(character: str) -> bool:
    """Whether a character is a control, a format character, a surrogate or a separator of lines; our own are not."""
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in "\n\t"


def test_no_character_of_any_category_controls_a_terminal() -> None:
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = printable(everything)
    assert not [character for character in shown if is_unsafe(character)]
    assert all(character in shown for character in "aé漢\u00a0\u3000\U0001f600\u0301")
    assert printable("\x1b[31m \x7f \x85 \u202e \ufeff \U000e0001 \ud800") == (
        "\\x1b[31m \\x7f \\x85 \\u202e \\ufeff \\U000e0001 \\ud800"
    )


def test_our_own_styles_stay_and_those_of_others_do_not() -> None:
    assert printable(style("a\x1b[1mb", fg="red")) == "\x1b[31ma\\x1b[1mb\x1b[0m"


def test_a_line_feed_in_a_message_or_an_id_makes_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleOutput().error(1, "a\nError: b")
    assert capsys.readouterr().err == "Error: a\\nError: b\n"
    assert render_table([{"doc_id": "a\nb"}]).splitlines()[1:] == ["a\\nb"]


def test_progress_is_escaped() -> None:
    stream = io.StringIO()
    with LineProgress(stream).stage("read", 1) as bar:
        bar.note("file \x1b[31m.txt")
    assert stream.getvalue() == "file \\x1b[31m.txt\n"


def test_stats_and_snapshots_fit_80_columns(places: dict[str, str]) -> None:
    for command in ("stats", "snapshots"):
        lines = ok(command, places["db"]).out.splitlines()
        assert not [line for line in lines if len(line) > 80 and not line.startswith(("database", "tokenizer"))]


def test_wide_tables_are_cut_and_repeat_their_first_column() -> None:
    rows = [{"name": f"n{number}", **{f"column {other}": "x" * 10 for other in range(5)}} for number in range(2)]
    shown = render_table(rows, 40)
    assert max(map(len, shown.splitlines())) <= 40
    assert shown.count("n1") == shown.count("\n\n") + 1 > 1
    wrapped = render_table([{"n": 1, "counts": "word " * 30}], 40)
    assert max(map(len, wrapped.splitlines())) <= 40
    assert wrapped.count("word") == 30


def test_sql_prints_every_value_in_json(built: Path) -> None:
    query = """select 170141183460469231731687303715884105727 as large, 'ab'::blob as bytes, 1.10::decimal(9,2) as price,
        date '2020-01-02' as day, timestamp '2020-01-02 03:04:05' as moment, interval 3 days as days, 'nan'::double as nan,
        [1, 2] as list, {'a': 170141183460469231731687303715884105727, 'b': 'x'::blob} as struct, map {1: 'a'} as map,
        null as nothing, uuid() is null as no, time '01:02:03' as time, 1 as message_type, 2 as large"""
    text = ok("sql", built, query, "--json").out
    assert '"large":170141183460469231731687303715884105727' in text
    assert '"price":1.10' in text
    row = json.loads(text)
    assert (row["bytes"], row["day"], row["moment"], row["nan"]) == ("6162", "2020-01-02", "2020-01-02T03:04:05", None)
    assert (row["list"], row["struct"], row["map"]) == ([1, 2], {"a": 2**127 - 1, "b": "78"}, {"1": "a"})
    assert (row["message_type"], row["message_type_1"], row["large_1"]) == ("sql_row", 1, 2)
    shown = run("sql", built, "select 1 as a, 2 as a")
    assert (shown.out, shown.err) == ("a  a_1\n1    2\n", "Several columns have the same name. Renamed: a_1.\n")
