"""Provenance: the code, the machine and the job."""

import hashlib
import os
import subprocess

import pytest
import torch
from conftest import ROOT

from utils.errors import UsageError
from utils.records.provenance import code_provenance, provenance, source_hashes, source_sha256


def test_source_hash_is_that_of_the_files():
    shown = subprocess.run(
        r"sha256sum $(git ls-files DJSW models datasetprep utils | grep '\.py$' | LC_ALL=C sort)",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    lines = [line.split() for line in shown.stdout.splitlines()]
    expected = {name: digest for digest, name in lines}
    found = source_hashes()
    tracked = {name: found[name] for name in found if name in expected}
    assert tracked == expected
    assert source_sha256({"b": "2", "a": "1"}) != source_sha256({"b": "1", "a": "2"})


def test_provenance_of_a_job(monkeypatch, tmp_path):
    """It has what run.sh passes on, and no Slurm variable that holds an absolute path."""
    (tmp_path / "git").write_text("0123\ndiff --git a/x b/x\n+1\n")
    (tmp_path / "run.sh").write_text("#!/bin/bash\n")
    for name, value in {
        "DJSW_GIT": str(tmp_path / "git"),
        "DJSW_BATCH_SCRIPT": str(tmp_path / "run.sh"),
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NODELIST": "nid[005001-005002]",
        "SLURM_SUBMIT_DIR": "/scratch/project",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "clean").write_text("0123\n")
    ranks = [{"node": f"nid00500{i // 8}", "device": "AMD Instinct MI250X"} for i in range(16)]
    found = provenance(torch.device("cpu"), ranks)
    assert found["git"] == {"commit": "0123", "changed": True}
    assert found["diff"] == "diff --git a/x b/x\n+1\n"
    assert found["batch_script"] == "#!/bin/bash\n"
    assert found["slurm"]["SLURM_JOB_NODELIST"] == "nid[005001-005002]"
    assert "SLURM_SUBMIT_DIR" not in found["slurm"]
    assert found["device"]["ranks"] == ranks
    assert found["device"]["name"] == "AMD Instinct MI250X"
    assert found["source_sha256"] == source_sha256(found["source"])
    monkeypatch.setenv("DJSW_GIT", str(tmp_path / "clean"))
    found = code_provenance()  # the commit has the source
    assert found["git"] == {"commit": "0123", "changed": False} and "source" not in found
    assert found["source_sha256"] == source_sha256(source_hashes())


def test_container_and_hip_are_named(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0.1")
    monkeypatch.setenv("DJSW_CONTAINER", "none")
    found = provenance(torch.device("cpu"), [{"node": "n", "device": "d"}])
    assert found["versions"]["hip"] == "7.0.1" and found["container"] is None
    monkeypatch.setenv("SINGULARITY_CONTAINER", "/scratch/images/lumi\n.sif")
    assert code_provenance()["container"] == r"lumi\n.sif"


def test_long_text_is_replaced_by_its_hash(monkeypatch, tmp_path):
    diff = "+1\n" * 10**6
    (tmp_path / "git").write_text(f"0123\n{diff}")
    monkeypatch.setenv("DJSW_GIT", str(tmp_path / "git"))
    digest = hashlib.sha256(diff.encode()).hexdigest()
    expected = f"left out: 3,000,000 characters with the SHA-256 {digest}"
    assert code_provenance()["diff"] == expected


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes")
@pytest.mark.parametrize("variable", ["DJSW_GIT", "DJSW_BATCH_SCRIPT"])
def test_what_run_sh_names_is_a_regular_file(monkeypatch, tmp_path, variable):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path, tmp_path / "none"):
        monkeypatch.setenv(variable, str(path))
        with pytest.raises(UsageError, match=f"^{variable} is '{path}': .*; unset it$"):
            code_provenance()


def test_names_that_cannot_be_printed_are_escaped(monkeypatch, tmp_path):
    """Else the record would be refused when it is read."""
    monkeypatch.setattr("sys.argv", ["DJSW/main.py", "a\nb\udcff"])
    monkeypatch.setenv("SLURM_JOB_NAME", "a\x1b[2J")
    found = code_provenance()
    assert found["command"] == r"python DJSW/main.py 'a\nb\udcff'"
    assert found["slurm"]["SLURM_JOB_NAME"] == r"a\x1b[2J"
