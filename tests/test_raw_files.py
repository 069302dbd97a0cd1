"""Fetching raw files."""

import gzip
import hashlib
import os
from pathlib import Path

import pytest

from datasetprep import create_usps_dataset, raw_files
from utils.errors import RunError

EMPTY = hashlib.sha256(b"").hexdigest()


def test_failed_source_leaves_no_files(tmp_path, capsys):
    def fails_halfway(folder: Path) -> None:
        (folder / "a").write_bytes(b"half")
        raise EOFError

    with pytest.raises(RunError, match=r"no source has them \(see above\); put it there"):
        raw_files.fetch(
            tmp_path / "raw",
            [raw_files.Source("mirror", {"a": "0"}, fails_halfway)],
            "put it there",
        )
    assert "mirror: EOFError" in capsys.readouterr().out
    assert os.listdir(tmp_path / "raw") == []


def test_what_killed_downloads_left_is_removed_after_an_hour(tmp_path):
    old, new = tmp_path / ".fetching-a", tmp_path / ".fetching-b"
    for folder in (old, new):
        folder.mkdir()
        (folder / "part").touch()
    os.utime(old, (0, 0))
    source = raw_files.Source("mirror", {"a": EMPTY}, lambda folder: (folder / "a").touch())
    raw_files.fetch(tmp_path, [source], "put it there")
    assert sorted(os.listdir(tmp_path)) == [".fetching-b", "a"]


def test_raw_files_are_read_up_to_a_limit(tmp_path):
    with gzip.open(tmp_path / "bomb.gz", "wb", compresslevel=1) as file:
        file.write(bytes(10**8))
    assert len(raw_files.read(tmp_path / "bomb.gz", gzip.open)) == raw_files.LIMIT
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(10**12)
    source = raw_files.Source("the user's files", {"sparse": EMPTY})
    assert "sparse has the SHA256" in source.errors(tmp_path)[0]
    (tmp_path / "eleven").write_bytes(b"eleven byte")
    hashes = {"eleven": hashlib.sha256(b"eleven byte").hexdigest()}
    assert [len(raw_files.Source("", hashes, limit=k).errors(tmp_path)) for k in (10, 11)] == [1, 0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_no_raw_files(tmp_path, monkeypatch):
    given = tmp_path / "given"
    given.mkdir()
    os.mkfifo(given / "zip.test.gz")
    monkeypatch.setenv("DJSW_RAW_USPS", str(given))
    monkeypatch.setattr(create_usps_dataset, "RAW_FOLDER", tmp_path / "raw")
    with pytest.raises(RunError, match=r"no source has them"):
        create_usps_dataset.create_usps_h5(tmp_path / "u.h5", train=False)
