"""A path tells whether retrodb made the file: what it makes is recognised, and nothing else."""

from __future__ import annotations

import pytest
from made_up import id_of

from retrodb.format.kinds import KINDS, kind_of, path_of
from retrodb.format.part_files import PART_FILES

ID = id_of("a")
PARTS = {"name": "default", "task": ID, "digest": ID + ID, "number": "7".zfill(20), "run": ID, "file": "plan.json"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "{file}" not in KINDS[kind].pattern])
def test_every_kind_is_recognised_by_its_own_paths(kind: str) -> None:
    assert kind_of(path_of(kind, **PARTS)) == kind


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        *(("parts", name) for name in PART_FILES),
        *(("queries", name) for name in ("documents.parquet", "ids.npy", "vectors.my space.npy")),
        *(("testsets", name) for name in ("items.parquet", "keys.npy")),
        *(("runs", name) for name in ("plan.json", f"tasks/{ID}.json", "windows/x/0.npy", "spool/standard-input")),
    ],
)
def test_files_of_a_folder_are_recognised(kind: str, file: str) -> None:
    assert kind_of(path_of(kind, **PARTS | {"file": file})) == kind
    assert kind_of(path_of(kind, **PARTS | {"file": file, "task": f"{ID}-12"})) == kind


@pytest.mark.parametrize(
    "path",
    [
        "chunks/thesis.pdf",
        "chunks/0001.parquet",
        f"chunks/{ID}.parquet.bak",
        f"chunks/sub/{ID}.parquet",
        f"documents/{ID.upper()}.parquet",
        f"parts/default/{ID}/notes.txt",
        f"parts/default/{ID}/data.npy",
        "runs/today/plan.json",
        f"runs/{ID}/results.csv",
        "snapshots/7.json",
        "reports/2024.parquet",
        "notes.txt",
        "retrodb.toml.bak",
        "unknown/x",
        "",
    ],
)
def test_foreign_files_have_no_kind(path: str) -> None:
    assert kind_of(path) is None
