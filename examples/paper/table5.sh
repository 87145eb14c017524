#!/usr/bin/env bash
# Table 5: FID on Imagenette at 256 pixels with Stable Diffusion 1.4.
#
#   examples/paper/table5.sh [--scale small] [--dry-run] [--cells PATTERN] [--seeds 0,1,2] [-o FOLDER]; --help has all of it
exec bash "$(dirname "$0")/table.bash" imagenette table5 "$@"
