#!/usr/bin/env bash
# Every check of the project in one command; .ci/run calls it.
# shellcheck disable=SC2329  # the checks are called by name
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'EOF'
Usage: bash scripts/test.sh [OPTIONS] [-- PYTEST-ARGUMENTS]

Makes the environment if it is missing, then runs: format, lint, types, shell, docs, tests.
(docs builds the site strictly, where mkdocs is installed: pip install ".[docs]".)
The tests end with a list of the ten slowest.
All checks run even if one fails; the exit status is 1 if any did, and 2 for a wrong command line.

Options:
  --only LIST    run only these checks (comma-separated), e.g. --only lint,types
  --slow         also run the tests marked slow
  --fix          let ruff format the code and repair what it can before checking
  --workers N    processes for the tests, 0 for none but pytest's own (default: one per core, at most 4)
  --help         show this text

EOF
    environment_help
    cat <<'EOF'

Examples:
  bash scripts/test.sh
  bash scripts/test.sh --only tests -- tests/perturbation -k rounding
EOF
}

CHECKS="format lint types shell docs tests"
WORKERS=""
INSTALL=1
FIX=0
PYTEST_ARGUMENTS=()

while (($#)); do
    parse_environment_option "$@"
    if ((CONSUMED)); then
        shift "$CONSUMED"
        continue
    fi
    case "$1" in
        --only)
            need_value "$1" $#
            CHECKS="${2//,/ }"
            shift
            ;;
        --only=*) CHECKS="${1#*=}" && CHECKS="${CHECKS//,/ }" ;;
        --workers)
            need_value "$1" $#
            WORKERS="$2"
            shift
            ;;
        --workers=*) WORKERS="${1#*=}" ;;
        --slow) PYTEST_ARGUMENTS+=(-m "") ;;
        --fix) FIX=1 ;;
        --no-install) INSTALL=0 ;;
        --help | -h)
            usage
            exit 0
            ;;
        --)
            shift
            PYTEST_ARGUMENTS+=("$@")
            break
            ;;
        *) misuse "unknown argument: $1 (arguments for pytest go after --)" ;;
    esac
    shift
done

[[ -n "${CHECKS// /}" ]] || misuse "--only needs at least one of: format lint types shell docs tests"
for check in $CHECKS; do
    [[ " format lint types shell docs tests " == *" $check "* ]] ||
        misuse "--only: unknown check $check (there are: format lint types shell docs tests)"
done
[[ -z "$WORKERS" || "$WORKERS" =~ ^[0-9]+$ ]] || misuse "--workers $WORKERS: not a number of processes"

check_format() { "$PYTHON" -m ruff format --check .; }
check_lint() {
    local result=0
    "$PYTHON" -m ruff check . || result=1
    if "$PYTHON" -c 'import importlinter' 2>/dev/null; then
        lint-imports --no-cache || result=1
    else
        note "import-linter is not installed: which room imports which was not checked"
    fi
    return "$result"
}
check_types() { "$PYTHON" -m mypy; }
check_shell() { shellcheck -x scripts/*.sh scripts/lib/*.sh .ci/*; }

check_docs() {
    if "$PYTHON" -c 'import mkdocs, mkdocstrings' 2>/dev/null; then
        "$PYTHON" -m mkdocs build --quiet --strict
    else
        note "mkdocs is not installed: nothing was built"
    fi
}

check_tests() {
    local cores workers="$WORKERS"
    if [[ -z "$workers" ]]; then
        cores="$("$PYTHON" -c 'import os; print(len(os.sched_getaffinity(0)))' 2>/dev/null || echo 2)"
        workers=$((cores < 4 ? cores : 4))
    fi
    # One thread in each process: more would only compete for the same cores.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    "$PYTHON" -m pytest -n "$workers" --dist worksteal --durations=10 \
        ${PYTEST_ARGUMENTS[@]+"${PYTEST_ARGUMENTS[@]}"}
}

if ((INSTALL)); then
    ensure_environment test dev
else
    use_environment
fi
cd "$ROOT"

if ((FIX)); then
    step "fix"
    "$PYTHON" -m ruff check --fix-only .
    "$PYTHON" -m ruff format .
fi

summary=""
failed=0
for check in $CHECKS; do
    step "$check"
    begin=$SECONDS
    if "check_$check"; then result="ok"; else result="FAILED" failed=1; fi
    summary+="$(printf '    %-8s %-8s %4d s' "$check" "$result" "$((SECONDS - begin))")"$'\n'
done
step "summary"
printf '%s' "$summary" >&2
exit "$failed"
