# shellcheck shell=bash
# The command lines of the scripts.
#
# A script defines usage, set_option OPTION VALUE and, for options without a value, set_switch OPTION; both
# return 1 for what they do not know. parse_options "$@" then does the rest, the environment's options included.

# shellcheck disable=SC2034  # read by the scripts
INSTALL=1

# set_argument WORD: what stands without an option. A script that wants one defines it anew.
set_argument() { return 1; }

# need_value OPTION COUNT_OF_WORDS_LEFT: an option that came last has no value.
need_value() { (($2 >= 2)) || misuse "$1 needs a value"; }

# shellcheck disable=SC2034  # INSTALL is read by the scripts
parse_options() {
    while (($#)); do
        parse_environment_option "$@"
        if ((CONSUMED)); then
            shift "$CONSUMED"
            continue
        fi
        case "$1" in
            -h | --help) usage && exit 0 ;;
            --no-install) INSTALL=0 ;;
            --*=*) set_option "${1%%=*}" "${1#*=}" || misuse "unknown option ${1%%=*}" ;;
            --*)
                if ! set_switch "$1"; then
                    set_option "$1" "${2:-}" || misuse "unknown option $1"
                    need_value "$1" $#
                    shift
                fi
                ;;
            *) set_argument "$1" || misuse "unexpected argument $1" ;;
        esac
        shift
    done
}

# check_number OPTION VALUE LOWEST [HIGHEST]
check_number() {
    local highest="${4:-999999999}"
    if [[ ! "$2" =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3 || 10#$2 > highest)); then
        if [[ -n "${4:-}" ]]; then misuse "$1 $2: a whole number from $3 to $4 is wanted"; fi
        misuse "$1 $2: a whole number of at least $3 is wanted"
    fi
}

# is_real VALUE [LEAST]: the limit is that of fairseq_sam/flags/number_types.py.
is_real() {
    [[ "$1" =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$ ]] || return 1
    awk -v value="$1" -v least="${2:-0}" 'BEGIN { exit !(least + 0 <= value + 0 && value + 0 <= 1e6) }'
}

# check_real OPTION VALUE
check_real() { is_real "$2" || misuse "$1 $2: a number of at least 0 is wanted (1e6 at most)"; }

# check_positive OPTION VALUE
check_positive() { is_real "$2" 1e-300 || misuse "$1 $2: a number above 0 is wanted (1e6 at most)"; }

# check_choice OPTION VALUE "ALLOWED..."
check_choice() {
    local choice
    for choice in $3; do
        if [[ "$2" == "$choice" ]]; then return; fi
    done
    misuse "$1 $2: choose from: $3"
}

check_quotes() {
    xargs -n 1 printf '%s\n' <<<"$2" >/dev/null 2>&1 || misuse "$1 $2: the quotes do not match"
}

# split_flags TEXT: sets FLAGS to its words; quotes keep words together, as in '(0.9, 0.98)'.
split_flags() {
    local word
    FLAGS=()
    if [[ -z "${1// /}" ]]; then return; fi
    while IFS= read -r word; do FLAGS+=("$word"); done < <(xargs -n 1 printf '%s\n' <<<"$1")
}
