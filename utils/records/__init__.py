"""Files of a run: written whole, checked when read."""
