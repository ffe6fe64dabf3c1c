"""Paths of the user -> input files -> splits that workers read in parallel."""

from __future__ import annotations

import glob
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from retrodb.corpus.readers import READERS, is_hidden
from retrodb.corpus.readers.arrow import parquet_row_groups
from retrodb.corpus.readers.formats import detect_format, is_tar
from retrodb.corpus.split import InputFile, Split
from retrodb.corpus.streams import compression_of, open_decompressed, open_input, read_first_bytes, record_start
from retrodb.errors import InputError, UsageError

# Files without records in the folder of a dataset that `datasets` saved.
DATASET_FILES = {"dataset_info.json", "dataset_dict.json", "state.json"}
LINE_FORMATS = ("jsonl", "dolma")


def expand_inputs(
    inputs: Sequence[str | Path], files_from: Sequence[str | Path] = (), format: str = "auto"
) -> list[InputFile]:
    """The files of all inputs, without repetition: in the order of the inputs, and by name within one input.

    An input is a file, a folder (with its subfolders, without hidden files), or a glob (`**` crosses folders). A list
    (`files_from`, plain or compressed) has one file per line; its paths are relative to the folder of the list.

    Args:
        format: a name of `READERS` for every file, or "auto" to detect it for each file.

    Raises:
        UsageError: an unknown format; or "-", which the caller must write to a file first, see `spool`.
        InputError: an input does not exist, or a glob matches nothing.
    """
    if format != "auto" and format not in READERS:
        raise UsageError(f"unknown format {format!r}", remedy=f"Known are: auto, {', '.join(READERS)}.")
    files: dict[str, InputFile] = {}
    for path, name in [*_files_of_inputs(inputs), *_files_of_lists(files_from)]:
        real_path = os.path.realpath(path)
        if real_path not in files:
            files[real_path] = _describe(path, name, format)
    return list(files.values())


def spool(stream: IO[bytes], path: Path) -> None:
    """Write standard input to a file, so that it can be read like other files, and again after an interruption."""
    with open(path, "xb") as file:
        while block := stream.read(1 << 20):
            file.write(block)


def file_digest(path: str | Path) -> str:
    """Hexadecimal xxh3-128 of the stored bytes of a file."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open_input(path) as stream:
        while block := stream.read(4 << 20):
            digest.update(block)
    return digest.hexdigest()


def plan_splits(files: Iterable[InputFile], target_bytes: int, marker: str | None = None) -> list[Split]:
    """Splits of about `target_bytes` stored bytes, in the order of the files.

    Uncompressed JSON Lines, text with a marker, and tar archives are cut where a record or member begins. Parquet files
    are cut between row groups. Small files share a split. A compressed file is one stream, and so one split. The records
    and their order do not depend on `target_bytes`.

    Args:
        marker: `Fields.marker`: plain text is cut after it.
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


def _files_of_inputs(inputs: Sequence[str | Path]) -> Iterator[tuple[str, str]]:
    """(path, name) of every file of the inputs."""
    for path in map(str, inputs):
        if path == "-":
            raise UsageError("standard input must be written to a file first", where="-")
        if os.path.isdir(path):
            yield from _walk(path)
        elif os.path.exists(path):
            yield path, os.path.basename(path)
        elif glob.has_magic(path):
            yield from _glob_matches(path)
        else:
            raise InputError("no such file or folder", where=path, remedy="Check the path.")


def _walk(folder: str) -> Iterator[tuple[str, str]]:
    paths = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    is_dataset = any(path.endswith(".arrow") for path in paths)
    for name in paths:
        if not is_hidden(name) and not (is_dataset and name.rsplit("/", 1)[-1] in DATASET_FILES):
            yield os.path.join(folder, name), name


def _glob_matches(pattern: str) -> Iterator[tuple[str, str]]:
    parts = Path(pattern).parts
    num_fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = os.path.join(*parts[:num_fixed]) if num_fixed else "."
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        raise InputError("no file matches", where=pattern, remedy="Check the pattern, and quote it in the shell.")
    for path in paths:
        yield path, Path(os.path.relpath(path, root)).as_posix()


def _files_of_lists(lists: Sequence[str | Path]) -> Iterator[tuple[str, str]]:
    for path in map(str, lists):
        with open_decompressed(path) as stream:
            lines = stream.read().decode("utf-8", "replace").splitlines()
        for number, line in enumerate(map(str.strip, lines), start=1):
            if not line:
                continue
            where = f"{path}, line {number}"
            if "://" in line:
                raise InputError(f"{line} is not a local file", where=where, remedy="Download it, and list its path.")
            file = os.path.join(os.path.dirname(path), line)
            if not os.path.isfile(file):
                raise InputError(
                    f"no such file: {file}", where=where, remedy="Paths are relative to the folder of the list."
                )
            yield file, line


def _describe(path: str, name: str, format: str) -> InputFile:
    compression = compression_of(_head(path, "none"))
    try:
        head = _head(path, compression)
    except InputError:
        head = b""  # damaged: the format follows from its name, and reading it raises the same error
    in_tar = is_tar(head)
    if format == "auto" and not in_tar:
        format = detect_format(head, name)
    return InputFile(path, name, format, os.path.getsize(path), compression, in_tar)


def _head(path: str, compression: str) -> bytes:
    with open_input(path, compression) as stream:
        return read_first_bytes(stream)


def _ranges(file: InputFile, target_bytes: int, marker: str | None) -> list[tuple[int, int | None]]:
    """(start, end) of the parts of one large file; one part or none if it cannot be cut."""
    if file.compression != "none":
        return []
    if file.is_tar:
        return _between(_tar_starts(file.path, target_bytes))
    if file.format == "parquet":
        num_groups = len(parquet_row_groups(file.path))
        step = max(1, num_groups * target_bytes // file.size_bytes)
        return _between(range(0, num_groups, step))
    delimiter = b"\n" if file.format in LINE_FORMATS else (marker or "").encode() if file.format == "text" else b""
    if not delimiter or _overlaps_itself(delimiter):
        return []
    offsets = range(0, file.size_bytes, target_bytes)
    starts = sorted({record_start(file.path, delimiter, offset) for offset in offsets} - {file.size_bytes})
    return _between(starts)


def _between(starts: Sequence[int]) -> list[tuple[int, int | None]]:
    return list(zip(starts, [*starts[1:], None], strict=True))


def _overlaps_itself(delimiter: bytes) -> bool:
    return any(delimiter.endswith(delimiter[:n]) for n in range(1, len(delimiter)))


def _tar_starts(path: str, target_bytes: int) -> list[int]:
    """Offsets of headers, about `target_bytes` apart, from 0; [] if the archive cannot be listed to its end."""
    starts = [0]
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.offset - starts[-1] >= target_bytes:
                    starts.append(member.offset)
    except tarfile.TarError:
        return []
    return starts
