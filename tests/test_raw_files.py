"""Raw files from their sources."""

import os
from pathlib import Path

import pytest

from datasetprep import raw_files
from utils.failures import RunError


def test_a_source_that_breaks_off_leaves_nothing(tmp_path):
    def breaks_off(folder: Path) -> None:
        (folder / "a").write_bytes(b"half")
        raise EOFError

    with pytest.raises(RunError, match=r"mirror: EOFError.*Put it there"):
        raw_files.fetch(
            tmp_path / "raw", [raw_files.Source("mirror", {"a": "0"}, breaks_off)], "Put it there"
        )
    assert os.listdir(tmp_path / "raw") == []
