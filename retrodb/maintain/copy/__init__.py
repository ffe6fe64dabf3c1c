"""Copy: one database in several places, such as a backup or a publication."""
