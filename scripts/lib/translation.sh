# shellcheck shell=bash
# shellcheck disable=SC2034 # variables that other files of this folder read
# What the translation scripts share. SRC and TGT are the languages, OUT the folder.

TRANSLATION_METHODS="baseline sam asam layer_sam multi_step_defense ga_sam delta_sam free_lb r3f r_drop smart"
WITHOUT_RADIUS="free_lb r3f r_drop smart"
DEFAULT_METHODS="baseline sam asam layer_sam multi_step_defense ga_sam"
SCORE_FLAGS=()

# translation_defaults EPOCHS: the paper's settings, or small ones.
translation_defaults() {
    if ((SMALL)); then
        : "${EPOCHS:=6}" "${START:=4}" "${AVERAGE:=2}"
        MODEL_FLAGS=(--arch transformer --encoder-layers 2 --decoder-layers 2
            --encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 256
            --decoder-ffn-embed-dim 256 --encoder-attention-heads 4 --decoder-attention-heads 4)
        WARMUP=400 MAX_TOKENS=2000 GENERATE_TOKENS=4000 LIMIT=(--limit 10000 500)
    else
        : "${EPOCHS:=$1}" "${START:=30}" "${AVERAGE:=10}"
        MODEL_FLAGS=(--arch transformer_wmt_en_de)
        WARMUP=4000 MAX_TOKENS=4096 GENERATE_TOKENS=12000 LIMIT=()
    fi
    check_number --epochs "$EPOCHS" 1
    check_number --start-epoch "$START" 1 "$EPOCHS"
    check_number --average "$AVERAGE" 1 "$EPOCHS"
}

# The flags that all methods share: fairseq's own recipe for IWSLT'14.
recipe_flags() { # SEED
    RECIPE_FLAGS=(--user-dir "$ROOT/fairseq_sam" --source-lang "$SRC" --target-lang "$TGT"
        "${MODEL_FLAGS[@]}" --share-decoder-input-output-embed --dropout 0.3
        # The same values as fairseq's own; with it the shared epochs will do for delta_sam too.
        --criterion per_sentence_label_smoothed_cross_entropy --label-smoothing 0.1
        --adam-betas '(0.9, 0.98)' --weight-decay 0.0001 --clip-norm 0.0
        --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates "$WARMUP"
        --max-tokens "$((MAX_TOKENS / SHARES))" --keep-last-epochs "$AVERAGE")
}

# The norm is L∞ throughout, two steps where a method takes several; the paper's radii for scales that
# depend on the gradient belong to the summed loss. METHOD -> METHOD_FLAGS; a script defines radius METHOD, and
# FREE_LB, the flags of Appendix C.4.
method_flags() {
    case "$1" in
        baseline)
            METHOD_FLAGS=(--optimizer adam)
            return
            ;;
        free_lb)
            METHOD_FLAGS=(--optimizer adam --criterion free_lb_label_smoothed_cross_entropy
                --free-lb-norm linf "${FREE_LB[@]}")
            return
            ;;
        r3f | r_drop | smart)
            METHOD_FLAGS=(--optimizer adam --criterion "$1_label_smoothed_cross_entropy")
            # α as in R-Drop's own script for IWSLT'14.
            if [[ "$1" == r_drop ]]; then METHOD_FLAGS+=(--r-drop-alpha 5); fi
            # shellcheck disable=SC2153 # not START misspelt: of experiment.sh
            if [[ "$1" == smart ]]; then METHOD_FLAGS+=("${SMART[@]}"); fi
            return
            ;;
    esac
    METHOD_FLAGS=(--optimizer "$1" --base-optimizer adam --sam-rho "$(radius "$1")")
    case "$1" in
        sam | asam) METHOD_FLAGS+=(--sam-norm linf) ;;
        layer_sam) METHOD_FLAGS+=(--sam-norm linf --sam-loss-reduction sum) ;;
        multi_step_defense) METHOD_FLAGS+=(--sam-norm linf --sam-steps 2) ;;
        ga_sam) METHOD_FLAGS+=(--sam-norm linf --sam-steps 2 --sam-loss-reduction sum) ;;
    esac
}

# The module does nothing when run with -m, and its script may not be on the PATH.
SUBWORD_NMT=(-c 'from subword_nmt.subword_nmt import main; main()')

# Splits DIR/SPLIT.LANG into DIR/SPLIT.bpe.LANG with one joint vocabulary of merges.
split_into_subwords() { # DIR KIND SIZE
    local dir="$1" kind="$2" size="$3" log="$1/prepare.log" split lang split_line
    if [[ "$kind" == sentencepiece ]]; then
        run "$log" "$PYTHON" "$ROOT/scripts/data/sentencepiece_text.py" learn --model "$dir/bpe.model" \
            --size "$size" "$dir/train.$SRC" "$dir/train.$TGT"
        split_line=("$PYTHON" "$ROOT/scripts/data/sentencepiece_text.py" encode --model "$dir/bpe.model")
    else
        run_into "$dir/train.both" "$log" cat "$dir/train.$SRC" "$dir/train.$TGT"
        run "$log" "$PYTHON" "${SUBWORD_NMT[@]}" learn-bpe -s "$size" -i "$dir/train.both" -o "$dir/bpe.codes"
        split_line=("$PYTHON" "${SUBWORD_NMT[@]}" apply-bpe -c "$dir/bpe.codes")
    fi
    for split in train valid test; do
        for lang in "$SRC" "$TGT"; do
            run_filter "$dir/$split.$lang" "$dir/$split.bpe.$lang" "$log" "${split_line[@]}"
        done
    done
}

binarise() { # DIR PREFIX FLAGS...: DIR/SPLIT PREFIX.LANG -> DIR/bin
    local dir="$1" suffix="$2"
    shift 2
    run "$dir/prepare.log" "$PYTHON" -m fairseq_cli.preprocess --source-lang "$SRC" --target-lang "$TGT" \
        --trainpref "$dir/train$suffix" --validpref "$dir/valid$suffix" --testpref "$dir/test$suffix" \
        --destdir "$dir/bin" --workers 4 "$@"
}

# Does FOLDER hold an IWSLT archive? (What is to be downloaded is known.)
is_official() {
    if ((DRY_RUN)) && [[ ! -d "$1" ]]; then
        [[ "$SRC" == de ]]
    else
        compgen -G "$1/train.tags.*" >/dev/null
    fi
}

show_counts() { # DIR COUNTS-OF-THE-WHOLE-DATA
    local text="" lang
    if ((DRY_RUN)); then return; fi
    for lang in "$SRC" "$TGT"; do text+=" dictionary $lang $(($(wc -l <"$1/bin/dict.$lang.txt") + 4)),"; done
    note "train $(wc -l <"$1/train.$SRC"), valid $(wc -l <"$1/valid.$SRC"), test $(wc -l <"$1/test.$SRC") pairs;${text%,}"
    note "expected of the whole data: $2"
}

# Averages, translates the test set and compares with the same seed's baseline.
score_run() { # METHOD SEED
    local dir log compare=()
    dir="$(run_dir "$1" "$2")" log="$dir/score.log"
    needs "train.$1.seed$2" 4
    run "$log" "$PYTHON" -m fairseq_sam.commands average "$dir/checkpoints" --last-epochs "$AVERAGE" \
        --output "$dir/average.pt" --force
    run_into "$dir/generate.txt" "$log" "$PYTHON" -m fairseq_cli.generate "$BIN" \
        --user-dir "$ROOT/fairseq_sam" --path "$dir/average.pt" --gen-subset test \
        --source-lang "$SRC" --target-lang "$TGT" --beam 5 ${GENERATE_FLAGS[@]+"${GENERATE_FLAGS[@]}"} \
        --max-tokens "$GENERATE_TOKENS" --distributed-world-size 1
    if has_baseline "$1" "$2"; then compare=(--baseline "$(run_dir baseline "$2")/hypothesis"); fi
    run "$log" "$PYTHON" "$ROOT/scripts/scoring/translations.py" --generated "$dir/generate.txt" \
        --reference "$OUT/prepared/test.raw.$TGT" --lang "$TGT" ${SCORE_FLAGS[@]+"${SCORE_FLAGS[@]}"} \
        ${compare[@]+"${compare[@]}"} --output "$dir/scores.json"
    if ((FREE_DISK)); then perform rm -rf "$dir/checkpoints"; fi
}

translation_settings() {
    printf '%s\n' "data=${DATA:-$URL} small=$SMALL" "epochs=$EPOCHS start_epoch=$START average=$AVERAGE" \
        "extra=$EXTRA"
}

run_translation() { # NAME-OF-THE-FOLDER OPTIONS...
    local name="$1"
    shift
    parse_options "$@"
    check_options
    start_experiment "$name" "$(settings)"
    BIN="$OUT/prepared/bin"
    if ((NODE_RANK)); then join_trainings; else run_experiment; fi
    # Bash reads a script as it goes: leave before it looks for more in a file that may have changed.
    exit 0
}
