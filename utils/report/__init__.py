"""Pages, tables and figures of results."""
