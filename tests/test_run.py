"""run.sh where no cluster answers: as it is started by hand, with Slurm's client or without."""

import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import clean_environment

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("bash") is None, reason="run.sh is bash's"
)
#: What sbatch and scontrol of Slurm 22.05 print, with status 1, where no cluster is configured.
UNCONFIGURED = """\
{name}: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
{name}: error: fetch_config: DNS SRV lookup failed
{name}: error: _establish_config_source: failed to fetch config
{name}: fatal: Could not establish a configuration source
"""
#: And where the controller of the configured cluster is down: sbatch, then scontrol.
DOWN = {
    "sbatch": "allocation failure: Unable to contact slurm controller (connect failure)\n",
    "scontrol": "slurm_load_ctl_conf error: Unable to contact slurm controller (connect failure)\n",
}
FLAGS = ("--username=waly", "--exp_name=a b", "--output_dir=weights/WMLP", "--train")
TYPED = r"--username=waly --exp_name=a\ b --output_dir=weights/WMLP --train"
VALID = ("--username=waly", "--exp_name=first", "--output_dir=weights/WMLP", "--train")


@pytest.fixture
def run_sh(project, tmp_path):
    """Run run.sh in a checkout with tiny data; ``client`` is what Slurm's commands print."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()

    def command(name, text):
        (bin_folder / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
        (bin_folder / name).chmod(0o755)

    command("python3", f'exec {shlex.quote(sys.executable)} "$@"')
    for name in ("bash", "git", "sed"):
        if found := shutil.which(name):
            (bin_folder / name).symlink_to(found)

    def run(*arguments, client=None):
        for name, text in (client or {}).items():
            command(name, f"echo -n {shlex.quote(text)} >&2; exit 1")
        environment = clean_environment() | {"PATH": str(bin_folder), "DJSW_CONTAINER": "none"}
        ran = subprocess.run(
            ["bash", "run.sh", *arguments],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not list((project / "weights" / "WMLP").iterdir())
        return ran

    return run


def test_check_without_slurm_says_so(run_sh):
    checked = run_sh("--check", *VALID)
    assert checked.returncode == 0, checked.stderr
    assert "checked     this command would run" in checked.stdout
    assert checked.stdout.splitlines()[-1] == (
        "no Slurm    there is no sbatch on PATH: submit on a login node, or run it here:  "
        f"uv run DJSW/main.py {' '.join(VALID)}"
    )
    assert "to submit" not in checked.stdout and not checked.stderr


@pytest.mark.parametrize("state", ["unconfigured", "down"])
def test_check_with_a_client_but_no_cluster_says_so(run_sh, state):
    names = ("sbatch", "scontrol")
    client = DOWN if state == "down" else {name: UNCONFIGURED.format(name=name) for name in names}
    checked = run_sh("--check", *VALID, client=client)
    assert checked.returncode == 2
    assert "checked     this command would run" in checked.stdout
    assert "to submit" not in checked.stdout
    assert checked.stderr == (
        "error: no Slurm cluster answers (scontrol show config); submit on a login node, or run it "
        f"here:  uv run DJSW/main.py {' '.join(VALID)}\n"
    )


@pytest.mark.parametrize("script", [(), ("DJSW/reproduce.py",)])
def test_started_by_hand(run_sh, script):
    """The sentence names the script once, and quotes what the shell would split."""
    result = run_sh(*script, *FLAGS)
    assert result.returncode == 2
    named = " ".join((*script, TYPED))
    directly = " ".join((*(script or ["DJSW/main.py"]), TYPED))
    assert result.stderr == (
        f"error: run.sh is for the queue; type  sbatch run.sh {named}  (without Slurm:  "
        f"uv run {directly})\n"
    )
