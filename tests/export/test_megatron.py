"""The megatron export through megatron-core's own reader, every token compared with the database."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retrodb.database import Database

from .conftest import K, Truth, live_ids, remove
from .peers import Reader, needs_megatron

pytest.importorskip("h5py")


def check(reader: Reader, database: Database, rows: list[int], end: int) -> set[tuple[int, ...]]:
    """Compares every neighbour and continuation of every row with the database, and gives the chunks that came up."""
    truth = Truth(database.neighbour_table())
    seen = set()
    for place, row in enumerate(rows):
        sample = reader.ask(place)
        assert sample["text"] == [row] * 65
        [neighbours] = sample["neighbor_tokens"]
        assert len(neighbours) == K
        for tokens, (near, following) in zip(neighbours, truth.neighbours(row), strict=True):
            for part, expected in ((tokens[:64], near), (tokens[64:], following)):
                assert part == expected + [end] * (64 - len(expected))
                seen.add(tuple(expected))
    return seen


@needs_megatron
def test_a_running_reader_agrees_with_the_database_before_and_after_a_refresh(
    make_exportable: Callable[[], Database], source_texts: dict[str, str], tmp_path: Path
) -> None:
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to="megatron")
    rows = live_ids(database)
    end = json.loads((out / "config.json").read_bytes())["retro_gpt_eod_token"]
    question = {"project": str(out), "k": K, "samples": [[row] * 65 for row in rows], "eod": end}
    with Reader("read_megatron.py", first=question) as reader:
        before = check(reader, database, rows, end)
        chunks = database.view().chunks
        content = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

        remove(database, tmp_path, {"second": source_texts["65-0"]}, "document")
        remove(database, tmp_path, {"third": source_texts["129-1"][-100:]}, "chunk")
        removed = [i for i in rows if i not in live_ids(database)]
        assert len(removed) >= 3, "a document, and a chunk that was a continuation"
        result = database.refresh_export(out)

        after = check(reader, database, rows, end)
        tokens = chunks.gather_tokens(np.array(removed))
        gone = {tuple(row[:length]) for row, length in zip(tokens.tokens.tolist(), tokens.lengths, strict=True)}
        assert gone & before
        assert not gone & after
    assert result.must_reopen == ()
    changed = {str(path.relative_to(out)) for path, data in content.items() if path.read_bytes() != data}
    assert changed - {"retrodb.json", "retrodb-state.json"} == set(result.changed)
    assert {path.split("/")[0] for path in result.changed} == {"data", "query"}
    assert result.num_unchanged_files >= 5


def test_an_export_with_other_positions_has_other_file_names_for_neighbours(
    make_exportable: Callable[[], Database], source_texts: dict[str, str], tmp_path: Path
) -> None:
    """A reader that runs on finds no file, rather than rows that mean something else by now."""
    database, out = make_exportable(), tmp_path / "out"
    database.export(out, to="megatron")
    [before] = (out / "query").iterdir()
    remove(database, tmp_path, {"second": source_texts["65-0"]}, "document")
    database.export(out, to="megatron")
    [after] = (out / "query").iterdir()
    assert before.name != after.name
