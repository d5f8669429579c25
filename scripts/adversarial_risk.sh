#!/usr/bin/env bash
# Adversarial risk of models trained with and without SAM, δ-SAM and per-instance perturbation (δ-SAM,
# Table 4, in small). See usage() below, or: bash scripts/adversarial_risk.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Small models on one thread: more threads only wait for each other.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
ALL_METHODS="adam sam delta_sam_literal delta_sam per_instance_sam"
DATA="" OUT="" SEEDS=3 RHO=0.05 UPDATES=600 TRAIN=3000 VALID=1000 SMALL=0
METHODS="$ALL_METHODS"

usage() {
    cat <<'END'
Usage: bash scripts/adversarial_risk.sh --data DIR [OPTIONS]

Trains a small sentence classifier from scratch with Adam, SAM, δ-SAM and per-instance perturbation, with
several seeds, measures accuracy and adversarial risk (fairseq-sam risk) on held-out sentences, and
prints a table. A rerun skips what is done; more --seeds with the same --out add to it.

  --data DIR     DIR/{pos,neg}, plain or .gz: one tokenised sentence a line (the movie reviews of Pang
                 and Lee 2005, known as MR or rt-polarity)
  --out DIR      where everything goes (default: runs/adversarial-risk)
  --seeds N      trainings of each method (default: 3)
  --methods LIST only these, separated by spaces or commas (default: all)
                   adam, sam, per_instance_sam
                   delta_sam          sentence weights with the plugin's choice of probe radius
                   delta_sam_literal  the same with ρ as probe radius, as published
  --rho X        radius, in training and in measuring (default: 0.05)
  --updates N    updates of each training, 16 sentences each (default: 600)
  --train N      sentences to train on (default: 3000)
  --valid N      sentences to measure on (default: 1000)
  --small        a trial of a minute or two: 1 seed, 20 updates, 200 and 40 sentences
  --no-install   use the environment as it is
  -h, --help     this text

With the defaults a seed takes about five minutes of one core, half of it per-instance perturbation.

END
    environment_help
    cat <<'END'

Example:
  bash scripts/adversarial_risk.sh --data ~/corpora/mr --seeds 5
END
}

set_option() {
    case "$1" in
        --data) DATA="$2" ;;
        --out) OUT="$2" ;;
        --seeds) SEEDS="$2" ;;
        --methods) METHODS="${2//,/ }" ;;
        --rho) RHO="$2" ;;
        --updates) UPDATES="$2" ;;
        --train) TRAIN="$2" ;;
        --valid) VALID="$2" ;;
        *) return 1 ;;
    esac
}

set_switch() {
    [[ "$1" == --small ]] || return 1
    SMALL=1
}

check_options() {
    local class method
    if ((SMALL)); then SEEDS=1 UPDATES=20 TRAIN=200 VALID=40; fi
    [[ -n "${METHODS// /}" ]] || misuse "--methods: choose from: $ALL_METHODS"
    for method in $METHODS; do
        [[ " $ALL_METHODS " == *" $method "* ]] || misuse "--methods: no $method; choose from: $ALL_METHODS"
    done
    check_number --seeds "$SEEDS" 1
    check_number --updates "$UPDATES" 10
    check_number --train "$TRAIN" 32
    check_number --valid "$VALID" 2
    check_positive --rho "$RHO"
    [[ -n "$DATA" ]] || misuse "--data is missing: the directory with the sentences"
    for class in pos neg; do
        [[ -f "$DATA/$class" || -f "$DATA/$class.gz" ]] ||
            misuse "--data $DATA: neither $class nor $class.gz is in it"
    done
    OUT="${OUT:-$ROOT/runs/adversarial-risk}"
}

# Results under other settings are never mixed.
check_settings() {
    local settings
    settings="rho=$RHO updates=$UPDATES train=$TRAIN valid=$VALID data=$(cd "$DATA" && pwd)"
    mkdir -p "$OUT" || die "cannot write to $OUT"
    OUT="$(cd "$OUT" && pwd)"
    if [[ -e "$OUT/settings.txt" && "$(cat "$OUT/settings.txt")" != "$settings" ]]; then
        misuse "$OUT was made with other settings ($(cat "$OUT/settings.txt")): choose another --out, or delete it"
    fi
    printf '%s\n' "$settings" >"$OUT/settings.txt"
}

preprocess() { # KEY THRESHOLD
    "$PYTHON" -m fairseq_cli.preprocess --only-source --destdir "$OUT/data/bin/$1" --thresholdsrc "$2" \
        --trainpref "$OUT/data/text/train.$1" --validpref "$OUT/data/text/valid.$1"
}

prepare() {
    if [[ -e "$OUT/data/done" ]]; then return; fi
    rm -rf "$OUT/data"
    mkdir "$OUT/data"
    "$PYTHON" "$ROOT/scripts/data/split_reviews.py" --data "$DATA" --out "$OUT/data/text" \
        --train "$TRAIN" --valid "$VALID"
    timed "Preprocessing sentences" "$OUT/data/preprocess.log" preprocess input0 2
    timed "Preprocessing labels" "$OUT/data/preprocess.log" preprocess label 0
    touch "$OUT/data/done"
}

train() { # METHOD SEED RUN_DIR
    local flags=(--optimizer "${1%_literal}") criterion=sentence_prediction
    if [[ "$1" != adam ]]; then flags+=(--base-optimizer adam --sam-rho "$RHO"); fi
    if [[ "$1" == delta_sam* ]]; then criterion=per_sentence_sentence_prediction; fi
    if [[ "$1" == *_literal ]]; then flags+=(--delta-sam-probe-radius "$RHO"); fi
    # Saved and validated once, at the end: no checkpoint is chosen by the set that measures it.
    "$PYTHON" -m fairseq_cli.train "$OUT/data/bin" --user-dir "$ROOT/fairseq_sam" \
        --task sentence_prediction --criterion "$criterion" --num-classes 2 --init-token 0 \
        --max-positions 128 --shorten-method truncate \
        --arch roberta --encoder-layers 2 --encoder-embed-dim 64 --encoder-ffn-embed-dim 128 \
        --encoder-attention-heads 2 --dropout 0.1 --attention-dropout 0.1 \
        --adam-betas '(0.9, 0.98)' --lr 1e-3 --clip-norm 1.0 --lr-scheduler polynomial_decay \
        --warmup-updates "$((UPDATES / 10))" --total-num-update "$UPDATES" --max-update "$UPDATES" \
        --batch-size 16 --required-batch-size-multiple 1 --cpu --num-workers 0 --seed "$2" \
        --save-dir "$3" --save-interval 10000 --validate-interval 10000 --no-epoch-checkpoints \
        --no-progress-bar --log-format json --log-interval 50 "${flags[@]}"
}

measure() { # RUN_DIR
    "$PYTHON" -m fairseq_sam.commands risk "$OUT/data/bin" "$1/checkpoint_last.pt" \
        --rho "$RHO" --cpu --json "$1/risk.json"
}

train_and_measure() { # METHOD SEED
    local run="$OUT/$1-seed$2"
    if [[ -e "$run/done" ]]; then return; fi
    rm -rf "$run"
    mkdir "$run"
    timed "Training with $1, seed $2" "$run/train.log" train "$1" "$2" "$run"
    timed "Measuring its adversarial risk" "$run/risk.log" measure "$run"
    rm -f "$run/checkpoint_best.pt"
    touch "$run/done"
}

main() {
    local seed method
    parse_options "$@"
    check_options
    if ((INSTALL)); then ensure_environment quickstart quickstart; else use_environment; fi
    check_settings
    prepare
    for ((seed = 1; seed <= SEEDS; seed++)); do
        for method in $METHODS; do train_and_measure "$method" "$seed"; done
    done
    step "Result"
    # shellcheck disable=SC2086 # names without spaces
    "$PYTHON" "$ROOT/scripts/risk_table.py" "$OUT" --methods $METHODS --seeds "$SEEDS" | tee "$OUT/table.md"
}

main "$@"
