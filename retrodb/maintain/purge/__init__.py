"""Purge: documents are removed for good, and what remains is searched for traces of them."""
