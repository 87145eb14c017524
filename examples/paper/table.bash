# One table of the paper (arXiv 2409.19128): a sweep, its results.json and the report. Run by tableN.sh and figure2.sh:
#
#   tableN.sh [--scale full|small] [--dry-run] [--cells PATTERN]... [--seeds 0,1,2] [--devices D,D] [--workers N]
#             [-o FOLDER]
#
# full (the default): the paper's settings; tables of one dataset share their stages in FOLDER/stages, and the same
#                     command goes on after a kill. FOLDER is runs/paper.
# small:              four updates of a tiny model on the embedded images, for CI; encoders that would be downloaded are
#                     replaced by `pixels`, pretrained models by random weights. FOLDER is a temporary one.
# --dry-run:          what there is to do, and the device hours that it takes here, also before the dataset and the
#                     encoders' weights are there; for tables 4 and 5 after `dcprune prefetch --backend mdt` or `sd`.
# --cells:            only cells called like this, such as 'resnet18-moderate-0.1-*'; may be repeated. The results have
#                     these and all that earlier calls finished.
# --devices:          one stage at a time on each, such as cuda:0,cuda:1; every GPU by default.
# --workers:          stages at a time on a CPU.
#
# Needs dcprune with what draws pages and, for tables 4 and 5, with what Stable Diffusion needs:
# pip install "dcprune[report,sd]"
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=$1 table=$2
shift 2

fail() { echo "$table.sh: $1" >&2; exit 2; }

scale=full out='' options=() dry=''
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run)  dry=1 options+=(--dry-run); shift; continue ;;
        -h | --help)
            sed -n 's/^# \{0,1\}//p;/^set /q' "${BASH_SOURCE[0]}"
            exit 0 ;;
    esac
    [ $# -ge 2 ] || fail "$1 is not an option, or lacks its value; see $table.sh --help"
    case $1 in
        --scale)                scale=$2 ;;
        --cells)                options+=(--only "$2") ;;
        --seeds | --devices | --workers) options+=("$1" "$2") ;;
        -o | --output)          out=$2 ;;
        *)                      fail "$1 is not an option; see $table.sh --help" ;;
    esac
    shift 2
done
command -v dcprune > /dev/null || fail 'dcprune is not installed here: pip install "dcprune[report,sd]", or activate its environment'

files=("$here/$data.toml" "$here/$table.toml")
case $scale in
    full)  out=${out:-runs/paper} ;;
    small) out=${out:-$(mktemp -d -t "dcprune-$table-XXXX")}
           mkdir -p "$out"
           cd "$out"
           out=.
           files+=("$here/small.toml" "$here/small-$data.toml")
           [ ! -f "$here/small-$table.toml" ] || files+=("$here/small-$table.toml")
           export DCPRUNE_CACHE_DIR="$PWD/cache"
           if [ "$data" != cifar10 ] && [ ! -d pipeline ]; then
               rm -rf pipeline.partial
               python "$here/random_pipeline.py" pipeline.partial
               mv pipeline.partial pipeline
           fi
           case " ${options[*]-} " in
               *" --workers "* | *" --dry-run "*) ;;
               *) options+=(--workers "$(getconf _NPROCESSORS_ONLN)") ;;
           esac ;;
    *)     fail "--scale is full or small, not $scale" ;;
esac

status=0
dcprune sweep "${files[@]}" -o "$out/$table" --cache "$out/stages" ${options[@]+"${options[@]}"} || status=$?
# A cell that failed does not keep the others from the page; whoever stops the sweep wants no page.
if [ -z "$dry" ] && [ "$status" -le 1 ] && [ -f "$out/$table/results.json" ]; then
    dcprune report "$out/$table" -o "$out/$table.html" --overwrite
    echo "$out/$table/results.json"
fi
exit "$status"
