"""Which chunks are nearest: codebook, inverted lists, search, list-major neighbour join, operating points.

=====================  =======================================================================================
module                 gives
=====================  =======================================================================================
metric                 the convention of distances; checks of vectors
exact                  the k nearest by a streamed product, exactly
topk                   partial results merged into one
exclusion              keys by which a query forbids neighbours, inside every search
kmeans, codebook       the trained part of an index, shared by all parts of a space
inverted_lists, part   immutable index parts
merge_policy           which parts should merge
merge_parts            parts merged list by list
rerank, search, join   few queries at low latency; all queries at high throughput
operating_point        recall as a function of the lists scanned; which `nprobe` to use
drift                  whether the codebook still fits what is added
=====================  =======================================================================================

faiss, torch and numba are imported by the modules that need them, so import those at the point of use.
"""
