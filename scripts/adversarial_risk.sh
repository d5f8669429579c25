#!/usr/bin/env bash
# Adversarial risk of models trained with and without SAM and δ-SAM (δ-SAM, Table 4, in small).
# What it does: fairseq_sam/experiments/recipes/adversarial_risk.py; its options: bash scripts/adversarial_risk.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# Small models on one thread: more threads only wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
run_recipe adversarial_risk quickstart "$@"
exit
