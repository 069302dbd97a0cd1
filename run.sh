#!/bin/bash
# Slurm batch script for all runs, without editing: options go to sbatch, flags to DJSW/main.py.
#
#   bash run.sh --check --username sigurd --exp_name smlp --output_dir reports/scratch --train
#   sbatch run.sh --username sigurd --exp_name smlp --output_dir reports/scratch --train
#   sbatch --array=0-9 run.sh …            ten seeds; the task number is added to seed and name, and
#                                          replaces %a in the flags
#   sbatch --partition=standard-g --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 run.sh …
#   sbatch run.sh DJSW/reproduce.py …      another command than DJSW/main.py
#   sbatch --array=0-31 run.sh DJSW/sweep.py …   32 workers of one sweep, all with the same flags
#
# Environment variables: SBATCH_ACCOUNT; DJSW_CONTAINER, an image, or "none" for the project's own
# environment; DJSW_MAX_RESTARTS, how often a job at its time limit is requeued (20).
# docs/lumi.md explains it step by step. Facts about LUMI are from
# https://docs.lumi-supercomputer.eu and https://github.com/Lumi-supercomputer/LUMI-AI-Guide
# (November 2026).

# One GCD (half an MI250X, which Slurm counts as a GPU) with its 7 cores and 60 GB; more of either is
# billed as more GCDs.
#SBATCH --job-name=djsw
#SBATCH --partition=small-g
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=7
#SBATCH --mem-per-gpu=60G
#SBATCH --time=01:00:00
# The log starts in the submission folder, which exists, and is moved to reports/ below: with a
# missing reports/ here, the job would fail without a message.
#SBATCH --output=%x_%j.log
#SBATCH --open-mode=append
# Signal two minutes before the time limit, sent to this shell only (B), which forwards it.
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

# Set first, since an untrapped USR1 ends a shell without a message.
step=
warned=
trap 'warned=yes; [[ $step ]] && kill -USR1 "$step" 2>/dev/null' USR1
trap '[[ $step ]] && kill -TERM "$step" 2>/dev/null' TERM

# Pinned, since lumi-multitorch-latest.sif changes.
image=lumi-multitorch-u24r70f21m50t210-20260415_130625
container=${DJSW_CONTAINER:-/appl/local/laifs/containers/$image/lumi-multitorch-full-${image#lumi-multitorch-}.sif}
max_restarts=${DJSW_MAX_RESTARTS:-20}

fail() {
    echo "error: $*" >&2
    exit 2
}

check=
flags=()
for argument; do
    if [[ $argument == --check ]]; then check=yes; else flags+=("$argument"); fi
done
typed=
[[ ${#flags[@]} -gt 0 ]] && typed=$(printf ' %q' "${flags[@]}")
script=DJSW/main.py
if [[ ${flags[0]:-} == *.py ]]; then
    script=${flags[0]}
    flags=("${flags[@]:1}")
fi
directly="uv run $script"
[[ ${#flags[@]} -gt 0 ]] && directly+=$(printf ' %q' "${flags[@]}")
batch= # Slurm runs a copy of this script under its own name
[[ ${0##*/} == slurm_script ]] && batch=yes
if [[ -z $check && -z $batch && (-z ${SLURM_JOB_ID:-} || -n ${SLURM_STEP_ID:-}) ]]; then
    fail "run.sh is for the queue; type  sbatch run.sh$typed  (without Slurm:  $directly)"
fi

# The copy is in Slurm's spool folder; the repository is the submission folder.
[[ $batch ]] && { cd -P "$SLURM_SUBMIT_DIR" || exit 2; }
[[ -f DJSW/main.py && -f run.sh ]] || fail "$PWD is not the repository; cd to it, then sbatch run.sh$typed"
[[ -d reports ]] || fail "$PWD has no folder reports for the log; mkdir reports"

if [[ -z $check ]]; then
    # sbatch within another job passes on that job's variables, so ask Slurm.
    description=$(scontrol show job "$SLURM_JOB_ID")
    [[ $description == *" ArrayJobId=${SLURM_ARRAY_JOB_ID:-} "* ]] || unset SLURM_ARRAY_JOB_ID SLURM_ARRAY_TASK_ID
    [[ ${SLURM_MEM_PER_GPU:-} ]] && unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE
    restart=0
    [[ $description =~ Restarts=([0-9]+) ]] && restart=${BASH_REMATCH[1]}
    export SLURM_RESTART_COUNT=$restart
    job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    log=reports/${SLURM_JOB_NAME}_${job:-$SLURM_JOB_ID}.log
    slurm_log=${SLURM_JOB_NAME}_$SLURM_JOB_ID.log
    if [[ -f $slurm_log ]]; then                  # missing if sbatch --output was given
        [[ -f $log && ! -L $log ]] && cat "$log" # from before the restart
        # Hard link, so that Slurm's own messages reach it; a symbolic one if reports/ is on another disk.
        if ln -fT "$slurm_log" "$log" 2>/dev/null; then rm "$slurm_log"; else ln -sfT "$PWD/$slurm_log" "$log"; fi
    else
        [[ $description =~ StdOut=([^$'\n']+) ]] && log=${BASH_REMATCH[1]}
    fi
fi

[[ $max_restarts =~ ^[0-9]+$ ]] || fail "DJSW_MAX_RESTARTS is '$max_restarts'; give a whole number"
cluster=${SLURM_CLUSTER_NAME:-$(timeout 10 scontrol show config 2>/dev/null | sed -n 's/^ClusterName *= *//p')}
account=${SLURM_JOB_ACCOUNT:-${SBATCH_ACCOUNT:-}}
if [[ $cluster == lumi && -z $account ]]; then
    fail "no account, and LUMI bills every job to one: export SBATCH_ACCOUNT=project_…, or sbatch --account=project_… run.sh$typed"
fi

mounted=1
if [[ $container != none ]]; then
    # The mount of the images can stall instead of failing.
    timeout 120 test -f "$container" 2>/dev/null
    mounted=$?
fi
if [[ $mounted == 124 ]]; then
    fail "no answer for $container within 120 s: its file system stalls; try again later, or copy the image and export DJSW_CONTAINER=…"
elif [[ $mounted == 0 ]]; then
    # The bindings make /scratch, /project and /flash visible in the container.
    if type -t module >/dev/null; then
        bindings=lumi-aif-singularity-bindings
        module purge
        if ! module load Local-LAIF $bindings 2>/dev/null; then
            module use /appl/local/laifs/modules
            reason=
            [[ $PATH == */appl/local/csc/soft/ai* ]] && reason=": PATH has /appl/local/csc/soft/ai (remove it and log in again)"
            module load $bindings || fail "the module $bindings does not load$reason"
        fi
    fi
    command -v singularity >/dev/null || fail "no singularity to run $container with; set DJSW_CONTAINER=none for the project's own environment"
    python=(singularity run "$container" python) # exec would skip the image's start-up script
elif [[ $container != none && (-n ${DJSW_CONTAINER:-} || $cluster == lumi) ]]; then
    fail "no container $container; ls /appl/local/laifs/containers and export DJSW_CONTAINER=…, or none for the project's own environment"
else
    container="none, the project's own environment"
    python=(python3)
    [[ -x .venv/bin/python ]] && python=(.venv/bin/python)
    "${python[@]}" -c 'import importlib.util as u; exit(not all(map(u.find_spec, ("torch", "h5py", "sklearn"))))' ||
        fail "no container, and $(command -v "${python[0]}") lacks packages that DJSW needs; uv sync, or export DJSW_CONTAINER=…"
fi

# Networks this small are slower with several threads.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Packages in ~/.local would shadow the container's.
export PYTHONNOUSERSITE=1
# Without buffering, the log is up to date.
export PYTHONUNBUFFERED=1

[[ -f $script ]] || fail "$PWD/$script does not exist"
trains=
[[ $script == DJSW/main.py && " ${flags[*]} " == *" --train "* ]] && trains=yes

if [[ $check ]]; then
    echo "account     ${account:-none}"
    echo "container   $container"
    "${python[@]}" "$script" "${flags[@]}" --check || exit
    if ! command -v sbatch >/dev/null; then
        echo "no Slurm    there is no sbatch on PATH: submit on a login node, or run it here:  $directly"
        exit
    fi
    [[ $cluster ]] || fail "no Slurm cluster answers (scontrol show config); submit on a login node, or run it here:  $directly"
    # Asks whether Slurm would accept the job, without submitting it.
    sbatch --test-only "$0" || exit 2
    echo "to submit   sbatch run.sh$typed"
    exit
fi

ranks=${SLURM_NTASKS:-$SLURM_JOB_NUM_NODES}
gpus=$((${SLURM_GPUS_ON_NODE:-0} * SLURM_JOB_NUM_NODES))
[[ $gpus -gt $ranks ]] && fail "$gpus GPUs and $ranks ranks: each rank uses one, and LUMI bills all; give as many --ntasks-per-node as --gpus-per-node"

if [[ $script == DJSW/main.py && ${SLURM_ARRAY_TASK_ID:-} ]]; then
    flags=("${flags[@]//%a/$SLURM_ARRAY_TASK_ID}")
    flags+=(--array_task "$SLURM_ARRAY_TASK_ID")
fi
# A restart resumes what this job started; otherwise a name that is taken is an error.
[[ $trains && $restart -gt 0 ]] && grep -qs '^device      ' "$log" && flags+=(--resume)

# For the record: the container may lack git, and Slurm does not keep the script.
private=$(mktemp -d "/tmp/djsw_${SLURM_JOB_ID}_XXXXXX")
trap 'rm -rf "$private"' EXIT
commit=$(git -c safe.directory="$PWD" rev-parse HEAD 2>/dev/null)
{
    echo "$commit"
    git -c safe.directory="$PWD" diff --no-ext-diff --no-textconv --no-color --src-prefix=a/ --dst-prefix=b/ HEAD -- . ':!reports' ':!weights'
    git -c safe.directory="$PWD" ls-files --others --exclude-standard DJSW models datasetprep utils | sed 's/^/new file /'
} >"$private/git" 2>/dev/null
[[ $(wc -l <"$private/git") -gt 1 ]] && commit+=" and changes, which are in the record"
cp "$0" "$private/run.sh"
export DJSW_BATCH_SCRIPT=$private/run.sh DJSW_GIT=$private/git

# MIOpen's database breaks when shared on Lustre: one per node, in memory.
export MIOPEN_USER_DB_PATH=$private/miopen
export MIOPEN_CUSTOM_CACHE_DIR=$MIOPEN_USER_DB_PATH
# Since Slurm 22.05 srun does not inherit --cpus-per-task from sbatch.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# The container has no scontrol; there DJSW reads Slurm's other variables.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR
# RCCL connects over Slingshot (as in the LUMI AI guide's multi-node examples).
[[ -e /sys/class/net/hsn0 ]] && export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
# Several nodes occasionally hang with the memory monitor that is libfabric's default in the images
# of ROCm 7.0; that of later ones is right.
[[ $SLURM_JOB_NUM_NODES -gt 1 && ${container##*/} == *u24r70* ]] && export FI_MR_CACHE_MONITOR=${FI_MR_CACHE_MONITOR:-userfaultfd}
bind=()
if [[ $cluster == lumi && ${SLURM_GPUS_ON_NODE:-} == 8 && $ranks == $((8 * SLURM_JOB_NUM_NODES)) ]]; then
    # The cores next to each GCD, in the order of the GCDs; only a full node has them all.
    bind=("--cpu-bind=mask_cpu:0x00fe000000000000,0xfe00000000000000,0x0000000000fe0000,0x00000000fe000000,0x00000000000000fe,0x000000000000fe00,0x000000fe00000000,0x0000fe0000000000")
fi

# So that the log can be committed, paths in the repository become relative to it, and others
# "…/name", but not where an error needs them. The filter ends with its input rather than with
# Slurm's signals, and the shell waits for it, since the end of the shell is that of the job.
root=$(printf '%s' "$PWD" | sed 's/[][\.*^$+?(){}|#]/\\&/g')
mkfifo "$private/log"
(
    trap '' TERM USR1
    exec sed -uE "s#(^|[^[:alnum:]_./-])$root/#\1#g
        /error: /!s#(^|[[:space:](=])/[^[:space:]]*/([^/[:space:]]+)#\1…/\2#g"
) <"$private/log" &
filter=$!
exec >"$private/log" 2>&1
trap 'trap "" TERM USR1; exec >&- 2>&-; wait "$filter"; rm -rf "$private"' EXIT

echo "job         ${job:-$SLURM_JOB_ID} (${SLURM_JOB_PARTITION:-}, ${account:-no account}), started $(date -u +%FT%TZ), restart $restart of $max_restarts"
echo "nodes       $SLURM_JOB_NODELIST, ranks: $ranks"
echo "commit      ${commit:-unknown}"
echo "container   $container"
echo "command     $script$(printf ' %q' "${flags[@]}")"

# shellcheck disable=SC2016 # expanded on the node
srun --ntasks="$ranks" --kill-on-bad-exit=1 "${bind[@]}" \
    bash -c 'mkdir -p "$MIOPEN_USER_DB_PATH" && exec "$@"' step "${python[@]}" "$script" "${flags[@]}" &
step=$!
# A signal interrupts wait. USR1 is repeated, since srun forwards none while it starts.
while kill -0 "$step" 2>/dev/null; do
    if [[ $warned ]]; then
        sleep 2
        kill -USR1 "$step" 2>/dev/null
    else
        wait "$step"
    fi
done
wait "$step"
status=$?

# 75 is "stopped by SIGUSR1, state saved". The status can differ if srun, having seen one rank end,
# killed another one; 1 and 2 are errors, which would recur.
if [[ $status == 75 || ($warned && $status -gt 2) ]]; then
    if [[ $status != 75 && -z $trains ]]; then
        echo "error: time limit reached, and only training can resume; give more with sbatch --time=…" >&2
    elif [[ $restart -ge $max_restarts ]]; then
        echo "error: not requeued after $restart restarts; continue with --resume" >&2
    elif scontrol requeue "$SLURM_JOB_ID"; then
        echo "time limit  requeued for restart $((restart + 1)) of $max_restarts"
        exit
    else
        echo "error: Slurm did not requeue the job; continue with --resume" >&2
    fi
elif [[ $status == 137 ]]; then
    echo "error: a process was killed (status 137), perhaps out of memory: sacct -j $SLURM_JOB_ID -o State,MaxRSS; training continues with --resume" >&2
elif [[ $status != 0 ]]; then
    echo "error: the run ended with status $status; its own message is above" >&2
fi
exit "$status"
