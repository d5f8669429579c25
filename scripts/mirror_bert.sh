#!/usr/bin/env bash
# Sentence embeddings without labels, with and without sharpness-aware training (δ-SAM, Table 2).
# What it does: fairseq_sam/experiments/recipes/mirror_bert.py; its options: bash scripts/mirror_bert.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_recipe mirror_bert reproduce "$@"
exit
