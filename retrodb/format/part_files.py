"""The files of an index part; `ann/part.py` says what each one holds."""

from __future__ import annotations

INDEX_FILE, META_FILE = "index.faiss", "part.json"
LISTS_FILE, ORDER_FILE, OFFSETS_FILE = "lists.npy", "order.npy", "offsets.npy"
CODES_FILE, SCALES_FILE, CENTRE_FILE = "codes.npy", "scales.npy", "centre.npy"

ARRAY_FILES = (LISTS_FILE, ORDER_FILE, OFFSETS_FILE, CODES_FILE, SCALES_FILE, CENTRE_FILE)
PART_FILES = (INDEX_FILE, META_FILE, *ARRAY_FILES)
CODE_FILES = (CODES_FILE, ORDER_FILE, SCALES_FILE, CENTRE_FILE)
"""Those that vectors are read from, in a space that keeps none."""
