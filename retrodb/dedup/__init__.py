"""Finds leaks of test sets and near-duplicates: shingles, an exact scan, MinHash with LSH, clusters."""
