"""Files that are written completely or not at all."""

import os

import pytest
from small_runs import train_small

from DJSW.recipes import Settings
from utils.errors import UsageError
from utils.records.files import atomic_write, exclusive_output, file_lock, find_file, find_path


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


TAKEN = UsageError("taken")


def test_an_output_removes_what_a_killed_process_left_of_it(tmp_path):
    stale = [tmp_path / f".e_{name}.0123abcd.tmp" for name in ("metrics.json", "report.md")]
    others = [
        tmp_path / f".{name}.0123abcd.tmp"
        for name in ("e_2_metrics.json", "e_resume.pt", "x_metrics.json", "e_metrics.json.x")
    ]
    for path in (*stale, *others):
        path.touch()
    with exclusive_output(tmp_path / "e_metrics.json", TAKEN, r"metrics\.json|report\.md"):
        assert sorted(tmp_path.glob(".*.tmp")) == sorted(others)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "folder", "pipe"])
def test_a_lock_harms_nothing_in_its_place(tmp_path, kind):
    precious, lock = tmp_path / "precious", tmp_path / ".l_metrics.json.lock"
    precious.write_text("precious")
    if kind == "symlink":
        lock.symlink_to(precious)
    elif kind == "hard link":
        os.link(precious, lock)
    elif kind == "folder":
        lock.mkdir()
    elif hasattr(os, "mkfifo"):
        os.mkfifo(lock)
    else:
        pytest.skip("Windows has no named pipes")
    with pytest.raises(UsageError, match="json.lock is in the way of a lock file; remove it"):
        with exclusive_output(tmp_path / "l_metrics.json", TAKEN, "x"):
            pass
    assert precious.read_text() == "precious" and os.path.lexists(lock)


def test_a_lock_is_held_by_one(tmp_path):
    with file_lock(tmp_path / "lock", TAKEN):
        with pytest.raises(UsageError, match="taken"):
            with file_lock(tmp_path / "lock", TAKEN):
                pass
    with file_lock(tmp_path / "lock", TAKEN):
        pass
    assert not (tmp_path / "lock").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
def test_pipes_and_devices_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for find in (find_file, find_path):
        for path in (tmp_path / "pipe", "/dev/zero"):
            with pytest.raises(UsageError, match="--flag .* is no existing file"):
                find(path, "--flag")
