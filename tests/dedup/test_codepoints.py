"""The committed codepoint tables against the Unicode database they were made from."""

from __future__ import annotations

import hashlib
import unicodedata

import numpy as np
import pytest

from retrodb.dedup.codepoints import NUM_CODEPOINTS, codepoint_tables


@pytest.mark.skipif(unicodedata.unidata_version != "14.0.0", reason="the tables are those of Unicode 14.0")
def test_tables_equal_the_unicode_database_at_every_codepoint() -> None:
    import generate_codepoints as generator

    tables = codepoint_tables()
    assert np.array_equal(tables.word_class + 8 * tables.nfkc_state, generator.properties())
    assert np.array_equal(tables.combining, generator.combining())
    assert np.array_equal(tables.lower, [generator.lower(c) for c in range(NUM_CODEPOINTS)])


def test_tables_are_the_same_on_every_python() -> None:
    tables = codepoint_tables()
    digest = hashlib.sha256()
    for table in (tables.word_class, tables.nfkc_state, tables.combining, tables.lower.astype("<i4")):
        assert table.shape == (NUM_CODEPOINTS,)
        digest.update(table.tobytes())
    assert digest.hexdigest()[:16] == "2f619cb46fc57257"
