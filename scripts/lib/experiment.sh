# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153 # variables that other files of this folder set and read
# What the reproduction scripts share: their options, the matrix of methods and seeds, epochs that all
# methods have in common, and trainings side by side. A script sets its defaults, and defines
#
#   ALL_METHODS, DEFAULT_METHODS   names; the first is the baseline
#   WITHOUT_RADIUS                 those of them, beside the baseline, that do not perturb weights
#   CURVES                         0 where there is no validation, so that there are none to plot
#   method_flags METHOD            sets METHOD_FLAGS, the optimizer's flags, and METHOD_RHO
#   recipe_flags SEED              sets RECIPE_FLAGS, the flags that all methods share
#   download, prepare              stages 1 and 2
#   score_run RUN_DIR METHOD SEED  stage 5
#   report                         stage 6

# shellcheck source=scripts/lib/stages.sh
source "$ROOT/scripts/lib/stages.sh"
# shellcheck source=scripts/lib/commands.sh
source "$ROOT/scripts/lib/commands.sh"

WITHOUT_RADIUS="" METHODS="" SEEDS="1,2,3,4" DATA="" OUT="" EXTRA="" SMALL=0 STAGE=1 STOP_STAGE=6
GPUS="" PARALLEL=1 NODES=1 NODE_RANK=0 MASTER=localhost:29500
EPOCHS="" START="" AVERAGE="" FREE_DISK=0 CURVES=1
# Both parts of SMART, with its paper's μ and λ; β is 0.99 there in the first tenth of training.
SMART=(--smart-mu 1 --store-ema --ema-decay 0.999)

experiment_help() {
    cat <<END
What to run:
  --out DIR           where everything goes; a rerun goes on where it was
  --methods LIST      by comma; METHOD@RHO sets another radius, e.g. baseline,sam,sam@1e-3,ga_sam@0.5
  --seeds LIST        by comma (default: $SEEDS)
  --small             a tiny model and few epochs, to try the script on a laptop
  --extra 'FLAGS'     more flags for every fairseq-train; they win over the recipe's
  --stage N           first stage to run, 1 to 6 (default: 1)
  --stop-stage N      last stage to run (default: 6)
                      1 download  2 prepare  3 what all methods share  4 train  5 average, generate, score
                      6 report
  --dry-run           print every command and run none
  --free-disk         delete a run's checkpoints once it is scored; its average stays

Hardware:
  --gpus N            GPUs for each training (default: 1 if there is one, else 0); the batch is divided
                      among them, so the number of updates does not change
  --parallel N        trainings at a time (default: 1), each on its own GPUs as far as there are enough
  --nodes N, --node-rank R, --master HOST:PORT
                      several machines that share --out: start the script on each with its own rank; rank 0
                      does everything, the others take part in its trainings through torchrun
  --no-install        use the environment as it is
  -h, --help          this text

END
    printf 'METHOD is one of: %s\n(default: %s)\n\n' "$ALL_METHODS" "$DEFAULT_METHODS"
    environment_help
}

set_experiment_option() {
    case "$1" in
        --data) DATA="$2" ;;
        --out) OUT="$2" ;;
        --methods) METHODS="${2// /,}" ;;
        --seeds) SEEDS="${2// /,}" ;;
        --extra) EXTRA="$2" ;;
        --stage) STAGE="$2" ;;
        --stop-stage) STOP_STAGE="$2" ;;
        --gpus) GPUS="$2" ;;
        --parallel) PARALLEL="$2" ;;
        --nodes) NODES="$2" ;;
        --node-rank) NODE_RANK="$2" ;;
        --master) MASTER="$2" ;;
        --epochs) EPOCHS="$2" ;;
        --start-epoch) START="$2" ;;
        --average) AVERAGE="$2" ;;
        *) return 1 ;;
    esac
}

set_switch() {
    case "$1" in
        --small) SMALL=1 ;;
        --dry-run) DRY_RUN=1 ;;
        --free-disk) FREE_DISK=1 ;;
        *) return 1 ;;
    esac
}

perturbs_weights() { [[ " ${ALL_METHODS%% *} $WITHOUT_RADIUS " != *" ${1%@*} "* ]]; } # METHOD

check_experiment_options() {
    local method seed
    : "${METHODS:=${DEFAULT_METHODS// /,}}"
    for method in ${METHODS//,/ }; do
        check_choice --methods "${method%@*}" "$ALL_METHODS"
        [[ "$method" != *@* ]] || check_positive "--methods $method: the radius" "${method#*@}"
        [[ "$method" != *@* ]] || perturbs_weights "$method" ||
            misuse "--methods $method: ${method%@*} has no radius"
    done
    [[ -n "${SEEDS//,/}" ]] || misuse "--seeds: at least one is wanted"
    for seed in ${SEEDS//,/ }; do check_number --seeds "$seed" 0; done
    check_number --stage "$STAGE" 1 6
    check_number --stop-stage "$STOP_STAGE" "$STAGE" 6
    check_number --parallel "$PARALLEL" 1 1000
    check_number --nodes "$NODES" 1 1000
    check_number --node-rank "$NODE_RANK" 0 "$((NODES - 1))"
    [[ "$MASTER" =~ ^[^:]+:[0-9]+$ ]] || misuse "--master $MASTER: HOST:PORT is wanted"
    ((NODES == 1 || PARALLEL == 1)) || misuse "--parallel $PARALLEL: with --nodes one training at a time"
    check_quotes --extra "$EXTRA"
    # In a dry run the machine at hand is not the one that matters.
    if [[ -z "$GPUS" ]]; then GPUS=$((DRY_RUN || $(visible_gpus) > 0 ? 1 : 0)); fi
    check_number --gpus "$GPUS" 0 1024
    ((DRY_RUN || GPUS <= $(visible_gpus))) || misuse "--gpus $GPUS: there are $(visible_gpus) here"
    ((GPUS || NODES == 1)) || misuse "--nodes $NODES needs --gpus of at least 1"
    SHARES=$((NODES * (GPUS > 1 ? GPUS : 1)))
}

# per_worker BATCH: what each of the GPUs takes of it.
per_worker() { printf '%s\n' "$((($1 + SHARES - 1) / SHARES))"; }

visible_gpus() {
    if [[ -n "${CUDA_VISIBLE_DEVICES+set}" ]]; then
        tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true
    else
        nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
    fi
}

# ---- one training --------------------------------------------------------------------------------

# The GPUs of the slot-th training at a time; they are shared where there are too few.
slot_devices() { # SLOT
    local visible devices="" i
    IFS=, read -r -a visible <<<"${CUDA_VISIBLE_DEVICES:-$(seq -s , 0 $(($(visible_gpus) - 1)))}"
    for ((i = 0; i < GPUS; i++)); do devices+=",${visible[($1 * GPUS + i) % ${#visible[@]}]}"; done
    printf '%s\n' "${devices#,}"
}

# train RUN_DIR SEED FLAGS...: goes on from RUN_DIR/checkpoints/checkpoint_last.pt if that is there.
train() {
    local dir="$1" seed="$2" launcher=("$PYTHON" -m fairseq_cli.train) flags
    shift 2
    recipe_flags "$seed"
    flags=("${RECIPE_FLAGS[@]}" --seed "$seed" "$@" --save-dir "$dir/checkpoints"
        --no-progress-bar --log-format json --log-interval 100)
    if ((NODES > 1)); then
        launcher=(torchrun --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$GPUS"
            --master-addr "${MASTER%:*}" --master-port "${MASTER##*:}" -m fairseq_cli.train)
        flags+=(--distributed-world-size $((NODES * GPUS))) # else one GPU a node trains alone
    elif ((GPUS)); then
        flags+=(--distributed-world-size "$GPUS")
    else
        flags+=(--cpu --distributed-world-size 1)
    fi
    split_flags "$EXTRA"
    flags+=(${FLAGS[@]+"${FLAGS[@]}"})
    if ((DRY_RUN)); then
        print_command "${launcher[@]}" "$BIN" "${flags[@]}"
        return
    fi
    touch "$dir/launched"
    "${launcher[@]}" "$BIN" "${flags[@]}" 2>&1 |
        "$PYTHON" "$ROOT/scripts/epoch_lines.py" --log "$dir/train$NODE_SUFFIX.log" --label "$LABEL" ||
        die "training failed: see $dir/train$NODE_SUFFIX.log"
    rm -f "$dir/launched"
}

run_dir() { printf '%s\n' "$OUT/runs/$1/seed$2"; } # METHOD SEED

# The epochs before the perturbation begins are the same for all methods: trained once a seed.
train_shared() { # SEED
    local dir="$OUT/shared/seed$1"
    LABEL="shared seed $1: "
    perform mkdir -p "$dir"
    method_flags "${ALL_METHODS%% *}"
    train "$dir" "$1" "${METHOD_FLAGS[@]}" --max-epoch "$((START - 1))"
}

# A branch begins with the shared checkpoints: the last, and those of epochs that will be averaged.
copy_shared() { # SEED RUN_DIR
    local shared="$OUT/shared/seed$1/checkpoints" copy="$2/checkpoints.incomplete" epoch
    perform rm -rf "$copy"
    perform mkdir "$copy"
    perform cp "$shared/checkpoint_last.pt" "$copy"
    for ((epoch = EPOCHS - AVERAGE + 1; epoch < START; epoch++)); do
        perform cp "$shared/checkpoint$epoch.pt" "$copy"
    done
    if ((!DRY_RUN)); then cp "$OUT/shared/seed$1/train.log" "$2/train.log"; fi
    perform mv "$copy" "$2/checkpoints"
}

train_run() { # METHOD SEED
    local dir
    dir="$(run_dir "$1" "$2")"
    LABEL="$1 seed $2: "
    perform mkdir -p "$dir"
    if [[ -n "$START" ]] && ((START > 1)) && [[ ! -d "$dir/checkpoints" ]]; then copy_shared "$2" "$dir"; fi
    method_flags "${1%@*}"
    if [[ "$1" == *@* ]]; then METHOD_FLAGS+=(--sam-rho "${1#*@}"); fi
    # A regulariser begins at START because the shared epochs are without it.
    if [[ -n "$START" ]] && perturbs_weights "$1"; then METHOD_FLAGS+=(--sam-start-epoch "$START"); fi
    train "$dir" "$2" "${METHOD_FLAGS[@]}" ${EPOCHS:+--max-epoch "$EPOCHS"}
}

# ---- all of them ---------------------------------------------------------------------------------

seed_list() { tr ',' '\n' <<<"$SEEDS" | awk 'NF && !seen[$0]++'; }

method_list() { tr ',' '\n' <<<"$METHODS" | awk 'NF && !seen[$0]++'; }

# The baseline comes first: others are compared with it.
run_list() {
    local seed
    for seed in $(seed_list); do
        method_list | awk -v seed="$seed" -v first="${ALL_METHODS%% *}" \
            '$0 == first {print $0, seed; next} {rest = rest $0 " " seed "\n"} END {printf "%s", rest}'
    done
}

# in_slot SLOT NAME TITLE FUNCTION...: one job of a parallel batch.
in_slot() {
    local slot="$1" name="$2" title="$3"
    shift 3
    if ((GPUS && !DRY_RUN)); then
        CUDA_VISIBLE_DEVICES="$(slot_devices "$slot")"
        export CUDA_VISIBLE_DEVICES
    elif ((PARALLEL > 1)); then
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    fi
    once "$name" "$title" "$@"
}

# for_each LIST NAME TITLE FUNCTION: calls FUNCTION with the words of each line of LIST, PARALLEL at a time.
for_each() {
    local name="$2" title="$3" function="$4" line words slot pids=() failed=0
    while IFS= read -r line; do
        if [[ -z "$line" ]]; then continue; fi
        read -r -a words <<<"$line"
        set -- "$name.${line// /.seed}" "$title ${line/ / with seed }" "$function" "${words[@]}"
        if ((DRY_RUN)); then
            in_slot 0 "$@"
            continue
        fi
        free_slot
        # A process group of its own, so that stopping the script stops what it started.
        set -m
        (in_slot "$slot" "$@") </dev/null 8>&8 &
        pids[slot]=$!
        set +m
    done <<<"$1"
    for slot in ${pids[@]+"${!pids[@]}"}; do reap "$slot"; done
    ((failed == 0)) || die "$failed of the trainings or scorings failed: see above. A rerun tries them again."
}

# Uses for_each's variables: sets slot to one that is free, waiting for it.
free_slot() {
    while true; do
        for ((slot = 0; slot < PARALLEL; slot++)); do
            if [[ -z "${pids[slot]:-}" ]]; then return; fi
            if ! kill -0 "${pids[slot]}" 2>/dev/null; then
                reap "$slot"
                return
            fi
        done
        sleep 0.2
    done
}

reap() { # SLOT
    wait "${pids[$1]}" || failed=$((failed + 1))
    unset "pids[$1]"
}

stop_jobs() {
    local job
    for job in $(jobs -p); do kill -TERM -- "-$job" 2>/dev/null || true; done
}

# What rank 0 launches, the other nodes join.
join_trainings() {
    local method seed dir
    while read -r method seed; do
        dir="$(run_dir "$method" "$seed")"
        if [[ "$method" == shared ]]; then dir="$OUT/shared/seed$seed"; fi
        note "waiting for rank 0 to train $method with seed $seed"
        until [[ -e "$dir/launched" || -e "$OUT/.done/train.$method.seed$seed" ]]; do sleep 2; done
        if [[ -e "$dir/launched" ]]; then
            if [[ "$method" == shared ]]; then train_shared "$seed"; else train_run "$method" "$seed"; fi
        fi
    done < <(
        if [[ -n "$START" ]] && ((START > 1)); then seed_list | sed 's/^/shared /'; fi
        run_list
    )
}

run_experiment() {
    trap 'stop_jobs; exit 130' INT TERM
    if in_stage 1; then once download "Stage 1: getting the data" download; fi
    if in_stage 2; then once prepare "Stage 2: preparing the data" prepare; fi
    if in_stage 3; then stage_3; fi
    if in_stage 4; then
        needs prepare 2
        for_each "$(run_list)" train "Stage 4: training" train_run
    fi
    if in_stage 5; then
        for_each "$(run_list | awk -v b="${ALL_METHODS%% *}" '$1 == b')" score "Stage 5: scoring" score_run
        for_each "$(run_list | awk -v b="${ALL_METHODS%% *}" '$1 != b')" score "Stage 5: scoring" score_run
    fi
    if in_stage 6; then
        step "Stage 6: report"
        report
    fi
}

# Scripts without shared epochs (START is empty) have something else to do here, or nothing.
stage_3() {
    if [[ -n "$START" ]] && ((START > 1)); then
        needs prepare 2
        for_each "$(seed_list | sed 's/^/shared /')" train "Stage 3: training" train_shared_of
    fi
}

train_shared_of() { train_shared "$2"; } # shared SEED

# has_baseline METHOD SEED: is there another run's output to compare this one's with?
has_baseline() {
    [[ "$1" != baseline ]] && { ((DRY_RUN)) || [[ -e "$(run_dir baseline "$2")/hypothesis" ]]; }
}

report_experiment() { # NAME-OF-THE-PAPERS-TABLE TITLE FLAGS...
    local runs=() line words table="$1" title="$2"
    shift 2
    if ((CURVES)); then set -- "$@" --plot "$OUT/curves.png"; fi
    while IFS= read -r line; do
        read -r -a words <<<"$line"
        runs+=("$(run_dir "${words[@]}")")
    done < <(run_list)
    if ((SMALL)); then
        title+=", small"
        set -- "$@" --paper-remark "not comparable: small model${DATA:+, other data}"
    elif [[ -n "$DATA" ]]; then
        set -- "$@" --paper-remark "comparable only if --data is the paper's"
    fi
    perform "$PYTHON" -m fairseq_sam.commands report "${runs[@]}" --relative-to "$OUT/runs" \
        --group-by '/seed[0-9]+' --paper "$table" --title "$title" "$@" \
        --output "$OUT/report.md"
    note "table: $OUT/report.md"
    if ((CURVES)); then note "curves: $OUT/curves.png"; fi
}

start_experiment() { # NAME-OF-THE-FOLDER SETTINGS
    if ((SMALL)); then set -- "$1-small" "$2"; fi
    OUT="${OUT:-$ROOT/runs/$1}"
    if ((DRY_RUN)); then
        PYTHON=python
        return
    fi
    if ((INSTALL)); then ensure_environment reproduce reproduce; else use_environment; fi
    if ((NODE_RANK)); then
        NODE_SUFFIX=".node$NODE_RANK"
        mkdir -p "$OUT"
        return
    fi
    lock_output
    remember "$OUT/settings.txt" "$2"
}

NODE_SUFFIX=""
LABEL=""
