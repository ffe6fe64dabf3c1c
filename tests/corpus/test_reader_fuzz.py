"""Every reader, on damaged forms of real files: documents, rejects, or one of our errors, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrodb.corpus.document import Document, Fields, Limits, Reject
from retrodb.corpus.input_files import expand_inputs, plan_splits
from retrodb.corpus.readers import read_split, read_split_leniently

from .mutations import COMPRESS, FILES, write_mutant

pytest.importorskip("resiliparse")
FIELDS = (
    Fields(),
    Fields(front_matter="metadata", drop_metadata=True),
    Fields(key="id", value="text"),
    Fields(marker="\n"),
)
LIMITS = Limits(max_document_chars=1000, oversize="split", max_record_bytes=100_000)


def check_records(path: Path, seed: int) -> None:
    """Read a file, and check what it gives."""
    fields = FIELDS[seed % len(FIELDS)]
    splits = plan_splits(expand_inputs([path]), (1 << 30, 300)[seed % 2], fields.marker)
    for record in (record for split in splits for record in read_split_leniently(split, fields, LIMITS)):
        assert isinstance(record, Document | Reject)
        if isinstance(record, Document):
            assert isinstance(json.loads(record.metadata), dict)
            (record.doc_id or "").encode()
            record.text.encode()
            assert record.text.strip()
        else:
            record.path.encode()
            record.location.encode()
            assert record.path.startswith(str(path))
            assert record.excerpt.isprintable() or not record.excerpt


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", FILES)
def test_sound_file_has_documents_and_no_rejects(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESS[suffix](FILES[name]))
    records = [
        r for split in plan_splits(expand_inputs([path]), 1 << 30) for r in read_split(split, Fields(), Limits())
    ]
    assert records
    assert not [record for record in records if isinstance(record, Reject)]


def read_mutants(folder: Path, seeds: range) -> None:
    for seed in seeds:
        path = write_mutant(folder, seed, seed)
        try:
            check_records(path, seed)
        except BaseException as error:
            error.add_note(f"{path} (seed {seed})")
            raise
        path.unlink()


def test_damaged_files_give_only_records_and_errors(tmp_path: Path) -> None:
    read_mutants(tmp_path, range(300))


@pytest.mark.soak
@pytest.mark.parametrize("part", range(10))
def test_many_damaged_files_give_only_records_and_errors(tmp_path: Path, part: int) -> None:
    read_mutants(tmp_path, range(1000 * part, 1000 * (part + 1)))
