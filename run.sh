#!/usr/bin/env bash
# Set-up and the main jobs; `./run.sh help` lists them. What it makes stays in this folder, but for
# programs that JAX may keep compiled (docs/how_to/monitor_a_run.md): .venv/ holds the environment,
# runs/ the results. Delete either at any time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Where it is set, as in many containers, every command compiles all that it imports: 2 to 10 s.
unset PYTHONDONTWRITEBYTECODE
# Large arrays on large pages of memory, where Linux has them: a step on a CPU asks for its memory
# anew, which takes up to a third of its time page by page (docs/explanation/performance.md).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

PATIENTS=1000
SEED=0
QUICKSTART=runs/quickstart

usage() {
  cat <<EOF
usage: ./run.sh [COMMAND]

  (none)   set up, then the quickstart: $PATIENTS synthetic patients -> data set -> Dscint trained on
           them -> evaluation on patients it never saw -> $QUICKSTART/dscint/report/index.html.
           Run again, it keeps what is complete and resumes what is not.
  setup    only make .venv and install; further arguments are extras of pyproject.toml, such as pacs
  benchmark  set up, make the quickstart's data set, then compare networks on it for some hours;
           further arguments go to python -m dscint_jax.benchmark
  test     set up, then run the tests; further arguments go to pytest
  slurm    set up, then submit a training to SLURM; ./run.sh slurm --help
  help     this text

PYTHON=/path/to/python3 chooses the interpreter (3.11 to 3.13) that .venv is made from.
ACCELERATOR=cuda12, cuda13, tpu or none is what JAX is installed for; without it, the CUDA that
nvidia-smi names, or none. Set it where .venv is made on a machine without a GPU for machines that
have one.
EOF
}

slurm_usage() {
  cat <<EOF
usage: ./run.sh slurm [--nodes N] [--gpus G] [--time T] [--partition P] [--dry-run]
                      [options of sbatch] -- [arguments of python -m dscint_jax.main]

Submit launch/train.sbatch, which trains on N machines as one and resumes after its time is over.

  --nodes N       machines (1)
  --gpus G        GPUs on each machine (0: train on CPUs); a kind is named as in --gpus a100:4
  --time T        the longest one attempt may take, such as 12:00:00 or 2-00:00:00 (24:00:00)
  --partition P   the queue, by your cluster's name for it
  --dry-run       print the command and the script, submit nothing
  --help          this text

Any other option is handed to sbatch; write it as one word, such as --account=nuclear-medicine,
--cpus-per-task=16, --ntasks-per-node=4. The folder, the data set and --workdir must lie where all
nodes see them.

  ./run.sh slurm --nodes 2 --gpus 4 -- --config configs/dscint.py --workdir runs/dscint
EOF
}

fail() {
  echo "error: $*" >&2
  exit 2
}

usable_python() {
  "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
    >/dev/null 2>&1
}

find_python() {
  if [[ -n "${PYTHON:-}" ]]; then
    usable_python "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 to 3.13 with venv"
    echo "$PYTHON"
    return
  fi
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11 python; do
    if usable_python "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python 3.11 to 3.13 with its venv module found; install one or set PYTHON=/path/to/python3"
}

# The extra of pyproject.toml that ACCELERATOR or this machine's NVIDIA driver asks for, if any.
accelerator_extra() {
  local driver
  case "${ACCELERATOR:-}" in
    "") ;;
    cuda12 | cuda13 | tpu) echo "$ACCELERATOR" && return ;;
    none) return ;;
    *) fail "ACCELERATOR=$ACCELERATOR is none of cuda12, cuda13, tpu, none" ;;
  esac
  driver=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p' | head -n 1) || true
  if [[ -n "$driver" ]]; then
    if ((driver >= 13)); then echo cuda13; else echo cuda12; fi
  fi
}

# is_installed STAMP EXTRA...: whether the stamp file exists and holds every extra.
is_installed() {
  local stamp=$1 extra
  shift
  [[ -f "$stamp" ]] || return 1
  for extra in "$@"; do
    grep -qxF -- "$extra" "$stamp" || return 1
  done
}

# setup EXTRA...: makes .venv, or brings it up to date with pyproject.toml and constraints.txt.
setup() {
  local extras=("$@") extra accelerator python stamp wanted
  for extra in "$@"; do
    sed -n '/^\[project.optional-dependencies\]/,/^\[tool/p' pyproject.toml | grep -q "^$extra = " ||
      fail "'$extra' is no extra of pyproject.toml; its [project.optional-dependencies] lists them"
  done
  accelerator=$(accelerator_extra)
  [[ -z "$accelerator" ]] || extras+=("$accelerator")
  if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
  elif [[ -n "${PYTHON:-}" && "$("$PYTHON" --version)" != "$(.venv/bin/python --version)" ]]; then
    echo "note: .venv keeps its $(.venv/bin/python --version); delete .venv to make it from $PYTHON"
  fi
  # What is installed: a checksum of what it was asked for, then the extras, one a line.
  stamp=.venv/installed
  wanted=$(cat pyproject.toml constraints.txt | cksum)
  [[ "$(head -n 1 "$stamp" 2>/dev/null)" == "$wanted" ]] || rm -f "$stamp"
  # The long form is for bash 3.2 (macOS), to which an empty array is an unset one.
  if ! is_installed "$stamp" ${extras[@]+"${extras[@]}"}; then
    echo "installing${extras[*]:+ with ${extras[*]}} (a minute or two)"
    local requirement="."
    [[ -z "${extras[*]:-}" ]] || requirement=".[$(IFS=,; echo "${extras[*]}")]"
    # Modules are compiled when they are imported: all at once takes longer than the rest.
    .venv/bin/python -m pip install --quiet --no-compile --no-cache-dir --disable-pip-version-check \
      --constraint constraints.txt --editable "$requirement" ||
      fail "the installation failed; the lines above say why; mend it and run again"
    [[ -f "$stamp" ]] || echo "$wanted" >"$stamp"
    ((${#extras[@]} == 0)) || printf '%s\n' "${extras[@]}" >>"$stamp"
  fi
  # matplotlib would keep its font cache in the home directory.
  export MPLCONFIGDIR="$PWD/.venv/matplotlib"
}

step() {
  echo
  echo "== $1 ($((SECONDS / 60)):$(printf '%02d' $((SECONDS % 60))))"
  shift
  .venv/bin/python -m "$@"
}

data_set() {
  step "synthetic patients" tfds_builder.phantom \
    --out "$QUICKSTART/phantom" --patients "$PATIENTS" --seed "$SEED"
  step "data set" tfds_builder.build \
    --manifest "$QUICKSTART/phantom/manifest.csv" --data_dir "$QUICKSTART/data"
}

quickstart() {
  data_set
  step "training" dscint_jax.main \
    --config configs/quickstart.py --workdir "$QUICKSTART/dscint" \
    --config.data.dir="$QUICKSTART/data"
  step "evaluation" dscint_jax.evaluate --workdir "$QUICKSTART/dscint" --split test
  step "explanations" dscint_jax.explain --workdir "$QUICKSTART/dscint" --split test
  step "report" dscint_jax.report --workdir "$QUICKSTART/dscint" --split test
  echo
  echo "done in $((SECONDS / 60)):$(printf '%02d' $((SECONDS % 60))); open" \
    "$QUICKSTART/dscint/report/index.html"
}

# slurm ARGUMENT...: checks them, sets up, and submits launch/train.sbatch.
slurm() {
  local script=launch/train.sbatch dry_run='' gpus=0 separated='' options=() job log
  while (($#)); do
    case "$1" in
      --help | -h) slurm_usage && return ;;
      --dry-run) dry_run=1 ;;
      --nodes | --time | --partition | --gpus)
        (($# > 1)) && [[ "$2" != -* ]] || fail "$1 needs a value; see ./run.sh slurm --help"
        if [[ "$1" == --gpus ]]; then gpus=$2; else options+=("$1=$2"); fi
        shift
        ;;
      --gpus=*) gpus=${1#*=} ;;
      --) separated=1 && shift && break ;;
      -*) options+=("$1") ;;
      *) fail "unexpected argument '$1'; the training's arguments stand after --" ;;
    esac
    shift
  done
  [[ -n "$separated" ]] || fail "-- and the training's arguments are missing; see ./run.sh slurm --help"
  [[ "$gpus" =~ ^([A-Za-z0-9_.-]+:)?[0-9]+$ ]] || fail "--gpus $gpus is not a number, such as 4 or a100:4"
  [[ "$gpus" == 0 ]] || options+=("--gres=gpu:$gpus")
  if [[ -n "$dry_run" ]]; then
    echo "sbatch$(printf ' %q' ${options[@]+"${options[@]}"} "$script" "$@")"
    echo
    cat "$script"
    return
  fi
  command -v sbatch >/dev/null || fail "sbatch not found; submit from a machine of the cluster"
  setup
  if [[ "$gpus" != 0 ]] && ! .venv/bin/python -c \
    'import importlib.util as u, sys; sys.exit(not any(map(u.find_spec, sys.argv[1:])))' \
    jax_cuda12_plugin jax_cuda13_plugin; then
    fail "JAX is installed without CUDA, as this machine has no GPU; for the nodes' GPUs run" \
      "ACCELERATOR=cuda13 ./run.sh setup (driver 580 or newer) or ACCELERATOR=cuda12 ./run.sh setup"
  fi
  # A mistyped flag or config is said now, not when the job's turn has come.
  .venv/bin/python -c 'import sys; from dscint_jax.main import parse_flags; parse_flags(sys.argv)' \
    "$@" || exit 2
  job=$(sbatch --parsable ${options[@]+"${options[@]}"} "$script" "$@") || exit 2
  job=${job%%;*}
  log=$(scontrol show job "$job" | sed -n 's/^ *StdOut=//p')
  echo "submitted job $job; its log: ${log:-slurm-$job.log}"
  echo "squeue --job $job shows where it stands; scancel $job ends it, after it has saved"
}

case "${1:-quickstart}" in
  quickstart)
    (($# == 0)) || fail "quickstart is what ./run.sh does without a command"
    setup
    quickstart
    ;;
  benchmark)
    shift
    setup
    data_set
    step "benchmark" dscint_jax.benchmark --config configs/benchmark.py:cpu \
      --workdir runs/benchmark/cpu --data_dir "$QUICKSTART/data" "$@"
    ;;
  setup)
    shift
    setup "$@"
    echo "ready: .venv/bin/python -m dscint_jax.main --help"
    ;;
  test)
    shift
    setup dev
    # Two at a time; the tests of one file share what they set up.
    .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
    ;;
  slurm)
    shift
    slurm "$@"
    ;;
  help | -h | --help) usage ;;
  *) fail "unknown command '$1'; ./run.sh help lists them" ;;
esac
