#!/usr/bin/env bash
# How far are the class weights of a short proxy (a tenth of the reference's steps, the default of `dcprune reweight`)
# from those of one as long as the reference? On the embedded real images, for three seeds, against the spread between
# seeds.
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
    full)  embed=(--set width=16) reference=(--steps 1000) seeds=(0 1 2) ;;
    small) embed=(--set width=8 --set epochs=1) reference=(--steps 10 --batch-size 16) seeds=(0) ;;
    *)     echo "--scale is full or small, not $scale" >&2; exit 2 ;;
esac

work=$(mktemp -d -t dcprune-proxy-length-XXXX)
cd "$work"
dcprune embed fashion-mini "${embed[@]}"
dcprune select --scorer moderate --ratio 0.2
dcprune train fashion-mini --preset tiny "${reference[@]}"
for seed in "${seeds[@]}"; do
    dcprune reweight --steps "${reference[1]}" --seed "$seed" -o "long-$seed.json"
    dcprune reweight --seed "$seed" -o "short-$seed.json"
    dcprune reweight --eta 10 --seed "$seed" -o "short-eta-10-$seed.json"
done
python "$here/compare_weights.py" "$result" "${seeds[@]}"
echo "$result"
