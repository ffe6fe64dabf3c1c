"""Which FAISS factories have an index that can be trained, merged and searched here. Others are refused before any work.

An index is `Flat`, or inverted lists after any linear transforms. A vector's code is made from the vector, its list, and what was
trained, and a list is its codes: so rows can be merged list by list. Others, such as graphs over all vectors, have more state.
"""

from __future__ import annotations

import re

from retrodb.ann.codebook import FLAT, Codebook, num_groups_in, num_lists_of
from retrodb.ann.faiss_library import FaissIndex, faiss_module
from retrodb.ann.search_codes import code_form
from retrodb.ann.training import CODE_SAMPLE, new_codebook
from retrodb.ann.ward import MAX_POINTS
from retrodb.errors import ConfigError
from retrodb.format.entries import Metric

_CODES = ("IndexIVFFlat", "IndexIVFScalarQuantizer", "IndexIVFPQ", "IndexIVFPQFastScan")
_ONE_BIT_CODES = ("IndexIVFRaBitQ", "IndexIVFRaBitQFastScan")
_EXAMPLES = "Use a factory such as 'IVF1024,SQ8', 'OPQ16,IVF1024,PQ16' or 'IVF1024,RaBitQfs', or 'auto'."


def check_factory(factory: str, dim: int, metric: Metric) -> None:
    """Check a factory with an index of two lists, whatever the number of lists that it asks for.

    Raises:
        ConfigError: FAISS does not know the factory for so many dimensions, or its index could not be trained, merged or
            searched.
    """
    if factory == FLAT:
        return
    if not re.search(r"(^|,)IVF\d+", factory):
        raise _refused(factory, "it has no inverted lists, and is not 'Flat'")
    lists, groups = num_lists_of(factory), num_groups_in(factory)
    if not lists or re.search(r"\(IVF0\b", factory):
        raise _refused(factory, "lists and groups of lists are at least one")
    if groups > lists:
        raise _refused(factory, f"it has more groups of lists ({groups}) than lists ({lists})")
    if groups > MAX_POINTS:
        raise _refused(factory, f"it has more than {MAX_POINTS} groups of lists")
    try:
        codebook = new_codebook(re.sub(r"IVF\d+", "IVF2", factory), dim, metric)
    except ConfigError as error:
        raise _refused(factory, f"FAISS does not know it for {dim} dimensions") from error
    if reason := _reason_against(codebook):
        raise _refused(factory, reason)
    try:
        code_form(codebook)
    except ConfigError as error:
        raise _refused(factory, error.what) from error


def _refused(factory: str, reason: str) -> ConfigError:
    return ConfigError(f"the factory {factory!r} is not supported: {reason}", remedy=_EXAMPLES)


def _reason_against(codebook: Codebook) -> str:
    """What of an index is not supported; empty where all is."""
    faiss, index, ivf = faiss_module(), codebook.index, codebook.ivf
    if ivf is None:
        return f"an index of type {_name(index)} is more than inverted lists"
    if isinstance(index, faiss.IndexPreTransform):
        steps = [faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size())]
        if others := [_name(step) for step in steps if not isinstance(step, faiss.LinearTransform)]:
            return f"a transform of type {others[0]} is not linear"
    quantizer = codebook.quantizer
    is_groups = type(quantizer) is faiss.IndexIVFFlat and isinstance(
        faiss.downcast_index(quantizer.quantizer), faiss.IndexFlat
    )
    if not (isinstance(quantizer, faiss.IndexFlat) or type(quantizer) is faiss.IndexHNSWFlat or is_groups):
        return (
            f"lists are found exactly, by HNSW or by groups such as 'IVF65536(IVF256,Flat)', not by {_name(quantizer)}"
        )
    if _name(ivf) not in (*_CODES, *_ONE_BIT_CODES):
        return f"codes of type {_name(ivf)} cannot be merged"
    pq = getattr(ivf, "pq", None)
    if pq is not None and 39 << pq.nbits > CODE_SAMPLE:
        return f"{pq.nbits} bits a sub-vector need more than the {CODE_SAMPLE:,} vectors that codes are trained on"
    return ""


def _name(thing: FaissIndex) -> str:
    return type(thing).__name__
