#!/usr/bin/env bash
# TextCNN on movie reviews with and without sharpness-aware training (GA-SAM, Table 1).
# What it does: fairseq_sam/experiments/recipes/textcnn_imdb.py; its options: bash scripts/textcnn_imdb.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_recipe textcnn_imdb reproduce "$@"
exit
