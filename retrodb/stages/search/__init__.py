"""Search: the chunks nearest to a text or a vector."""
