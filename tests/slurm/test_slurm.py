"""run.sh on a real Slurm: a private cluster of two nodes, with fake GPUs and container."""

import csv
import json
import math
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cluster import NODES, Cluster, started
from records import changed

from utils.records.checkpoint import load_checkpoint, weights_sha256

pytestmark = pytest.mark.slurm
WALY = ("--username", "waly", "--output_dir", "weights/WMLP", "--device", "cpu")
SIGURD = ("--username", "sigurd", "--output_dir", "weights/SMLP", "--device", "cpu")


@pytest.fixture(scope="module")
def cluster():
    with started() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def trained(cluster: Cluster) -> str:
    """Return the ID of a job that trained waly's ``first``."""
    job = cluster.submit("run.sh", *WALY, "--exp_name", "first", "--train")
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    return job


def record_of(cluster: Cluster, name: str) -> dict:
    return json.loads((cluster.project / "weights" / f"{name}_run.json").read_text())


def weights_of(cluster: Cluster, name: str) -> str:
    path = cluster.project / "weights" / f"{name}_checkpoint_best.pt"
    return weights_sha256(load_checkpoint(path).weights)


def losses_of(cluster: Cluster, name: str) -> list[float]:
    with (cluster.project / "weights" / f"{name}_history.csv").open(newline="") as file:
        return [float(row[kind]) for row in csv.DictReader(file) for kind in row if "loss" in kind]


def test_training_job(cluster, trained):
    log = cluster.log(trained)
    commit = cluster("git", "rev-parse", "HEAD").stdout.strip()
    assert f"job         {trained} (small-g, project_465000001)" in log
    assert "restart 0 of 20" in log
    for line in (
        f"nodes       {NODES[0]}, ranks: 1",
        f"commit      {commit}\n",
        "device      cpu (",
    ):
        assert line in log
    assert "container   …/image.sif\n" in log
    assert "epoch 100/100" in log
    assert "checkpoint  weights/WMLP/first_checkpoint_best.pt\n" in log
    assert str(cluster.folder) not in log
    assert (cluster.project / "reports" / f"djsw_{trained}.log").read_text() == log
    assert not list(cluster.project.glob("*.log"))

    session = record_of(cluster, "WMLP/first")["sessions"][0]
    assert session["git"] == {"commit": commit, "changed": False}
    assert session["diff"] == ""
    assert session["batch_script"] == (cluster.project / "run.sh").read_text()
    assert session["slurm"]["SLURM_JOB_ID"] == trained
    assert session["slurm"]["SLURM_JOB_ACCOUNT"] == "project_465000001"
    assert session["slurm"]["SLURM_JOB_NODELIST"] == NODES[0]
    assert session["slurm"]["SLURM_GPUS_PER_NODE"] == "1"
    assert session["device"]["ranks"][0]["node"] == os.uname().nodename
    assert session["ended_by"] == "finished"

    called = (cluster.folder / "singularity.log").read_text().splitlines()
    modules = ["module purge", "module load Local-LAIF lumi-aif-singularity-bindings"]
    assert called[:2] == modules
    image = cluster.folder / "image.sif"
    flags = " ".join((*WALY, "--exp_name", "first", "--train"))
    assert called[2] == f"run {image} python DJSW/main.py {flags}"
    # On a busy machine Slurm reports the end of the job while its script still cleans up.
    until = time.monotonic() + 10
    while list(Path("/tmp").glob(f"djsw_{trained}_*")):
        assert time.monotonic() < until, "the job's private folder still exists"
        time.sleep(0.2)


def test_evaluation_of_another_s_checkpoint(cluster, trained):
    checkpoint = "weights/WMLP/first_checkpoint_best.pt"
    flags = ("--output_dir", "reports", "--load_checkpoint", checkpoint, "--device", "cpu")
    job = cluster.submit("run.sh", "--username", "waly", "--exp_name", "by_dennis", *flags)
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    metrics = json.loads((cluster.project / "reports" / "by_dennis_metrics.json").read_text())
    here = cluster(
        sys.executable, "DJSW/main.py", "--username", "waly", "--exp_name", "here", *flags
    )
    assert here.returncode == 0, here.stderr
    expected = json.loads((cluster.project / "reports" / "here_metrics.json").read_text())
    assert metrics["metrics"] == expected["metrics"]
    assert metrics["session"]["slurm"]["SLURM_JOB_ID"] == job
    assert f"{metrics['correct']} of 43 images correct" in cluster.log(job)


def test_time_limit_requeue_and_resume(cluster):
    """The signal comes 45 s before the one-minute limit, or at Slurm's next check, 30 s later."""
    measured = cluster.submit("run.sh", *SIGURD, "--exp_name", "speed", "--train", "--num_epochs=3")
    assert cluster.wait(measured) == "COMPLETED", cluster.log(measured)
    seconds = record_of(cluster, "SMLP/speed")["results"]["last"]["seconds"]
    flags = (*SIGURD, "--train", f"--num_epochs={math.ceil(60 / seconds)}")
    undisturbed = cluster.submit("run.sh", *flags, "--exp_name", "undisturbed")
    limits = ("--time=1", "--signal=B:USR1@45")
    job = cluster.submit(*limits, "run.sh", *flags, "--exp_name", "limited")
    assert cluster.wait(job, seconds=500) == "COMPLETED", cluster.log(job)
    assert cluster.wait(undisturbed, seconds=500) == "COMPLETED", cluster.log(undisturbed)

    assert weights_of(cluster, "SMLP/limited") == weights_of(cluster, "SMLP/undisturbed")
    assert losses_of(cluster, "SMLP/limited") == losses_of(cluster, "SMLP/undisturbed")
    limited, whole = (record_of(cluster, f"SMLP/{name}") for name in ("limited", "undisturbed"))
    last = [record["results"]["last"]["weights_sha256"] for record in (limited, whole)]
    assert last[0] == last[1]
    sessions = limited["sessions"]
    assert len(sessions) >= 2
    ends = [session["ended_by"] for session in sessions]
    assert ends == ["SIGUSR1"] * (len(sessions) - 1) + ["finished"]
    restarts = [int(session["slurm"].get("SLURM_RESTART_COUNT", 0)) for session in sessions]
    assert restarts == list(range(len(sessions)))
    times = [time for session in sessions for time in (session["started"], session["ended"])]
    assert times == sorted(times)
    log = cluster.log(job)
    # A signal in the last moment of a run requeues a job that then finds nothing to do.
    requeued = log.count("requeued for restart") - log.count("finished    before")
    assert log.count("stopped by SIGUSR1") == requeued == len(sessions) - 1
    assert f"restart {len(sessions) - 1} of 20" in log and "resumed     after" in log


def test_restarts_are_bounded(cluster):
    flags = (*SIGURD, "--exp_name", "bounded", "--train", "--num_epochs", "100000")
    job = cluster.submit("run.sh", *flags, DJSW_MAX_RESTARTS=1)
    for sign in ("epoch      2/", "resumed     after"):
        wait_for(lambda sign=sign: sign in cluster.log(job), 60)
        cluster("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job) == "FAILED"
    log = cluster.log(job)
    assert "requeued for restart 1 of 1" in log
    assert "not requeued after 1 restarts; continue with --resume" in log
    assert [session["ended_by"] for session in record_of(cluster, "SMLP/bounded")["sessions"]] == [
        "SIGUSR1",
        "SIGUSR1",
    ]


def test_canceled_run_can_be_resumed(cluster):
    job = cluster.submit("run.sh", *SIGURD, "--exp_name=gone", "--train", "--num_epochs=100000")
    wait_for(lambda: "epoch      2/" in cluster.log(job), 60)
    cluster("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    wait_for(lambda: "stopped by SIGTERM" in cluster.log(job), 20)
    assert "output      weights/SMLP\n" in cluster.log(job)
    wait_for(lambda: not [*Path("/tmp").glob(f"djsw_{job}_*")], 20)
    assert record_of(cluster, "SMLP/gone")["status"] == "stopped"
    epochs = len((cluster.project / "weights/SMLP/gone_history.csv").read_text().splitlines())
    again = (*SIGURD, "--exp_name=gone", "--train", "--resume", f"--num_epochs={epochs}")
    job = cluster.submit("run.sh", *again)
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    ends = [session["ended_by"] for session in record_of(cluster, "SMLP/gone")["sessions"]]
    assert ends == ["SIGTERM", "finished"]


def test_array_of_seeds(cluster):
    """Four tasks start at once without data, and create them concurrently."""
    data = cluster.project / "data" / "processed"
    aside = data.with_name("aside")
    data.rename(aside)
    shutil.copytree(aside, data, ignore=shutil.ignore_patterns("usps_0_6.h5"))
    usps = os.environ.get("DJSW_RAW_USPS", "")
    wanted = ["--seed", "7", "--exp_name", "seeds", "--train", "--num_epochs", "2"]
    try:
        if not usps:  # no raw files: the data exist already
            shutil.copy(aside / "usps_0_6.h5", data)
        job = cluster.submit("--array=0-3", "run.sh", *WALY, *wanted, DJSW_RAW_USPS=usps)
        logs = []
        for task in range(4):
            assert cluster.wait(f"{job}_{task}") == "COMPLETED", cluster.log(f"{job}_{task}")
            logs.append(cluster.log(f"{job}_{task}"))
        assert all("checkpoint  " in log for log in logs)
        assert any("creating it" in log for log in logs) or not usps
        one = (*WALY, *wanted, "--seed=9", "--exp_name=alone")
        assert cluster(sys.executable, "DJSW/main.py", *one).returncode == 0
    finally:
        shutil.rmtree(data)
        aside.rename(data)
    records = [record_of(cluster, f"WMLP/seeds_{task}") for task in range(4)]
    assert [record["settings"]["seed"] for record in records] == [7, 8, 9, 10]
    tasks = [record["sessions"][0]["slurm"]["SLURM_ARRAY_TASK_ID"] for record in records]
    assert tasks == list("0123")
    hashes = [weights_of(cluster, f"WMLP/seeds_{task}") for task in range(4)]
    assert len(set(hashes)) == 4
    assert hashes[2] == weights_of(cluster, "WMLP/alone")

    evaluate = ("--username=waly", "--output_dir=reports/scratch", "--exp_name=seeds")
    checkpoint = "--load_checkpoint=weights/WMLP/seeds_%a_checkpoint_best.pt"
    job = cluster.submit("--array=0-3", "run.sh", *evaluate, checkpoint, "--device=cpu")
    for task in range(4):
        assert cluster.wait(f"{job}_{task}") == "COMPLETED", cluster.log(f"{job}_{task}")
    files = [f"reports/scratch/seeds_{task}_metrics.json" for task in range(4)]
    evaluated = [json.loads((cluster.project / file).read_text()) for file in files]
    assert [each["checkpoint"]["weights_sha256"] for each in evaluated] == hashes
    job = cluster.submit("run.sh", "DJSW/compare.py", *files, *evaluate[1:])
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)


def test_array_of_workers_of_one_sweep(cluster):
    """A worker is killed: the others take up its run, and the study ends complete."""
    pytest.importorskip("optuna")
    flags = ("--seeds=1-3", "--grid", "lr=0.001,0.003", "--num_epochs=8", "--jobs=1")
    command = ("run.sh", "DJSW/sweep.py", *SIGURD, "--exp_name=lr", *flags)
    job = cluster.submit("--partition=standard-g", "--array=0-3", *command)
    folder = cluster.project / "weights" / "SMLP"
    wait_for(lambda: [*folder.glob("lr_*_history.csv")], 60)
    name = next(folder.glob("lr_*_history.csv")).name.removesuffix("_history.csv")
    slurm = record_of(cluster, f"SMLP/{name}")["sessions"][0]["slurm"]
    cluster("scancel", "--signal=KILL", f"{slurm['SLURM_JOB_ID']}.0")
    killed = int(slurm["SLURM_ARRAY_TASK_ID"])
    for task in range(4):
        state = cluster.wait(f"{job}_{task}")
        log = cluster.log(f"{job}_{task}")
        assert state == ("FAILED" if task == killed else "COMPLETED"), log
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("lr_*_run.json"))]
    assert [record["status"] for record in records] == ["finished"] * 6
    resumed = record_of(cluster, f"SMLP/{name}")["sessions"]
    assert len({session["slurm"]["SLURM_JOB_ID"] for session in resumed}) == 2
    assert "Runs: 6 finished" in (folder / "lr_sweep.md").read_text()


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_ranks(cluster, trained, nodes):
    """Two ranks equal one but for rounding; the last batch has fewer images than ranks."""
    where = ("--partition=standard-g", f"--nodes={nodes}")
    one, two = f"one_{nodes}", f"two_{nodes}"
    flags = (*WALY, "--train", "--batch_size", "107", "--num_epochs", "3", "--exp_name")
    job = cluster.submit(*where, "--ntasks=2", "run.sh", *flags, two)
    alone = cluster(sys.executable, "DJSW/main.py", *flags, one)
    assert alone.returncode == 0, alone.stderr
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    losses = losses_of(cluster, f"WMLP/{two}")
    assert losses == pytest.approx(losses_of(cluster, f"WMLP/{one}"), rel=1e-5)
    session = record_of(cluster, f"WMLP/{two}")["sessions"][0]
    assert len(session["device"]["ranks"]) == 2
    log = cluster.log(job)
    assert f"nodes       {','.join(NODES[:nodes])}, ranks: 2\n" in log
    assert "device      2 ranks on " in log
    assert log.count("epoch 1/3") == log.count("checkpoint  ") == 1

    weights = "--load_checkpoint=weights/WMLP/first_checkpoint_best.pt"
    evaluate = (
        "--username=waly",
        "--output_dir=reports",
        "--device=cpu",
        weights,
        "--exp_name",
    )
    job = cluster.submit(*where, f"--ntasks-per-node={2 // nodes}", "run.sh", *evaluate, two)
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    counted = json.loads((cluster.project / "reports" / f"{two}_metrics.json").read_text())
    assert counted["images"] == 43
    assert sum(row["support"] for row in counted["per_class"]) == 43
    alone = cluster(sys.executable, "DJSW/main.py", *evaluate, one)
    assert alone.returncode == 0, alone.stderr
    expected = json.loads((cluster.project / "reports" / f"{one}_metrics.json").read_text())
    assert counted["metrics"] == expected["metrics"]


def test_node_that_goes_down(cluster):
    """The job is requeued, resumes within the epoch, and ends with the weights of another.

    The other is not disturbed; its two ranks are on one node, which changes no result.
    """
    image = shutil.copy(cluster.folder / "image.sif", cluster.folder / "u24r70.sif")
    flags = (*SIGURD, "--train", "--batch_size=32", "--num_epochs=3", "--exp_name")
    nodes = ("--partition=standard-g", "--nodes=2")
    job = cluster.submit(*nodes, "run.sh", *flags, "down", DJSW_CONTAINER=image)
    wait_for(lambda: "epoch 1/3" in cluster.log(job), 60)
    variables = Path(f"/proc/{process_of(job, rank=1)}/environ").read_text().split("\0")
    assert {f"SLURMD_NODENAME={NODES[1]}", "FI_MR_CACHE_MONITOR=userfaultfd"} <= set(variables)
    cluster("scontrol", "update", f"NodeName={NODES[1]}", "State=DOWN", "Reason=test")
    undisturbed = cluster.submit("--ntasks=2", "run.sh", *flags, "up")
    for each in (undisturbed, job):
        assert cluster.wait(each) == "COMPLETED", cluster.log(each)
    assert "DUE TO NODE FAILURE" in cluster.log(job) and "restart 1 of 20" in cluster.log(job)
    assert record_of(cluster, "SMLP/down")["sessions"][1]["first_step"] > 1
    assert weights_of(cluster, "SMLP/down") == weights_of(cluster, "SMLP/up")
    assert losses_of(cluster, "SMLP/down") == losses_of(cluster, "SMLP/up")


def test_two_ranks_stop_together_and_one_rank_resumes(cluster):
    flags = (*SIGURD, "--train", "--exp_name=together")
    job = cluster.submit("--ntasks-per-node=2", "run.sh", *flags, "--num_epochs=100000")
    wait_for(lambda: "epoch      1/" in cluster.log(job), 60)
    cluster("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: "requeued for restart" in cluster.log(job), 60)
    cluster("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    assert "lost" not in cluster.log(job)
    epochs = len((cluster.project / "weights/SMLP/together_history.csv").read_text().splitlines())
    job = cluster.submit("run.sh", *flags, "--resume", f"--num_epochs={epochs}")
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    note = "note        on 1 rank of 1 thread, cpu ("
    assert note in cluster.log(job)
    sessions = record_of(cluster, "SMLP/together")["sessions"]
    assert sessions[0]["ended_by"] == "SIGUSR1"
    assert "after 2 ranks of 1 thread" in sessions[-1]["change"]


def test_signal_before_the_run_has_started(cluster):
    """While the module is loaded: the job is requeued, and then trains."""
    slow = f'() {{ echo "$*" >>"{cluster.folder}/slow.log"; [[ $1 != load ]] || sleep 3; }}'
    flags = (*SIGURD, "--train", "--exp_name=early", "--num_epochs=100000")
    job = cluster.submit("run.sh", *flags, **{"BASH_FUNC_module%%": slow})
    wait_for((cluster.folder / "slow.log").exists, 30)
    cluster("scancel", "--batch", "--signal=USR1", job)
    try:
        wait_for(lambda: "requeued for restart 1 of 20" in cluster.log(job), 60)
    finally:
        cluster("scancel", job)
    assert cluster.wait(job) == "CANCELLED"


def test_a_reproduction_resumes_too(cluster, trained):
    def endless(record):
        record["settings"]["num_epochs"] = 100_000
        record["exp_name"] = "endless"

    folder = cluster.project / "weights" / "WMLP"
    path = Path(shutil.copy(folder / "first_run.json", folder / "endless_run.json"))
    changed(path, endless)
    job = cluster.submit("run.sh", "DJSW/reproduce.py", path)
    wait_for(lambda: "epoch      2/" in cluster.log(job), 60)
    cluster("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: "resumed     after" in cluster.log(job), 60)
    cluster("scancel", job)
    assert cluster.wait(job) == "CANCELLED"


def test_only_what_can_resume_is_requeued(cluster):
    """A command that SIGUSR1 kills would start from scratch each time."""
    (cluster.project / "wait.py").write_text("import time; print('waits'); time.sleep(60)")
    try:
        job = cluster.submit("run.sh", "wait.py")
        wait_for(lambda: "waits" in cluster.log(job), 30)
        cluster("scancel", "--batch", "--signal=USR1", job)
        assert cluster.wait(job) == "FAILED"
    finally:
        (cluster.project / "wait.py").unlink()
    assert "only training can resume; give more with sbatch --time=" in cluster.log(job)


def test_where_slurm_does_not_requeue(cluster):
    flags = (*SIGURD, "--train", "--exp_name=stays", "--num_epochs=100000")
    job = cluster.submit("--no-requeue", "run.sh", *flags)
    wait_for(lambda: "epoch      1/" in cluster.log(job), 60)
    cluster("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait(job) == "FAILED"
    assert "error: Slurm did not requeue the job; continue with --resume" in cluster.log(job)
    assert "requeued for restart" not in cluster.log(job)


def test_submitted_from_within_another_job(cluster):
    """The job inherits the variables of a step, or of a task of an array."""
    inner = f"sbatch --parsable run.sh {' '.join(WALY)} --train --num_epochs=1 --exp_name="
    outer = cluster("srun", "--mem=1M", "bash", "-c", f"{inner}from_step")
    assert cluster.wait(outer.stdout.strip()) == "COMPLETED", cluster.log(outer.stdout.strip())
    task = cluster.submit("--array=5", "--mem-per-cpu=1G", "--wrap", f"{inner}from_task")
    assert cluster.wait(f"{task}_5") == "COMPLETED"
    (written,) = cluster.project.glob(f"slurm-{task}_5.out")
    job = written.read_text().strip()
    written.unlink()
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert record_of(cluster, "WMLP/from_task")["settings"]["seed"] == 42
    assert f"job         {job} (" in cluster.log(job)


def test_restart_does_not_take_over_another_run(cluster, trained):
    """The job is requeued before the run starts; the name was already taken."""
    slow = f'() {{ echo "$*" >>"{cluster.folder}/other.log"; [[ $1 != load ]] || sleep 3; }}'
    flags = (*WALY, "--train", "--exp_name=first")
    job = cluster.submit("run.sh", *flags, **{"BASH_FUNC_module%%": slow})
    wait_for((cluster.folder / "other.log").exists, 30)
    cluster("scontrol", "requeue", job)
    assert cluster.wait(job) == "FAILED"
    assert "restart 1 of 20" in cluster.log(job)
    assert "'first' was trained before" in cluster.log(job)


def test_gpus_that_no_rank_would_use_are_refused(cluster):
    job = cluster.submit("--gpus-per-node=2", "run.sh", *WALY, "--train", "--exp_name=idle")
    assert cluster.wait(job) == "FAILED"
    assert "error: 2 GPUs and 1 ranks: each rank uses one" in cluster.log(job)


def test_cluster_without_gpus(cluster):
    """The partition can be given as an option too."""
    options = ("--gpus-per-node=0", "--mem-per-gpu=0", "--partition=dev-g")
    job = cluster.submit(*options, "run.sh", *WALY, "--train", "--exp_name=cpu", "--num_epochs=1")
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)


def test_reports_on_another_disk(cluster):
    """A hard link is impossible: the log stays, and reports/ has a symbolic link to it."""
    reports = cluster.project / "reports"
    reports.rename(cluster.project / "aside")
    elsewhere = Path(tempfile.mkdtemp(prefix="djsw-", dir="/dev/shm"))
    reports.symlink_to(elsewhere)
    try:
        job = cluster.submit("run.sh", *WALY, "--train", "--exp_name=linked", "--num_epochs=1")
        assert cluster.wait(job) == "COMPLETED", cluster.log(job)
        text = (reports / f"djsw_{job}.log").read_text()
        assert text.startswith("job  ") and "checkpoint  " in text
    finally:
        reports.unlink()
        (cluster.project / "aside").rename(reports)
        shutil.rmtree(elsewhere)


def test_crash_of_one_rank_ends_the_job_with_a_sentence(cluster):
    flags = (*SIGURD, "--train", "--exp_name=crash", "--num_epochs=100000")
    job = cluster.submit("--ntasks-per-node=2", "run.sh", *flags)
    wait_for(lambda: "epoch      1/" in cluster.log(job), 60)
    os.kill(process_of(job, rank=1), signal.SIGKILL)
    assert cluster.wait(job, seconds=30) == "FAILED"
    log = cluster.log(job)
    assert "error: the run ended with status" in log or "a process was killed" in log
    assert "requeued for restart" not in log
    assert "Traceback" not in log


def test_job_with_a_gpu_that_torch_does_not_see_stops(cluster):
    flags = ("--username=waly", "--exp_name=slow", "--output_dir=weights/WMLP", "--train")
    job = cluster.submit("run.sh", *flags)
    assert cluster.wait(job) == "FAILED"
    assert "this job was given the GPUs" in cluster.log(job)
    assert not list((cluster.project / "weights" / "WMLP").glob("slow*"))


def test_without_a_container_the_project_s_environment_is_used(cluster):
    environment = cluster.folder / "project" / ".venv" / "bin"
    environment.mkdir(parents=True)
    (environment / "python").write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} "$@"\n')
    (environment / "python").chmod(0o755)
    flags = (*WALY, "--exp_name=own", "--train", "--num_epochs=1")
    before = (cluster.folder / "singularity.log").read_text()
    job = cluster.submit("run.sh", *flags, DJSW_CONTAINER="none")
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert "container   none, the project's own environment" in cluster.log(job)
    assert (cluster.folder / "singularity.log").read_text() == before


def test_changes_are_in_the_record(cluster):
    changed = cluster.project / "models" / "wmlp.py"
    text = changed.read_text()
    try:
        changed.write_text(text + "# a change\n")
        job = cluster.submit("run.sh", *WALY, "--exp_name=changed", "--train", "--num_epochs=1")
        assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    finally:
        changed.write_text(text)
    session = record_of(cluster, "WMLP/changed")["sessions"][0]
    assert session["git"]["changed"] is True
    assert "+# a change\n" in session["diff"]
    assert "and changes, which are in the record" in cluster.log(job)


REFUSED = {
    "account": ({"SBATCH_ACCOUNT": ""}, "run.sh", (), "error: no account"),
    "container": ({"DJSW_CONTAINER": "/no/image.sif"}, "run.sh", (), "error: no container /no/"),
    "output_dir": ({}, "run.sh", ("--output_dir=no/folder",), "no existing folder"),
    "flag": ({}, "run.sh", ("--epochs=3",), "unrecognized arguments: --epochs=3"),
    "folder": ({"cwd": "weights"}, "../run.sh", (), "is not the repository; cd to it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_usage_errors_of_check_and_of_the_job(cluster, case):
    changes, script, extra, sentence = REFUSED[case]
    changes = dict(changes)
    if "cwd" in changes:
        changes["cwd"] = cluster.project / changes["cwd"]
    flags = (*WALY, "--exp_name", f"refused_{case}", "--train", *extra)
    checked = cluster("bash", script, "--check", *flags, **changes)
    assert checked.returncode == 2
    assert sentence in checked.stderr and len(checked.stderr.splitlines()) == 1
    job = cluster.submit(script, *flags, **changes)
    assert cluster.wait(job) == "FAILED"
    assert cluster.log(job).count(sentence) == 1
    assert not list((cluster.project / "weights" / "WMLP").glob(f"refused_{case}*"))


def test_reports_missing(cluster):
    reports = cluster.project / "reports"
    reports.rename(cluster.project / "aside")
    flags = (*WALY, "--exp_name=refused_reports", "--train")
    try:
        checked = cluster("bash", "run.sh", "--check", *flags)
        job = cluster.submit("run.sh", *flags)
        assert cluster.wait(job) == "FAILED"
        log = (cluster.project / f"djsw_{job}.log").read_text()
    finally:
        (cluster.project / "aside").rename(reports)
    assert checked.returncode == 2
    for text in (checked.stderr, log):
        assert "has no folder reports for the log; mkdir reports" in text


def test_data_missing_and_no_network(cluster):
    file = cluster.project / "data" / "processed" / "usps_0_6.h5"
    file.rename(file.with_suffix(".aside"))
    shutil.rmtree(cluster.project / "data" / "raw", ignore_errors=True)  # copied for the seeds
    flags = (*WALY, "--exp_name=refused_data", "--train")
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "DJSW_RAW_USPS": ""}
    try:
        checked = cluster("bash", "run.sh", "--check", *flags, **offline)
        job = cluster.submit("run.sh", *flags, **offline)
        assert cluster.wait(job) == "FAILED"
    finally:
        file.with_suffix(".aside").rename(file)
    assert checked.returncode == 1
    for text in (checked.stderr, cluster.log(job)):
        assert "put zip.train.gz" in text and "DJSW_RAW_USPS" in text and "Traceback" not in text


def test_check_of_a_valid_command_prints_how_to_submit_it(cluster):
    flags = ("--username=dennis", "--exp_name=fine", "--output_dir=weights/DMLP", "--train")
    checked = cluster("bash", "run.sh", "--check", *flags)
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.splitlines()[-1] == f"to submit   sbatch run.sh {' '.join(flags)}"
    assert "account     project_465000001" in checked.stdout
    assert not list((cluster.project / "weights" / "DMLP").iterdir())


@pytest.mark.parametrize("start", [("bash",), ("srun", "--mem=1M", "bash")])
def test_started_without_sbatch(cluster, start):
    """On a login node, and in a step of a job, where a further step would wait forever."""
    result = cluster(*start, "run.sh", *WALY, "--exp_name=login node", "--train")
    assert result.returncode == 2
    sentence = next(line for line in result.stderr.splitlines() if not line.startswith("srun:"))
    assert sentence.startswith(
        "error: run.sh is for the queue; type  sbatch run.sh --username waly"
    )
    assert "--exp_name=login\\ node" in sentence


def test_check_of_another_command_and_of_the_queue(cluster, trained):
    checked = cluster(
        "bash", "run.sh", "--check", "DJSW/reproduce.py", "weights/WMLP/first_run.json"
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.endswith("sbatch run.sh DJSW/reproduce.py weights/WMLP/first_run.json\n")
    checked = cluster("bash", "run.sh", "--check", "DJSW/reproduce.py", "nowhere.json")
    assert checked.returncode == 2 and "nowhere.json" in checked.stderr
    checked = cluster("bash", "run.sh", "--check", "DJSW/nothing.py")
    assert checked.returncode == 2 and "DJSW/nothing.py does not exist" in checked.stderr
    flags = ("--username=dennis", "--exp_name=fine", "--output_dir=weights/DMLP", "--train")
    checked = cluster("bash", "run.sh", "--check", *flags, SBATCH_PARTITION="no-such-partition")
    assert checked.returncode == 2 and "invalid partition specified" in checked.stderr


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"BASH_FUNC_module%%": "() { [[ $1 != load ]]; }"}, "lumi-aif-singularity-bindings does"),
        (
            {"BASH_FUNC_module%%": "() { PATH+=:/appl/local/csc/soft/ai/bin; [[ $1 != load ]]; }"},
            "does not load: PATH has /appl/local/csc/soft/ai (remove it and log in again)",
        ),
        (
            {"BASH_FUNC_timeout%%": '() { [[ $2 != test ]] || return 124; "${@:2}"; }'},
            "image.sif within 120 s: its file system stalls; try again later",
        ),
        ({"DJSW_MAX_RESTARTS": "none"}, "DJSW_MAX_RESTARTS is 'none'; give a whole number"),
    ],
)
def test_more_errors_of_check(cluster, changes, sentence):
    checked = cluster("bash", "run.sh", "--check", *WALY, "--exp_name=x", "--train", **changes)
    assert checked.returncode == 2
    assert sentence in checked.stderr and len(checked.stderr.splitlines()) == 1


def test_bindings_where_there_is_no_module_local_laif(cluster):
    log = cluster.folder / "modules.log"
    module = f'() {{ echo "$*" >>"{log}"; [[ $2 != Local-LAIF ]]; }}'
    flags = (*WALY, "--exp_name=x", "--train")
    checked = cluster("bash", "run.sh", "--check", *flags, **{"BASH_FUNC_module%%": module})
    assert checked.returncode == 0, checked.stderr
    bindings = "lumi-aif-singularity-bindings"
    assert log.read_text().splitlines() == [
        *("purge", f"load Local-LAIF {bindings}"),
        *("use /appl/local/laifs/modules", f"load {bindings}"),
    ]


def test_reproduction_as_a_job(cluster, trained):
    job = cluster.submit("run.sh", "DJSW/reproduce.py", "weights/WMLP/first_run.json")
    assert cluster.wait(job) == "COMPLETED", cluster.log(job)
    assert "identical   all " in cluster.log(job)


def test_masks_of_a_full_node_are_read_by_srun(cluster):
    """They have no effect here: the node has neither eight GPUs nor LUMI's cores."""
    text = (cluster.project / "run.sh").read_text()
    mask = next(word for word in text.split('"') if word.startswith("--cpu-bind=mask_cpu:"))
    for option, status in ((mask, 0), (mask.replace("mask_cpu", "mask_gpu"), 1)):
        result = cluster("srun", "--ntasks=1", "--mem=1M", option, "true")
        assert result.returncode == status, result.stderr
    masks = [int(each, 16) for each in mask.partition(":")[2].split(",")]
    assert [each.bit_count() for each in masks] == [7] * 8
    assert sum(masks).bit_count() == 56


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.2)


def process_of(job: str, rank: int) -> int:
    """Return the process ID of a rank's Python, not of the shell or the step's daemon."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            name = (folder / "comm").read_text()
        except OSError:
            continue
        wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
        if wanted | {b"SLURM_STEP_ID=0"} <= set(variables) and name.startswith("python"):
            return int(folder.name)
    raise AssertionError(f"no rank {rank} of job {job}")
