#!/usr/bin/env bash
# The chain by hand on the embedded images: prune to 20 %, reweight, train, evaluate, report.
#
#   examples/quickstart.sh [--scale small]      full: about 6 minutes on two cores; small: seconds, for CI
set -euo pipefail

scale=full
[ "${1:-}" = --scale ] && scale=$2
case $scale in
    full)  embed=(--set width=16) full=() reweight=(--steps 60) core=(--steps 312) eval=() ;;
    small) embed=(--set width=8 --set epochs=1) full=(--steps 6 --batch-size 16) reweight=(--steps 4)
           core=("${full[@]}") eval=(--num-samples 80 --num-inference-steps 2) ;;
    *)     echo "--scale is full or small, not $scale" >&2; exit 2 ;;
esac

out=$(mktemp -d -t dcprune-quickstart-XXXX)
cd "$out"
dcprune embed fashion-mini "${embed[@]}"
dcprune score --scorer moderate
dcprune select --ratio 0.2
dcprune train fashion-mini --preset tiny "${full[@]}"
dcprune reweight "${reweight[@]}"
dcprune train --preset tiny --class-weights weights.json "${core[@]}"
dcprune eval --metric fd:resnet18 "${embed[@]}" "${eval[@]}"
dcprune report runs/core runs/full
dcprune verify runs/core runs/core/metrics.json
echo "$out/report.html"
