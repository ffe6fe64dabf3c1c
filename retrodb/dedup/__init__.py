"""Finds texts that should not be there twice: shingles, exact leak scan, MinHash, LSH, near-duplicate clusters."""
