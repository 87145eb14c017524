#!/usr/bin/env bash
# Figure 2: quality of every class of CIFAR-10 before and after reweighting.
#
#   examples/paper/figure2.sh [--scale small] [--dry-run] [--cells PATTERN] [--seeds 0,1,2] [-o FOLDER]; --help has all of it
exec bash "$(dirname "$0")/table.bash" cifar10 figure2 "$@"
