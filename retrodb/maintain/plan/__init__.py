"""Plan: what a database of so many tokens takes, stage by stage, before anything is built."""
