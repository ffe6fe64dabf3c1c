"""Which chunks are nearest: codebook, inverted lists, search, list-major neighbour join, recall curves.

==========================  ==================================================================================
module                      gives
==========================  ==================================================================================
metric                      the convention of distances; checks of vectors
exact                       the k nearest by a streamed product, exactly
topk, merge_topk            the result of a search; partial results merged into one
exclusion                   intervals of ids and keys by which a query forbids neighbours, inside every search
codebook                    the trained part of an index, shared by all parts of a space
training, kmeans            how it is trained
grouped_training            k-means of many lists, in two levels
grouped_lists               the nearest lists of vectors through groups of lists
assignment_recall           what that costs in recall
ward                        the leaf order of a hierarchy, by which lists are numbered
list_scanner                FAISS over lists that lie elsewhere in memory
search_codes, part          immutable index parts
merge_policy                which parts should merge
merge_parts                 parts merged list by list
faiss_file                  all parts of a space as one file for FAISS
list_rows                   the rows of some lists of a part, as a join reads them
rerank, search, join        few queries at low latency; all queries at high throughput
reverse_join                few new rows compared with very many old queries
gpu_scan                    the scan of the join on a GPU
routing, route_learning     rows that read few ranges of lists, and what a sample says of them
recall_curve                recall, and how it grows with the lists scanned
drift, truth                whether the codebook still fits what is added
faiss_library               FAISS, imported at first use
codegen                     compiled code; every kernel has a portable definition
==========================  ==================================================================================

faiss, torch and numba are imported by the modules that need them, so import those at the point of use.
"""
