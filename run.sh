#!/bin/bash
# One batch script for all runs, never edited: options go to sbatch, flags to DJSW/main.py.
#
#   bash run.sh --check --username sigurd --exp_name smlp --output_dir weights/SMLP --train
#   sbatch run.sh --username sigurd --exp_name smlp --output_dir weights/SMLP --train
#   sbatch --array=0-9 run.sh …            ten seeds; the task's number is added to seed and name
#   sbatch --partition=standard-g --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 run.sh …
#   sbatch run.sh DJSW/reproduce.py …      another command than DJSW/main.py
#
# From the environment: SBATCH_ACCOUNT; DJSW_CONTAINER, an image, or "none" for the project's own
# environment; DJSW_MAX_RESTARTS, how often a job at its time limit goes back to the queue (20).
# docs/lumi.md goes through it step by step. Facts about LUMI are from https://docs.lumi-supercomputer.eu
# and https://github.com/Lumi-supercomputer/LUMI-AI-Guide (November 2026).

# One GCD (half an MI250X, which Slurm counts as a GPU) with the 7 cores and 60 GB that belong to
# it; more of either is billed as more GCDs.
#SBATCH --job-name=djsw
#SBATCH --partition=small-g
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=7
#SBATCH --mem-per-gpu=60G
#SBATCH --time=01:00:00
# In the folder of submission, which exists; below it goes on in reports/. Were reports/ named here
# and missing, the job would die without a word.
#SBATCH --output=%x_%j.log
#SBATCH --open-mode=append
# Two minutes before its time is up the job is told so: this shell only (B), which passes it on.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

# Pinned: lumi-multitorch-latest.sif moves.
image=lumi-multitorch-u24r70f21m50t210-20260415_130625
container=${DJSW_CONTAINER:-/appl/local/laifs/containers/$image/lumi-multitorch-full-${image#lumi-multitorch-}.sif}
max_restarts=${DJSW_MAX_RESTARTS:-20}

fail() {
    echo "error: $*" >&2
    exit 2
}

given() { # whether a flag is among the arguments
    local flag=$1 argument
    shift
    for argument; do [[ $argument == "$flag" ]] && return; done
    return 1
}

typed=$(printf ' %q' "$@")
typed=${typed/ --check/}
check=
given --check "$@" && check=yes
if [[ -z ${SLURM_JOB_ID:-} && -z $check ]]; then
    fail "run.sh is for the queue; type  sbatch run.sh$typed  (without Slurm:  uv run DJSW/main.py$typed)"
fi

# $0 is a copy in Slurm's spool, so the repository is where sbatch was typed.
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
[[ -f DJSW/main.py && -f run.sh ]] || fail "$PWD is not the repository; cd to it, then sbatch run.sh$typed"
[[ -d reports ]] || fail "$PWD has no folder reports for the log; mkdir reports"

if [[ -z $check ]]; then
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    log=reports/${SLURM_JOB_NAME}_${job:-$SLURM_JOB_ID}.log
    slurm_log=${SLURM_JOB_NAME}_$SLURM_JOB_ID.log
    if [[ -f $slurm_log ]]; then    # not there where sbatch --output names another
        [[ -f $log ]] && cat "$log" # of before the restart
        # Slurm's own messages follow the file; not to another disk, where reports may be a link to.
        ln -fT "$slurm_log" "$log" && rm "$slurm_log"
    fi
fi

cluster=${SLURM_CLUSTER_NAME:-$(scontrol show config 2>/dev/null | sed -n 's/^ClusterName *= *//p')}
account=${SLURM_JOB_ACCOUNT:-${SBATCH_ACCOUNT:-}}
if [[ $cluster == lumi && -z $account ]]; then
    fail "no account, and LUMI bills every job to one: export SBATCH_ACCOUNT=project_…, or sbatch --account=project_… run.sh$typed"
fi

if [[ -f $container ]]; then
    # Without the bindings the container does not see /scratch, /project and /flash.
    if type -t module >/dev/null; then
        module purge
        module use /appl/local/laifs/modules
        module load lumi-aif-singularity-bindings
    fi
    command -v singularity >/dev/null || fail "no singularity here to run $container with"
    python=(singularity run "$container" python) # exec would skip the image's own start-up
elif [[ $container != none && (-n ${DJSW_CONTAINER:-} || $cluster == lumi) ]]; then
    fail "no container $container; ls /appl/local/laifs/containers and export DJSW_CONTAINER=…, or none for the project's own environment"
else
    container="none, the project's own environment"
    python=(python3)
    [[ -x .venv/bin/python ]] && python=(.venv/bin/python)
fi

# Networks this small are slower on several threads.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Packages in ~/.local would go before the container's.
export PYTHONNOUSERSITE=1
# A line is in the log when it is printed.
export PYTHONUNBUFFERED=1

script=DJSW/main.py
if [[ ${1:-} == *.py ]]; then
    script=$1
    shift
fi
if [[ $check ]]; then
    echo "account     ${account:-none}"
    echo "container   $container"
    "${python[@]}" "$script" "$@" || exit
    echo "to submit   sbatch run.sh$typed"
    exit 0
fi

if [[ $script == DJSW/main.py ]]; then
    [[ ${SLURM_ARRAY_TASK_ID:-} ]] && set -- "$@" --array_task "$SLURM_ARRAY_TASK_ID"
    # A restart goes on; a first start of a name that is taken is an error.
    [[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]] && given --train "$@" && set -- "$@" --resume
fi

# For the record, from here: the container may lack git, and Slurm forgets the script.
private=$(mktemp -d "/tmp/djsw_$SLURM_JOB_ID.XXXXXX")
commit=$(git -c safe.directory="$PWD" rev-parse HEAD 2>/dev/null)
{
    echo "$commit"
    git -c safe.directory="$PWD" diff --no-ext-diff --no-color HEAD 2>/dev/null
} >"$private/git"
[[ $(wc -l <"$private/git") -gt 1 ]] && commit+=" and changes, which are in the record"
DJSW_BATCH_SCRIPT=$(<"$0")
export DJSW_BATCH_SCRIPT DJSW_GIT=$private/git

# MIOpen's database breaks on Lustre when processes share it: one a node, in its memory.
export MIOPEN_USER_DB_PATH=$private/miopen
export MIOPEN_CUSTOM_CACHE_DIR=$MIOPEN_USER_DB_PATH
# Since Slurm 22.05 srun takes no --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# scontrol does not exist in the container, where DJSW reads the rest of Slurm's variables.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
# RCCL has to talk over Slingshot; the other network is slow.
[[ -e /sys/class/net/hsn0 ]] && export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
# Several nodes hang now and then with libfabric's default way to watch memory.
[[ $SLURM_JOB_NUM_NODES -gt 1 ]] && export FI_MR_CACHE_MONITOR=userfaultfd
bind=()
if [[ $cluster == lumi && ${SLURM_GPUS_ON_NODE:-0} == 8 && ${SLURM_NTASKS_PER_NODE:-1} == 8 ]]; then
    # The cores next to each GCD, in the order of the GCDs; they are all ours on a full node only.
    bind=("--cpu-bind=mask_cpu:0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000,0x00000000000000fe,0x000000000000fe00,0x000000fe00000000,0x0000fe0000000000")
fi

echo "job         ${job:-$SLURM_JOB_ID} (${SLURM_JOB_PARTITION:-}, ${account:-no account}), started $(date -u +%FT%TZ), restart ${SLURM_RESTART_COUNT:-0} of $max_restarts"
echo "nodes       $SLURM_JOB_NODELIST, ranks: $SLURM_NTASKS"
echo "commit      ${commit:-unknown}"
echo "container   $container"
echo "command     $script$(printf ' %q' "$@")"

# shellcheck disable=SC2016 # the variable is the node's
srun --kill-on-bad-exit=1 "${bind[@]}" \
    bash -c 'mkdir -p "$MIOPEN_USER_DB_PATH" && exec "$@"' step "${python[@]}" "$script" "$@" &
step=$!
warned=
trap 'warned=yes; kill -USR1 "$step" 2>/dev/null' USR1
trap 'kill -TERM "$step" 2>/dev/null' TERM
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do # a signal ended the wait
    wait "$step"
    status=$?
done

rm -rf "$private"
if [[ $SLURM_JOB_NUM_NODES -gt 1 ]]; then
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -rf "$private"
fi

# 75 says stopped by SIGUSR1, state saved. It may read otherwise where srun, having seen one rank
# end, killed another that was about to; 1 and 2 are errors, which would come again.
if [[ $status == 75 || ($warned && $status -gt 2) ]]; then
    if [[ ${SLURM_RESTART_COUNT:-0} -lt $max_restarts ]]; then
        echo "time is up  back to the queue for restart $((${SLURM_RESTART_COUNT:-0} + 1)) of $max_restarts"
        scontrol requeue "$SLURM_JOB_ID" && exit
    fi
    echo "error: not put back into the queue after $max_restarts restarts; --resume goes on" >&2
elif [[ $status != 0 ]]; then
    echo "error: the run ended with status $status; its own message is above (137 without one: a process was killed, perhaps for lack of memory, see sacct -j $SLURM_JOB_ID -o State,MaxRSS)" >&2
fi
exit "$status"
