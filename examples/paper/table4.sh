#!/usr/bin/env bash
# Table 4: FID and CMMD on ImageNet at 256 pixels with MDT-S/2.
#
#   examples/paper/table4.sh [--scale small] [--dry-run] [--cells PATTERN] [--seeds 0,1,2] [-o FOLDER]; --help has all of it
exec bash "$(dirname "$0")/table.bash" imagenet table4 "$@"
