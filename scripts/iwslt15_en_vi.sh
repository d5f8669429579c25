#!/usr/bin/env bash
# IWSLT'15 English-Vietnamese with and without sharpness-aware training (GA-SAM, Table 1 and Appendix B.3).
# See usage() below, or: bash scripts/iwslt15_en_vi.sh --help
# shellcheck disable=SC2034,SC2317,SC2329 # variables and functions that lib/ reads and calls by name
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/experiment.sh
source "$ROOT/scripts/lib/experiment.sh"
# shellcheck source=scripts/lib/translation.sh
source "$ROOT/scripts/lib/translation.sh"

SRC=en TGT=vi
URL="${IWSLT15_URL:-https://nlp.stanford.edu/projects/nmt/data/iwslt15.en-vi}"
ALL_METHODS="$TRANSLATION_METHODS"
FREE_LB=(--free-lb-steps 1 --free-lb-radius 0.02)
# As many types as the paper has come of words that occur five times, as in Stanford's vocabularies.
LEAST_COUNT=5

usage() {
    cat <<'END'
Usage: bash scripts/iwslt15_en_vi.sh [OPTIONS]

Reproduces the English-Vietnamese column of GA-SAM's Table 1: gets Stanford's IWSLT'15 text (133k pairs,
tst2012 to validate, tst2013 to test, whole words), trains the baseline and every method with several seeds
(the first 29 epochs, which are the same for all, once a seed), averages the last 10 checkpoints, translates
the test set, and prints the paper's BLEU beside the measured one with its spread and a paired-bootstrap
p-value. Hardware, time, disk and what the paper leaves open: docs/reproduce.md.

Data:
  --data DIR          a folder with {train,valid,test}.{en,vi} (tst2012 and tst2013 will do for the latter two),
                      plain or .gz, tokenised or not; or with the official archive's train.tags.en-vi.* and
                      XML files (default: download)

Training:
  --epochs N          (default: 52, with --small 6)
  --start-epoch N     first epoch with the perturbation (default: 30, with --small 4)
  --average N         checkpoints to average (default: 10, with --small 2)

END
    experiment_help
    cat <<'END'

Examples:
  bash scripts/iwslt15_en_vi.sh --gpus 1 --parallel 4 --extra '--fp16'
  bash scripts/iwslt15_en_vi.sh --small --data ~/corpora/iwslt15 --seeds 1 --methods baseline,ga_sam
  bash scripts/iwslt15_en_vi.sh --dry-run
END
}

set_option() { set_experiment_option "$1" "$2"; }

check_options() {
    check_experiment_options
    translation_defaults 52
    GENERATE_FLAGS=()
    [[ -z "$DATA" || -d "$DATA" ]] || misuse "--data $DATA: no such directory"
}

radius() {
    case "$1" in
        sam) echo 1.2e-3 ;;
        asam) echo 5e-4 ;;
        layer_sam) echo 1e-3 ;;
        multi_step_defense) echo 5e-4 ;;
        ga_sam) echo 0.9 ;;
        delta_sam) echo 0.05 ;; # not in the paper
    esac
}

download() {
    local split lang
    perform mkdir -p "$OUT/download"
    if [[ -n "$DATA" ]]; then return; fi
    for split in train tst2012 tst2013; do
        for lang in en vi; do fetch "$URL/$split.$lang" "$OUT/download/$split.$lang"; done
    done
}

prepare() {
    local dir="$OUT/prepared.incomplete" corpus="${DATA:-$OUT/download}"
    # Stanford's text has all pairs, in their case, and its Moses left the full stop on abbreviations.
    local flags=(--source en --target vi --out "$dir" --cased --keep-abbreviations --keep-all
        ${LIMIT[@]+"${LIMIT[@]}"})
    perform rm -rf "$dir" "$OUT/prepared"
    perform mkdir -p "$dir"
    if is_official "$corpus"; then
        run "$dir/prepare.log" "$PYTHON" "$ROOT/scripts/data/ted_corpus.py" --archive "$corpus" \
            --valid tst2012 --test tst2013 "${flags[@]}"
    else
        run "$dir/prepare.log" "$PYTHON" "$ROOT/scripts/data/parallel_text.py" --data "$corpus" "${flags[@]}"
    fi
    binarise "$dir" "" --thresholdsrc "$LEAST_COUNT" --thresholdtgt "$LEAST_COUNT"
    show_counts "$dir" "133317, 1553, 1268 pairs; dictionary en about 17200, dictionary vi about 7800"
    perform mv "$dir" "$OUT/prepared"
}

report() { report_experiment iwslt15_en_vi "IWSLT'15 En-Vi"; }

settings() { translation_settings; }

run_translation iwslt15-en-vi "$@"
