#!/usr/bin/env bash
# Trains a small translation model twice, with the base optimizer and with a sharpness-aware method,
# and compares them. See usage() below, or: bash scripts/quickstart.sh --help
# shellcheck disable=SC2317,SC2329 # functions are called by name, see once()
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck source=scripts/lib/stages.sh
source "$ROOT/scripts/lib/stages.sh"

# Threads that wait by spinning crawl when anything else wants the cores; these sleep instead.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"
METHODS="sam asam layer_sam multi_step_defense ga_sam delta_sam"
BASE_OPTIMIZER=adam
BEAM=5

usage() {
    cat <<'END'
Usage: bash scripts/quickstart.sh [OPTIONS]

Installs what is missing, makes a small parallel corpus (numbers, dates, times and prices in words),
trains a small Transformer twice from the same first epochs (Adam alone; Adam inside GA-SAM), averages
the last checkpoints, translates the test set and compares: BLEU and chrF (sacreBLEU on detokenised
text), validation loss and seconds per epoch as a table, learning curves and sharpness as a plot.
A rerun skips what is done and goes on where a killed run stopped. Another method with the same --out
adds a row.

What to train on:
  --pair SRC-TGT      languages (default: de-en); without --data any two that num2words knows
  --data DIR          DIR/{train,valid,test}.{SRC,TGT}, each plain or .gz, instead of the made corpus
  --text KIND         raw, or tokenized if it is Moses-tokenized already (default: look at it)
  --bpe N             joint BPE merges, 0 for whole words (default: whole words if they cover the
                      validation set, otherwise 300, with --data 4000)

How to train:
  --optimizer NAME    sam, asam, layer_sam, multi_step_defense, ga_sam or delta_sam (default: ga_sam)
  --rho X             radius of the perturbation (default: 0.00005 for ga_sam, else the method's own)
  --steps K           ascent steps (default: the method's own)
  --epochs N          (default: 30, with --data 10)
  --start-epoch N     first epoch with the perturbation (default: halfway); those before are trained once
  --model SIZE        tiny (2+2 layers, 128 wide; default) or small (3+3 layers, 256 wide)
  --max-tokens N      tokens in a batch (default: 1500, with --data 3000)
  --lr X              peak learning rate (default: 0.003)
  --average N         checkpoints to average (default: 3)
  --seed N            (default: 1)
  --extra 'FLAGS'     more flags for both fairseq-train runs
  --sam-extra 'FLAGS' more flags for the sharpness-aware run only, e.g. '--sam-norm l2'

What to run:
  --out DIR           where everything goes (default: runs/quickstart-PAIR, or -NAME-PAIR with --data)
  --label NAME        name of the sharpness-aware run (default: the method's)
  --stage N           first stage to run, 1 to 6 (default: 1)
  --stop-stage N      last stage to run (default: 6)
                      1 corpus  2 preprocess  3 shared epochs  4 base and sharpness-aware training
                      5 average, translate, score  6 report
  --no-install        use the environment as it is
  -h, --help          this text
END
    environment_help
    cat <<'END'

Examples:
  bash scripts/quickstart.sh
  bash scripts/quickstart.sh --optimizer sam --rho 0.05
  bash scripts/quickstart.sh --data ~/corpora/multi30k --pair de-en --epochs 12 --start-epoch 8
END
}

# ---- options -------------------------------------------------------------------------------------

DATA="" PAIR=de-en TEXT=auto BPE=auto METHOD=ga_sam RHO="" STEPS="" EPOCHS="" START="" MODEL=tiny SEED=1
MAX_TOKENS="" LR=0.003 AVERAGE=3 EXTRA="" SAM_EXTRA="" OUT="" LABEL="" STAGE=1 STOP_STAGE=6

set_option() {
    case "$1" in
        --data) DATA="$2" ;;
        --pair) PAIR="$2" ;;
        --text) TEXT="$2" ;;
        --bpe) BPE="$2" ;;
        --optimizer) METHOD="$2" ;;
        --rho) RHO="$2" ;;
        --steps) STEPS="$2" ;;
        --epochs) EPOCHS="$2" ;;
        --start-epoch) START="$2" ;;
        --model) MODEL="$2" ;;
        --max-tokens) MAX_TOKENS="$2" ;;
        --lr) LR="$2" ;;
        --average) AVERAGE="$2" ;;
        --seed) SEED="$2" ;;
        --extra) EXTRA="$2" ;;
        --sam-extra) SAM_EXTRA="$2" ;;
        --out) OUT="$2" ;;
        --label) LABEL="$2" ;;
        --stage) STAGE="$2" ;;
        --stop-stage) STOP_STAGE="$2" ;;
        *) return 1 ;;
    esac
}

set_switch() { return 1; }

check_options() {
    [[ "$PAIR" =~ ^[A-Za-z_]+-[A-Za-z_]+$ && "${PAIR%-*}" != "${PAIR#*-}" ]] ||
        misuse "--pair $PAIR: two different languages with a hyphen are wanted, such as de-en"
    SRC="${PAIR%-*}" TGT="${PAIR#*-}"
    check_choice --optimizer "$METHOD" "$METHODS"
    check_choice --text "$TEXT" "auto raw tokenized"
    : "${EPOCHS:=$([[ -n "$DATA" ]] && echo 10 || echo 30)}"
    check_number --epochs "$EPOCHS" 1 10000
    : "${START:=$((EPOCHS / 2 + 1))}"
    check_number --start-epoch "$START" 1 "$EPOCHS"
    check_number --average "$AVERAGE" 1 "$EPOCHS"
    check_number --seed "$SEED" 0 999999999
    check_number --stage "$STAGE" 1 6
    check_number --stop-stage "$STOP_STAGE" "$STAGE" 6
    [[ "$BPE" == auto ]] || check_number --bpe "$BPE" 0 1000000
    [[ -z "$STEPS" ]] || check_number --steps "$STEPS" 1 1000
    [[ -z "$RHO" ]] || check_real --rho "$RHO"
    check_quotes --extra "$EXTRA"
    check_quotes --sam-extra "$SAM_EXTRA"
    LABEL="${LABEL:-$METHOD}"
    [[ "$LABEL" =~ ^[A-Za-z0-9._-]+$ && "$LABEL" != .* && "$LABEL" != "$BASE_OPTIMIZER" ]] ||
        misuse "--label $LABEL: letters, digits, '.', '_' and '-' are wanted, and not $BASE_OPTIMIZER"
}

set_defaults() {
    local name=""
    if [[ -n "$DATA" ]]; then
        [[ -d "$DATA" ]] || misuse "--data $DATA: no such directory"
        DATA="$(cd "$DATA" && pwd)"
        name="$(basename "$DATA")-"
        : "${MAX_TOKENS:=3000}"
    fi
    : "${MAX_TOKENS:=1500}"
    check_choice --model "$MODEL" "tiny small"
    check_number --max-tokens "$MAX_TOKENS" 1 10000000
    check_real --lr "$LR"
    # Chosen on the validation set of the made corpus: docs/results/quickstart.md.
    if [[ -z "$RHO" && "$METHOD" == ga_sam ]]; then RHO=0.00005; fi
    OUT="${OUT:-$ROOT/runs/quickstart-$name$PAIR}"
}

# ---- stages 1 and 2: text ------------------------------------------------------------------------

corpus_file() { # SPLIT LANGUAGE: prints the file that has it
    local file="$CORPUS/$1.$2"
    if [[ -f "$file" ]]; then
        echo "$file"
    elif [[ -f "$file.gz" ]]; then
        echo "$file.gz"
    else
        misuse "$file: neither that file nor $1.$2.gz is there"
    fi
}

check_corpus() {
    local split lang
    for split in train valid test; do
        for lang in "$SRC" "$TGT"; do corpus_file "$split" "$lang" >/dev/null; done
    done
}

plain_text() { if [[ "$1" == *.gz ]]; then gzip -dc "$1"; else cat "$1"; fi; }

make_corpus() { "$PYTHON" "$ROOT/scripts/data/number_corpus.py" --pair "$PAIR" --seed "$SEED" --out "$CORPUS"; }

copy_text() {
    local split lang lines
    for split in train valid test; do
        lines=""
        for lang in "$SRC" "$TGT"; do
            plain_text "$(corpus_file "$split" "$lang")" | tr -d '\r' >"$1/$split.$lang"
            lines="$lines $(wc -l <"$1/$split.$lang")"
        done
        # shellcheck disable=SC2086 # two numbers
        set -- "$1" $lines
        (($2 == $3 && $2 > 0)) || die "$CORPUS: $split.$SRC has $2 lines, $split.$TGT has $3"
    done
}

# Tokenized text has its final full stop after a space.
looks_tokenized() {
    awk '/[^ ][.?!]$/ {raw++} / [.?!]$/ {apart++} END {exit !(apart > raw)}' "$1"
}

tokenize() { # DIR LANGUAGE KIND
    local split
    for split in train valid test; do
        if [[ "$3" == tokenized ]]; then
            cp "$1/$split.$2" "$1/$split.tok.$2"
        else
            "$PYTHON" "$ROOT/scripts/data/moses_text.py" tokenize --lang "$2" <"$1/$split.$2" >"$1/$split.tok.$2"
        fi
    done
}

both_languages() { # FUNCTION DIR ARGUMENTS...: side by side
    local function="$1" dir="$2" status=0 other
    shift 2
    "$function" "$dir" "$SRC" "$@" &
    other=$!
    "$function" "$dir" "$TGT" "$@" || status=$?
    wait "$other" || status=$?
    return "$status"
}

# Whole words will do where fewer than 1 in 100 words of the validation set are new.
words_suffice() {
    local lang
    for lang in "$SRC" "$TGT"; do
        awk 'NR == FNR {for (i = 1; i <= NF; i++) seen[$i]; next}
             {for (i = 1; i <= NF; i++) {n++; if (!($i in seen)) new++}}
             END {exit !(new * 100 < n)}' "$1/train.tok.$lang" "$1/valid.tok.$lang" || return 1
    done
}

choose_merges() {
    if [[ "$BPE" != auto ]]; then
        echo "$BPE"
    elif words_suffice "$1"; then
        echo 0
    elif [[ -n "$DATA" ]]; then
        echo 4000
    else
        echo 300
    fi
}

# The module does nothing when run with -m, and its script may not be on the PATH.
subword_nmt() { "$PYTHON" -c 'from subword_nmt.subword_nmt import main; main()' "$@"; }

apply_bpe() { # DIR LANGUAGE MERGES
    local split
    for split in train valid test; do
        if (($3)); then
            subword_nmt apply-bpe -c "$1/bpe.codes" --vocabulary "$1/bpe.vocab.$2" \
                <"$1/$split.tok.$2" >"$1/$split.bpe.$2" 2>>"$1/preprocess.log"
        else
            cp "$1/$split.tok.$2" "$1/$split.bpe.$2"
        fi
    done
}

# Training pairs with an empty or very long side would only waste a batch.
clean_training_pairs() {
    paste "$1/train.bpe.$SRC" "$1/train.bpe.$TGT" |
        awk -F'\t' -v a="$1/train.clean.$SRC" -v b="$1/train.clean.$TGT" \
            '{m = split($1, x, " "); n = split($2, y, " ")}
             m > 0 && n > 0 && m <= 175 && n <= 175 {print $1 > a; print $2 > b}'
    [[ -s "$1/train.clean.$SRC" ]] || die "no usable training pair in $CORPUS"
}

# The model has 1024 positions, and one longer sentence would end validation or the translation. The reference
# that a translation is compared with stays whole.
shorten_sentences() {
    local split lang
    for split in valid test; do
        for lang in "$SRC" "$TGT"; do
            awk -v name="$split.$lang" 'NF > 1000 {
                    printf "    %s: line %d has %d tokens, cut to 1000\n", name, NR, NF >"/dev/stderr"
                    line = $1; for (i = 2; i <= 1000; i++) line = line " " $i; $0 = line
                } {print}' "$1/$split.bpe.$lang" >"$1/$split.short.$lang"
        done
    done
}

preprocess() {
    local dir="$OUT/prepared.incomplete" kind="$TEXT" merges
    rm -rf "$dir" "$OUT/prepared"
    mkdir "$dir"
    copy_text "$dir"
    if [[ "$kind" == auto ]]; then
        kind=raw
        if looks_tokenized "$dir/train.$TGT"; then kind=tokenized; fi
    fi
    both_languages tokenize "$dir" "$kind"
    if [[ "$kind" == tokenized ]]; then
        "$PYTHON" "$ROOT/scripts/data/moses_text.py" detokenize --lang "$TGT" <"$dir/test.$TGT" >"$dir/reference"
    else
        cp "$dir/test.$TGT" "$dir/reference"
    fi
    merges="$(choose_merges "$dir")"
    note "$(wc -l <"$dir/train.$SRC") training pairs, $kind text, $( ((merges)) && echo "$merges BPE merges" || echo "whole words")"
    if ((merges)); then
        subword_nmt learn-joint-bpe-and-vocab -s "$merges" -o "$dir/bpe.codes" \
            --input "$dir/train.tok.$SRC" "$dir/train.tok.$TGT" \
            --write-vocabulary "$dir/bpe.vocab.$SRC" "$dir/bpe.vocab.$TGT" >>"$dir/preprocess.log" 2>&1
    fi
    both_languages apply_bpe "$dir" "$merges"
    clean_training_pairs "$dir"
    shorten_sentences "$dir"
    "$PYTHON" -m fairseq_cli.preprocess --source-lang "$SRC" --target-lang "$TGT" --workers 2 \
        --trainpref "$dir/train.clean" --validpref "$dir/valid.short" --testpref "$dir/test.short" \
        --destdir "$dir/bin" >>"$dir/preprocess.log" 2>&1 || die "fairseq-preprocess failed: see $dir/preprocess.log"
    mv "$dir" "$OUT/prepared"
}

# ---- stages 3 and 4: training --------------------------------------------------------------------

model_flags() {
    local layers width ffn dropout
    case "$MODEL" in
        tiny) layers=2 width=128 ffn=256 dropout=0.1 ;;
        small) layers=3 width=256 ffn=512 dropout=0.3 ;;
    esac
    MODEL_FLAGS=(--arch transformer --share-decoder-input-output-embed --dropout "$dropout"
        --encoder-layers "$layers" --decoder-layers "$layers"
        --encoder-embed-dim "$width" --decoder-embed-dim "$width"
        --encoder-ffn-embed-dim "$ffn" --decoder-ffn-embed-dim "$ffn"
        --encoder-attention-heads 4 --decoder-attention-heads 4)
}

criterion() {
    # Checkpoints are shared, so both runs need the criterion that the method needs.
    if [[ "$METHOD" == delta_sam ]]; then
        echo per_sentence_label_smoothed_cross_entropy
    else
        echo label_smoothed_cross_entropy
    fi
}

train() { # RUN_DIR LAST_EPOCH FLAGS...
    local run="$1" last="$2"
    shift 2
    split_flags "$EXTRA"
    model_flags
    mkdir -p "$run"
    "$PYTHON" -m fairseq_cli.train "$OUT/prepared/bin" --user-dir "$ROOT/fairseq_sam" \
        --source-lang "$SRC" --target-lang "$TGT" "${MODEL_FLAGS[@]}" \
        --criterion "$(criterion)" --label-smoothing 0.1 --adam-betas '(0.9, 0.98)' \
        --lr "$LR" --lr-scheduler inverse_sqrt --warmup-updates 100 --clip-norm 1.0 \
        --max-tokens "$MAX_TOKENS" --max-epoch "$last" --seed "$SEED" --distributed-world-size 1 \
        --save-dir "$run/checkpoints" --keep-last-epochs "$AVERAGE" --no-progress-bar \
        --log-format json --log-interval 10 "$@" ${FLAGS[@]+"${FLAGS[@]}"} 2>&1 |
        "$PYTHON" "$ROOT/scripts/epoch_lines.py" --log "$run/train.log" ||
        die "training failed: see $run/train.log"
}

# A branch begins as a copy of the shared epochs: weights, moments, place in the data and log.
branch() { # RUN_DIR FLAGS...
    local run="$1"
    shift
    if [[ ! -d "$run/checkpoints" && -d "$OUT/shared" ]]; then
        rm -rf "$run.incomplete"
        mkdir -p "$run"
        cp "$OUT/shared/train.log" "$run/train.log"
        cp -R "$OUT/shared/checkpoints" "$run/checkpoints.incomplete"
        mv "$run/checkpoints.incomplete" "$run/checkpoints"
    fi
    train "$run" "$EPOCHS" "$@"
    # What is not averaged is no longer of use.
    rm -f "$run/checkpoints/checkpoint_best.pt"
}

train_sharpness_aware() {
    local flags=(--optimizer "$METHOD" --base-optimizer "$BASE_OPTIMIZER" --sam-start-epoch "$START")
    if [[ -n "$RHO" ]]; then flags+=(--sam-rho "$RHO"); fi
    if [[ -n "$STEPS" ]]; then flags+=(--sam-steps "$STEPS"); fi
    split_flags "$SAM_EXTRA"
    branch "$1" "${flags[@]}" ${FLAGS[@]+"${FLAGS[@]}"}
}

# ---- stage 5: scores -----------------------------------------------------------------------------

translate() { # RUN_DIR
    local run="$1" log="$1/translate.txt"
    "$PYTHON" -m fairseq_sam.commands average "$run/checkpoints" --last-epochs "$AVERAGE" \
        --output "$run/average.pt" --force >"$log" 2>&1 || die "averaging failed: $(tail -n 1 "$log")"
    "$PYTHON" -m fairseq_cli.generate "$OUT/prepared/bin" --user-dir "$ROOT/fairseq_sam" --path "$run/average.pt" \
        --gen-subset test --source-lang "$SRC" --target-lang "$TGT" --beam "$BEAM" --remove-bpe \
        --max-tokens 4000 --distributed-world-size 1 >"$run/generated.incomplete" 2>>"$log" ||
        die "translating failed: see $log"
    sed -n 's/^H-//p' "$run/generated.incomplete" | sort -n | cut -f 3 >"$run/hypothesis.tok"
    "$PYTHON" "$ROOT/scripts/data/moses_text.py" detokenize --lang "$TGT" <"$run/hypothesis.tok" >"$run/hypothesis"
    [[ "$(wc -l <"$run/hypothesis")" -eq "$(wc -l <"$OUT/prepared/reference")" ]] ||
        die "$run: $(wc -l <"$run/hypothesis") translations of $(wc -l <"$OUT/prepared/reference") sentences"
    "$PYTHON" -m sacrebleu "$OUT/prepared/reference" -i "$run/hypothesis" -m bleu chrf -w 2 --format json \
        >"$run/scores.incomplete" 2>>"$log" || die "scoring failed: see $log"
    mv "$run/generated.incomplete" "$run/generate.txt"
    mv "$run/scores.incomplete" "$run/scores.json"
}

# ---- all stages ----------------------------------------------------------------------------------

settings() {
    cat <<END
data=${DATA:-made by scripts/data/number_corpus.py}
pair=$PAIR text=$TEXT bpe=$BPE
model=$MODEL criterion=$(criterion) max_tokens=$MAX_TOKENS lr=$LR
epochs=$EPOCHS start_epoch=$START average=$AVERAGE seed=$SEED
extra=$EXTRA
END
}

run_settings() {
    echo "optimizer=$METHOD base=$BASE_OPTIMIZER rho=${RHO:-default} steps=${STEPS:-default} extra=$SAM_EXTRA"
}

run_stages() {
    local runs="$OUT/runs" name
    if in_stage 1 && [[ -z "$DATA" ]]; then once corpus "Making the corpus ($PAIR)" make_corpus; fi
    check_corpus
    if in_stage 2; then once preprocess "Preprocessing" preprocess; fi
    if in_stage 3 && ((START > 1)); then
        needs preprocess 2
        once shared "Training epochs 1 to $((START - 1)), shared by both runs" \
            train "$OUT/shared" "$((START - 1))" --optimizer "$BASE_OPTIMIZER"
    fi
    if in_stage 4; then
        needs preprocess 2
        ((START == 1)) || needs shared 3
        once "train.$BASE_OPTIMIZER" "Training epochs $START to $EPOCHS with $BASE_OPTIMIZER" branch "$runs/$BASE_OPTIMIZER" --optimizer "$BASE_OPTIMIZER"
        once "train.$LABEL" "Training epochs $START to $EPOCHS with $METHOD (rho ${RHO:-of the method})" \
            train_sharpness_aware "$runs/$LABEL"
    fi
    if in_stage 5; then
        for name in "$BASE_OPTIMIZER" "$LABEL"; do
            needs "train.$name" 4
            once "score.$name" "Averaging, translating and scoring $name" translate "$runs/$name"
        done
    fi
    if in_stage 6; then
        needs "score.$LABEL" 5
        report
    fi
}

report() {
    local stamp names=("$OUT/runs/$BASE_OPTIMIZER")
    for stamp in "$OUT/.done"/score.*; do
        [[ "${stamp##*/score.}" == "$BASE_OPTIMIZER" ]] || names+=("$OUT/runs/${stamp##*/score.}")
    done
    step "Result"
    "$PYTHON" -m fairseq_sam.commands report "${names[@]}" --title "Quickstart $(basename "$CORPUS") $PAIR" \
        --output "$OUT/report.md" --plot "$OUT/curves.png"
    note "table: $OUT/report.md"
    note "curves: $OUT/curves.png"
}

main() {
    parse_options "$@"
    check_options
    set_defaults
    CORPUS="${DATA:-$OUT/corpus}"
    if [[ -n "$DATA" ]]; then check_corpus; fi
    if ((INSTALL)); then ensure_environment quickstart quickstart; else use_environment; fi
    lock_output
    CORPUS="${DATA:-$OUT/corpus}"
    remember "$OUT/settings.txt" "$(settings)"
    mkdir -p "$OUT/runs/$LABEL"
    remember "$OUT/runs/$LABEL/settings.txt" "$(run_settings)"
    local begin=$SECONDS
    run_stages
    note "finished in $((SECONDS - begin)) s (without the installation)"
    # Bash reads a script as it goes: leave before it looks for more in a file that may have changed.
    exit 0
}

main "$@"
