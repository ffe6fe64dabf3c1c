"""Files in pieces: ranges that meet, patches in place, and a log that survives being torn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from retrodb.errors import DamagedFileError
from retrodb.export.export_file import (
    Delimiters,
    ExportFile,
    FileRange,
    RangedPiece,
    TextPiece,
    json_file,
    ranged_file,
    text_file,
    write_ranges,
)
from retrodb.export.export_tasks import handled_piece
from retrodb.export.folder import ExportFolder, PieceToWrite
from retrodb.export.record import LOG, LogLine, RecordLog, WrittenPiece

VALUES = np.arange(12, dtype=np.int32).reshape(6, 2)


def array_in_pieces(values: np.ndarray = VALUES, *, is_patched: bool = False) -> ExportFile:
    """Pieces of one, two and three rows after a head of three bytes."""
    bounds = ((0, 1), (1, 3), (3, 6))
    head = b"" if is_patched else b"abc"
    pieces = [
        RangedPiece(
            lambda rows=values[start:stop]: rows.tobytes().hex(),  # type: ignore[misc]
            [
                FileRange(
                    len(head) + 8 * start, 8 * (stop - start), lambda start=start, stop=stop: iter([values[start:stop]])
                )
            ],  # type: ignore[misc]
        )
        for start, stop in bounds
    ]
    return ranged_file("folder/array.bin", pieces, head=head, is_patched=is_patched)


def write(pieces: Sequence[PieceToWrite], allowed: int = 99) -> Iterator[tuple[PieceToWrite, WrittenPiece]]:
    """Writes pieces, the last first."""
    for count, piece in enumerate(reversed(pieces)):
        if count == allowed:
            raise KeyboardInterrupt
        yield piece, handled_piece(piece.file, piece.number, piece.target)


def test_pieces_in_any_order_and_after_any_number_of_kills_give_one_file(tmp_path: Path) -> None:
    files = [array_in_pieces(), json_file("meta.json", {"a": 1})]
    attempts = 0
    while True:
        attempts += 1
        folder = ExportFolder(tmp_path)
        try:
            folder.update("run", folder.unwritten(files), lambda pieces: write(pieces, 1))
            break
        except KeyboardInterrupt:
            with (tmp_path / LOG).open("ab") as log:
                log.write(b'{"path":')
    assert attempts == sum(len(file.pieces) for file in files)
    assert folder.finish().num_files == 2
    assert (tmp_path / "folder/array.bin").read_bytes() == b"abc" + VALUES.tobytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "meta.json", "retrodb-state.json"]
    states = {path: written.state for path, written in ExportFolder(tmp_path).record.files.items()}
    assert ExportFolder(tmp_path).outdated(files, states) == []


def test_pieces_of_another_run_are_written_again(tmp_path: Path) -> None:
    folder = ExportFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        folder.update("old", [array_in_pieces(VALUES + 1)], lambda pieces: write(pieces, 2))
    folder = ExportFolder(tmp_path)
    folder.update("new", [array_in_pieces()], write)
    assert (tmp_path / "folder/array.bin").read_bytes() == b"abc" + VALUES.tobytes()


def test_a_patched_file_keeps_its_place_and_the_rows_that_are_equal(tmp_path: Path) -> None:
    folder = ExportFolder(tmp_path)
    folder.update("one", [array_in_pieces(is_patched=True)], write)
    path = tmp_path / "folder/array.bin"
    mapped, inode = np.memmap(path, np.int32, "r"), path.stat().st_ino
    changed = VALUES.copy()
    changed[4] = -1
    folder.update("two", [array_in_pieces(changed, is_patched=True)], write)
    assert path.stat().st_ino == inode
    assert mapped.tolist() == changed.ravel().tolist(), "a reader that has it mapped sees the change"


@pytest.mark.parametrize("records", [[], [[], []], [[b"1"]], [[], [b"1", b"2"], [], [b"3"], []]])
def test_texts_are_joined_in_order_after_any_number_of_kills(tmp_path: Path, records: list[list[bytes]]) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    pieces = [TextPiece(1, lambda n=n: f"piece {n}", lambda lines=lines: lines) for n, lines in enumerate(records)]  # type: ignore[misc]
    file = text_file("list.json", pieces, Delimiters(b"[", b", ", b"]\n", b"nothing"), scratch)
    while True:
        folder = ExportFolder(tmp_path)
        try:
            folder.update("run", folder.unwritten([file]), lambda pieces: write(pieces, 1))
            break
        except KeyboardInterrupt:
            pass
    lines = [line for lines in records for line in lines]
    expected = b"[" + b", ".join(lines) + b"]\n" if lines else b"nothing"
    assert (tmp_path / "list.json").read_bytes() == expected


def test_a_range_of_another_size_than_planned_is_never_recorded(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    with pytest.raises(AssertionError, match="size"):
        write_ranges(path, [FileRange(0, 7, lambda: [VALUES])])


def test_only_the_last_line_of_a_log_may_be_torn(tmp_path: Path) -> None:
    log = RecordLog(tmp_path)
    assert list(log.lines()) == []
    for number in range(3):
        log.append(LogLine(f"file {number}", "run", number, WrittenPiece("state", "digest")))
    whole = (tmp_path / LOG).read_bytes()
    for size in range(len(whole)):
        (tmp_path / LOG).write_bytes(whole[:size])
        torn = RecordLog(tmp_path)
        complete = whole[:size].count(b"\n")
        assert [line.number for line in torn.lines()] == list(range(complete))
        torn.append(LogLine("next"))
        assert [line.path for line in RecordLog(tmp_path).lines()][complete:] == ["next"]
    (tmp_path / LOG).write_bytes(b"{\n" + whole)
    with pytest.raises(DamagedFileError, match=f"{LOG}, line 1"):
        list(RecordLog(tmp_path).lines())


def test_a_record_is_not_written_again_for_every_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retrodb.export import folder as module

    written: list[Path] = []
    monkeypatch.setattr(module, "write_record", lambda path, record: written.append(path))
    ExportFolder(tmp_path).update("run", [array_in_pieces(), json_file("a.json", 1), json_file("b.json", 2)], write)
    assert written == []
    assert len((tmp_path / LOG).read_bytes().splitlines()) == 3 + 6 + 3, "a line for every beginning, piece and file"


def test_a_piece_that_was_written_before_a_kill_and_not_logged_is_kept(tmp_path: Path) -> None:
    """The completion record of its task says that it is written, so no task writes it again."""
    written: list[tuple[PieceToWrite, WrittenPiece]] = []

    def killed(pieces: Sequence[PieceToWrite]) -> Iterator[tuple[PieceToWrite, WrittenPiece]]:
        written.extend(write(pieces))
        raise KeyboardInterrupt
        yield from written

    def finished(pieces: Sequence[PieceToWrite]) -> Iterator[tuple[PieceToWrite, WrittenPiece]]:
        results = {piece.number: result for piece, result in written}
        return ((piece, results[piece.number]) for piece in pieces)

    with pytest.raises(KeyboardInterrupt):
        ExportFolder(tmp_path).update("run", [array_in_pieces()], killed)
    ExportFolder(tmp_path).update("run", [array_in_pieces()], finished)
    assert (tmp_path / "folder/array.bin").read_bytes() == b"abc" + VALUES.tobytes()
