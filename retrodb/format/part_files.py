"""The files of an index part; `ann/part.py` says what each one holds."""

from __future__ import annotations

META_FILE = "part.json"
FILLED_FILE, OFFSETS_FILE, ORDER_FILE = "filled.npy", "offsets.npy", "order.npy"
LISTS_FILE, SEARCH_CODES_FILE = "lists.npy", "search_codes.npy"
CODES_FILE, SCALES_FILE, CENTRE_FILE = "codes.npy", "scales.npy", "centre.npy"

ARRAY_FILES = (
    FILLED_FILE,
    OFFSETS_FILE,
    ORDER_FILE,
    LISTS_FILE,
    CODES_FILE,
    SCALES_FILE,
    CENTRE_FILE,
    SEARCH_CODES_FILE,
)
PART_FILES = (META_FILE, *ARRAY_FILES)
"""In the order in which they are published: what says how search codes are stored is there before them."""
CODE_FILES = (CODES_FILE, ORDER_FILE, SCALES_FILE, CENTRE_FILE)
"""Those that vectors are read from, in a space that keeps none."""
