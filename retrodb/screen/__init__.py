"""What decides that a document goes: SQL, word lists, classifiers, rules."""
