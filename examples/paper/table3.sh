#!/usr/bin/env bash
# Table 3: speed-ups on CIFAR-10 of pruning, reweighting and annealing.
#
#   examples/paper/table3.sh [--scale small] [--dry-run] [--cells PATTERN] [--seeds 0,1,2] [-o FOLDER]; --help has all of it
exec bash "$(dirname "$0")/table.bash" cifar10 table3 "$@"
