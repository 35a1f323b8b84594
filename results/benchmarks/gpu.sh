#!/usr/bin/env bash
# Everything a GPU must show in one quarter of an hour; each table is written as it goes.
#
#     bash results/benchmarks/gpu.sh OUT [all|measure|train]
#
# OUT gets checks.md (2 min), parts.md (4 min), loop.md with the projection of 500,000 steps (3 min),
# then training/, a run of window-close at the paper's size for what is left, and training-table.md.
# The same command with `train` goes on with that run. REHEARSE=1 does the same with tiny sizes and
# short limits, for a CPU; what it measures says nothing of a GPU.
#
# PYTHON   interpreter (.venv/bin/python)
# TOTAL    seconds in all (900; of a rehearsal 300)
# DEVICE   torch device (auto)
set -euo pipefail
cd "$(dirname "$0")/../.."

out=${1:?name a folder: bash results/benchmarks/gpu.sh OUT [all|measure|train]}
what=${2:-all}
python=${PYTHON:-.venv/bin/python}
device=${DEVICE:-auto}
start=$SECONDS
end_margin=45  # a checkpoint and the last table

if [ -n "${REHEARSE:-}" ]; then
    total=${TOTAL:-300}
    task=dmc/point_mass-easy
    measuring=(--sizes tiny --checks-seconds 60 --parts-seconds 60 --loop-seconds 60
        --environments 1 2 --repeats 3)
    training=(--preset cpu --environment.quality fast --num-envs 2 --episode-steps 200
        --prefill 200 --evaluate-first 1000 --evaluate-every 1000 --evaluate-episodes 1
        --agent.autoencoder-pretraining 10 --agent.joint-pretraining 2 --agent.batch 4)
else
    total=${TOTAL:-900}
    task=metaworld/window-close
    measuring=()
    training=(--preset paper --agent.compile --evaluate-episodes 5 --evaluate-first 20000)
fi
case $what in all | measure | train) ;; *)
    echo "gpu.sh: all, measure or train, not $what" >&2
    exit 2
    ;;
esac
mkdir -p "$out"

if [ "$what" != train ]; then
    # Ended from outside where its own limits do not end it.
    timeout --kill-after=20 "$((total - end_margin))" \
        "$python" -m results.benchmarks.gpu --out "$out" --task "$task" --device "$device" \
        ${measuring[@]+"${measuring[@]}"} || echo "gpu.sh: measuring ended with status $?" >&2
fi
if [ "$what" != measure ]; then
    left=$((total - (SECONDS - start) - end_margin))
    if [ "$left" -lt 30 ]; then
        echo "gpu.sh: no time is left to train; bash $0 $out train" >&2
        exit 0
    fi
    echo "training for $left s"
    timeout --signal=TERM --kill-after=30 "$left" \
        "$python" run.py train --task "$task" --device "$device" --logdir "$out/training" \
        "${training[@]}" || echo "gpu.sh: training ended with status $?"
    "$python" -m results.benchmarks.gpu --stage training --out "$out" --task "$task"
fi
