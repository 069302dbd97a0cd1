"""Provenance: the code, the machine and the job."""

import subprocess

import torch
from conftest import ROOT

from utils.records.provenance import provenance, source_hashes, source_sha256


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
    ranks = [{"node": f"nid00500{i // 8}", "device": "AMD Instinct MI250X"} for i in range(16)]
    found = provenance(torch.device("cpu"), ranks)
    assert found["git"] == {"commit": "0123", "changed": True}
    assert found["diff"] == "diff --git a/x b/x\n+1\n"
    assert found["batch_script"] == "#!/bin/bash\n"
    assert found["slurm"]["SLURM_JOB_NODELIST"] == "nid[005001-005002]"
    assert "SLURM_SUBMIT_DIR" not in found["slurm"]
    assert found["device"]["ranks"] == ranks
    assert found["device"]["name"] == "AMD Instinct MI250X"
