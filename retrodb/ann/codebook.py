"""The trained part of an index, shared by all parts of a space: which factory, its training, the coarse assignment."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from retrodb.ann.codegen.distances import fixed_affine
from retrodb.ann.exact import FixedRows, run_rows
from retrodb.ann.faiss_library import FaissIndex, faiss_module
from retrodb.ann.grouped_lists import GroupedLists
from retrodb.ann.grouped_training import num_groups_of
from retrodb.ann.list_scanner import ListScanners
from retrodb.ann.metric import check_metric, check_vectors
from retrodb.format.arrays import Float32Array, Int32Array, Int64Array, VectorArray
from retrodb.format.entries import Metric

FLAT = "Flat"
# With more lists a vector finds its own through groups: in 64 dimensions, 9 microseconds for one list of 8,192, and 29 exactly.
FLAT_LISTS = 4_096
MOST_PROBED = 3  # from a third of all groups on, an exact assignment is faster
MIN_POINTS_PER_LIST = 39  # FAISS warns when there are fewer
POINTS_PER_LIST = 64  # of a sample; more of them change recall by less than its confidence interval
MIN_POINTS_PER_CODE = MIN_POINTS_PER_LIST * 256  # a product quantizer trains 256 centroids (8 bits) per sub-vector
# Candidates beyond k, of codes with a byte a dimension: their order is wrong by one or two positions.
RERANK_MARGIN_OF_BYTES = 16
# Of shorter codes: with one bit a dimension 200 candidates keep 0.98 of the true neighbours in the lists, 50 keep 0.86.
RERANK_MARGIN_OF_BITS = 200

# Pairs of (vectors, lists), interpolated by their logarithms. Measured at 1e5 and 1e6 vectors. The pairs at 1e8 and 1e10 are
# extrapolated from published systems, such as a billion vectors in 1,048,576 lists (FAISS wiki).
_LISTS_BY_SIZE = ((1e4, 128), (1e5, 1024), (1e6, 8192), (1e8, 131_072), (1e10, 4_194_304))
_FLAT_UP_TO = 20_000  # an exact product over so few vectors takes less time than training
_SQ8_UP_TO = 300_000  # up to here the faster scan of one-bit codes saves less time than their rerank takes
_PQ_FROM = 10_000_000  # from here on the memory of SQ8 costs more than the training of a product quantizer
_PQ_BYTES = 64  # of a product quantizer's code


def choose_factory(
    num_vectors: int, dim: int, memory_bytes: int, bytes_per_vector: int | None = None, metric: Metric = "inner_product"
) -> str:
    """A FAISS factory string for a corpus of this size.

    Args:
        memory_bytes: of the machine that searches. All codes are mapped, and one-bit codes (RaBitQfs) are chosen where they fit.
        bytes_per_vector: the size of a search code; None chooses one.
    """
    check_metric(metric)
    if num_vectors <= _FLAT_UP_TO and bytes_per_vector is None:
        return FLAT
    sizes, lists = np.log2(np.array(_LISTS_BY_SIZE)).T
    num_lists = 2 ** round(float(np.interp(np.log2(max(num_vectors, 1)), sizes, lists)))
    groups = f"(IVF{num_groups_of(num_lists)},Flat)" if num_lists > FLAT_LISTS else ""
    coarse = f"IVF{num_lists}{groups}"
    one_bit = dim // 8 + 2 * 4  # a bit a dimension, and two float32 factors
    has_one_bit = num_vectors * one_bit <= memory_bytes
    if bytes_per_vector is None:
        large = one_bit if has_one_bit else _PQ_BYTES if num_vectors >= _PQ_FROM else dim
        bytes_per_vector = dim if num_vectors <= _SQ8_UP_TO else large
    if bytes_per_vector >= dim:
        return f"{coarse},SQ8"
    if bytes_per_vector >= one_bit and has_one_bit:
        return f"{coarse},RaBitQfs"
    num_codes = max(1, min(bytes_per_vector, dim // 4))  # sub-vectors of at least 4 dimensions, a byte each
    return f"OPQ{num_codes}_{4 * num_codes},{coarse},PQ{num_codes}"


def num_lists_of(factory: str) -> int:
    """Inverted lists of a factory string; 1 for `Flat`, which is one list."""
    match = re.search(r"IVF(\d+)", factory)
    return int(match[1]) if match else 1


def num_groups_in(factory: str) -> int:
    """Groups of lists that a factory string has, such as 256 of `IVF65536(IVF256,Flat),SQ8`; 0 where it has none."""
    match = re.search(r"IVF\d+\(IVF(\d+)", factory)
    return int(match[1]) if match else 0


def sample_size(factory: str) -> int:
    """Number of vectors that a training sample should have."""
    if factory == FLAT:
        return 0
    return max(num_lists_of(factory) * POINTS_PER_LIST, MIN_POINTS_PER_CODE if "PQ" in factory else 0)


def least_sample(factory: str) -> int:
    """Fewest vectors that can train a factory; 0 for `Flat`, which has nothing to train."""
    if factory == FLAT:
        return 0
    return max(num_lists_of(factory) * MIN_POINTS_PER_LIST, MIN_POINTS_PER_CODE if "PQ" in factory else 0)


@dataclass(frozen=True, eq=False)
class Codebook:
    """A trained, empty FAISS index, and the coarse assignment that all parts share."""

    index: FaissIndex  # clone it before adding
    note: str = ""  # how training deviated from the factory, for the user
    findable: Int64Array | None = None  # the lists that `nearest_lists` finds, ascending; None: all

    def __post_init__(self) -> None:
        _ = self.quantizer  # known before a scanner is made, which exchanges it for a moment

    @property
    def metric(self) -> Metric:
        return "inner_product" if self.index.metric_type == 0 else "squared_l2"

    @property
    def dim(self) -> int:
        return int(self.index.d)

    @property
    def rotated_dim(self) -> int:
        """Dimensions of the space of the centroids."""
        return self.dim if self.ivf is None else int(self.ivf.d)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the serialized index."""
        return hashlib.sha256(self.serialize()).hexdigest()

    def serialize(self) -> bytes:
        """The bytes of the codebook's file; `faiss.read_index` opens them."""
        return bytes(faiss_module().serialize_index(self.index).tobytes())

    @cached_property
    def ivf(self) -> FaissIndex:
        """The inverted file inside the index, or None for `Flat`."""
        faiss = faiss_module()
        inner = self.index
        if isinstance(inner, faiss.IndexPreTransform):
            inner = faiss.downcast_index(inner.index)
        return inner if isinstance(inner, faiss.IndexIVF) else None

    @cached_property
    def quantizer(self) -> FaissIndex:
        """The index of the centroids; None for `Flat`."""
        return None if self.ivf is None else faiss_module().downcast_index(self.ivf.quantizer)

    @cached_property
    def scanners(self) -> ListScanners:
        """What scans the lists of parts; not for `Flat`. While a thread makes one, no other may train, encode or serialize."""
        return ListScanners(self.ivf, self.quantizer)

    @cached_property
    def is_coarse(self) -> bool:
        """Whether a search code has less than a byte a dimension."""
        return self.ivf is not None and bool(self.ivf.code_size < self.dim)

    @property
    def rerank_margin(self) -> int:
        """Candidates beyond k that need an exact distance, so that the order by codes loses few true neighbours."""
        return RERANK_MARGIN_OF_BITS if self.is_coarse else RERANK_MARGIN_OF_BYTES

    @cached_property
    def centroids_LD(self) -> Float32Array:
        """Coarse centroids in the transformed space; `Flat` has one, at zero."""
        if self.ivf is None:
            return np.zeros((1, self.dim), dtype=np.float32)
        return np.asarray(self.quantizer.reconstruct_n(0, self.ivf.nlist), dtype=np.float32)

    @cached_property
    def centre_D(self) -> Float32Array:
        """What the codes of vectors are relative to: the centroids' mean where they are in the vectors' own space, else zero.

        Any centre gives right answers; a near one gives better codes.
        """
        origin = np.zeros((1, self.dim), dtype=np.float32)
        is_same_space = self.transform(origin) is origin
        centre_D: Float32Array = self.centroids_LD.mean(axis=0) if is_same_space else origin[0]
        return centre_D

    def within(self, lists: Int64Array) -> Codebook:
        """This codebook, of which `nearest_lists` finds only some lists, ascending; itself where these are none or all."""
        if not 0 < len(lists) < self.num_lists:
            return self
        narrowed = replace(self, findable=lists)
        vars(narrowed)["centroids_LD"] = self.centroids_LD  # read once
        return narrowed

    @cached_property
    def _centroids(self) -> FixedRows:
        if self.findable is None:
            return FixedRows.of(self.centroids_LD)
        return FixedRows.of(self.centroids_LD[self.findable], self.findable)

    @property
    def num_lists(self) -> int:
        return len(self.centroids_LD)

    @property
    def num_findable(self) -> int:
        """The number of lists that `nearest_lists` finds."""
        return self.num_lists if self.findable is None else len(self.findable)

    def transform(self, vectors_ND: Float32Array, threads: int = 1) -> Float32Array:
        """Into the space of the coarse centroids (a rotation, or nothing), the same bits in any batch."""
        faiss = faiss_module()
        if not isinstance(self.index, faiss.IndexPreTransform):
            return vectors_ND
        for number in range(self.index.chain.size()):
            step = faiss.downcast_VectorTransform(self.index.chain.at(number))
            matrix_MD = faiss.vector_to_array(step.A).reshape(step.d_out, step.d_in)
            bias_M = faiss.vector_to_array(step.b) if step.have_bias else np.zeros(step.d_out, np.float32)
            vectors_ND = _affine(vectors_ND, matrix_MD, bias_M, threads)
        return vectors_ND

    @cached_property
    def groups(self) -> GroupedLists | None:
        """The groups of the lists, where the coarse quantizer has some."""
        quantizer = self.quantizer
        if not isinstance(quantizer, faiss_module().IndexIVFFlat):
            return None
        sizes = [quantizer.invlists.list_size(group) for group in range(quantizer.nlist)]
        groups_GD = np.asarray(quantizer.quantizer.reconstruct_n(0, quantizer.nlist), dtype=np.float32)
        groups = GroupedLists.of(groups_GD, self.centroids_LD, sizes, quantizer.nprobe)
        return groups if self.findable is None else groups.within(self.findable)

    @cached_property
    def is_exact(self) -> bool:
        """Whether vectors go to their nearest lists exactly, and not through groups or a graph."""
        if self.num_findable <= FLAT_LISTS or isinstance(self.quantizer, faiss_module().IndexFlat):
            return True
        return self.findable is not None and self.groups is None  # a graph of all lists may reach few of these

    def nearest_lists(self, vectors_ND: VectorArray, count: int, threads: int = 1) -> Int32Array:
        """Each vector's `count` nearest lists of those to be found, by closeness, (N, count) int32, -1 where there are no more.

        Exact up to `FLAT_LISTS` lists. With more lists through groups of lists, or by a graph search over the centroids, as the
        factory says. The answer depends on the vector only.
        """
        return self.nearest_lists_of(self.transform(check_vectors(vectors_ND, self.dim), threads), count, threads)

    def nearest_lists_of(self, vectors: Float32Array, count: int, threads: int = 1) -> Int32Array:
        """`nearest_lists` of vectors that are transformed already."""
        if self.is_exact:
            return self.exact_lists_of(vectors, count, threads)
        if self.groups is not None:
            if MOST_PROBED * self.groups.groups_for(count) >= len(self.groups):
                return self.exact_lists_of(vectors, count, threads)
            return self.groups.nearest(vectors, count, self.metric, threads).astype(np.int32)
        parameters = faiss_module().SearchParametersHNSW(efSearch=max(64, 2 * count))
        return np.asarray(self.quantizer.search(vectors, count, params=parameters)[1], dtype=np.int32)

    def exact_lists_of(self, vectors: Float32Array, count: int, threads: int = 1) -> Int32Array:
        """The exact `count` nearest lists of vectors that are transformed already, as of `nearest_lists`."""
        return self._centroids.nearest(vectors, count, self.metric, threads).astype(np.int32)


def load_codebook(data: bytes) -> Codebook:
    """A codebook from its file's bytes. The caller has verified their digest: FAISS does not check what it reads."""
    return Codebook(faiss_module().deserialize_index(np.frombuffer(data, dtype=np.uint8)))


def _affine(inputs_ND: Float32Array, matrix_MD: Float32Array, bias_M: Float32Array, threads: int) -> Float32Array:
    outputs_NM = np.empty((len(inputs_ND), len(matrix_MD)), dtype=np.float32)
    run_rows(
        lambda first, stop: fixed_affine(inputs_ND[first:stop], matrix_MD, bias_M, outputs_NM[first:stop]),
        len(inputs_ND),
        threads,
    )
    return outputs_NM
