"""Stage embed: every chunk gets its vector in a space."""
