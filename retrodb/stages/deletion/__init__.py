"""Stages tag, filter and undelete: documents are scored, deleted for a reason, and brought back."""
