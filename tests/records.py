"""Changes to records."""

import json

from utils.records.typed import content_sha256


def changed(path, change):
    """Change a record, and update its digest, where it has one."""
    record = json.loads(path.read_text())
    change(record)
    if "sha256" in record:
        record["sha256"] = content_sha256(record)
    path.write_text(json.dumps(record))
