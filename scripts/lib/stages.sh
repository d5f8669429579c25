# shellcheck shell=bash
# Work in stages that a rerun goes on with: OUT is the folder, STAGE and STOP_STAGE the first and last to do.
# In a dry run (DRY_RUN of commands.sh) all is shown and nothing counts as done.

# remember FILE TEXT: what was done under other settings is never mixed with what comes now.
remember() {
    if [[ -e "$1" ]]; then
        if [[ "$2" != "$(cat "$1")" ]]; then
            { diff <(printf '%s\n' "$2") "$1" || true; } | sed -n 's/^</    now: /p; s/^>/    then:/p' >&2
            misuse "$(dirname "$1") was made with other settings (above): choose another folder, or delete it"
        fi
    else
        printf '%s\n' "$2" >"$1.incomplete"
        mv "$1.incomplete" "$1"
    fi
}

# once NAME TITLE FUNCTION...: runs it unless it has been done; the stamp is written when it is whole.
once() {
    local stamp="$OUT/.done/$1" title="$2"
    shift 2
    if ((${DRY_RUN:-0})); then
        printf '\n# %s\n' "$title"
        "$@"
        return
    fi
    if [[ -e "$stamp" ]]; then
        step "$title: done before"
        return
    fi
    step "$title"
    "$@"
    touch "$stamp"
}

in_stage() { ((STAGE <= $1 && $1 <= STOP_STAGE)); }

needs() {
    ((${DRY_RUN:-0})) || [[ -e "$OUT/.done/$1" ]] ||
        die "stage $2 has not been done in $OUT: start with --stage $2"
}

lock_output() {
    mkdir -p "$OUT/.done" || die "cannot write to $OUT"
    OUT="$(cd "$OUT" && pwd)"
    # Inherited by every child, so a training that outlived a killed script still holds it.
    exec 8>>"$OUT/.lock"
    lock_descriptor 8 || die "another script is at work in $OUT"
}
