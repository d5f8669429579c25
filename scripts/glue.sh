#!/usr/bin/env bash
# GLUE tasks with and without sharpness-aware fine-tuning (δ-SAM, Table 1).
# What it does: fairseq_sam/experiments/recipes/glue.py; its options: bash scripts/glue.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_recipe glue reproduce "$@"
exit
