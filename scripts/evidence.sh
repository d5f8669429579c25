#!/usr/bin/env bash
# Does it help? Every method against its base optimizer, at equal updates and at equal compute.
# What it does: fairseq_sam/experiments/recipes/evidence.py; its options: bash scripts/evidence.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# Small models on one thread: more threads only wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
run_recipe evidence reproduce "$@"
exit
