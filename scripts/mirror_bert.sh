#!/usr/bin/env bash
# Sentence embeddings without labels, with and without sharpness-aware training (δ-SAM, Table 2).
# See usage() below, or: bash scripts/mirror_bert.sh --help
# shellcheck disable=SC2034,SC2317,SC2329 # variables and functions that lib/ reads and calls by name
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/experiment.sh
source "$ROOT/scripts/lib/experiment.sh"

URL="${MIRROR_BERT_URL:-https://raw.githubusercontent.com/cambridgeltl/mirror-bert/main/data/mirror_corpus/stsbenchmark_train_10k_sents_random_sampled.txt}"
ETAS="delta_sam_eta1e-3 delta_sam_eta1e-2 delta_sam_eta0.1"
ALL_METHODS="baseline r3f sam delta_sam sam_noise delta_sam_noise delta_sam_literal ga_sam $ETAS"
WITHOUT_RADIUS="r3f"
DEFAULT_METHODS="baseline r3f sam delta_sam sam_noise delta_sam_noise"
SEEDS=1,2,3,4,5
CURVES=0
MODEL="" STS="" LEARNING_RATE=2e-5 BATCH=""

usage() {
    cat <<'END'
Usage: bash scripts/mirror_bert.sh --model DIR --sts DIR [OPTIONS]

Reproduces δ-SAM's Table 2: gets Mirror-BERT's 10,000 sentences, makes a pretrained encoder a sentence encoder
by contrasting two views of each, without and with sharpness-aware training of one view, and prints the paper's
Spearman's ρ on STS12 to 16, STS-B and SICK-R beside the measured one, the mean of the seeds. Scored is the last
checkpoint. What the paper leaves open: docs/sentence_embeddings.md.

Model and data:
  --model DIR         a folder that fairseq-sam convert wrote, of bert-base-uncased or roberta-base in the paper
  --sts DIR           SentEval's data/downstream: a folder with STS and SICK in it
  --data PATH         sentences, one a line: a file, or a folder of *.txt, plain or .gz (default: download)

Training:
  --epochs N          (default: 1)
  --batch N           sentences of an update, each the others' negative (default: 200, with --small 50)
  --lr X              (default: 2e-5)

END
    experiment_help
    cat <<'END'

r3f is noise alone, X_noise is X with noise. The paper's grid is sam and delta_sam{,_eta1e-3,_eta1e-2,_eta0.1} at
0.01, 0.02, 0.05 and 0.1, for instance: --methods baseline,sam@0.01,delta_sam_eta0.1@0.05
It chose on STS-B's development set, which the report has as "STS-B dev".

Examples:
  bash scripts/mirror_bert.sh --model bert-base --sts SentEval/data/downstream --gpus 1 --parallel 4
  bash scripts/mirror_bert.sh --model minilm --sts ~/corpora/sts --data ~/corpora/sentences.txt.gz --small --seeds 1
END
}

set_option() {
    case "$1" in
        --model) MODEL="$2" ;;
        --sts) STS="$2" ;;
        --lr) LEARNING_RATE="$2" ;;
        --batch) BATCH="$2" ;;
        --start-epoch | --average) misuse "$1: training is perturbed from the start, and nothing is averaged" ;;
        *) set_experiment_option "$1" "$2" ;;
    esac
}

check_options() {
    check_experiment_options
    : "${EPOCHS:=1}" "${BATCH:=$((SMALL ? 50 : 200))}"
    LIMIT=()
    if ((SMALL)); then LIMIT=(--limit 1000); fi
    check_number --epochs "$EPOCHS" 1
    check_number --batch "$BATCH" 2
    check_positive --lr "$LEARNING_RATE"
    ((SHARES == 1)) || misuse "--gpus, --nodes: one GPU a training, whose batch has all of a sentence's negatives"
    [[ -n "$MODEL" ]] || misuse "--model is missing: a folder that fairseq-sam convert wrote"
    [[ -f "$MODEL/flags.txt" ]] ||
        misuse "--model $MODEL: not a folder that fairseq-sam convert wrote (flags.txt is missing)"
    [[ -n "$STS" ]] || misuse "--sts is missing: a folder with STS and SICK, such as SentEval's data/downstream"
    [[ -d "$STS" ]] || misuse "--sts $STS: no such directory"
    [[ -z "$DATA" || -e "$DATA" ]] || misuse "--data $DATA: no such file or directory"
}

# The paper's settings (its Appendix A); pooling as in Mirror-BERT's scripts.
choose_model() {
    split_flags "$(cat "$MODEL/flags.txt")"
    MODEL_FLAGS=("${FLAGS[@]}")
    if [[ " ${FLAGS[*]} " == *" --arch bert "* ]]; then
        FAMILY=bert RHO=0.1 NOISE=0.1 POOLING=mean
    else
        FAMILY=roberta RHO=0.02 NOISE=0.2 POOLING=cls
    fi
}

method_flags() {
    METHOD_FLAGS=(--base-optimizer adam --sam-rho "$RHO")
    case "$1" in
        baseline | r3f) METHOD_FLAGS=(--optimizer adam) ;;
        sam | sam_noise) METHOD_FLAGS+=(--optimizer sam) ;;
        delta_sam | delta_sam_noise) METHOD_FLAGS+=(--optimizer delta_sam --delta-sam-eta 1.0) ;;
        delta_sam_literal)
            METHOD_FLAGS+=(--optimizer delta_sam --delta-sam-eta 1.0 --delta-sam-probe-radius "$RHO")
            ;;
        delta_sam_eta*) METHOD_FLAGS+=(--optimizer delta_sam --delta-sam-eta "${1#delta_sam_eta}") ;;
        ga_sam) METHOD_FLAGS=(--optimizer ga_sam --base-optimizer adam) ;; # not in the paper
    esac
    if [[ "$1" == r3f || "$1" == *_noise ]]; then METHOD_FLAGS+=(--mirror-noise "$NOISE"); fi
}

# Those of the authors' code (github.com/cambridgeltl/mirror-bert), AdamW with torch's defaults included.
# In half precision, which it has, δ-SAM's weights would be rounding noise. fairseq 0.12.2 loads a validation set
# even where it is not to validate.
recipe_flags() { # SEED
    RECIPE_FLAGS=(--user-dir "$ROOT/fairseq_sam" --task sentence_similarity --max-sentence-tokens 50
        "${MODEL_FLAGS[@]}" --finetune-from-model "$MODEL/model.pt"
        --criterion mirror_bert --mirror-temperature 0.04 --mirror-pooling "$POOLING" --mirror-span 2
        --mirror-perturb one --dropout 0.1 --attention-dropout 0.1
        --weight-decay 0.01 --adam-betas '(0.9, 0.999)' --adam-eps 1e-08 --clip-norm 0.0
        --lr "$LEARNING_RATE" --lr-scheduler fixed --batch-size "$BATCH" --required-batch-size-multiple 1
        --disable-validation --valid-subset train --no-epoch-checkpoints)
}

download() {
    perform mkdir -p "$OUT/download"
    if [[ -z "$DATA" ]]; then fetch "$URL" "$OUT/download/sentences.txt"; fi
}

prepare() {
    local dir="$OUT/prepared.incomplete"
    perform rm -rf "$dir" "$OUT/prepared"
    perform mkdir -p "$dir"
    run "$dir/prepare.log" "$PYTHON" "$ROOT/scripts/data/sentences.py" --data "${DATA:-$OUT/download}" \
        --out "$dir/train.text" ${LIMIT[@]+"${LIMIT[@]}"}
    run_filter "$dir/train.text" "$dir/train.pieces" "$dir/prepare.log" \
        env PYTHONPATH="$ROOT" "$PYTHON" "$ROOT/scripts/data/wordpiece.py" "$MODEL"
    run "$dir/prepare.log" "$PYTHON" -m fairseq_cli.preprocess --only-source --srcdict "$MODEL/dict.txt" \
        --trainpref "$dir/train.pieces" --destdir "$dir/bin" --workers 4
    perform mv "$dir" "$OUT/prepared"
}

score_run() { # METHOD SEED
    local dir log evaluate
    dir="$(run_dir "$1" "$2")" log="$dir/score.log"
    needs "train.$1.seed$2" 4
    evaluate=("$PYTHON" -m fairseq_sam.commands sts "$STS" "$dir/checkpoints/checkpoint_last.pt" --data "$BIN"
        --tokenizer "$MODEL/tokenizer.json")
    if ((!GPUS)); then evaluate+=(--cpu); fi
    run "$log" "${evaluate[@]}" --json "$dir/sts.json"
    run "$log" "${evaluate[@]}" --json "$dir/sts-dev.json" --dev
    run "$log" "$PYTHON" "$ROOT/scripts/scoring/similarity.py" "$dir/sts.json" "$dir/sts-dev.json" \
        --output "$dir/scores.json"
    if ((FREE_DISK)); then perform rm -rf "$dir/checkpoints"; fi
}

report() { report_experiment "mirror_${FAMILY}_sts" "Mirror-BERT on STS"; }

settings() {
    printf '%s\n' "data=${DATA:-$URL} model=$MODEL sts=$STS small=$SMALL" \
        "epochs=$EPOCHS lr=$LEARNING_RATE batch=$BATCH" "extra=$EXTRA"
}

main() {
    parse_options "$@"
    check_options
    choose_model
    start_experiment "mirror-$FAMILY" "$(settings)"
    BIN="$OUT/prepared/bin"
    run_experiment
    exit 0
}

main "$@"
