# shellcheck shell=bash
# shellcheck disable=SC2034 # variables that other files of this folder read
# What the experiments with labelled texts share.

# binarise_labelled TEXT BIN LOG FLAGS...: TEXT/SPLIT.{input0,input1,label} -> BIN/{input0,input1,label}
binarise_labelled() {
    local text="$1" bin="$2" log="$3" part dictionary
    shift 3
    binarise_part "$text" "$bin" "$log" input0 "$@"
    if [[ -e "$text/train.input1" ]] || { ((DRY_RUN)) && ((${PAIRS:-0})); }; then
        binarise_part "$text" "$bin" "$log" input1 --srcdict "$bin/input0/dict.txt"
    fi
    if [[ ! -e "$text/train.number" ]]; then binarise_part "$text" "$bin" "$log" label; fi
}

binarise_part() { # TEXT BIN LOG PART FLAGS...
    local text="$1" bin="$2" log="$3" part="$4"
    shift 4
    run "$log" "$PYTHON" -m fairseq_cli.preprocess --only-source --trainpref "$text/train.$part" \
        --validpref "$text/valid.$part" --testpref "$text/test.$part" --destdir "$bin/$part" --workers 4 "$@"
}

# score_labelled METHOD SEED BIN SUBSET METRICS: of the checkpoint that is best on the validation set.
score_labelled() {
    local dir log compare=()
    dir="$(run_dir "$1" "$2")" log="$dir/score.log"
    needs "train.$1.seed$2" 4
    if has_baseline "$1" "$2"; then compare=(--baseline "$(run_dir baseline "$2")/hypothesis"); fi
    run "$log" env PYTHONPATH="$ROOT" "$PYTHON" "$ROOT/scripts/scoring/predictions.py" \
        --checkpoint "$dir/checkpoints/checkpoint_best.pt" \
        --data "$3" --subset "$4" --metrics "$5" ${compare[@]+"${compare[@]}"} --output "$dir/scores.json"
    if ((FREE_DISK)); then perform rm -rf "$dir/checkpoints"; fi
}
