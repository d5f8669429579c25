#!/usr/bin/env bash
# GLUE tasks with and without sharpness-aware fine-tuning (δ-SAM, Tables 1 and 2).
# See usage() below, or: bash scripts/glue.sh --help
# shellcheck disable=SC2034,SC2317,SC2329 # variables and functions that lib/ reads and calls by name
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/experiment.sh
source "$ROOT/scripts/lib/experiment.sh"
# shellcheck source=scripts/lib/classification.sh
source "$ROOT/scripts/lib/classification.sh"

URL="${GLUE_URL:-https://dl.fbaipublicfiles.com/glue/data}"
GPT2_URL="${GPT2_BPE_URL:-https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe}"
ETAS="delta_sam_eta1e-4 delta_sam_eta2e-4 delta_sam_eta5e-4 delta_sam_eta1e-3"
ALL_METHODS="baseline sam delta_sam delta_sam_literal delta_sam_draft per_instance_sam ga_sam asam free_lb r3f r_drop"
ALL_METHODS+=" smart $ETAS"
WITHOUT_RADIUS="free_lb r3f r_drop smart"
DEFAULT_METHODS="baseline sam delta_sam ga_sam"
SEEDS=1,2,3,4,5
TASKS="CoLA MNLI MRPC QNLI QQP RTE SST-2 STS-B"
TASK="" MODEL="" ARCH="" GPT2_BPE="" LEARNING_RATE="" BATCH="" MAX_UPDATES=""

usage() {
    cat <<'END'
Usage: bash scripts/glue.sh TASK --model PATH [OPTIONS]

Reproduces a column of δ-SAM's Tables 1 and 2: gets a GLUE task, fine-tunes a pretrained encoder on it with
R-Drop's settings, as the paper does, without and with sharpness-aware training, and prints best and median of
the seeds on the dev set beside the paper's. TASK is CoLA, MNLI, MRPC, QNLI, QQP, RTE, SST-2 or STS-B.
What the paper leaves open: docs/reproduce.md.

Model and data:
  --model PATH        a folder that fairseq-sam convert wrote, or the model.pt of fairseq's roberta.base or
                      roberta.large (https://dl.fbaipublicfiles.com/fairseq/models/roberta.large.tar.gz)
  --arch NAME         of a model.pt: roberta_base or roberta_large (default)
  --data DIR          a folder with the task's folder, or with its tsv files, plain or .gz (default: download)
  --gpt2-bpe DIR      for a model.pt: a folder with encoder.json, vocab.bpe and dict.txt (default: download)

Training:
  --epochs N          (default: R-Drop's number of updates, about 10 epochs; with --batch 10, with --small 2)
  --lr X, --batch N   (default: 1e-5; 32, of MRPC, CoLA and STS-B 16, of RTE 8)

END
    experiment_help
    cat <<'END'

delta_sam_etaX has another η. The paper's grid is sam and delta_sam_eta{1e-4,2e-4,5e-4,1e-3} at 0.01, 0.02 and
0.05, for instance: --methods baseline,sam@0.01,sam@0.02,sam@0.05,delta_sam_eta5e-4@0.02

Examples:
  bash scripts/glue.sh RTE --model roberta.large/model.pt --gpus 1 --parallel 4
  bash scripts/glue.sh MRPC --model minilm --data ~/corpora/glue --methods baseline,sam,delta_sam,ga_sam
  bash scripts/glue.sh RTE --model minilm --data ~/corpora/glue --small --seeds 1
END
}

set_argument() {
    [[ -z "$TASK" ]] || return 1
    TASK="$1"
}

set_option() {
    case "$1" in
        --model) MODEL="$2" ;;
        --arch) ARCH="$2" ;;
        --gpt2-bpe) GPT2_BPE="$2" ;;
        --lr) LEARNING_RATE="$2" ;;
        --batch) BATCH="$2" ;;
        --start-epoch | --average) misuse "$1: training is perturbed from the start, and nothing is averaged" ;;
        *) set_experiment_option "$1" "$2" ;;
    esac
}

check_options() {
    check_choice TASK "$TASK" "$TASKS"
    check_experiment_options
    LIMIT=()
    if ((SMALL)); then LIMIT=(--limit 200 100); fi
    task_settings
    [[ -z "$EPOCHS" ]] || check_number --epochs "$EPOCHS" 1
    check_number --batch "$BATCH" 1
    check_positive --lr "$LEARNING_RATE"
    [[ -n "$MODEL" ]] || misuse "--model is missing: a folder of fairseq-sam convert, or a model.pt"
    ((DRY_RUN)) || [[ -e "$MODEL" ]] || misuse "--model $MODEL: no such file or directory"
    ((DRY_RUN)) || [[ ! -d "$MODEL" || -f "$MODEL/flags.txt" ]] ||
        misuse "--model $MODEL: not a folder that fairseq-sam convert wrote (flags.txt is missing)"
    if [[ -d "$MODEL" ]]; then
        [[ -z "$ARCH" ]] || misuse "--arch $ARCH: the folder $MODEL has its own"
    else
        : "${ARCH:=roberta_large}"
        check_choice --arch "$ARCH" "roberta_base roberta_large"
    fi
    [[ -z "$DATA" || -d "$DATA" ]] || misuse "--data $DATA: no such directory"
}

# Batches, updates and warm-up are R-Drop's (huggingface_transformer_src/README.md of its repository), who has
# them from fairseq's examples/roberta; radii and η are those of δ-SAM's Table 5, β those of its draft.
task_settings() {
    local size beta=() rdrop=()
    CLASSES=2 METRICS=accuracy BEST=accuracy NUMBER=0 PAIRS=1 ETA=1e-4
    size=32 UPDATES="" WARMUP=""
    case "$TASK" in
        CoLA) PAIRS=0 METRICS=matthews size=16 rdrop=(5336 320) beta=(20 10) ;;
        MNLI) CLASSES=3 rdrop=(123873 7432) beta=(3 3) ;;
        MRPC) METRICS=accuracy,f1 size=16 rdrop=(2296 137) beta=(5 10) ;;
        QNLI) rdrop=(33112 1986) beta=(3 3) ;;
        QQP) METRICS=accuracy,f1 rdrop=(113272 28318) beta=(3 3) ;;
        RTE) size=8 ETA=5e-4 rdrop=(2036 122) beta=(5 70) ;;
        SST-2) PAIRS=0 rdrop=(20935 1256) beta=(3 3) ;;
        STS-B) CLASSES=1 METRICS=pearson,spearman BEST=loss NUMBER=1 size=16 rdrop=(3598 214) beta=(10 10) ;;
    esac
    FAMILY=roberta RHO=0.02 DRAFT_BETA="${beta[0]}"
    if is_bert; then FAMILY=bert RHO=0.05 DRAFT_BETA="${beta[1]}"; fi
    if ((NUMBER)); then RHO=0.01; fi
    if ((!SMALL)) && [[ -z "$EPOCHS$BATCH" ]]; then UPDATES="${rdrop[0]}" WARMUP="${rdrop[1]}"; fi
    if [[ -z "$UPDATES" ]]; then : "${EPOCHS:=$((SMALL ? 2 : 10))}"; fi
    : "${LEARNING_RATE:=1e-5}" "${BATCH:=$size}"
}

# Of the two kinds that fairseq-sam convert writes, RoBERTa has merges.
is_bert() { [[ -d "$MODEL" && ! -f "$MODEL/merges.txt" ]]; }

method_flags() {
    local criterion="sentence_prediction" radius="$RHO"
    METHOD_FLAGS=(--base-optimizer adam --sam-rho "$radius")
    case "$1" in
        baseline) METHOD_FLAGS=(--optimizer adam) ;;
        free_lb | r3f | r_drop) METHOD_FLAGS=(--optimizer adam --criterion "$1_$criterion") ;;
        smart) METHOD_FLAGS=(--optimizer adam --criterion "smart_$criterion" "${SMART[@]}") ;;
        delta_sam) METHOD_FLAGS+=(--optimizer delta_sam --delta-sam-eta "$ETA") ;;
        delta_sam_eta*) METHOD_FLAGS+=(--optimizer delta_sam --delta-sam-eta "${1#delta_sam_eta}") ;;
        delta_sam_literal)
            METHOD_FLAGS+=(--optimizer delta_sam --delta-sam-eta "$ETA" --delta-sam-probe-radius "$radius")
            ;;
        delta_sam_draft)
            METHOD_FLAGS+=(--optimizer delta_sam --delta-sam-variant draft --delta-sam-beta "$DRAFT_BETA")
            ;;
        # Not in the paper; 2e-4, GA-SAM's default, is far too large for fine-tuning: docs/results/small_runs.md.
        ga_sam) METHOD_FLAGS=(--optimizer ga_sam --base-optimizer adam --sam-rho 5e-6) ;;
        asam) METHOD_FLAGS=(--optimizer asam --base-optimizer adam) ;;
        *) METHOD_FLAGS+=(--optimizer "$1") ;;
    esac
}

recipe_flags() { # SEED
    count_updates
    RECIPE_FLAGS=(--user-dir "$ROOT/fairseq_sam" --task sentence_prediction --num-classes "$CLASSES"
        --init-token 0 "${MODEL_FLAGS[@]}" --finetune-from-model "$MODEL_FILE"
        --shorten-method truncate
        --required-batch-size-multiple 1 --criterion per_sentence_sentence_prediction
        --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 --adam-betas '(0.9, 0.98)' --adam-eps 1e-06
        --clip-norm 0.0 --lr-scheduler polynomial_decay --lr "$LEARNING_RATE"
        --total-num-update "$UPDATES" --warmup-updates "$WARMUP" --max-update "$UPDATES"
        --batch-size "$(per_worker "$BATCH")" --best-checkpoint-metric "$BEST" --no-epoch-checkpoints)
    if ((NUMBER)); then
        RECIPE_FLAGS+=(--regression-target)
    else
        RECIPE_FLAGS+=(--maximize-best-checkpoint-metric)
    fi
    if ((GPUS && !SMALL)); then RECIPE_FLAGS+=(--fp16); fi
}

download() {
    perform mkdir -p "$OUT/download"
    if [[ ! -d "$MODEL" && -z "$GPT2_BPE" ]]; then
        fetch "$GPT2_URL/encoder.json" "$OUT/download/encoder.json"
        fetch "$GPT2_URL/vocab.bpe" "$OUT/download/vocab.bpe"
        fetch "$GPT2_URL/dict.txt" "$OUT/download/dict.txt"
    fi
    if [[ -n "$DATA" ]]; then return; fi
    if [[ "$TASK" == MRPC ]]; then
        die "MRPC is not for download: put its train.tsv and dev.tsv into a folder and name it with --data"
    fi
    fetch "$URL/$(archive_of "$TASK").zip" "$OUT/download/$TASK.zip"
    perform "$PYTHON" -m zipfile -e "$OUT/download/$TASK.zip" "$OUT/download"
}

archive_of() {
    case "$1" in
        QNLI) echo QNLIv2 ;;
        QQP) echo QQP-clean ;;
        *) echo "$1" ;;
    esac
}

prepare() {
    local dir="$OUT/prepared.incomplete" split part
    perform rm -rf "$dir" "$OUT/prepared"
    perform mkdir -p "$dir/pieces"
    run "$dir/prepare.log" "$PYTHON" "$ROOT/scripts/data/glue_task.py" --data "${DATA:-$OUT/download}" \
        --task "$TASK" --out "$dir" ${LIMIT[@]+"${LIMIT[@]}"}
    for part in input0 input1; do
        if [[ "$part" == input1 ]] && ((!PAIRS)); then continue; fi
        for split in train valid; do
            run_filter "$dir/$split.$part" "$dir/pieces/$split.$part" "$dir/prepare.log" "${ENCODE[@]}"
        done
        run "$dir/prepare.log" "$PYTHON" -m fairseq_cli.preprocess --only-source --srcdict "$DICTIONARY" \
            --trainpref "$dir/pieces/train.$part" --validpref "$dir/pieces/valid.$part" \
            --destdir "$dir/bin/$part" --workers 4
    done
    prepare_labels "$dir"
    perform mv "$dir" "$OUT/prepared"
}

prepare_labels() { # DIR
    local split
    if ((!NUMBER)); then
        run "$1/prepare.log" "$PYTHON" -m fairseq_cli.preprocess --only-source --trainpref "$1/train.label" \
            --validpref "$1/valid.label" --destdir "$1/bin/label" --workers 4
        return
    fi
    perform mkdir -p "$1/bin/label"
    for split in train valid; do perform cp "$1/$split.number" "$1/bin/label/$split.label"; done
}

score_run() { score_labelled "$1" "$2" "$BIN" valid "$METRICS"; }

report() {
    report_experiment "glue_${TASK//-/}_$FAMILY" "GLUE, $TASK" --summary best-median
}

settings() {
    printf '%s\n' "data=${DATA:-$URL} task=$TASK model=$MODEL small=$SMALL" \
        "epochs=$EPOCHS lr=$LEARNING_RATE batch=$BATCH" "extra=$EXTRA"
}

# Sets what depends on where the model is from: its flags, dictionary and tokeniser.
choose_model() {
    local bpe="${GPT2_BPE:-$OUT/download}"
    if [[ -d "$MODEL" ]]; then
        split_flags "$(cat "$MODEL/flags.txt")"
        MODEL_FLAGS=("${FLAGS[@]}") MODEL_FILE="$MODEL/model.pt" DICTIONARY="$MODEL/dict.txt"
        ENCODE=(env PYTHONPATH="$ROOT" "$PYTHON" "$ROOT/scripts/data/wordpiece.py" "$MODEL")
    else
        MODEL_FLAGS=(--arch "$ARCH" --max-positions 512 --separator-token 2) MODEL_FILE="$MODEL" DICTIONARY="$bpe/dict.txt"
        ENCODE=("$PYTHON" "$ROOT/scripts/data/gpt2_bpe.py" --encoder-json "$bpe/encoder.json"
            --vocab-bpe "$bpe/vocab.bpe")
    fi
}

# Without R-Drop's numbers: as many updates as the epochs have, which the schedule must know.
count_updates() {
    local size
    if [[ -z "$EPOCHS" ]]; then return; fi
    case "$TASK" in # in the whole data
        CoLA) size=8551 ;;
        MNLI) size=392702 ;;
        MRPC) size=3668 ;;
        QNLI) size=104743 ;;
        QQP) size=363846 ;;
        RTE) size=2490 ;;
        SST-2) size=67349 ;;
        STS-B) size=5749 ;;
    esac
    if [[ -f "$OUT/prepared/train.input0" ]]; then size="$(wc -l <"$OUT/prepared/train.input0")"; fi
    UPDATES=$((EPOCHS * ((size + BATCH - 1) / BATCH)))
    WARMUP=$((UPDATES * 6 / 100))
}

main() {
    parse_options "$@"
    check_options
    start_experiment "glue-$TASK" "$(settings)"
    BIN="$OUT/prepared/bin"
    choose_model
    if ((NODE_RANK)); then join_trainings; else run_experiment; fi
    exit 0
}

main "$@"
