"""What the user named -> input files -> splits that workers read side by side."""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from retrodb.corpus.readers import HEAD_BYTES, READERS, is_hidden
from retrodb.corpus.readers.arrow import num_row_groups
from retrodb.corpus.readers.formats import detect_format, is_tar
from retrodb.corpus.split import InputFile, Split
from retrodb.corpus.streams import compression_of, open_input, record_start
from retrodb.errors import InputError, UsageError

# Beside the Arrow files of a dataset that `datasets` saved; they hold no records.
DATASET_FILES = {"dataset_info.json", "dataset_dict.json", "state.json"}
LINE_FORMATS = ("jsonl", "dolma")


def expand_inputs(
    inputs: Sequence[str | Path], files_from: Sequence[str | Path] = (), format: str = "auto"
) -> list[InputFile]:
    """The files that the inputs name, each once, in the order of the inputs and sorted by name within each.

    An input is a file, a folder (read recursively, hidden files left out), or a glob (`**` crosses folders). A list
    (`files_from`, plain or compressed) names one file a line, relative to the list's own folder.

    Args:
        format: a name of `READERS` for every file, or "auto": each file shows its own.

    Raises:
        UsageError: no such format; or "-", which the caller has to `spool` first.
        InputError: an input does not exist, or a glob matches nothing.
    """
    if format != "auto" and format not in READERS:
        raise UsageError(f"unknown format {format!r}", remedy=f"Known are: auto, {', '.join(READERS)}.")
    found: dict[str, InputFile] = {}
    for path, name in [*_named(inputs), *_listed(files_from)]:
        real = os.path.realpath(path)
        if real not in found:
            found[real] = _describe(path, name, format)
    return list(found.values())


def spool(stream: IO[bytes], path: Path) -> None:
    """Write standard input to a file, so that it can be read as any other (and again, after an interruption)."""
    with open(path, "xb") as file:
        while block := stream.read(1 << 20):
            file.write(block)


def file_digest(path: str | Path) -> str:
    """Hexadecimal xxh3-128 of a file's bytes as stored."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open_input(path) as stream:
        while block := stream.read(4 << 20):
            digest.update(block)
    return digest.hexdigest()


def plan_splits(files: Iterable[InputFile], target_bytes: int, marker: str | None = None) -> list[Split]:
    """Splits of about `target_bytes` stored bytes, in the files' order.

    Uncompressed JSON Lines, marked text and tar archives are cut where a record or member begins, Parquet between row
    groups; smaller files are read several to a split; a compressed file is one stream and so one split. The records,
    and their order, are the same whatever `target_bytes` is.

    Args:
        marker: `Fields.marker`, which says where plain text may be cut.
    """
    splits: list[Split] = []
    group: list[InputFile] = []
    for file in files:
        ranges = _ranges(file, target_bytes, marker) if file.size_bytes > target_bytes else []
        if len(ranges) > 1 or (group and sum(f.size_bytes for f in group) + file.size_bytes > target_bytes):
            splits.extend([Split(tuple(group))] if group else [])
            group = []
        if len(ranges) > 1:
            splits.extend(Split((file,), start, end) for start, end in ranges)
        else:
            group.append(file)
    return [*splits, Split(tuple(group))] if group else splits


def _named(inputs: Sequence[str | Path]) -> Iterator[tuple[str, str]]:
    """(path, name) of every file that the inputs name."""
    for given in map(str, inputs):
        if given == "-":
            raise UsageError("standard input has to be written to a file first", where="-")
        if os.path.isdir(given):
            yield from _walk(given)
        elif os.path.exists(given):
            yield given, os.path.basename(given)
        elif glob.has_magic(given):
            yield from _matches(given)
        else:
            raise InputError("no such file or folder", where=given, remedy="Check the path.")


def _walk(folder: str) -> Iterator[tuple[str, str]]:
    paths = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    is_dataset = any(path.endswith(".arrow") for path in paths)
    for name in paths:
        if not is_hidden(name) and not (is_dataset and name.rsplit("/", 1)[-1] in DATASET_FILES):
            yield os.path.join(folder, name), name


def _matches(pattern: str) -> Iterator[tuple[str, str]]:
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = os.path.join(*parts[:fixed]) if fixed else "."
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise InputError("no file matches", where=pattern, remedy="Check the pattern; quote it in the shell.")
    for path in paths:
        yield path, Path(os.path.relpath(path, root)).as_posix()


def _listed(lists: Sequence[str | Path]) -> Iterator[tuple[str, str]]:
    for path in map(str, lists):
        compression = compression_of(_head(path, "none"))
        with open_input(path, compression) as stream:
            lines = stream.read().decode("utf-8", "replace").splitlines()
        for number, line in enumerate(map(str.strip, lines), start=1):
            if not line:
                continue
            where = f"{path}, line {number}"
            if "://" in line:
                raise InputError(f"{line} is not a local file", where=where, remedy="Fetch it, and list its path.")
            file = os.path.join(os.path.dirname(path), line)
            if not os.path.isfile(file):
                raise InputError(f"{file} is not there", where=where, remedy="Paths are relative to the list.")
            yield file, line


def _describe(path: str, name: str, format: str) -> InputFile:
    compression = compression_of(_head(path, "none"))
    try:
        head = _head(path, compression)
    except InputError:
        head = b""  # damaged: its name tells the format, and reading it raises the same error
    in_tar = is_tar(head)
    if format == "auto" and not in_tar:
        format = detect_format(head, name)
    return InputFile(path, name, format, os.path.getsize(path), compression, in_tar)


def _head(path: str, compression: str) -> bytes:
    head = b""
    with open_input(path, compression) as stream:
        while len(head) < HEAD_BYTES and (block := stream.read(HEAD_BYTES - len(head))):
            head += block
    return head


def _ranges(file: InputFile, target_bytes: int, marker: str | None) -> list[tuple[int, int | None]]:
    """(start, end) of the parts of one large file; one part, or none, when it cannot be cut."""
    if file.compression != "none":
        return []
    if file.is_tar:
        return _between(_tar_starts(file.path, target_bytes))
    if file.format == "parquet":
        groups = num_row_groups(file.path)
        step = max(1, groups * target_bytes // file.size_bytes)
        return _between(range(0, groups, step))
    delimiter = b"\n" if file.format in LINE_FORMATS else (marker or "").encode() if file.format == "text" else b""
    if not delimiter or _overlaps_itself(delimiter):
        return []
    aimed = range(0, file.size_bytes, target_bytes)
    starts = sorted({record_start(file.path, delimiter, offset) for offset in aimed} - {file.size_bytes})
    return _between(starts)


def _between(starts: Sequence[int]) -> list[tuple[int, int | None]]:
    return list(zip(starts, [*starts[1:], None], strict=True))


def _overlaps_itself(delimiter: bytes) -> bool:
    return any(delimiter.endswith(delimiter[:n]) for n in range(1, len(delimiter)))


def _tar_starts(path: str, target_bytes: int) -> list[int]:
    """Header offsets about `target_bytes` apart, the first 0; [] when the archive cannot be listed to its end."""
    starts = [0]
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.offset - starts[-1] >= target_bytes:
                    starts.append(member.offset)
    except tarfile.TarError:
        return []
    return starts
