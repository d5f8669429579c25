# shellcheck shell=bash
# Running commands so that --dry-run can print them instead, and files are whole or not there.
#
#   run LOG COMMAND...            output is appended to LOG; a failure shows its end and stops the script
#   run_into FILE LOG COMMAND...  the same, with standard output in FILE, which appears when it is whole
#   run_filter IN OUT LOG COMMAND...   the same, with standard input from IN
#   perform COMMAND...            a small command (mkdir, mv) whose output is shown
#   fetch URL FILE [SHA256]       download, continuing a partial one

# shellcheck disable=SC2034  # set by the scripts' --dry-run
DRY_RUN=0

# Prints a command as one would type it.
print_command() {
    local word text=""
    for word in "$@"; do
        if [[ "$word" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
            text+=" $word"
        else
            text+=" '${word//\'/\'\\\'\'}'"
        fi
    done
    printf '%s\n' "${text# }"
}

perform() {
    if ((DRY_RUN)); then
        print_command "$@"
    else
        "$@"
    fi
}

# show_failure LOG COMMAND...
show_failure() {
    tail -n 25 "$1" | sed 's/^/    | /' >&2
    note "all of it: $1"
    shift
    die "failed: $(print_command "$@" | cut -c 1-200)"
}

run() {
    local log="$1"
    shift
    if ((DRY_RUN)); then
        print_command "$@"
        return
    fi
    "$@" >>"$log" 2>&1 </dev/null || show_failure "$log" "$@"
}

run_into() {
    local file="$1" log="$2"
    shift 2
    if ((DRY_RUN)); then
        printf '%s > %s\n' "$(print_command "$@")" "$file"
        return
    fi
    "$@" >"$file.incomplete" 2>>"$log" </dev/null || show_failure "$log" "$@"
    mv "$file.incomplete" "$file"
}

run_filter() {
    local input="$1" file="$2" log="$3"
    shift 3
    if ((DRY_RUN)); then
        printf '%s < %s > %s\n' "$(print_command "$@")" "$input" "$file"
        return
    fi
    "$@" <"$input" >"$file.incomplete" 2>>"$log" || show_failure "$log" "$@"
    mv "$file.incomplete" "$file"
}

# by_hand URL FILE: what to do where the host cannot be reached.
by_hand() {
    note "Get it in another way, put it there and run this again, or use --data:"
    note "  from  $1"
    note "  to    $2"
}

check_sha256() {
    local found
    found="$( (sha256sum "$1" 2>/dev/null || shasum -a 256 "$1") | cut -d ' ' -f 1)"
    if [[ "$found" != "$2" ]]; then
        note "$1 has the SHA-256 $found, wanted is $2"
        return 1
    fi
}

# A partial download stays as FILE.part and is continued; FILE is whole and checked.
fetch() {
    local url="$1" file="$2" sha="${3:-}"
    if [[ -f "$file" ]]; then
        note "$file is there"
    else
        perform curl -fL --retry 3 --connect-timeout 20 -C - -o "$file.part" "$url" || {
            by_hand "$url" "$file"
            die "$url could not be downloaded"
        }
        if ((DRY_RUN)); then
            perform mv "$file.part" "$file"
            return
        fi
        if [[ "$file" == *gz ]] && ! gzip -t "$file.part" 2>/dev/null; then
            rm -f "$file.part"
            by_hand "$url" "$file"
            die "what $url gave is damaged; it was deleted"
        fi
        mv "$file.part" "$file"
    fi
    if [[ -n "$sha" ]] && ((!DRY_RUN)) && ! check_sha256 "$file" "$sha"; then
        mv "$file" "$file.damaged"
        by_hand "$url" "$file"
        die "$file is not the file that is wanted; it is $file.damaged now"
    fi
}
