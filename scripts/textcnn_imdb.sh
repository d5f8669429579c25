#!/usr/bin/env bash
# TextCNN on movie reviews with and without sharpness-aware training (GA-SAM, Table 1 and Appendix B.1).
# See usage() below, or: bash scripts/textcnn_imdb.sh --help
# shellcheck disable=SC2034,SC2317,SC2329 # variables and functions that lib/ reads and calls by name
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/experiment.sh
source "$ROOT/scripts/lib/experiment.sh"
# shellcheck source=scripts/lib/classification.sh
source "$ROOT/scripts/lib/classification.sh"
# shellcheck source=scripts/lib/ablations.sh
source "$ROOT/scripts/lib/ablations.sh"

URL="${IMDB_URL:-https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz}"
ALL_METHODS="baseline sam asam layer_sam multi_step_defense ga_sam delta_sam $ABLATIONS $STEPS $OTHER_NORM"
DEFAULT_METHODS="baseline sam asam layer_sam multi_step_defense ga_sam"
TABLE=textcnn_imdb DATASET=imdb

usage() {
    cat <<'END'
Usage: bash scripts/textcnn_imdb.sh [OPTIONS]
       bash scripts/textcnn_imdb.sh --dataset mr --data DIR [OPTIONS]

Reproduces the IMDB column of GA-SAM's Table 1: gets aclImdb, trains Kim's TextCNN with every method and
several seeds, takes the checkpoint with the best validation accuracy, and prints the paper's accuracy on the
test set beside the measured one. With --dataset mr: Kim's own data and settings in ten folds, of which a seed
is one (--seeds 1,2,…,10), beside his figure. What the paper leaves open: docs/reproduce.md.

Data:
  --dataset NAME      imdb (default) or mr
  --data PATH         imdb: a folder with {train,test}/{pos,neg}/*.txt or the archive (default: download)
                      mr: a folder with {pos,neg} or rt-polarity.{pos,neg}, plain or .gz

Training:
  --epochs N          (default: 10, of MR 25, with --small 3)

END
    experiment_help
    cat <<'END'

The methods beyond the default ones are δ-SAM and the ablations of GA-SAM's Tables 2 and 3, all of which
--methods ablations stands for: scripts/ablation.sh.

Examples:
  bash scripts/textcnn_imdb.sh --gpus 1 --parallel 4
  bash scripts/textcnn_imdb.sh --dataset mr --data ~/corpora/mr --methods baseline,ga_sam
  bash scripts/textcnn_imdb.sh --small --data aclImdb_v1.tar.gz --seeds 1
END
}

set_option() {
    case "$1" in
        --dataset) DATASET="$2" ;;
        --start-epoch | --average) misuse "$1: training is perturbed from the start, and nothing is averaged" ;;
        *) set_experiment_option "$1" "$2" ;;
    esac
}

check_options() {
    if [[ "$METHODS" == ablations ]]; then choose_ablations "2e-5 5e-5 8e-5 2e-4 5e-4" "1e-3 5e-3 1e-2 5e-2 1e-1 5e-1"; fi
    if [[ "$METHODS" == *ga_sam[_@]* ]]; then TABLE=textcnn_imdb_ablation; fi
    check_choice --dataset "$DATASET" "imdb mr"
    if [[ "$DATASET" == mr && "$SEEDS" == 1,2,3,4 ]]; then SEEDS=1,2,3,4,5,6,7,8,9,10; fi
    check_experiment_options
    local seed
    if [[ "$DATASET" == mr ]]; then
        for seed in $(seed_list); do check_number "--seeds (of MR a fold)" "$seed" 1 10; done
        [[ -n "$DATA" ]] || misuse "--data is missing: the folder with MR's two files"
        : "${EPOCHS:=$((SMALL ? 3 : 25))}"
        # Kim 2014, section 3.1.
        BASE_OPTIMIZER=adadelta
        SIZES=(--embed-dim 300 --feature-maps 100 --max-positions 64 --lr 1.0 --batch-size "$(per_worker 50)")
    else
        : "${EPOCHS:=$((SMALL ? 3 : 10))}"
        BASE_OPTIMIZER=adam
        SIZES=(--embed-dim 500 --feature-maps 500 --max-positions 200 --lr 1e-3 --batch-size "$(per_worker 64)")
    fi
    LIMIT=()
    if ((SMALL)); then
        SIZES+=(--embed-dim 50 --feature-maps 20)
        LIMIT=(--limit 1000 200)
    fi
    check_number --epochs "$EPOCHS" 1
    ((DRY_RUN)) || [[ -z "$DATA" || -e "$DATA" ]] || misuse "--data $DATA: no such file or directory"
}

# K = 1 throughout; the radii are those of GA-SAM's Appendices C.2.1 and C.3.1.
method_flags() {
    local common=(--base-optimizer "$BASE_OPTIMIZER")
    case "$1" in
        baseline) METHOD_FLAGS=(--optimizer "$BASE_OPTIMIZER") ;;
        sam) METHOD_FLAGS=(--optimizer sam "${common[@]}" --sam-norm linf --sam-rho 2e-5) ;;
        asam) METHOD_FLAGS=(--optimizer asam "${common[@]}" --sam-norm linf --sam-rho 5e-3) ;;
        layer_sam) METHOD_FLAGS=(--optimizer layer_sam "${common[@]}" --sam-norm l2 --sam-rho 1e-5) ;;
        multi_step_defense)
            METHOD_FLAGS=(--optimizer multi_step_defense "${common[@]}" --sam-norm linf --sam-rho 2e-5)
            ;;
        ga_sam) METHOD_FLAGS=(--optimizer ga_sam "${common[@]}" --sam-norm linf --sam-rho 1e-4) ;;
        delta_sam) METHOD_FLAGS=(--optimizer delta_sam "${common[@]}" --sam-rho 0.05) ;; # not in the paper
        ga_sam_single | ga_sam_model | ga_sam_inverse_gradient) ablation_flags "$1" 5e-5 ;;
        ga_sam_element | ga_sam_weight) ablation_flags "$1" 5e-6 ;;
        ga_sam_weight_over_gradient) ablation_flags "$1" 2e-5 ;;
        ga_sam_weight_strength) ablation_flags "$1" 5e-3 ;;
        *) ablation_flags "$1" 1e-4 ;;
    esac
}

recipe_flags() { # SEED
    BIN="$(bin_of "$1")"
    RECIPE_FLAGS=(--user-dir "$ROOT/fairseq_sam" --task sentence_prediction --num-classes 2 --arch textcnn
        --windows '3,4,5' --dropout 0.5 --shorten-method truncate --required-batch-size-multiple 1
        "${SIZES[@]}" --criterion per_sentence_sentence_prediction
        --best-checkpoint-metric accuracy --maximize-best-checkpoint-metric --no-epoch-checkpoints)
}

# Of MR a seed is a fold.
bin_of() { # SEED
    if [[ "$DATASET" == mr ]]; then echo "$OUT/prepared/fold$1/bin"; else echo "$OUT/prepared/bin"; fi
}

download() {
    perform mkdir -p "$OUT/download"
    if [[ -z "$DATA" ]]; then fetch "$URL" "$OUT/download/aclImdb_v1.tar.gz"; fi
}

prepare() {
    local dir="$OUT/prepared.incomplete" fold
    perform rm -rf "$dir" "$OUT/prepared"
    perform mkdir -p "$dir"
    if [[ "$DATASET" == mr ]]; then
        for fold in $(seed_list); do prepare_texts "$dir/fold$fold" --data "$DATA" --fold "$fold"; done
    else
        prepare_texts "$dir" --data "$(imdb_data)" --longest 200
    fi
    perform mv "$dir" "$OUT/prepared"
}

imdb_data() {
    local found
    if [[ -z "$DATA" ]]; then
        echo "$OUT/download/aclImdb_v1.tar.gz"
    elif [[ -d "$DATA" && ! -d "$DATA/train" ]]; then
        found="$(compgen -G "$DATA/*/train" || true)"
        if [[ -n "$found" ]]; then dirname "${found%%$'\n'*}"; else compgen -G "$DATA/*.tar.gz" | head -n 1; fi
    else
        echo "$DATA"
    fi
}

prepare_texts() { # DIR FLAGS...
    local dir="$1"
    shift
    perform mkdir -p "$dir"
    run "$dir/prepare.log" "$PYTHON" "$ROOT/scripts/data/labelled_text.py" --out "$dir" "$@" \
        ${LIMIT[@]+"${LIMIT[@]}"}
    binarise_labelled "$dir" "$dir/bin" "$dir/prepare.log" --nwordssrc 30000
}

score_run() { score_labelled "$1" "$2" "$(bin_of "$2")" test accuracy; }

report() {
    if [[ "$DATASET" == mr ]]; then
        report_experiment textcnn_mr "TextCNN on MR, ten folds"
    else
        report_experiment "$TABLE" "TextCNN on IMDB"
    fi
}

settings() {
    printf '%s\n' "data=${DATA:-$URL} dataset=$DATASET small=$SMALL" "epochs=$EPOCHS" "extra=$EXTRA"
}

main() {
    parse_options "$@"
    check_options
    start_experiment "textcnn-$DATASET" "$(settings)"
    if ((NODE_RANK)); then join_trainings; else run_experiment; fi
    exit 0
}

main "$@"
