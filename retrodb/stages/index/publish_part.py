"""The last step of index, of embed without stored vectors, and of merging: build an index part and publish its files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from retrodb.ann.codebook import Codebook
from retrodb.ann.part import VectorRows, build_part
from retrodb.format.kinds import path_of
from retrodb.format.part_files import PART_FILES
from retrodb.format.records import FileRecord
from retrodb.format.rows import RowSet
from retrodb.store.publish import publish
from retrodb.store.storage import Storage


def publish_part(
    storage: Storage,
    space: str,
    task: str,
    vectors_ND: VectorRows,
    codebook: Codebook,
    first_chunk: int,
    rows: RowSet,
    *,
    threads: int = 1,
) -> tuple[FileRecord, ...]:
    """Build the part of these vectors and publish it.

    Args:
        task: id of the task, which names the folder of the part.
        rows: the rows of the id range from `first_chunk` that the vectors belong to.
    """
    build = partial(build_part, vectors_ND, codebook, threads=threads)
    return publish_part_files(storage, space, task, build, first_chunk, rows)


def publish_part_files(
    storage: Storage, space: str, task: str, build: Callable[[Path], object], first_chunk: int, rows: RowSet
) -> tuple[FileRecord, ...]:
    """Publish the files that `build` writes into an empty folder."""
    with storage.working_folder() as folder:
        build(folder)
        return tuple(
            publish(
                storage,
                "parts",
                path_of("parts", name=space, task=task, file=file),
                partial(_move, folder / file),
                name=space,
                first_chunk=first_chunk,
                rows=rows,
            )
            for file in PART_FILES
        )


def _move(source: Path, target: Path) -> None:
    source.replace(target)
