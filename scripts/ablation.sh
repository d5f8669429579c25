#!/usr/bin/env bash
# GA-SAM's ablations and hyper-parameters (its Tables 2 and 3).
# What it does: fairseq_sam/experiments/ablation.py; its options: bash scripts/ablation.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
run_recipe ablation reproduce "$@"
exit
