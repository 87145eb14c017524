#!/usr/bin/env bash
# The chain with a latent model on the embedded images: an autoencoder, a coreset, a transformer on its latents.
#
#   examples/latent/chain.sh [--backend mdt] [--scale full]
#
# The backend is mdt, or dit of plugins/dcprune-dit. Full: about 15 minutes on two cores. Small: about a minute, for CI.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
backend=mdt scale=full
while [ $# -gt 0 ]; do
    case $1 in
        --backend) backend=${2:-} ;;
        --scale)   scale=${2:-} ;;
        *)         echo "usage: chain.sh [--backend mdt|dit] [--scale full|small]" >&2; exit 2 ;;
    esac
    shift $(($# > 1 ? 2 : 1))
done
case $scale in
    full)  vae=(--steps 1500) embed=(--set width=16) train=() reweight=() eval=() ;;
    small) vae=(--steps 4) embed=(--set width=8 --set epochs=1) train=(--steps 4 --batch-size 16)
           reweight=(--steps 3) eval=(--num-samples 80 --num-inference-steps 2) ;;
    *)     echo "--scale is full or small, not $scale" >&2; exit 2 ;;
esac

out=$(mktemp -d -t "dcprune-$backend-XXXX")
cd "$out"
python "$here/train_autoencoder.py" fashion-mini -o vae "${vae[@]}"
model=(--backend "$backend" --preset tiny --set vae=vae --set resolution=32)
dcprune embed fashion-mini "${embed[@]}"
dcprune select --scorer moderate --ratio 0.5
dcprune train fashion-mini "${model[@]}" "${train[@]}"
dcprune reweight "${reweight[@]}"
dcprune train "${model[@]}" --class-weights weights.json --anneal 0.875 "${train[@]}"
dcprune eval --metric fd:resnet18 "${embed[@]}" "${eval[@]}"
dcprune report runs/core runs/full
echo "$out/report.html"
