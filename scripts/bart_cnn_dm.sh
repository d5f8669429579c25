#!/usr/bin/env bash
# BART on CNN/DailyMail with and without δ-SAM (δ-SAM, Table 3).
# What it does: fairseq_sam/experiments/recipes/bart_cnn_dm.py; its options: bash scripts/bart_cnn_dm.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_recipe bart_cnn_dm reproduce "$@"
exit
