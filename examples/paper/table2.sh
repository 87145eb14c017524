#!/usr/bin/env bash
# Table 2: FID on CIFAR-10 with annealing, and of InfoBatch.
#
#   examples/paper/table2.sh [--scale small] [--dry-run] [--cells PATTERN] [--seeds 0,1,2] [-o FOLDER]; --help has all of it
exec bash "$(dirname "$0")/table.bash" cifar10 table2 "$@"
