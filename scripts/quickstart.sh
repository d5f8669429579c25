#!/usr/bin/env bash
# Trains a small translation model with and without sharpness-aware training, and compares them.
# What it does: fairseq_sam/experiments/recipes/quickstart.py; its options: bash scripts/quickstart.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_recipe quickstart quickstart "$@"
exit
