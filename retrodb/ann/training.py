"""Training of a codebook: the rotation by FAISS, the lists by our k-means, then the codes' quantizer by FAISS around these lists.

`train` does it on a sample in memory. Tasks do the same steps on files, and end in the same bytes.

Legend: S sample, D dimensions, G groups, L lists.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from retrodb.ann.assignment_recall import with_enough_groups
from retrodb.ann.codebook import FLAT, Codebook, least_sample, num_groups_in, num_lists_of
from retrodb.ann.faiss_library import FaissIndex, faiss_module, one_faiss_thread
from retrodb.ann.grouped_lists import PROBED_GROUPS
from retrodb.ann.grouped_training import (
    MAX_POINTS_PER_LIST,
    GroupedCentroids,
    TrainingRows,
    evenly_spread,
    num_groups_of,
    train_grouped,
)
from retrodb.ann.kmeans import kmeans
from retrodb.ann.metric import check_metric, check_vectors
from retrodb.ann.ward import MAX_POINTS, leaf_order
from retrodb.errors import ConfigError
from retrodb.format.arrays import Float32Array
from retrodb.format.entries import Metric

# Rows of the sample for the rotation and the codes' quantizer, about as many as FAISS takes itself.
# 65,536 rows * 384 dimensions * 4 bytes (float32) = 100 MB.
CODE_SAMPLE = 65_536


def train(sample: TrainingRows, factory: str, seed: int, metric: Metric, threads: int = 1) -> Codebook:
    """A codebook trained on a random sample; the same bits for the same sample, factory and seed.

    A sample too small for the factory gives `Flat`, and says so in `note`.

    Raises:
        ConfigError: FAISS does not know the factory, or it has too many groups.
    """
    dim, rows = sample.shape[1], np.arange(len(sample))
    if note := note_of_small_sample(len(sample), factory):
        return replace(new_codebook(FLAT, dim, metric), note=note)
    codebook = new_codebook(factory, dim, metric)
    if codebook.ivf is None:
        return codebook
    for_codes = check_vectors(sample[evenly_spread(CODE_SAMPLE, len(sample))], dim, where="training sample")
    train_rotation(codebook, for_codes)
    num_lists, num_groups = codebook.ivf.nlist, groups_to_train(factory)
    points = sample[rows if num_groups else evenly_spread(MAX_POINTS_PER_LIST * num_lists, len(sample))]
    rotated = codebook.transform(check_vectors(points, dim, where="training sample"), threads)
    if num_groups:
        trained = train_grouped(rotated, num_lists, num_groups, seed, metric, threads)
    else:
        trained = _train_at_once(rotated, num_lists, seed, metric, threads)
    codebook = finish_codebook(codebook, trained, codebook.transform(for_codes, threads), threads)
    return with_enough_groups(codebook, sample, threads)[0]


def note_of_small_sample(num_vectors: int, factory: str) -> str:
    """Why a sample of so many vectors gives `Flat`; empty when it does not."""
    if num_vectors >= (least := least_sample(factory)):
        return ""
    return f"{factory} needs at least {least} training vectors and there are {num_vectors}: using {FLAT}"


def groups_to_train(factory: str) -> int:
    """Groups that the lists of a factory are trained in; 0 for lists that are trained at once."""
    return num_groups_in(factory) or num_groups_of(num_lists_of(factory))


def new_codebook(factory: str, dim: int, metric: Metric) -> Codebook:
    """A codebook that nothing is trained of yet.

    Raises:
        ConfigError: FAISS does not know the factory, or it has too many groups.
    """
    check_metric(metric)
    faiss = faiss_module()
    if num_groups_in(factory) > MAX_POINTS:
        raise ConfigError(f"{factory} has more than {MAX_POINTS} groups of lists", remedy="Ask for fewer.")
    try:
        index = faiss.index_factory(
            dim, factory, faiss.METRIC_L2 if metric == "squared_l2" else faiss.METRIC_INNER_PRODUCT
        )
    except RuntimeError as error:
        raise ConfigError(f"FAISS does not know the factory {factory!r} for {dim} dimensions ({error})") from error
    return Codebook(index)


def train_rotation(codebook: Codebook, sample_SD: Float32Array) -> None:
    """Train what transforms vectors before lists are chosen, where the factory has such steps."""
    if not isinstance(codebook.index, faiss_module().IndexPreTransform):
        return
    with one_faiss_thread():
        for number in range(codebook.index.chain.size()):
            codebook.index.chain.at(number).train(codebook.transform(sample_SD) if number else sample_SD)


def _train_at_once(
    rotated_SD: Float32Array, num_lists: int, seed: int, metric: Metric, threads: int
) -> GroupedCentroids:
    """Lists in leaf order that are trained at once: one group."""
    centroids_LD = kmeans(rotated_SD, num_lists, seed, metric, threads)
    return GroupedCentroids(centroids_LD[:0], np.array([num_lists]), centroids_LD[leaf_order(centroids_LD)])


def finish_codebook(
    codebook: Codebook, trained: GroupedCentroids, rotated_SD: Float32Array, threads: int = 1
) -> Codebook:
    """The codebook with these lists, and the codes' quantizer trained around them on some rotated vectors."""
    faiss = faiss_module()
    with one_faiss_thread():
        quantizer = codebook.quantizer
        if isinstance(quantizer, faiss.IndexIVFFlat):
            _fill_groups(quantizer, trained)
        else:
            quantizer.train(trained.centroids_LD)
            quantizer.add(trained.centroids_LD)
        _train_codes(codebook, rotated_SD, threads)
    codebook.index.is_trained = True
    return Codebook(codebook.index)


def _train_codes(codebook: Codebook, rotated_SD: Float32Array, threads: int) -> None:
    """Train the codes' quantizer on vectors relative to their lists. FAISS finds these with one thread."""
    faiss, ivf = faiss_module(), codebook.ivf
    if isinstance(ivf, faiss.IndexIVFFlat | faiss.IndexIVFRaBitQ | faiss.IndexIVFRaBitQFastScan):
        ivf.train(rotated_SD[:1])  # nothing is learned
    elif isinstance(ivf, faiss.IndexIVFScalarQuantizer) and ivf.by_residual:
        with_lists = Codebook(codebook.index)
        list_S = with_lists.nearest_lists_of(rotated_SD, 1, threads)[:, 0].astype(np.int64)
        relative_SD = rotated_SD - with_lists.centroids_LD[list_S]
        ivf.train_encoder(len(list_S), *map(faiss.swig_ptr, (relative_SD, list_S)))
        ivf.is_trained = True
    else:
        ivf.train(rotated_SD)


def _fill_groups(quantizer: FaissIndex, trained: GroupedCentroids) -> None:
    """Fill a coarse quantizer of groups, so that FAISS alone finds lists through groups too."""
    faiss = faiss_module()
    quantizer.quantizer.add(trained.groups_GD)
    quantizer.is_trained = True
    start = 0
    for group, size in enumerate(trained.lists_G.tolist()):
        if size:
            numbers = np.arange(start, start + size)
            codes = np.ascontiguousarray(trained.centroids_LD[start : start + size]).view(np.uint8)
            quantizer.invlists.add_entries(group, size, faiss.swig_ptr(numbers), faiss.swig_ptr(codes))
        start += size
    quantizer.ntotal, quantizer.nprobe = start, PROBED_GROUPS
    quantizer.make_direct_map(True)  # codes are made relative to the centroid of a list, by its number
