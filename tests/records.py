"""Changes to records."""

import json

from utils.records.evaluation import with_digest


def changed(path, change):
    """Change a record, and update the digest of an evaluation's."""
    record = json.loads(path.read_text())
    change(record)
    if path.name.endswith("_metrics.json"):
        record = with_digest({name: record[name] for name in record if name != "sha256"})
    path.write_text(json.dumps(record))
