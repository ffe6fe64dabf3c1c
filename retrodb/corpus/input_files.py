"""Paths of the user -> input files -> splits that workers read in parallel."""

from __future__ import annotations

import codecs
import glob
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from retrodb.corpus.file_names import escape_name, matches_glob, matches_pattern
from retrodb.corpus.input_sources import open_source, source_size
from retrodb.corpus.readers import READERS, is_hidden
from retrodb.corpus.readers.arrow import parquet_row_groups
from retrodb.corpus.readers.formats import TEXT_FORMATS, detect_format, is_binary_content, is_tar
from retrodb.corpus.skipped_files import SkippedFiles, count_skipped
from retrodb.corpus.split import InputFile, Split
from retrodb.corpus.streams import (
    BYTE_ORDER_MARK,
    ByteSource,
    compression_of,
    open_decompressed,
    open_input,
    read_first_bytes,
    record_start,
)
from retrodb.errors import InputError, UsageError
from retrodb.store.object_urls import bucket_and_key, is_object_url

STANDARD_INPUT = "-"
# Files without records in the folder of a dataset that `datasets` saved.
DATASET_FILES = {"dataset_info.json", "dataset_dict.json", "state.json"}
LINE_FORMATS = ("jsonl", "dolma")


@dataclass(frozen=True)
class FoundFiles:
    """The files of some inputs."""

    files: tuple[InputFile, ...]
    skipped: SkippedFiles | None
    unmatched: tuple[str, ...]  # the patterns that matched no file

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user about files that are not read, and patterns that do nothing."""
        skipped = [] if self.skipped is None else [str(self.skipped)]
        return (*skipped, *(f"No input file matches the pattern '{pattern}'." for pattern in self.unmatched))


def expand_inputs(
    inputs: Sequence[str | Path],
    files_from: Sequence[str | Path] = (),
    format: str = "auto",
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> list[InputFile]:
    """`find_files` for callers that need only the files."""
    return list(find_files(inputs, files_from, format, include=include, exclude=exclude).files)


def find_files(
    inputs: Sequence[str | Path],
    files_from: Sequence[str | Path] = (),
    format: str = "auto",
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> FoundFiles:
    """The files of all inputs, without repetition: in the order of the inputs, and by name within one input.

    An input is a file, a folder (with its subfolders, without hidden files), or a glob (`**` crosses folders), on this machine or
    in an object store (`s3://bucket/folder/*.jsonl`). A list
    (`files_from`, plain or compressed) has one file per line; its paths are relative to the folder of the list. Binary files
    of an unknown format in folders and globs are skipped.

    Args:
        format: a name of `READERS` for every file, or "auto" to detect it for each file.
        include: patterns, see `matches_pattern`: only files that match one of them are read. Empty: all.
        exclude: patterns of files that are not read.

    Raises:
        UsageError: an unknown format; or "-", which the caller must write to a file first, see `spool`.
        InputError: an input does not exist or is a pipe, a glob matches nothing, or no file is left to read.
    """
    if format != "auto" and format not in READERS:
        raise UsageError(f"unknown format {format!r}", remedy=f"Known are: auto, {', '.join(READERS)}.")
    candidates = [*_files_of_inputs(inputs), *_files_of_lists(files_from)]
    matched: set[str] = set()
    files: dict[str, InputFile] = {}
    skipped: dict[str, str] = {}  # path by real path
    for candidate in candidates:
        real_path = candidate.path if is_object_url(candidate.path) else os.path.realpath(candidate.path)
        if real_path in files or real_path in skipped or not _is_chosen(candidate.name, include, exclude, matched):
            continue
        file, is_binary = _describe(candidate, format)
        if is_binary and not candidate.is_named:
            skipped[real_path] = file.path
        else:
            files[real_path] = file
    if candidates and not files:
        what = f"none of the {len(candidates):,} files is read: {len(skipped):,} are binary files of an unknown format"
        first = escape_name(next(iter(skipped.values()), candidates[0].path))
        raise InputError(what, where=first, remedy="Check the inputs, and the patterns to include and exclude.")
    unmatched = tuple(pattern for pattern in (*include, *exclude) if pattern not in matched)
    return FoundFiles(tuple(files.values()), count_skipped(list(skipped.values())), unmatched)


def _is_chosen(name: str, include: Sequence[str], exclude: Sequence[str], matched: set[str]) -> bool:
    """Whether a file is read; adds the patterns that match it to `matched`."""
    hits = {pattern for pattern in (*include, *exclude) if matches_pattern(name, pattern)}
    matched |= hits
    return (not include or not hits.isdisjoint(include)) and hits.isdisjoint(exclude)


def spool(stream: ByteSource, path: Path) -> None:
    """Write standard input or a pipe to a file, so that it can be read like other files, and again after an interruption."""
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


class _Candidate(NamedTuple):
    """A file before it is opened; the names may have bytes that are not UTF-8, as lone surrogates."""

    path: str
    name: str
    is_named: bool  # by the user, and not found in a folder or by a glob


def _files_of_inputs(inputs: Sequence[str | Path]) -> Iterator[_Candidate]:
    for path in map(str, inputs):
        if path == STANDARD_INPUT:
            raise UsageError("standard input must be written to a file first", where="-")
        if is_object_url(path):
            yield from _objects(path)
        elif os.path.isdir(path):
            yield from _walk(path)
        elif os.path.exists(path):
            yield _named_file(path)
        elif glob.has_magic(path):
            yield from _glob_matches(path)
        else:
            raise InputError("no such file or folder", where=escape_name(path), remedy="Check the path.")


def is_stream(path: str | Path) -> bool:
    """Whether a path is "-", a pipe, a socket or a terminal: it can be read only once, and only by this process."""
    if path == STANDARD_INPUT:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    is_descriptor = str(path).startswith(("/dev/", "/proc/")) and not os.path.exists(os.path.realpath(path))
    return not stat.S_ISDIR(mode) and (not stat.S_ISREG(mode) or is_descriptor)


def _named_file(path: str) -> _Candidate:
    if is_stream(path):
        raise InputError(
            "not a regular file: its content can be read only once",
            where=escape_name(path),
            remedy="Write it to a file first, or send it to the standard input of 'retrodb ingest' with '-' as input.",
        )
    if path.startswith(("/dev/", "/proc/")):  # /dev/stdin of a redirected file: in another process it is another file
        path = os.path.realpath(path)
    return _Candidate(path, os.path.basename(path), is_named=True)


def _walk(folder: str) -> Iterator[_Candidate]:
    names = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
    yield from _in_folder(folder, names)


def _in_folder(folder: str, names: Sequence[str]) -> Iterator[_Candidate]:
    """The files of a folder that are not hidden."""
    is_dataset = any(name.endswith(".arrow") for name in names)
    for name in names:
        if not is_hidden(name) and not (is_dataset and name.rsplit("/", 1)[-1] in DATASET_FILES):
            yield _Candidate(os.path.join(folder, name), name, is_named=False)


def _objects(url: str) -> Iterator[_Candidate]:
    """The object of a URL, or all below it, or those that match its pattern."""
    from retrodb.store.object_file import object_size, objects_below

    if object_size(url) is not None:
        yield _Candidate(url, url.rpartition("/")[2], is_named=True)
        return
    bucket, key = bucket_and_key(url)
    parts = key.split("/")
    num_fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    folder, pattern = "/".join([bucket, *parts[:num_fixed]]).rstrip("/"), "/".join(parts[num_fixed:])
    names = objects_below(folder)
    if pattern:
        names = [name for name in names if matches_glob(name, pattern)]
    if not names:
        remedy = "Check the URL; quote a pattern in the shell."
        raise InputError("no such object, folder of objects or match", where=escape_name(url), remedy=remedy)
    yield from _in_folder(folder, names)


def _glob_matches(pattern: str) -> Iterator[_Candidate]:
    parts = Path(pattern).parts
    num_fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = os.path.join(*parts[:num_fixed]) if num_fixed else "."
    paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
    if not paths:
        what, remedy = "no file matches", "Check the pattern, and quote it in the shell."
        raise InputError(what, where=escape_name(pattern), remedy=remedy)
    for path in paths:
        yield _Candidate(path, Path(os.path.relpath(path, root)).as_posix(), is_named=False)


def _files_of_lists(lists: Sequence[str | Path]) -> Iterator[_Candidate]:
    for path in map(str, lists):
        with open_decompressed(path) as stream:
            content = stream.read()
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16", "replace") if is_utf16 else os.fsdecode(content.removeprefix(BYTE_ORDER_MARK))
        for number, line in enumerate(text.split("\n"), start=1):  # and not at U+2028, as splitlines does
            if line.strip():
                yield _listed_file(path, number, line.removesuffix("\r"))


def _listed_file(list_path: str, number: int, line: str) -> _Candidate:
    where = f"{escape_name(list_path)}, line {number}"
    if is_object_url(line.strip()):
        return _Candidate(line.strip(), bucket_and_key(line.strip())[1], is_named=True)
    if "://" in line:
        what = f"{escape_name(line.strip())} is not a local file"
        raise InputError(what, where=where, remedy="Download it, and list its path.")
    for name in (line, line.strip()):  # a name may begin or end with blanks
        file = os.path.join(os.path.dirname(list_path), name)
        if os.path.isfile(file):
            return _Candidate(file, name, is_named=True)
    if os.path.exists(file):
        what = f"not a regular file: {escape_name(file)}"
        raise InputError(what, where=where, remedy="A list has files only. Name folders as inputs.")
    what = f"no such file: {escape_name(file)}"
    raise InputError(what, where=where, remedy="Paths are relative to the folder of the list.")


def _describe(candidate: _Candidate, format: str) -> tuple[InputFile, bool]:
    """The file, and whether it is a binary file that no text reader reads."""
    path, name = candidate.path, escape_name(candidate.name)
    compression = compression_of(_head(path, "none"))
    try:
        head = _head(path, compression)
    except InputError:
        head = b""  # damaged: the format follows from its name, and reading it raises the same error
    in_tar = is_tar(head)
    if in_tar:
        is_binary = False
    elif format == "auto":
        format = detect_format(head, name)
        is_binary = format not in READERS
    else:
        is_binary = format in TEXT_FORMATS and is_binary_content(head)
    shown = escape_name(path)
    raw_path = None if shown == path else os.fsencode(path)
    return InputFile(shown, name, format, source_size(path), compression, in_tar, raw_path), is_binary


def _head(path: str, compression: str) -> bytes:
    with open_input(path, compression) as stream:
        return read_first_bytes(stream)


def _ranges(file: InputFile, target_bytes: int, marker: str | None) -> list[tuple[int, int | None]]:
    """(start, end) of the parts of one large file; one part or none if it cannot be cut."""
    if file.compression != "none":
        return []
    if file.is_tar:
        return _between(_tar_starts(file.disk_path, target_bytes))
    if file.format == "parquet":
        num_groups = len(parquet_row_groups(file.disk_path))
        step = max(1, num_groups * target_bytes // file.size_bytes)
        return _between(range(0, num_groups, step))
    delimiter = b"\n" if file.format in LINE_FORMATS else (marker or "").encode() if file.format == "text" else b""
    if not delimiter or _overlaps_itself(delimiter):
        return []
    offsets = range(0, file.size_bytes, target_bytes)
    starts = sorted({record_start(file.disk_path, delimiter, offset) for offset in offsets} - {file.size_bytes})
    return _between(starts)


def _between(starts: Sequence[int]) -> list[tuple[int, int | None]]:
    return list(zip(starts, [*starts[1:], None], strict=True)) if starts else []


def _overlaps_itself(delimiter: bytes) -> bool:
    return any(delimiter.endswith(delimiter[:n]) for n in range(1, len(delimiter)))


def _tar_starts(path: str, target_bytes: int) -> list[int]:
    """Offsets of headers, about `target_bytes` apart, from 0; [] if the archive cannot be listed to its end."""
    starts = [0]
    try:
        with open_source(path) as source, tarfile.open(fileobj=source, mode="r:") as archive:
            for member in archive:
                if member.offset - starts[-1] >= target_bytes:
                    starts.append(member.offset)
    except tarfile.TarError:
        return []
    return starts
