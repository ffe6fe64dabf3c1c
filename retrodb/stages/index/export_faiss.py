"""The index of a space as one file that `faiss.read_index` opens. Its ids are chunk ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.lib.format import open_memmap

from retrodb.ann.faiss_file import CodedRows, write_faiss_file
from retrodb.ann.merge_parts import rows_by_list
from retrodb.ann.part import Part
from retrodb.errors import MissingStep, UsageError
from retrodb.format.arrays import Int64Array
from retrodb.format.entries import IndexEntry
from retrodb.memory import MIB, PROCESS_MEMORY, require_memory, with_caches
from retrodb.stages.index.live_parts import live_rows, open_codebook, open_files, parts_of
from retrodb.stages.index.operating_point import default_nprobe, stored_point
from retrodb.store.exclusive_rename import rename_if_absent
from retrodb.view.coverage import Coverage
from retrodb.view.view import View

_EXPORT_MIB = 160  # the library, FAISS and some blocks of rows
_WINDOW_IDS = 1 << 20  # whose masks are in memory together


@dataclass(frozen=True)
class FaissExportResult:
    """What an export for FAISS wrote."""

    snapshot: int
    space: str
    out: str
    factory: str  # FAISS factory string
    num_vectors: int  # live and screened; a dry run counts the others too
    size_bytes: int | None  # of the file; None in a dry run
    dry_run: bool = False


def run_export_faiss(view: View, out: Path, *, space: str | None = None, dry_run: bool = False) -> FaissExportResult:
    """Write the index of a space as one file, list by list. Nothing is written over: the file appears when it is whole.

    Temporary files, which have the id of each row, are written next to it.

    Raises:
        UsageError: the file exists, or its folder does not.
        MissingStep: the space has no index.
        NotEnoughMemory: for a limit below what FAISS needs for the codebook.
    """
    _check_target(out)
    name = space or view.snapshot.default_space
    entry = view.snapshot.entry(IndexEntry, name)
    if entry is None:
        raise MissingStep(f"space '{name}' has no index", remedy="Run 'retrodb index' first.")
    codebooks = [file for file in view.manifest.files("codebooks", name) if entry.codebook in file.path]
    codebook_bytes = sum(file.digest.size_bytes for file in codebooks)
    least = with_caches(_EXPORT_MIB * MIB + 3 * codebook_bytes)  # its bytes, the index, and its centroids
    require_memory("this export", least, PROCESS_MEMORY.limit_bytes)
    result = FaissExportResult(
        snapshot=view.snapshot.number,
        space=name,
        out=str(out),
        factory=entry.factory,
        num_vectors=sum(files.num_rows for files in parts_of(view, name)),
        size_bytes=None,
        dry_run=dry_run,
    )
    if dry_run:
        return result
    codebook = open_codebook(view, name)
    point = stored_point(view, name, None)
    nprobe = (
        min(point.nprobe or codebook.num_lists, codebook.num_lists) if point else default_nprobe(codebook.num_lists)
    )
    with TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.partial-") as folder:
        parts, ids = _parts_with_ids(view, name, Path(folder))
        sizes_L = np.zeros(codebook.num_lists, dtype=np.int64)
        for block in rows_by_list(parts, ids) if parts else ():
            lists, counts = np.unique(block.lists_B, return_counts=True)
            sizes_L[lists] += counts
        whole = Path(folder) / "index.faiss"
        write_faiss_file(whole, codebook, sizes_L, partial(_coded_rows, parts, ids), nprobe)
        if not rename_if_absent(whole, out):
            _check_target(out)
    return FaissExportResult(
        snapshot=result.snapshot,
        space=name,
        out=str(out),
        factory=result.factory,
        num_vectors=int(sizes_L.sum()),
        size_bytes=out.stat().st_size,
    )


def _check_target(out: Path) -> None:
    if out.is_dir():
        raise UsageError("is a folder", where=str(out), remedy="Give the name of a new file.")
    if out.exists() or out.is_symlink():
        raise UsageError("exists already", where=str(out), remedy="Choose another name, or delete the file.")
    if not out.absolute().parent.is_dir():
        raise UsageError("the folder does not exist", where=str(out.parent), remedy="Create it first.")


def _parts_with_ids(view: View, space: str, folder: Path) -> tuple[list[Part], list[Int64Array]]:
    """The parts of a space, and mapped arrays with the chunk id of each row of each, -1 for a row that may not be found."""
    parts, ids = [], []
    covered_end = 0  # one past the ids of the parts before
    for number, files in enumerate(all_files := parts_of(view, space)):
        overlaps = files.span.first_chunk < covered_end
        covered_end = max(covered_end, files.span.end)
        before = Coverage([other.records[0] for other in all_files[:number]], view.files) if overlaps else None
        stored = open_memmap(folder / f"ids_{number}.npy", mode="w+", dtype=np.int64, shape=(files.num_rows,))
        written = 0
        for rows in files.row_set(view.files).windows(_WINDOW_IDS):
            present = files.span.first_chunk + rows
            allowed = live_rows(view, files, present, before)
            stored[written : written + len(rows)] = np.where(allowed, present, -1)
            written += len(rows)
        parts.append(open_files(view.files, files))
        ids.append(stored.view(np.ndarray))
    return parts, ids


def _coded_rows(parts: Sequence[Part], ids: Sequence[Int64Array]) -> CodedRows:
    for block in rows_by_list(parts, ids) if parts else ():
        yield block.lists_B, block.rows_B, block.search_codes(parts)
