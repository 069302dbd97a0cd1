"""Records that are changed for a test."""

import json


def changed(path, change):
    """The record with a change made to it."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
