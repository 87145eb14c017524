#!/usr/bin/env bash
# Does reweighting find a class that is hard on purpose? Six classes of 400 real images: five of one kind of clothing,
# and one, "mixed", of five kinds under one label. A coreset that is drawn at random keeps 30 % of each.
#
#   examples/reweight/planted-class.sh [--scale small] [-o FILE]
#
# Prints the class weights and writes FILE (planted-class.json in the current folder; the one beside this script is a
# full run). The proxies are as long as the reference, as the paper has it. full: about 10 minutes on two cores; small:
# seconds, for CI, with numbers that mean nothing.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
scale=full
result=$PWD/planted-class.json
while [ $# -gt 0 ]; do
    case $1 in
        --scale) scale=$2; shift 2 ;;
        -o) result=$(realpath -m "$2"); shift 2 ;;
        *) echo "usage: $0 [--scale full|small] [-o FILE]" >&2; exit 2 ;;
    esac
done
case $scale in
    full)  reference=(--epochs 15) proxy=(--steps 1125) seeds=(0 1 2) ;;
    small) reference=(--steps 4) proxy=(--steps 3) seeds=(0) ;;
    *)     echo "--scale is full or small, not $scale" >&2; exit 2 ;;
esac

work=$(mktemp -d -t dcprune-planted-class-XXXX)
cd "$work"
python "$here/planted_class.py" images images
dcprune embed images --encoder pixels
dcprune select --scorer random --ratio 0.3
dcprune train images --preset tiny "${reference[@]}"
for seed in "${seeds[@]}"; do
    dcprune reweight "${proxy[@]}" --seed "$seed" -o "weights-$seed.json"
done
python "$here/planted_class.py" report "$result" weights-*.json
echo "$result"
