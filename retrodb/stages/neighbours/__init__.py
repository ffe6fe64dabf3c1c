"""Stage neighbours: tables of every row's nearest chunks, and their repair."""
