"""Measurements on this machine: recall and latency of search, quality of retrieval, and the rate of every stage."""
