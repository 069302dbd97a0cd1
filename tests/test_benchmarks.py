"""Flags of the benchmarks, which check them before they measure anything."""

import pytest
from conftest import ROOT


@pytest.mark.parametrize("name", ["epoch", "accuracy", "evaluation"])
def test_flags(run_script, name):
    script = ROOT / "tests" / "benchmarks" / f"{name}.py"
    helped = run_script(script, "--help")
    assert (helped.returncode, helped.stderr) == (0, "") and "--output FOLDER" in helped.stdout
    refused = run_script(script, "--output", "nowhere")
    assert refused.returncode == 2 and "nowhere is no existing folder" in refused.stderr
