#!/usr/bin/env bash
# IWSLT'15 English-Vietnamese with and without sharpness-aware training (GA-SAM, Table 1).
# What it does: fairseq_sam/experiments/recipes/iwslt15_en_vi.py; its options: bash scripts/iwslt15_en_vi.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_recipe iwslt15_en_vi reproduce "$@"
exit
