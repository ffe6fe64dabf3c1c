from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from retrodb.ann.codebook import Codebook, choose_factory, load_codebook, num_lists_of, sample_size
from retrodb.ann.exact import exact_topk
from retrodb.ann.kmeans import nearest_by_torch
from retrodb.ann.merge_parts import merge_parts, rows_by_list
from retrodb.ann.merge_policy import choose_merges
from retrodb.ann.part import build_part, decode, open_part, quantize
from retrodb.ann.rerank import LivePart
from retrodb.ann.training import train
from retrodb.errors import ConfigError, DamagedFileError, InputError, MismatchError, MissingFileError
from retrodb.format.part_files import META_FILE, PART_FILES
from retrodb.store.verified_array import VerifiedArray

from .conftest import Spread, mixture

# FAISS trains a rotation for most of a minute
OPQ = pytest.param("OPQ4_16,IVF16,PQ4x4", marks=pytest.mark.soak)
TRAINED = ["Flat", "IVF16,SQ8", "IVF16,RaBitQfs", "IVF16,PQ4x4", "IVF16_HNSW8,Flat", "IVF40(IVF6,Flat),SQ8"]
VECTORS = mixture(3000, 32, 0, identical=100)


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    return train(VECTORS, "IVF32,SQ8", 5, "inner_product")


def test_factories_follow_the_size_of_the_corpus() -> None:
    assert choose_factory(1_000, 384, 2**33) == "Flat"
    assert choose_factory(100_000, 384, 2**33) == "IVF1024,SQ8"
    assert choose_factory(1_000_000, 384, 2**33, metric="squared_l2") == "IVF8192(IVF91,Flat),RaBitQfs"
    assert choose_factory(1_000_000, 384, 2**20, metric="squared_l2") == "IVF8192(IVF91,Flat),SQ8"
    assert choose_factory(10**8, 384, 2**33, 96, "inner_product") == "IVF131072(IVF362,Flat),RaBitQfs"
    assert choose_factory(10**10, 384, 2**33) == "OPQ64_256,IVF4194304(IVF2048,Flat),PQ64"
    assert choose_factory(1_000_000, 384, 2**33, bytes_per_vector=384) == "IVF8192(IVF91,Flat),SQ8"
    assert num_lists_of("OPQ64_256,IVF4194304_HNSW32,PQ64") == 4_194_304
    assert sample_size("IVF1024,SQ8") == 65_536


@pytest.mark.parametrize("factory", [*TRAINED, OPQ])
def test_training_gives_the_same_bytes_for_any_number_of_threads(factory: str) -> None:
    sample = mixture(10_000, 32, 1) if "PQ" in factory else VECTORS
    one, two = (train(sample, factory, 7, "squared_l2", threads=threads) for threads in (1, 2))
    assert one.digest == two.digest
    assert load_codebook(one.serialize()).digest == one.digest
    assert one.index.ntotal == 0
    lists = one.nearest_lists(VECTORS, 3)
    assert (lists == one.nearest_lists(VECTORS, 3, threads=2)).all()
    assert (lists[40:41] == one.nearest_lists(VECTORS[40:41], 3)).all()


def test_a_sample_that_is_too_small_gives_flat_and_a_note() -> None:
    codebook = train(VECTORS[:100], "IVF1024,SQ8", 0, "squared_l2")
    assert codebook.num_lists == 1
    assert "IVF1024,SQ8 needs at least 39936 training vectors and there are 100" in codebook.note
    assert train(VECTORS[:0], "Flat", 0, "squared_l2").num_lists == 1


def test_unknown_factories_are_refused() -> None:
    with pytest.raises(ConfigError, match="IVF16,Nonsense"):
        train(VECTORS, "IVF16,Nonsense", 0, "squared_l2")


def test_many_lists_are_trained_in_two_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retrodb.ann.grouped_training.FLAT_TRAINING", 16)
    codebook = train(VECTORS, "IVF40,Flat", 0, "squared_l2")
    assert np.unique(codebook.centroids_LD, axis=0).shape == (40, 32)
    sizes = np.bincount(codebook.nearest_lists(VECTORS, 1)[:, 0], minlength=40)
    assert (sizes > 0).sum() > 35


MERGED = ["Flat", "IVF32,SQ8", "IVF32(IVF6,Flat),SQ8", "IVF32,RaBitQ", "IVF32,PQ4x4fs", "IVF32,RaBitQfs"]


@pytest.mark.parametrize("metric", ["inner_product", "squared_l2"])
def test_the_assignment_of_a_gpu_is_the_exact_one(metric: str) -> None:
    vectors, centroids = VECTORS[100:].astype(np.float32), mixture(40, 32, 9).astype(np.float32)
    nearest = nearest_by_torch(vectors, centroids, metric, "cpu")
    assert (nearest == exact_topk(vectors, centroids, 1, metric)[0][:, 0]).mean() > 0.999


@pytest.mark.parametrize("factory", MERGED)
def test_merged_parts_are_what_one_build_gives(factory: str, spread: Spread, tmp_path: Path) -> None:
    codebook = train(mixture(10_000, 32, 1), factory, 5, "squared_l2")
    whole = spread(VECTORS, codebook)[0].part
    parts = [live.part for live in spread(VECTORS, codebook, (700, 701, 2500))]
    bounds = [0, 700, 701, 2500, 3000]
    merged = new_folder(tmp_path / "merged")
    merge_parts(parts, [np.arange(*pair) for pair in pairwise(bounds)], merged)
    assert all((merged / name).read_bytes() == (whole.folder / name).read_bytes() for name in PART_FILES)


@pytest.mark.parametrize("block_rows", [16_384, 300, 40])
@pytest.mark.parametrize("factory", MERGED)
def test_merging_may_drop_rows_and_interleave_parts(
    factory: str, block_rows: int, spread: Spread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.ann.merge_parts.BLOCK_ROWS", block_rows)
    monkeypatch.setattr("retrodb.ann.merge_parts._LEAST_ROWS", 7)
    codebook = train(mixture(10_000, 32, 1), factory, 5, "squared_l2")
    random = np.random.default_rng(2)
    part_of = random.integers(0, 3, len(VECTORS))
    kept = random.random(len(VECTORS)) < 0.4
    kept[part_of == 2] = False  # all rows of one part are dropped
    rank = np.where(kept, np.cumsum(kept) - 1, -1)
    parts = [spread(VECTORS[part_of == number], codebook)[0].part for number in range(3)]
    merged = new_folder(tmp_path / "merged")
    merge_parts(parts, [rank[part_of == number] for number in range(3)], merged)
    whole = spread(VECTORS[kept], codebook)[0].part
    assert all((merged / name).read_bytes() == (whole.folder / name).read_bytes() for name in PART_FILES)


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_many_parts_of_disjoint_ranges_are_merged_in_about_as_many_blocks_as_their_rows_fill(
    codebook: Codebook, spread: Spread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrodb.ann.merge_parts.BLOCK_ROWS", 200)
    monkeypatch.setattr("retrodb.ann.merge_parts._LEAST_ROWS", 4)
    bounds = list(range(0, 3001, 50))
    flat = train(VECTORS, "Flat", 5, "squared_l2")
    for of in (codebook, flat):
        parts = [live.part for live in spread(VECTORS, of, bounds[1:-1])]
        blocks = list(rows_by_list(parts, [np.arange(*pair) for pair in pairwise(bounds)]))
        assert sum(len(block.rows_B) for block in blocks) == 3000
        assert len(blocks) <= 3 * 3000 / 200 + len(parts)


def test_parts_of_different_codebooks_do_not_merge(codebook: Codebook, spread: Spread, tmp_path: Path) -> None:
    other = train(VECTORS, "IVF32,SQ8", 6, "inner_product")
    rows = np.arange(3000)
    with pytest.raises(MismatchError, match="different codebooks"):
        merge_parts([spread(VECTORS, codebook)[0].part, spread(VECTORS, other)[0].part], [rows, rows + 3000], tmp_path)


@pytest.mark.parametrize("factory", MERGED)
def test_a_merge_in_small_blocks_gives_the_same_bytes(
    factory: str, spread: Spread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codebook = train(mixture(10_000, 32, 1), factory, 5, "squared_l2")
    whole = spread(VECTORS, codebook)[0].part
    bounds = [0, 900, 950, 3000]
    parts = [live.part for live in spread(VECTORS, codebook, bounds[1:-1])]
    monkeypatch.setattr("retrodb.ann.merge_parts.BLOCK_ROWS", 40)
    monkeypatch.setattr("retrodb.ann.merge_parts._LEAST_ROWS", 7)
    monkeypatch.setattr("retrodb.ann.search_codes.BLOCK_ROWS", 50)
    merged = new_folder(tmp_path / "merged")
    merge_parts(parts, [np.arange(*pair) for pair in pairwise(bounds)], merged)
    assert sorted(path.name for path in merged.iterdir()) == sorted(PART_FILES)
    assert all((merged / name).read_bytes() == (whole.folder / name).read_bytes() for name in PART_FILES)


def test_lists_without_rows_take_no_space(codebook: Codebook, spread: Spread) -> None:
    part = spread(VECTORS[:2], codebook)[0].part
    assert len(part.filled_M) <= 2
    assert part.offsets_M1.tolist()[-1] == 2
    assert len(part.offsets_L1) == codebook.num_lists + 1
    own = part.lists_N.whole()
    assert (np.diff(part.offsets_L1) == np.bincount(own, minlength=codebook.num_lists)).all()
    assert (part.list_of(np.arange(2)) == np.sort(own)).all()


def test_no_list_is_no_rows(codebook: Codebook, spread: Spread, monkeypatch: pytest.MonkeyPatch) -> None:
    part = spread(VECTORS, codebook)[0].part
    assert len(part.filled_M) == part.meta.num_lists, "no list is empty"
    starts, ends = part.positions_of_lists(np.array([0, 2]))
    declared, declare = list[list[list[int]]](), VerifiedArray.declared

    def noted(array: VerifiedArray, starts_R: np.ndarray, ends_R: np.ndarray) -> np.ndarray:
        declared.append([starts_R.tolist(), ends_R.tolist()])
        return declare(array, starts_R, ends_R)

    monkeypatch.setattr(VerifiedArray, "declared", noted)
    part.lists(np.array([[-1, 0], [2, -1]], dtype=np.int32))
    assert declared == [[starts.tolist(), ends.tolist()]] * 3


def test_a_part_has_no_copy_of_the_codebook(spread: Spread) -> None:
    small, large = (train(mixture(10_000, 32, 1), f"IVF{lists},SQ8", 5, "squared_l2") for lists in (8, 128))
    sizes = [
        sum((spread(VECTORS[:1], codebook)[0].part.folder / name).stat().st_size for name in PART_FILES)
        for codebook in (small, large)
    ]
    assert sizes[1] - sizes[0] < 200  # the lists of the row, and digits


def test_blocks_of_codes_that_faiss_cannot_unpack_are_refused(tmp_path: Path) -> None:
    codebook = train(mixture(10_000, 32, 1), "IVF8,PQ4x4fs_64", 5, "squared_l2")
    with pytest.raises(ConfigError, match="64"):
        build_part(VECTORS, codebook, tmp_path)


def test_training_without_a_gpu_does_not_load_pytorch() -> None:
    program = (
        "import sys, numpy as np, retrodb.encode.gpu_devices as devices; devices._DEVICES = (); "
        "from retrodb.ann.kmeans import kmeans; kmeans(np.eye(9, dtype=np.float32), 2, 0, 'squared_l2'); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_bad_vectors_are_refused_by_row(codebook: Codebook, tmp_path: Path) -> None:
    bad = VECTORS.copy()
    bad[2345, 3] = np.inf
    with pytest.raises(InputError, match="row 2345"):
        build_part(bad, codebook, tmp_path)
    with pytest.raises(MismatchError, match="31"):
        build_part(VECTORS[:, :31], codebook, tmp_path)


@pytest.mark.parametrize("name", PART_FILES)
def test_a_missing_or_damaged_file_is_named(name: str, codebook: Codebook, spread: Spread) -> None:
    folder = spread(VECTORS[:50], codebook)[0].part.folder
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    with pytest.raises(DamagedFileError, match=str(folder)):
        open_all(folder)
    (folder / name).unlink()
    with pytest.raises(MissingFileError, match=name):
        open_part(folder)


def open_all(folder: Path) -> list[object]:
    part = open_part(folder)
    return [part.lists_N, part.order_N, part.codes_ND, part.scales_N2, part.centre_D, part.search_codes]


def test_codes_stand_for_their_vectors_relative_to_the_centre(codebook: Codebook, spread: Spread) -> None:
    far = VECTORS.astype(np.float32) + 3  # a centre at zero would leave an eighth of the steps to what differs
    for vectors, centre in ((VECTORS, codebook.centre_D), (far, far.mean(axis=0))):
        codes, scales = quantize(vectors.astype(np.float32), centre)
        error = np.abs(decode(codes, scales, centre) - vectors)
        assert (error <= scales[:, :1] * 0.51 + 1e-6).all()
        assert error.max() < 0.01
        assert np.allclose(scales[:, 1], (vectors.astype(np.float32) ** 2).sum(axis=1), rtol=1e-5)
    part = spread(VECTORS, codebook)[0].part
    order = part.order_N.whole()
    assert np.abs(decode(part.codes_ND[:], part.scales_N2[:], part.centre_D) - VECTORS[order]).max() < 0.01


def test_codes_of_another_width_are_refused(codebook: Codebook, spread: Spread) -> None:
    folder = spread(VECTORS[:50], codebook)[0].part.folder
    meta = json.loads((folder / META_FILE).read_text())
    assert meta["code_bits"] == 8
    (folder / META_FILE).write_text(json.dumps(meta | {"code_bits": 4}))
    with pytest.raises(DamagedFileError, match="codes of 4 bits"):
        open_part(folder)


def test_ids_of_another_number_than_the_rows_are_refused(codebook: Codebook, spread: Spread) -> None:
    part = spread(VECTORS[:50], codebook)[0].part
    with pytest.raises(MismatchError, match="50 rows"):
        LivePart(part, np.arange(49), VECTORS.__getitem__)


def test_merges_take_neighbours_of_one_tier_and_leave_big_parts_alone() -> None:
    small, big = 10_000, 1_000_000
    assert choose_merges([small] * 7) == []
    assert choose_merges([small] * 9) == [tuple(range(8))]
    assert choose_merges([big] + [small] * 8) == [tuple(range(1, 9))]
    assert choose_merges([small] * 4 + [big] + [small] * 4) == []


def test_merges_of_merged_parts_are_one_merge_up_to_the_largest_size() -> None:
    assert choose_merges([16_000] * 64) == [tuple(range(64))]
    assert choose_merges([16_000] * 64, largest=200_000) == [
        tuple(range(first, first + 8)) for first in range(0, 64, 8)
    ]


def test_a_growing_database_keeps_few_parts_and_rewrites_a_row_a_few_times() -> None:
    sizes: list[int] = []
    written = 0
    for _ in range(512):
        sizes.append(10_000)
        for run in reversed(choose_merges(sizes)):
            merged = sum(sizes[member] for member in run)
            sizes[run[0] : run[-1] + 1] = [merged]
            written += merged
    assert len(sizes) <= 24
    assert written <= 4 * 512 * 10_000
