"""Ranks of a run: processes that share each batch."""
