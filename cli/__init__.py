"""The command line of retrodb, installed as `retrodb_cli`."""
