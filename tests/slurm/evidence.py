"""Make the logs in reports/slurm/, of jobs of the last commit: ``uv run tests/slurm/evidence.py``.

The jobs run on the private Slurm cluster of the tests (Debian: slurm-wlm munge); four minutes.
"""

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster import started
from conftest import ROOT

WMLP = "weights/WMLP/wmlp_standard_3_checkpoint_best.pt"
TRAIN = "run.sh --username sigurd --output_dir reports/scratch --device cpu --train --exp_name"
JOBS = {
    "smlp_training": f"{TRAIN} smlp",
    "wmlp_evaluation": "run.sh --username waly --exp_name wmlp_by_sigurd --output_dir "
    f"reports/scratch --device cpu --load_checkpoint {WMLP}",
    # The signal comes 30 to 90 s after the start. With batches of two the run takes longer.
    "smlp_requeued": f"--time=3 {TRAIN} smlp_small_batches --batch_size 2 --num_epochs 15",
}


def main() -> None:
    """Run the jobs, one after the other, and copy their logs."""
    with started(("node1", "node2")) as cluster:
        cluster.project = cluster.folder / "DJSW"
        subprocess.run(["git", "clone", "--quiet", ROOT, cluster.project], check=True)
        shutil.copytree(ROOT / "data", cluster.project / "data", dirs_exist_ok=True)
        for name, command in JOBS.items():
            job = cluster.submit(*command.split(), DJSW_CONTAINER="none", SBATCH_ACCOUNT="private")
            assert cluster.wait(job, seconds=600) == "COMPLETED", cluster.log(job)
            log = cluster.project / "reports" / f"djsw_{job}.log"
            print(shutil.copy(log, ROOT / "reports" / "slurm" / f"{name}.log"))


if __name__ == "__main__":
    main()
