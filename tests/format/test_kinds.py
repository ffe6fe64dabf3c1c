"""A path tells whether retrodb made the file: what it makes is recognised, and nothing else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from made_up import id_of

import retrodb
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


def _files_of_runs() -> Iterator[tuple[str, str]]:
    """Every module that names a file or folder of a run, and the name, with "x" for what is not known before it runs."""
    root = Path(retrodb.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "path_of":
                names = {keyword.arg: keyword.value for keyword in call.keywords}
                if {"run", "file"} <= names.keys():
                    module = ".".join(("retrodb", *path.relative_to(root).with_suffix("").parts))
                    yield module, _text(names["file"], module)


def _text(value: ast.expr, module: str) -> str:
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.Name):
        return str(getattr(import_module(module), value.id, ""))
    parts = value.values if isinstance(value, ast.JoinedStr) else []
    return "".join(
        _text(part.value, module) or "x" if isinstance(part, ast.FormattedValue) else _text(part, module)
        for part in parts
    )


def test_every_file_that_a_module_writes_into_a_run_is_recognised() -> None:
    named = [(module, name) for module, name in _files_of_runs() if name]
    assert len(named) > 20
    unknown = [(module, name) for module, name in named if not {_kind(name), _kind(f"{name}/x")} & {"runs"}]
    assert not unknown


def _kind(name: str) -> str | None:
    return kind_of(path_of("runs", run=ID, file=name))
