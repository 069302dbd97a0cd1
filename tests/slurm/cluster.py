"""A private Slurm cluster of two nodes on this machine, with a stand-in for LUMI's container."""

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import clean_environment, copy_code, write_datasets, write_h5

from DJSW.pipelines import DATASETS

SLURM_CONF = """
ClusterName=lumi
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until its credential has expired: 120 s by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0
KillWait=5
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# The nodes have what a node of LUMI has, whatever this machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=DEFAULT CPUs=56 RealMemory=480000 Gres=gpu:2
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]}
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]}
PartitionName=small-g Nodes={nodes[0]} Default=YES MaxTime=3-00:00:00 State=UP
PartitionName=standard-g Nodes=ALL MaxTime=2-00:00:00 State=UP
PartitionName=dev-g Nodes={nodes[0]} MaxTime=03:00:00 State=UP
"""
#: For Slurm 24.05 and later, which want a file system of control groups, which a container lacks.
CGROUP_CONF = "CgroupPlugin=disabled\n"
GRES_CONF = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
#: Logs its arguments (``run IMAGE python …``) and runs the command.
SINGULARITY = """#!/bin/bash
echo "$*" >>"{folder}/singularity.log"
[[ $1 == run && $3 == python ]] || exit 64
exec {python} "${{@:4}}"
"""
HOST = socket.gethostname().split(".")[0]
#: The first, whose name the ranks on the other resolve, is the only one of small-g and dev-g.
NODES = (HOST, f"{HOST}-2")


class Cluster:
    """The running cluster, and a checkout to submit jobs from."""

    def __init__(self, folder: Path, project: Path, environment: dict[str, str]) -> None:
        self.folder, self.project, self.environment = folder, project, environment

    def __call__(
        self, *command: object, cwd: Path | None = None, **changes: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the project or in ``cwd``, with changes of the environment."""
        environment = {**self.environment, **{name: str(value) for name, value in changes.items()}}
        environment = {name: value for name, value in environment.items() if value}
        return subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def submit(self, *arguments: object, **changes: Any) -> str:
        """Submit a job with ``sbatch`` and return its ID."""
        result = self("sbatch", "--parsable", *arguments, **changes)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def wait(self, job: str, *states: str, seconds: float = 120) -> str:
        """Wait for one of the states, or for the end, and return the state."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            shown = self("scontrol", "show", "job", "-o", job).stdout
            found = {
                word.partition("=")[2] for word in shown.split() if word.startswith("JobState")
            }
            ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
            if found and found <= (set(states) or ended):
                return found.pop()
            time.sleep(0.2)
        raise AssertionError(f"job {job} is {found} after {seconds} s:\n{self.log(job)}")

    def log(self, job: str) -> str:
        """Return the job's log, which a refused job writes to the folder it was submitted from."""
        while True:
            try:
                files = [*self.project.glob(f"**/djsw_{job}.log")]
                return "".join(path.read_text() for path in files)
            except FileNotFoundError:  # run.sh moved it in between
                continue


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def started(nodes: Sequence[str] = NODES) -> Iterator[Cluster]:
    """Run the cluster for a block; it uses and leaves nothing outside its own folder."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing:
        pytest.skip(
            f"{', '.join(missing)} not on PATH (Debian: apt install slurm-wlm munge, and "
            "/usr/sbin on PATH)"
        )
    # Sockets have short paths, so not in pytest's folder.
    folder = Path(tempfile.mkdtemp(prefix="djsw-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    for name in ("state", "bin"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(
            host=HOST,
            nodes=nodes,
            folder=folder,
            user=getpass.getuser(),
            ports=_free_ports(3),
        )
    )
    (folder / "gres.conf").write_text(GRES_CONF)
    version = subprocess.run(["slurmd", "-V"], capture_output=True, text=True).stdout.split()[1]
    if tuple(map(int, version.split(".")[:2])) >= (24, 5):  # earlier versions do not know it
        (folder / "cgroup.conf").write_text(CGROUP_CONF)
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o600)
    stand_in = folder / "bin" / "singularity"
    stand_in.write_text(SINGULARITY.format(folder=folder, python=shlex.quote(sys.executable)))
    stand_in.chmod(0o755)
    (folder / "image.sif").touch()
    (folder / "singularity.log").touch()
    environment = clean_environment() | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "SBATCH_ACCOUNT": "project_465000001",
        "DJSW_CONTAINER": str(folder / "image.sif"),
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin",
        # The form in which Lmod defines it.
        "BASH_FUNC_module%%": f'() {{ echo "module $*" >>"{folder}/singularity.log"; }}',
    }
    munge = f"--key-file={folder}/munge.key --socket={folder}/munge.socket --foreground --force"
    munge += f" --pid-file={folder}/munged.pid --seed-file={folder}/munge.seed"
    commands = [["munged", *munge.split()], ["slurmctld", "-D"]]
    commands += [["slurmd", "-D", "-N", node] for node in nodes]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}-{len(daemons)}.log").open("w") as log:
                daemons.append(
                    subprocess.Popen(
                        [command[0], *command[1:]],
                        env=environment,
                        stdout=log,
                        stderr=log,
                    )
                )
        this = Cluster(folder, _project(folder / "project"), environment)
        until = time.monotonic() + 60
        idle = ["sinfo", "--noheader", "--partition=standard-g", "--format=%D %T"]
        while this(*idle).stdout.strip() != f"{len(nodes)} idle":
            ended = any(daemon.poll() is not None for daemon in daemons)
            if ended or time.monotonic() > until:
                logs = "".join(path.read_text() for path in folder.glob("*.log"))
                raise AssertionError(f"the cluster did not start:\n{logs}")
            time.sleep(0.2)
        yield this
        this("scancel", "--user", getpass.getuser())
        until = time.monotonic() + 30
        while this("squeue", "--noheader").stdout and time.monotonic() < until:
            time.sleep(0.2)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)
        shutil.rmtree(folder)


def _project(folder: Path) -> Path:
    """Create a clean checkout with tiny data, but for SMLP's (an epoch takes 0.3 s)."""
    copy_code(folder)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *arguments], cwd=folder, check=True)
    write_datasets(folder / "data" / "processed")
    random = np.random.default_rng(0)
    write_h5(
        folder / "data" / "processed" / DATASETS["mnist_4_9"].train_file,
        random.integers(0, 256, (35_000, 28, 28), dtype=np.uint8),
        random.integers(4, 10, 35_000, dtype=np.uint8),
    )
    return folder
