"""Taggers, which score documents: word lists, regular expressions, classifiers and Python functions."""
