"""Files that are written completely or not at all."""

import os

from small_runs import train_small

from DJSW.recipes import Settings
from utils.records.files import atomic_write


def test_temporary_files_of_a_killed_writer_are_removed(tmp_path):
    stale = tmp_path / ".run_checkpoint_best.pt.0123abcd.tmp"
    others = tmp_path / ".run_2_checkpoint_best.pt.0123abcd.tmp"
    for path in (stale, others):
        path.touch()
    train_small(tmp_path, Settings(1, 5, 0.05, seed=3))
    assert not stale.exists()
    assert others.exists()


def test_files_are_on_the_disk_before_they_are_renamed(tmp_path, monkeypatch):
    synced, original = [], os.fsync

    def fsync(file):
        synced.append(file)
        original(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(tmp_path / "a") as path:
        path.write_text("a")
    assert len(synced) == 1
