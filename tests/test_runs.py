"""The list of runs."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from records import changed

from DJSW import runs


def test_odd_files_do_not_end_the_list(ran, capsys):
    (ran / "folder_run.json").mkdir()
    (ran / "link_run.json").symlink_to(ran / "nowhere")
    (ran / "deep_run.json").write_text(100_000 * "[")
    for name, change in (
        ("slurm", lambda r: r["sessions"][0].update(slurm=None)),
        ("empty", lambda r: r.update(sessions=[])),
        ("list", lambda r: r.update(results=[])),
    ):
        (ran / f"{name}_run.json").write_bytes((ran / "first_run.json").read_bytes())
        changed(ran / f"{name}_run.json", change)
    (ran / "odd_run.json").write_bytes((ran / "first_run.json").read_bytes())
    changed(ran / "odd_run.json", lambda r: r.update(exp_name="a\nb", username=None))
    capsys.readouterr()
    assert runs.main([str(ran)]) == 0
    out, err = capsys.readouterr()
    assert sum(line.startswith("20") for line in out.splitlines()) == 3
    assert "  a b  " in out
    assert len(err.splitlines()) == 6 and "Traceback" not in err


def test_runs_are_listed_newest_first(ran, capsys):
    changed(
        ran / "first_run.json", lambda r: r["sessions"][0].update(started="2026-01-02T03:04:05")
    )

    def on_lumi(record):
        record["session"] |= {
            "started": "2026-02-03T04:05:06",
            "git": {"commit": "0123456789", "changed": True},
            "slurm": {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"},
            "device": {"type": "cuda", "name": "AMD Instinct MI250X", "ranks": [{}] * 16},
        }

    changed(ran / "first_metrics.json", on_lumi)
    unfinished = json.loads((ran / "first_run.json").read_text())
    del unfinished["results"]
    unfinished |= {"status": "running", "exp_name": "killed"}
    unfinished["sessions"][0]["started"] = "2025-12-31T23:59:59"
    (ran / "below").mkdir()
    (ran / "below" / "killed_run.json").write_text(json.dumps(unfinished))
    (ran / "broken_run.json").write_text("{")
    capsys.readouterr()
    assert runs.main([str(ran)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    best = unfinished["sessions"][0]["git"]["commit"][:7]
    record = json.loads((ran / "first_run.json").read_text())["results"]
    metrics = json.loads((ran / "first_metrics.json").read_text())["metrics"]
    epochs = f"{record['best']['epoch']} of 3"
    accuracy = f"{record['best']['validation_accuracy']:.4f} validation"
    assert lines[1].startswith("2026-02-03 04:05  waly  first   evaluated   usps_0_6  ")
    assert f"{metrics['accuracy']:.4f} test" in lines[1]
    assert lines[1].endswith("16 x AMD Instinct MI250X  7_3  0123456*")
    assert lines[2].startswith(f"2026-01-02 03:04  waly  first   trained     usps_0_6  {epochs}")
    assert accuracy in lines[2] and best in lines[2]
    assert lines[3].startswith("2025-12-31 23:59  waly  killed  unfinished  usps_0_6  -")
    assert lines[-1].startswith("* with changes")
    assert err == f"no record: {ran / 'broken_run.json'}\n"


def test_no_runs_yet(tmp_path, capsys):
    assert runs.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("no records yet")
    assert runs.main([str(tmp_path / "nowhere")]) == 2


def test_listing_needs_no_torch():
    code = "import sys; from DJSW import runs; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("command", ["reproduce", "runs"])
def test_commands_start_as_scripts_from_anywhere(checkout, run_script, tmp_path, command):
    result = run_script(checkout / "DJSW" / f"{command}.py", "--help", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout
