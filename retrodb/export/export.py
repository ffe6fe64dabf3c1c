"""Exporting: the formats by name, and the card that every export carries.

An export is written to a temporary folder beside its target and renamed when it is whole, so that a reader never sees half
of one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from retrodb.errors import UsageError
from retrodb.export.parquet import estimate_parquet, write_parquet
from retrodb.stages.context import Context
from retrodb.store.storage import translate_os_error
from retrodb.view.neighbour_table import NeighbourTable

Writer = Callable[[NeighbourTable, Path, Callable[[int], None]], None]
"""Writes a table into an existing folder; calls back with rows as they are done."""

FORMATS: dict[str, tuple[Writer, Callable[[NeighbourTable], int]]] = {
    "parquet": (write_parquet, estimate_parquet),
}
"""Format -> its writer, and an estimate of its bytes for a dry run."""

CARD = "retrodb.json"


@dataclass(frozen=True)
class ExportResult:
    """What was exported."""

    path: str
    format: str
    table: str
    snapshot: int
    rows: int
    files: int
    size_bytes: int  # written, or estimated by a dry run
    dry_run: bool = False


def run_export(
    context: Context,
    out: Path,
    *,
    to: str = "parquet",
    table: str | None = None,
    as_of: int | None = None,
    dry_run: bool = False,
) -> ExportResult:
    """Write a neighbour table with its texts in a trainer's format.

    Raises:
        UsageError: for an unknown format, or a target that exists and is no export.
        MissingStep: when there is no such table.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown format '{to}'", remedy=f"Known are: {', '.join(FORMATS)}.")
    if out.exists() and not (out / CARD).is_file():
        raise UsageError("exists and is no export of retrodb", where=str(out), remedy="Choose another folder.")
    write, estimate = FORMATS[to]
    view = context.view(as_of)
    source = NeighbourTable(view, table)
    num_rows = len(source.rows())
    if dry_run:
        return ExportResult(str(out), to, source.name, view.snapshot.number, num_rows, 0, estimate(source), True)
    temporary = out.with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with context.progress.stage("export", num_rows, "rows") as bar:
            write(source, temporary, bar.advance)
        (temporary / CARD).write_bytes(orjson.dumps(_card(source, to, num_rows), option=orjson.OPT_INDENT_2))
        _replace(temporary, out)
    except OSError as error:
        raise translate_os_error(error, str(out)) from error
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return ExportResult(str(out), to, source.name, view.snapshot.number, num_rows, len(files), size)


def _card(source: NeighbourTable, to: str, num_rows: int) -> dict[str, Any]:
    """What the export is of: enough to tell whether it fits a model, and to find its origin."""
    view = source.view
    space = view.snapshot.entry("space", source.entry["space"])
    return {
        "format": to,
        "snapshot": view.snapshot.number,
        "clock": view.snapshot.clock,
        "rows": num_rows,
        "chunk_tokens": view.settings.chunk_tokens,
        "tokenizer": {"name": view.settings.tokenizer_name, "sha256": view.settings.tokenizer_sha256},
        "space": {"name": source.entry["space"], "fingerprint": space["fingerprint"], **space["params"]},
        "table": {"name": source.name, **source.entry},
        "sources": sorted(set(view.shards.source)),
        "testsets": view.snapshot.names("testset"),
    }


def _replace(temporary: Path, out: Path) -> None:
    """Put the new folder in the place of the old one."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(temporary, out)
    shutil.rmtree(old, ignore_errors=True)
