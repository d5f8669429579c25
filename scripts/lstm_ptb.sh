#!/usr/bin/env bash
# An LSTM on the Penn Treebank with and without sharpness-aware training (GA-SAM, Table 1).
# What it does: fairseq_sam/experiments/recipes/lstm_ptb.py; its options: bash scripts/lstm_ptb.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_recipe lstm_ptb reproduce "$@"
exit
