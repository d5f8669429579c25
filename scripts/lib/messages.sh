# shellcheck shell=bash
# What scripts say: step / note / warn TEXT; die TEXT ends with 1, misuse TEXT with 2;
# timed TITLE LOG COMMAND... runs with the output in LOG and shows a clock.

if [[ -t 2 && -z "${NO_COLOR:-}" ]]; then
    BOLD=$'\033[1m' BLUE=$'\033[34m' YELLOW=$'\033[33m' RED=$'\033[31m' PLAIN=$'\033[0m'
else
    BOLD="" BLUE="" YELLOW="" RED="" PLAIN=""
fi

step() { printf '%s==>%s %s%s%s\n' "$BLUE" "$PLAIN" "$BOLD" "$*" "$PLAIN" >&2; }
note() { printf '    %s\n' "$*" >&2; }
warn() { printf '%swarning:%s %s\n' "$YELLOW" "$PLAIN" "$*" >&2; }

die() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    exit 1
}

misuse() {
    printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2
    printf 'Run "bash %s --help" for the options.\n' "$0" >&2
    exit 2
}

# Seconds go up on a terminal only; elsewhere a line every half minute shows that it is alive.
tick() {
    local parent=$1 begin=$SECONDS next=30
    while sleep 1 && kill -0 "$parent" 2>/dev/null; do
        if [[ -t 2 ]]; then
            printf '\r    %d s ' "$((SECONDS - begin))" >&2
        elif ((SECONDS - begin >= next)); then
            note "... $next s"
            next=$((next + 30))
        fi
    done
}

timed() {
    local title="$1" log="$2" begin=$SECONDS status=0 ticker
    shift 2
    step "$title"
    tick "$$" &
    ticker=$!
    printf '\n### %s\n' "$title" >>"$log"
    "$@" >>"$log" 2>&1 </dev/null || status=$?
    kill "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    if [[ -t 2 ]]; then printf '\r' >&2; fi
    if ((status)); then
        note "failed after $((SECONDS - begin)) s; the end of its output:"
        tail -n 25 "$log" | sed 's/^/    | /' >&2
        note "all of it: $log"
        return "$status"
    fi
    note "done in $((SECONDS - begin)) s"
}
