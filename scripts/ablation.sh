#!/usr/bin/env bash
# GA-SAM's ablations and hyper-parameters (its Tables 2 and 3) over TextCNN on IMDB and the LSTM on PTB.
# See usage() below, or: bash scripts/ablation.sh --help
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

EXPERIMENTS="textcnn lstm"
ONLY="$EXPERIMENTS" OUT="" IMDB="" PTB="" FORWARDED=() SEEN_SMALL=0

usage() {
    cat <<'END'
Usage: bash scripts/ablation.sh [OPTIONS] [OPTIONS OF THE TWO SCRIPTS]

Trains GA-SAM with other risks, granularities, scales, steps and radii: 26 runs a seed for TextCNN on IMDB
(scripts/textcnn_imdb.sh) and 26 for the LSTM on PTB (scripts/lstm_ptb.sh), and puts the paper's figures beside
the measured ones: OUT/{textcnn,lstm}/report.md and OUT/{textcnn,lstm}.png.

  --only NAME         textcnn or lstm
  --imdb PATH         aclImdb's folder or archive (default: download)
  --ptb DIR           a folder with ptb.{train,valid,test}.txt (default: download)
  --out DIR           (default: runs/ablation, with --small runs/ablation-small)
  -h, --help          this text

Everything else is handed on: --seeds, --small, --gpus, --parallel, --methods, --epochs, --extra, --dry-run …

Examples:
  bash scripts/ablation.sh --gpus 1 --parallel 8
  bash scripts/ablation.sh --only lstm --small --ptb ~/corpora/ptb --seeds 1 --methods baseline,ga_sam,ga_sam_k2
END
}

read_options() {
    while (($#)); do
        parse_environment_option "$@"
        if ((CONSUMED)); then # this script plots in the same environment
            FORWARDED+=("${@:1:CONSUMED}")
            shift "$CONSUMED"
            continue
        fi
        case "$1" in
            -h | --help)
                usage
                exit 0
                ;;
            --only | --imdb | --ptb | --out)
                (($# > 1)) || misuse "$1 needs a value"
                case "$1" in
                    --only) ONLY="$2" ;;
                    --imdb) IMDB="$2" ;;
                    --ptb) PTB="$2" ;;
                    --out) OUT="$2" ;;
                esac
                shift 2
                ;;
            --data | --dataset) misuse "$1: say --imdb and --ptb here" ;;
            *)
                if [[ "$1" == --small ]]; then SEEN_SMALL=1; fi
                FORWARDED+=("$1")
                shift
                ;;
        esac
    done
}

is_dry_run() { [[ " ${FORWARDED[*]-} " == *" --dry-run "* ]]; }

ablate() { # NAME SCRIPT DATA METRIC RADIUS PAPER
    local flags=(--methods ablations --out "$OUT/$1")
    if [[ -n "$3" ]]; then flags+=(--data "$3"); fi
    bash "$ROOT/scripts/$2" "${flags[@]}" ${FORWARDED[@]+"${FORWARDED[@]}"}
    if is_dry_run || [[ ! -e "$OUT/$1/report.md" ]]; then return; fi
    if [[ " ${FORWARDED[*]-} " != *" --no-install "* ]]; then
        ensure_environment reproduce reproduce
    else
        use_environment
    fi
    "$PYTHON" "$ROOT/scripts/ablation_plot.py" --runs "$OUT/$1/runs" --metric "$4" --radius "$5" \
        --paper "$6" --out "$OUT/$1.png"
    note "plot: $OUT/$1.png"
}

read_options "$@"
check_choice --only "${ONLY%% *}" "$EXPERIMENTS"
if ((SEEN_SMALL)); then : "${OUT:=$ROOT/runs/ablation-small}"; else : "${OUT:=$ROOT/runs/ablation}"; fi
for experiment in $ONLY; do
    case "$experiment" in
        textcnn) ablate textcnn textcnn_imdb.sh "$IMDB" Accuracy 1e-4 textcnn_imdb_ablation ;;
        lstm) ablate lstm lstm_ptb.sh "$PTB" Perplexity 8e-6 lstm_ptb_ablation ;;
    esac
done
exit 0
