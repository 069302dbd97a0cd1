"""Fetching raw files."""

import os
from pathlib import Path

import pytest

from datasetprep import raw_files
from utils.errors import RunError


def test_failed_source_leaves_no_files(tmp_path):
    def fails_halfway(folder: Path) -> None:
        (folder / "a").write_bytes(b"half")
        raise EOFError

    with pytest.raises(RunError, match=r"mirror: EOFError.*\(put it there\)"):
        raw_files.fetch(
            tmp_path / "raw",
            [raw_files.Source("mirror", {"a": "0"}, fails_halfway)],
            "put it there",
        )
    assert os.listdir(tmp_path / "raw") == []
