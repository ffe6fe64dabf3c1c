"""The commands whose cost `bench_scale.py` measures, and what is done before each of them without being measured."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from made_documents import made_text, write_documents

Arguments = tuple[str, ...]
"""Of `retrodb`, or a program in Python (`_PROGRAM` and its text). `{db}` and `{inputs}` stand for folders."""
_PROGRAM = "program"
_OPEN = "import sys, retrodb; view = retrodb.open(sys.argv[1]).view(); "
_INGEST: Arguments = ("ingest", "{db}", "{inputs}/one.jsonl", "--source", "made")
_FILTER: Arguments = ("filter", "{db}", "--doc-ids", "{inputs}/ids.txt", "--reason", "bench")
_SEARCH: Arguments = ("search", "{db}", made_text("query", 30), "--k", "5")


@dataclass(frozen=True)
class ScaleCommand:
    """One row of the tables."""

    name: str  # what `--only` selects
    arguments: Arguments
    before: tuple[Arguments, ...] = ()  # commands that are run first, on the same copy of the database
    largest: int = 1 << 62  # chunks of the largest database that it is measured on, unless `--all-sizes` is given
    needs_table: bool = False  # whether the copy of the database has a neighbour table


COMMANDS = (
    ScaleCommand("load-manifest", (_PROGRAM, _OPEN + "view.manifest.all_files()")),
    ScaleCommand(
        "live-parts",
        (
            _PROGRAM,
            _OPEN + "from retrodb.stages.index.live_parts import live_parts; "
            "live_parts(view, 'default', kinds=('document',))",
        ),
    ),
    ScaleCommand("search", _SEARCH),
    ScaleCommand("search-filtered", _SEARCH, (_FILTER,)),
    ScaleCommand("embed-nothing", ("embed", "{db}")),
    ScaleCommand("embed-one", ("embed", "{db}"), (_INGEST,)),
    ScaleCommand("index-nothing", ("index", "{db}")),
    ScaleCommand("index-training", ("index", "{db}", "--retrain"), largest=600_000),
    ScaleCommand("ingest-one", _INGEST),
    ScaleCommand("dedup-testset", ("dedup", "{db}", "--against", "{inputs}/testset.jsonl")),
    ScaleCommand("near-duplicates", ("dedup", "{db}", "--near-duplicates")),
    ScaleCommand("filter-ids", _FILTER),
    ScaleCommand("filter-where", ("filter", "{db}", "--where", "num_chars % 1009 = 0", "--reason", "bench")),
    ScaleCommand("sql-documents", ("sql", "{db}", "select count(*) from documents where live")),
    ScaleCommand("sql-chunks", ("sql", "{db}", "select count(*) from chunks where live")),
    ScaleCommand("stats", ("stats", "{db}")),
    ScaleCommand("check", ("check", "{db}")),
    ScaleCommand("check-reading", ("check", "{db}", "--read-data"), largest=1_500_000),
    ScaleCommand("diff", ("diff", "{db}", "0", "{head}")),
    ScaleCommand("compact-dry", ("compact", "{db}", "--dry-run")),
    ScaleCommand("purge-one", ("purge", "{db}", "--doc-ids", "{inputs}/ids.txt", "--yes"), largest=600_000),
    ScaleCommand("update-nothing", ("update", "{db}", "--config", "{inputs}/recipe.toml")),
    ScaleCommand("neighbours", ("neighbours", "{db}", "--table", "all"), largest=300_000),
    ScaleCommand("neighbours-512M", ("neighbours", "{db}", "--table", "all", "--memory", "512M"), largest=300_000),
    ScaleCommand(
        "repair",
        ("neighbours", "{db}", "--repair"),
        (_INGEST, ("embed", "{db}"), ("index", "{db}")),
        largest=1_500_000,
        needs_table=True,
    ),
    ScaleCommand("neighbours-show", ("neighbours", "show", "{db}", "--row", "0"), needs_table=True),
    ScaleCommand(
        "export-arrays", ("export", "{db}", "{db}-arrays", "--to", "arrays"), largest=1_500_000, needs_table=True
    ),
    ScaleCommand(
        "export-parquet-dry", ("export", "{db}", "{db}-parquet", "--dry-run"), largest=1_500_000, needs_table=True
    ),
    ScaleCommand(
        "export-megatron",
        ("export", "{db}", "{db}-megatron", "--to", "megatron", "--seq-length", "2048"),
        largest=1_500_000,
        needs_table=True,
    ),
)

TABLE: Arguments = ("neighbours", "{db}", "--exact", "--sample", "{sample}")
"""Makes the table of commands that need one. Few documents can be neighbours, so that it is cheap at every size."""
TABLE_DOCUMENTS = 32  # about so many of them


def write_inputs(folder: Path, documents: Path) -> None:
    """The files that the commands are given."""
    folder.mkdir(parents=True, exist_ok=True)
    write_documents(folder / "one.jsonl", {"one": made_text("one", 600)})
    write_documents(folder / "testset.jsonl", {f"t{i}": made_text(f"t{i}", 100) for i in range(200)})
    (folder / "ids.txt").write_text("d7\n")
    (folder / "recipe.toml").write_text(f'[sources.made]\ninputs = ["{documents}"]\n')


def command_line(arguments: Arguments, **values: str) -> list[str]:
    """The words of a command, to be run in a process."""
    if arguments[0] == _PROGRAM:
        return [sys.executable, "-c", arguments[1], values["db"]]
    return [str(Path(sys.executable).with_name("retrodb")), *(a.format(**values) for a in arguments)]


def environment_of_commands(cache: Path, inherited: dict[str, str]) -> dict[str, str]:
    """One process and one thread, so that processor time compares, and caches that no other run has.

    One cache is of verified files. The other is of Python's bytecode, as an installed release has it: a setting that
    keeps Python from writing it is left out.
    """
    names = {command.arguments[0] for command in COMMANDS} - {"check"}  # which takes workers for a repair only
    workers = {f"RETRODB_{name.upper()}_WORKERS": "1" for name in names}
    caches = {"RETRODB_CACHE_DIR": str(cache), "PYTHONPYCACHEPREFIX": str(cache / "bytecode")}
    inherited = {name: value for name, value in inherited.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, **workers, **caches, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
