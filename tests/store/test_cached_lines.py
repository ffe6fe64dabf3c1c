"""Facts that one process keeps are known to the others, and a damaged file of them does no harm."""

from __future__ import annotations

from pathlib import Path

from retrodb.store.cached_lines import CachedLines


def test_what_another_process_keeps_is_known(tmp_path: Path) -> None:
    mine, other = CachedLines(tmp_path / "lines"), CachedLines(tmp_path / "lines")
    mine.add(["a", "b"])
    assert "a" in other
    other.add(["b", "c"])
    assert "c" in mine
    assert (tmp_path / "lines").read_text() == "a\nb\nc\n"


def test_only_complete_lines_count_and_a_shorter_file_is_read_from_its_start(tmp_path: Path) -> None:
    lines = CachedLines(tmp_path / "lines")
    lines.add(["a long line"])
    assert "another" not in lines
    (tmp_path / "lines").write_text("c\nd")
    assert "c" in lines
    assert "d" not in lines
    with (tmp_path / "lines").open("a") as file:
        file.write("e\n")
    assert "de" in lines


def test_a_file_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines = CachedLines(tmp_path / "file" / "below")
    lines.add(["a"])
    assert "a" in lines


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    lines = CachedLines(tmp_path / "file" / "below")
    lines.add(["a"])
    assert "a" in lines
    assert "b" not in lines
