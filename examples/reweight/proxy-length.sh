#!/usr/bin/env bash
# How far are the class weights of a short proxy (a tenth of the steps, the default of `dcprune reweight`) from those of
# a long one? On the embedded real images, for three seeds, against the spread between seeds.
#
#   examples/reweight/proxy-length.sh [--scale small] [-o FILE]
#
# Prints the weights and writes FILE (proxy-length.json in the current folder; the one beside this script is a full run).
# full: about 15 minutes on two cores; small: under a minute, for CI, with numbers that mean nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
scale=full
result=$PWD/proxy-length.json
while [ $# -gt 0 ]; do
    case $1 in
        --scale) scale=$2; shift 2 ;;
        -o) result=$(realpath -m "$2"); shift 2 ;;
        *) echo "usage: $0 [--scale full|small] [-o FILE]" >&2; exit 2 ;;
    esac
done
case $scale in
    full)  embed=(--set width=16) reference=(--epochs 10) long=1000 short=100 batch=32 seeds=(0 1 2) ;;
    small) embed=(--set width=8 --set epochs=1) reference=(--steps 6 --batch-size 16) long=10 short=1 batch=16
           seeds=(0) ;;
    *)     echo "--scale is full or small, not $scale" >&2; exit 2 ;;
esac

work=$(mktemp -d -t dcprune-proxy-length-XXXX)
cd "$work"
dcprune embed fashion-mini "${embed[@]}"
dcprune select --scorer moderate --ratio 0.2
dcprune train fashion-mini --preset tiny "${reference[@]}"
for seed in "${seeds[@]}"; do
    common=(--batch-size "$batch" --seed "$seed")
    dcprune reweight --steps "$long" "${common[@]}" -o "long-$seed.json"
    dcprune reweight --steps "$short" "${common[@]}" -o "short-$seed.json"
    dcprune reweight --steps "$short" --eta 10 "${common[@]}" -o "short-eta-10-$seed.json"
done
python "$here/compare_weights.py" "$result" "${seeds[@]}"
echo "$result"
