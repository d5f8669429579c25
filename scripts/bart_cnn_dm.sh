#!/usr/bin/env bash
# BART on CNN/DailyMail with and without δ-SAM (δ-SAM, Table 3).
# See usage() below, or: bash scripts/bart_cnn_dm.sh --help
# shellcheck disable=SC2034,SC2317,SC2329 # variables and functions that lib/ reads and calls by name
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/experiment.sh
source "$ROOT/scripts/lib/experiment.sh"

# The stories as the data set's own repository has them at one commit, whose SHA-256 it lists.
STORIES_URL="${CNN_DM_URL:-https://huggingface.co/datasets/abisee/cnn_dailymail/resolve/11343c3752184397d56efc19a8a7cceb68089318/data}"
CNN_SHA256=e8fbc0027e54e0a916abd9c969eb35f708ed1467d7ef4e3b17a56739d65cb200
DAILYMAIL_SHA256=ad69010002210b7c406718248ee66e65868b9f6820f163aa966369878d14147e
LISTS_URL="${CNN_DM_LISTS_URL:-https://raw.githubusercontent.com/abisee/cnn-dailymail/master/url_lists}"
GPT2_URL="${GPT2_BPE_URL:-https://dl.fbaipublicfiles.com/fairseq/gpt2_bpe}"
ENCODER_SHA256=196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783
VOCAB_SHA256=1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5
DICT_SHA256=2c31c5b236661067fe8626775eb995ef5fe808ac87d2ad4a6ddbef68550f5cc6
BART_URL=https://dl.fbaipublicfiles.com/fairseq/models/bart.large.tar.gz

ALL_METHODS="baseline sam delta_sam delta_sam_literal delta_sam_draft ga_sam r3f r_drop"
WITHOUT_RADIUS="r3f r_drop"
DEFAULT_METHODS="baseline sam delta_sam"
BART="" GPT2_BPE="" UPDATES="" PRETRAIN_UPDATES=""

usage() {
    cat <<'END'
Usage: bash scripts/bart_cnn_dm.sh --bart PATH [OPTIONS]
       bash scripts/bart_cnn_dm.sh --small [OPTIONS]

Reproduces δ-SAM's Table 3: gets CNN/DailyMail, encodes it with GPT-2's BPE, fine-tunes BART as fairseq's
recipe does, without and with sharpness-aware training, summarises the test set, and prints the paper's ROUGE
beside the measured one with its spread and a paired-bootstrap p-value.
Hardware, time, disk and what the paper leaves open: docs/reproduce.md.

Data and model:
  --bart PATH         model.pt of bart.large (or another BART), from
                      https://dl.fbaipublicfiles.com/fairseq/models/bart.large.tar.gz
  --data DIR          a folder with {train,val,test}.{source,target}, plain or .gz, or with cnn/stories,
                      dailymail/stories and url_lists (default: download)
  --gpt2-bpe DIR      a folder with encoder.json, vocab.bpe and dict.txt (default: download)

Training:
  --updates N         (default: 20000, with --small 300)
  --pretrain-updates N  with --small and without --bart a tiny BART is first trained for N updates to restore
                      corrupted text of the same corpus (default: 300)
  --average N         average the last N epochs' checkpoints (default: 0, take the best by validation loss)

END
    experiment_help
    cat <<'END'

delta_sam_literal probes at ρ, as published, delta_sam at a length that floating point allows
(docs/results/delta_weights.md); delta_sam_draft is the draft version with β = 1.

Examples:
  bash scripts/bart_cnn_dm.sh --bart bart.large/model.pt --gpus 8
  bash scripts/bart_cnn_dm.sh --small --data ~/corpora/summaries --seeds 1
  bash scripts/bart_cnn_dm.sh --bart bart.large/model.pt --dry-run
END
}

set_option() {
    case "$1" in
        --bart) BART="$2" ;;
        --gpt2-bpe) GPT2_BPE="$2" ;;
        --updates) UPDATES="$2" ;;
        --pretrain-updates) PRETRAIN_UPDATES="$2" ;;
        --epochs | --start-epoch) misuse "$1: training is counted in --updates and perturbed from the start" ;;
        *) set_experiment_option "$1" "$2" ;;
    esac
}

check_options() {
    check_experiment_options
    : "${AVERAGE:=0}"
    if ((SMALL)); then
        : "${UPDATES:=300}" "${PRETRAIN_UPDATES:=300}"
        MODEL_FLAGS=(--arch bart_base --encoder-layers 2 --decoder-layers 2
            --encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 256
            --decoder-ffn-embed-dim 256 --encoder-attention-heads 4 --decoder-attention-heads 4)
        LR=3e-4 WARMUP=$((UPDATES / 10)) MAX_TOKENS=2048 UPDATE_FREQ=1 LIMIT=(--limit 1000 50)
    else
        : "${UPDATES:=20000}" "${PRETRAIN_UPDATES:=0}"
        MODEL_FLAGS=(--arch bart_large)
        # 65536 tokens an update: the recipe has 8 GPUs with four batches of 2048 each.
        LR=3e-5 WARMUP=500 MAX_TOKENS=2048 UPDATE_FREQ=$(((32 + SHARES - 1) / SHARES)) LIMIT=()
        [[ -n "$BART" ]] || misuse "--bart is missing: the model.pt of $BART_URL"
    fi
    check_number --updates "$UPDATES" 10
    check_number --pretrain-updates "$PRETRAIN_UPDATES" 0
    check_number --average "$AVERAGE" 0
    ((DRY_RUN)) || [[ -z "$BART" || -f "$BART" ]] || misuse "--bart $BART: no such file"
    [[ -z "$DATA" || -d "$DATA" ]] || misuse "--data $DATA: no such directory"
    [[ -z "$GPT2_BPE" || -d "$GPT2_BPE" ]] || misuse "--gpt2-bpe $GPT2_BPE: no such directory"
}

method_flags() {
    local delta=(--optimizer delta_sam --base-optimizer adam --sam-rho 0.01)
    case "$1" in
        baseline) METHOD_FLAGS=(--optimizer adam) ;;
        sam) METHOD_FLAGS=(--optimizer sam --base-optimizer adam --sam-rho 0.01) ;;
        delta_sam) METHOD_FLAGS=("${delta[@]}" --delta-sam-eta 1e-4) ;;
        delta_sam_literal) METHOD_FLAGS=("${delta[@]}" --delta-sam-eta 1e-4 --delta-sam-probe-radius 0.01) ;;
        delta_sam_draft) METHOD_FLAGS=("${delta[@]}" --delta-sam-variant draft) ;;
        ga_sam) METHOD_FLAGS=(--optimizer ga_sam --base-optimizer adam) ;;
        r3f | r_drop)
            METHOD_FLAGS=(--optimizer adam --criterion "$1_label_smoothed_cross_entropy")
            # α as in R-Drop's own script for CNN/DM.
            if [[ "$1" == r_drop ]]; then METHOD_FLAGS+=(--r-drop-alpha 0.7); fi
            ;;
    esac
}

# fairseq's recipe (examples/bart/README.summarization.md). It restores the model with --restore-file and
# resets, which would begin anew after every interruption; --finetune-from-model does so only the first time.
recipe_flags() { # SEED
    RECIPE_FLAGS=(--user-dir "$ROOT/fairseq_sam" --task translation --source-lang source --target-lang target
        --truncate-source --finetune-from-model "$PRETRAINED" "${MODEL_FLAGS[@]}"
        --layernorm-embedding --share-all-embeddings --share-decoder-input-output-embed
        --required-batch-size-multiple 1 --skip-invalid-size-inputs-valid-test
        --criterion per_sentence_label_smoothed_cross_entropy --label-smoothing 0.1
        --dropout 0.1 --attention-dropout 0.1 --weight-decay 0.01 --adam-betas '(0.9, 0.999)' --adam-eps 1e-08
        --clip-norm 0.1 --lr-scheduler polynomial_decay --lr "$LR" --warmup-updates "$WARMUP"
        --total-num-update "$UPDATES" --max-update "$UPDATES" --max-tokens "$MAX_TOKENS"
        --update-freq "$UPDATE_FREQ" --save-interval-updates 1000 --keep-interval-updates 1
        --keep-last-epochs "$((AVERAGE > 1 ? AVERAGE : 1))")
    if ((GPUS && !SMALL)); then RECIPE_FLAGS+=(--fp16); fi
}

download() {
    local split
    perform mkdir -p "$OUT/download/cnn-dailymail/url_lists"
    if [[ -z "$GPT2_BPE" ]]; then
        fetch "$GPT2_URL/encoder.json" "$OUT/download/encoder.json" "$ENCODER_SHA256"
        fetch "$GPT2_URL/vocab.bpe" "$OUT/download/vocab.bpe" "$VOCAB_SHA256"
        fetch "$GPT2_URL/dict.txt" "$OUT/download/dict.txt" "$DICT_SHA256"
    fi
    if [[ -n "$DATA" ]]; then return; fi
    fetch "$STORIES_URL/cnn_stories.tgz" "$OUT/download/cnn_stories.tgz" "$CNN_SHA256"
    fetch "$STORIES_URL/dailymail_stories.tgz" "$OUT/download/dailymail_stories.tgz" "$DAILYMAIL_SHA256"
    for split in train val test; do
        fetch "$LISTS_URL/all_$split.txt" "$OUT/download/cnn-dailymail/url_lists/all_$split.txt"
    done
}

prepare() {
    local dir="$OUT/prepared.incomplete" corpus="$DATA" split side
    perform rm -rf "$dir" "$OUT/prepared"
    perform mkdir -p "$dir"
    if [[ -z "$DATA" ]]; then
        corpus="$OUT/download/cnn-dailymail"
        extract "$OUT/download/cnn_stories.tgz" "$corpus"
        extract "$OUT/download/dailymail_stories.tgz" "$corpus"
    fi
    run "$dir/prepare.log" "$PYTHON" "$ROOT/scripts/data/summary_corpus.py" --data "$corpus" --out "$dir" \
        ${LIMIT[@]+"${LIMIT[@]}"}
    for split in train val test; do
        for side in source target; do
            run_filter "$dir/$split.$side" "$dir/$split.bpe.$side" "$dir/prepare.log" \
                "$PYTHON" "$ROOT/scripts/data/gpt2_bpe.py" --encoder-json "$BPE_DIR/encoder.json" \
                --vocab-bpe "$BPE_DIR/vocab.bpe"
        done
    done
    binarise_summaries "$dir"
    if [[ -z "$PRETRAINED_BY_USER" ]]; then binarise_for_pretraining "$dir"; fi
    perform mv "$dir" "$OUT/prepared"
}

binarise_summaries() { # DIR
    local dictionary=(--srcdict "$BPE_DIR/dict.txt" --tgtdict "$BPE_DIR/dict.txt")
    # A model that is pretrained here needs no more words than the text has.
    if [[ -z "$PRETRAINED_BY_USER" ]]; then dictionary=(--joined-dictionary); fi
    run "$1/prepare.log" "$PYTHON" -m fairseq_cli.preprocess --source-lang source --target-lang target \
        --trainpref "$1/train.bpe" --validpref "$1/val.bpe" --destdir "$1/bin" --workers 4 "${dictionary[@]}"
    # Summaries longer than the model's positions would stop fairseq-generate, which has no need of them.
    run "$1/prepare.log" "$PYTHON" -m fairseq_cli.preprocess --source-lang source --target-lang target \
        --only-source --srcdict "$1/bin/dict.source.txt" --testpref "$1/test.bpe" --destdir "$1/bin" --workers 4
}

binarise_for_pretraining() { # DIR
    run_into "$1/pretrain.bpe" "$1/prepare.log" cat "$1/train.bpe.source" "$1/train.bpe.target"
    run "$1/prepare.log" "$PYTHON" -m fairseq_cli.preprocess --only-source --srcdict "$1/bin/dict.source.txt" \
        --trainpref "$1/pretrain.bpe" --validpref "$1/val.bpe.source" --destdir "$1/pretrain-bin" --workers 4
}

# BART's text infilling (Lewis et al. 2020): spans of Poisson length become one mask. Its shuffling of sentences
# needs --bpe gpt2, for which fairseq's task fetches the BPE's files itself, whatever the flags say.
pretrain() {
    perform mkdir -p "$OUT/pretrain"
    run "$OUT/pretrain/train.log" "$PYTHON" -m fairseq_cli.train "$OUT/prepared/pretrain-bin" \
        --user-dir "$ROOT/fairseq_sam" --task denoising "${MODEL_FLAGS[@]}" \
        --layernorm-embedding --share-all-embeddings --share-decoder-input-output-embed \
        --tokens-per-sample 512 --sample-break-mode complete --shorten-method truncate \
        --mask 0.3 --mask-length span-poisson --poisson-lambda 3.5 --replace-length 1 --permute-sentences 0 \
        --rotate 0 --criterion cross_entropy --optimizer adam --adam-betas '(0.9, 0.98)' --weight-decay 0.01 \
        --clip-norm 0.1 --lr 1e-3 --lr-scheduler polynomial_decay --warmup-updates "$((PRETRAIN_UPDATES / 10))" \
        --total-num-update "$PRETRAIN_UPDATES" --max-update "$PRETRAIN_UPDATES" --max-tokens 2048 --seed 1 \
        --skip-invalid-size-inputs-valid-test --no-epoch-checkpoints --save-dir "$OUT/pretrain/checkpoints" \
        --no-progress-bar --log-format json --log-interval 20 "${DEVICE_FLAGS[@]}"
}

stage_3() {
    if [[ -z "$PRETRAINED_BY_USER" ]]; then
        needs prepare 2
        once pretrain "Stage 3: pretraining a small BART" pretrain
    fi
}

score_run() { # METHOD SEED
    local dir log model compare=()
    dir="$(run_dir "$1" "$2")" log="$dir/score.log" model="$dir/checkpoints/checkpoint_best.pt"
    needs "train.$1.seed$2" 4
    if ((AVERAGE)); then
        model="$dir/average.pt"
        run "$log" "$PYTHON" -m fairseq_sam.commands average "$dir/checkpoints" --last-epochs "$AVERAGE" \
            --output "$model" --force
    fi
    run_into "$dir/summaries.txt" "$log" "$PYTHON" -m fairseq_cli.generate "$BIN" \
        --user-dir "$ROOT/fairseq_sam" --path "$model" --gen-subset test --task translation \
        --source-lang source --target-lang target --truncate-source --beam 4 --lenpen 2.0 --max-len-b 140 \
        --min-len "$MIN_LENGTH" --no-repeat-ngram-size 3 --batch-size 32 --required-batch-size-multiple 1 "${DEVICE_FLAGS[@]}"
    if has_baseline "$1" "$2"; then compare=(--baseline "$(run_dir baseline "$2")/hypothesis"); fi
    run "$log" "$PYTHON" "$ROOT/scripts/scoring/summaries.py" --generated "$dir/summaries.txt" \
        --encoder-json "$BPE_DIR/encoder.json" --vocab-bpe "$BPE_DIR/vocab.bpe" \
        --reference "$OUT/prepared/test.target" ${compare[@]+"${compare[@]}"} --output "$dir/scores.json"
    if ((FREE_DISK && AVERAGE)); then perform rm -rf "$dir/checkpoints"; fi
}

report() { report_experiment bart_cnn_dm "BART on CNN/DM"; }

settings() {
    printf '%s\n' "data=${DATA:-$STORIES_URL} bart=$BART small=$SMALL" \
        "updates=$UPDATES pretrain=$PRETRAIN_UPDATES average=$AVERAGE" "extra=$EXTRA"
}

main() {
    parse_options "$@"
    check_options
    start_experiment bart-cnn-dm "$(settings)"
    BIN="$OUT/prepared/bin" BPE_DIR="${GPT2_BPE:-$OUT/download}"
    PRETRAINED_BY_USER="$BART" PRETRAINED="${BART:-$OUT/pretrain/checkpoints/checkpoint_last.pt}"
    DEVICE_FLAGS=(--distributed-world-size 1)
    if ((!GPUS)); then DEVICE_FLAGS+=(--cpu); fi
    # The papers' summaries have at least 55 tokens; those of other corpora may be shorter.
    MIN_LENGTH="$([[ -n "$DATA" ]] && echo 10 || echo 55)"
    if ((NODE_RANK)); then join_trainings; else run_experiment; fi
    exit 0
}

main "$@"
