#!/usr/bin/env bash
# IWSLT'14 German-English with and without sharpness-aware training (GA-SAM, Table 1 and Appendix B.4).
# See usage() below, or: bash scripts/iwslt14_de_en.sh --help
# shellcheck disable=SC2034,SC2317,SC2329 # variables and functions that lib/ reads and calls by name
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/experiment.sh
source "$ROOT/scripts/lib/experiment.sh"
# shellcheck source=scripts/lib/translation.sh
source "$ROOT/scripts/lib/translation.sh"

SRC=de TGT=en
URL="${IWSLT14_URL:-http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz}"
ALL_METHODS="$TRANSLATION_METHODS"
FREE_LB=(--free-lb-steps 3 --free-lb-radius 0.005)
BPE=subword-nmt BPE_SIZE=""

usage() {
    cat <<'END'
Usage: bash scripts/iwslt14_de_en.sh [OPTIONS]

Reproduces the German-English column of GA-SAM's Table 1: gets the IWSLT'14 archive, prepares it as
fairseq's recipe does, trains the baseline and every method with several seeds (the first 29 epochs, which
are the same for all, once a seed), averages the last 10 checkpoints, translates the test set, and prints
the paper's BLEU beside the measured one with its spread and a paired-bootstrap p-value.
Hardware, time, disk and what the paper leaves open: docs/reproduce.md.

Data:
  --data PATH         the archive (de-en.tgz), its unpacked folder, or a folder with
                      {train,valid,test}.{de,en}, plain or .gz, tokenised or not (default: download)
  --bpe KIND          subword-nmt (default) or sentencepiece
  --bpe-size N        joint merges or pieces (default: 10000, with --small 2000)

Training:
  --epochs N          (default: 70, with --small 6)
  --start-epoch N     first epoch with the perturbation (default: 30, with --small 4)
  --average N         checkpoints to average (default: 10, with --small 2)

END
    experiment_help
    cat <<'END'

Examples:
  bash scripts/iwslt14_de_en.sh --gpus 1 --parallel 4 --extra '--fp16'
  bash scripts/iwslt14_de_en.sh --small --data ~/corpora/de-en.tgz --seeds 1 --methods baseline,ga_sam
  bash scripts/iwslt14_de_en.sh --dry-run
END
}

set_option() {
    case "$1" in
        --bpe) BPE="$2" ;;
        --bpe-size) BPE_SIZE="$2" ;;
        *) set_experiment_option "$1" "$2" ;;
    esac
}

check_options() {
    check_experiment_options
    translation_defaults 70
    : "${BPE_SIZE:=$( ((SMALL)) && echo 2000 || echo 10000)}"
    check_choice --bpe "$BPE" "subword-nmt sentencepiece"
    check_number --bpe-size "$BPE_SIZE" 100 100000
    # The text is in lower case, the references are not.
    SCORE_FLAGS=(--lowercase)
    GENERATE_FLAGS=(--remove-bpe)
    if [[ "$BPE" == sentencepiece ]]; then GENERATE_FLAGS=(--remove-bpe=sentencepiece); fi
    [[ -z "$DATA" || -e "$DATA" ]] || misuse "--data $DATA: no such file or directory"
}

radius() {
    case "$1" in
        sam) echo 5e-4 ;;
        asam) echo 2e-4 ;;
        layer_sam) echo 3e-3 ;;
        multi_step_defense) echo 5e-4 ;;
        ga_sam) echo 0.8 ;;
        delta_sam) echo 0.05 ;; # not in the paper
    esac
}

download() {
    perform mkdir -p "$OUT/download"
    if [[ -z "$DATA" ]]; then fetch "$URL" "$OUT/download/de-en.tgz"; fi
}

# unpack ARCHIVE DIR: sets CORPUS to the folder in DIR that has the files.
unpack() {
    local found
    perform mkdir -p "$2"
    extract "$1" "$2"
    CORPUS="$2/de-en"
    if ((DRY_RUN)); then return; fi
    found="$(find "$2" -name 'train.tags.de-en.de*' -print -quit)"
    [[ -n "$found" ]] || die "$1: there is no train.tags.de-en.de in it"
    CORPUS="$(dirname "$found")"
}

prepare() {
    local dir="$OUT/prepared.incomplete" flags=(--source de --target en --out "$OUT/prepared.incomplete"
        ${LIMIT[@]+"${LIMIT[@]}"})
    perform rm -rf "$dir" "$OUT/prepared"
    perform mkdir -p "$dir"
    CORPUS="$DATA"
    if [[ ! -d "$DATA" ]]; then unpack "${DATA:-$OUT/download/de-en.tgz}" "$dir/archive"; fi
    if is_official "$CORPUS"; then
        run "$dir/prepare.log" "$PYTHON" "$ROOT/scripts/data/ted_corpus.py" --archive "$CORPUS" "${flags[@]}"
    else
        run "$dir/prepare.log" "$PYTHON" "$ROOT/scripts/data/parallel_text.py" --data "$CORPUS" "${flags[@]}"
    fi
    split_into_subwords "$dir" "$BPE" "$BPE_SIZE"
    binarise "$dir" .bpe
    perform rm -rf "$dir/archive"
    show_counts "$dir" "160239, 7283, 6750 pairs; dictionary de 8848, dictionary en 6632"
    perform mv "$dir" "$OUT/prepared"
}

report() { report_experiment iwslt14_de_en "IWSLT'14 De-En"; }

settings() {
    translation_settings
    echo "bpe=$BPE $BPE_SIZE"
}

run_translation iwslt14-de-en "$@"
