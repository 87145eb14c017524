#!/usr/bin/env bash
# Table 1: FID on CIFAR-10 of coresets by several encoders and criteria, with and without reweighting.
#
#   examples/paper/table1.sh [--scale small] [--dry-run] [--cells PATTERN] [--seeds 0,1,2] [-o FOLDER]; --help has all of it
exec bash "$(dirname "$0")/table.bash" cifar10 table1 "$@"
