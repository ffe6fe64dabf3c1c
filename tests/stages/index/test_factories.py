"""Index factories by kind: each works from training to search and merge, or is refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from made_documents import made_text, write_documents

from retrodb.ann.merge_policy import choose_merges
from retrodb.ann.supported_factory import check_factory
from retrodb.database import Database
from retrodb.errors import ConfigError

Make = Callable[..., Database]

SUPPORTED = [
    "Flat",
    "IVF4,Flat",
    "IVF4,SQ4",
    "IVF4,SQ6",
    "IVF4,SQ8",
    "IVF4,SQfp16",
    "IVF4,PQ8",
    "IVF4,PQ8x4",
    "IVF4,PQ8x4fs",
    "OPQ8,IVF4,PQ8x4",
    "OPQ8_16,IVF4,PQ8x4fs",
    "PCA16,IVF4,SQ8",
    "PCAR16,IVF4,Flat",
    "RR32,IVF4,SQ8",
    "IVF4_HNSW8,SQ8",
    "IVF4(IVF2,Flat),SQ8",
    "IVF4,RaBitQ",
    "IVF4,RaBitQfs",
]
REFUSED = {
    "": "no inverted lists",
    "Nonsense17": "no inverted lists",
    "HNSW32": "no inverted lists",
    "LSH": "no inverted lists",
    "PQ16": "no inverted lists",
    "PCA16,Flat": "no inverted lists",
    "IMI2x4,SQ8": "no inverted lists",
    "IVF4,Nonsense": "FAISS does not know",
    "IVF0,Flat": "at least one",
    "IVF4(IVF0,Flat),SQ8": "at least one",
    "IVF4(IVF8,Flat),SQ8": "more groups of lists",
    "IVF4,PQ7": "FAISS does not know",
    "IVF4,PQ8x12": "12 bits a sub-vector",
    "IVF4,PQ8x4fs_64": "blocks of 64",
    "IVF4,PQ32x4fs_64": "blocks of 64",
    "IVF4,PQ8+8": "FAISS does not know",
    "IVF4,RQ8x8": "IndexIVFResidualQuantizer",
    "IVF4,LSQ4x8": "IndexIVFLocalSearchQuantizer",
    "IVF4,RQ8x4fs": "IndexIVFResidualQuantizerFastScan",
    "IVF4,ITQ,SH": "IndexIVFSpectralHash",
    "IVF4,FlatDedup": "IndexIVFFlatDedup",
    "IVF4,PQ8,RFlat": "IndexRefineFlat",
    "IDMap,IVF4,SQ8": "IndexIDMap",
    "L2norm,IVF4,SQ8": "NormalizationTransform",
    "ITQ,IVF4,SQ8": "ITQTransform",
    "IVF4(PQ8),SQ8": "IndexPQ",
    "IVF4(IVF2,SQ8),SQ8": "IndexIVFScalarQuantizer",
}


@pytest.fixture
def embedded(make_database: Make, tmp_path: Path) -> Database:
    database = make_database({})
    for name in ("a", "b"):
        documents = {f"{name}{number}": made_text(f"{name}{number}", 2500) for number in range(5)}
        database.ingest([write_documents(tmp_path / f"{name}.jsonl", documents)], source=name)
    database.embed()
    return database


@pytest.mark.parametrize("factory", SUPPORTED)
def test_a_supported_factory_works_from_training_to_search_and_merge(
    factory: str, embedded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.ann.codebook.MIN_POINTS_PER_CODE", 0)
    monkeypatch.setattr("retrodb.stages.index.merge.choose_merges", partial(choose_merges, merge_factor=2))
    result = embedded.index(factory=factory)
    assert (result.factory, result.num_parts, result.num_merged_parts) == (factory, 1, 2)
    vectors = embedded.view().vectors("default", np.arange(embedded.view().chunks.end)).astype(np.float32)
    ids, _ = embedded.search_arrays(vectors, 5, nprobe=min(4, result.num_lists))
    products = vectors @ vectors.T
    found, best = np.take_along_axis(products, ids, axis=1), -np.sort(-products, axis=1)[:, :5]
    assert (found > best - 1e-3).mean() > (0.7 if "PCA" in factory else 0.98)


@pytest.mark.parametrize("factory", REFUSED)
def test_another_factory_is_refused_by_its_name(factory: str) -> None:
    with pytest.raises(ConfigError, match=REFUSED[factory]) as refused:
        check_factory(factory, 32, "inner_product")
    assert refused.value.remedy
    assert f"'{factory}'" in str(refused.value)


def test_a_refused_factory_starts_no_run(embedded: Database) -> None:
    runs = set(embedded.view().storage.list("runs"))
    for factory in ("", "HNSW32", "IVF4,PQ8x4fs_64"):
        for is_dry in (True, False):
            with pytest.raises(ConfigError, match="is not supported"):
                embedded.index(factory=factory, dry_run=is_dry)
    assert set(embedded.view().storage.list("runs")) == runs


def test_a_factory_of_very_many_lists_is_checked_without_making_them() -> None:
    check_factory("OPQ64_256,IVF4194304(IVF2048,Flat),PQ64", 384, "inner_product")
    check_factory("IVF65536_HNSW32,SQ8", 384, "squared_l2")
    with pytest.raises(ConfigError, match="more than 4096 groups"):
        check_factory("IVF4194304(IVF8192,Flat),SQ8", 384, "inner_product")


def test_a_space_without_vectors_refuses_the_same_factories(make_database: Make) -> None:
    database = make_database({"a": made_text("a", 500)})
    before = database.view().snapshot.number
    with pytest.raises(ConfigError, match="no inverted lists"):
        database.embed(keep_vectors=False, factory="HNSW32")
    assert database.view().snapshot.number == before
