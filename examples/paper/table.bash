# One table of the paper (arXiv 2409.19128): a sweep, its results.json and the report. Run by tableN.sh and figure2.sh:
#
#   tableN.sh [--scale full|small] [--dry-run] [--cells PATTERN]... [--seeds 0,1,2] [-o FOLDER]
#
# full (the default): the paper's settings; tables of one dataset share their stages in FOLDER/stages, and the same
#                     command goes on after a kill. FOLDER is runs/paper.
# small:              four updates of a tiny model on the embedded images, for CI; encoders that would be downloaded are
#                     replaced by `pixels`, pretrained models by random weights. FOLDER is a temporary one. Only figure2
#                     makes its report, which looks through all images and is slower than four updates.
# --dry-run:          what there is to do, and the device hours that it takes here.
# --cells:            only cells called like this, such as 'resnet18-moderate-0.1-*'; may be repeated.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=$1 table=$2
shift 2
scale=full out='' options=() dry=''
while [ $# -gt 0 ]; do
    case $1 in
        --scale)        scale=$2; shift ;;
        --dry-run)      dry=1 options+=(--dry-run) ;;
        --cells)        options+=(--only "$2"); shift ;;
        --seeds)        options+=(--seeds "$2"); shift ;;
        -o | --output)  out=$2; shift ;;
        *)              echo "$table.sh: $1 is not an option; see $here/table.bash" >&2; exit 2 ;;
    esac
    shift
done

files=("$here/$data.toml" "$here/$table.toml")
case $scale in
    full)  out=${out:-runs/paper} ;;
    small) out=${out:-$(mktemp -d -t "dcprune-$table-XXXX")}
           files+=("$here/small.toml" "$here/small-$data.toml")
           export DCPRUNE_CACHE_DIR="$out/cache"
           if [ "$data" != cifar10 ] && [ ! -d "$out/pipeline" ]; then python "$here/random_pipeline.py" "$out/pipeline"; fi
           mkdir -p "$out"
           cd "$out"
           out=.
           [ -n "$dry" ] || options+=(--workers "$(getconf _NPROCESSORS_ONLN)") ;;
    *)     echo "--scale is full or small, not $scale" >&2; exit 2 ;;
esac

dcprune sweep "${files[@]}" -o "$out/$table" --cache "$out/stages" "${options[@]}"
[ -z "$dry" ] || exit 0
if [ "$scale" = full ] || [ "$table" = figure2 ]; then
    dcprune report "$out/$table" -o "$out/$table.html" --overwrite
fi
echo "$out/$table/results.json"
