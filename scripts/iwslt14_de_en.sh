#!/usr/bin/env bash
# IWSLT'14 German-English with and without sharpness-aware training (GA-SAM, Table 1).
# What it does: fairseq_sam/experiments/recipes/iwslt14_de_en.py; its options: bash scripts/iwslt14_de_en.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_recipe iwslt14_de_en reproduce "$@"
exit
