# shellcheck shell=bash
# Running commands so that --dry-run can print them instead, and files are whole or not there.
#
#   run LOG COMMAND...            output is appended to LOG; a failure shows its end and stops the script
#   run_into FILE LOG COMMAND...  the same, with standard output in FILE, which appears when it is whole
#   run_filter IN OUT LOG COMMAND...   the same, with standard input from IN
#   perform COMMAND...            a small command (mkdir, mv) whose output is shown
#   fetch URL FILE [SHA256]       download, continuing a partial one
#   extract ARCHIVE DIR           a .tar.gz

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

CURL_FLAGS=(-fL --retry 3 --connect-timeout 20)

looks_whole() { [[ "$1" != *gz ]] || gzip -t "$2" 2>/dev/null; } # NAME FILE

# get_rest URL PART: goes on with what is there. A script may have been killed after the last byte, and the
# server may have another file by now, or not know how to continue one: then all of it is got again.
get_rest() {
    local status=0 part="$2"
    if [[ ! -e "$part" ]]; then
        curl "${CURL_FLAGS[@]}" -o "$part" "$1"
        return
    fi
    curl "${CURL_FLAGS[@]}" -C - -o "$part" "$1" || status=$?
    case "$status" in
        0) if looks_whole "${part%.part}" "$part"; then return; fi ;;
        22 | 33 | 36) ;; # an answer such as 416; no ranges; a bad offset
        *) return "$status" ;;
    esac
    note "$part cannot be continued: getting all of it"
    rm -f "$part"
    curl "${CURL_FLAGS[@]}" -o "$part" "$1"
}

# extract ARCHIVE DIR
extract() {
    perform tar -xzf "$1" -C "$2" ||
        die "$1 cannot be unpacked into $2: the disk is full, or the archive is damaged (delete it to get it again)"
}

# A partial download stays as FILE.part and is continued; FILE is whole and checked.
fetch() {
    local url="$1" file="$2" sha="${3:-}"
    if [[ -f "$file" ]]; then
        note "$file is there"
    else
        if ((DRY_RUN)); then
            perform curl "${CURL_FLAGS[@]}" -C - -o "$file.part" "$url"
            perform mv "$file.part" "$file"
            return
        fi
        get_rest "$url" "$file.part" || {
            by_hand "$url" "$file"
            die "$url could not be downloaded"
        }
        if ! looks_whole "$file" "$file.part"; then
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
