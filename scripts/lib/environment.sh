# shellcheck shell=bash
# The Python environment of the scripts.
#
#   parse_environment_option "$@"      understands --venv DIR and --python PY; sets CONSUMED to what it took
#   ensure_environment NAME EXTRAS     make, repair or complete the environment; sets PYTHON and VENV and puts
#                                      its programs on the PATH
#   use_environment                    the same, with nothing installed
#   environment_help                   the part of a usage text that explains the options

VENV_OPTION=""
PYTHON_OPTION=""
# shellcheck disable=SC2034  # read by the scripts
CONSUMED=0

# need_value OPTION COUNT_OF_WORDS_LEFT: an option that came last has no value.
need_value() { (($2 >= 2)) || misuse "$1 needs a value"; }

environment_help() {
    cat <<'EOF'
Environment:
  --venv DIR     use the virtual environment DIR, made if it is missing
  --python PY    the interpreter PY: used as it is if it belongs to an environment or has fairseq,
                 otherwise to make the virtual environment
                 Without either: the active virtual or conda environment, else .venv in the project's root.
  --no-install   use the environment as it is
  TORCH_SPEC     variable: what pip installs where there is no torch yet, e.g. "torch==2.8.0" or
                 "torch --index-url URL" for CPU-only builds; default: see scripts/constraints.txt
A fairseq, torch or numpy that is there already is used as it is.
EOF
}

# shellcheck disable=SC2034  # CONSUMED is read by the scripts
parse_environment_option() {
    CONSUMED=0
    case "${1:-}" in
        --venv) need_value "$1" $# && VENV_OPTION="$2" CONSUMED=2 ;;
        --venv=*) VENV_OPTION="${1#*=}" CONSUMED=1 ;;
        --python) need_value "$1" $# && PYTHON_OPTION="$2" CONSUMED=2 ;;
        --python=*) PYTHON_OPTION="${1#*=}" CONSUMED=1 ;;
    esac
}

absolute() {
    case "$1" in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s/%s\n' "$PWD" "$1" ;;
    esac
}

runs_supported_python() {
    "$1" -c 'import sys; sys.exit(not (3, 8) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

# Prints the interpreter to make an environment with; for 3.12 there is a wheel of fairseq, which others have to
# build. A name on the PATH may be a shim that does not
# run, and some systems ship Python without the modules that make environments.
find_python() {
    local name found="" incomplete=""
    for name in python3.12 python3.11 python3.10 python3.13 python3.9 python3.8 python3 python; do
        found="$(command -v "$name" 2>/dev/null)" || continue
        runs_supported_python "$found" || continue
        if "$found" -c 'import venv, ensurepip' >/dev/null 2>&1; then
            printf '%s\n' "$found"
            return
        fi
        incomplete="$found"
    done
    if [[ -n "$incomplete" ]]; then
        die "$incomplete cannot make virtual environments: install its venv package (Debian, Ubuntu:" \
            "python3-venv), or name another interpreter with --python."
    fi
    die "no Python 3.8 to 3.13 found on the PATH. Install one, or name it with --python."
}

# Sets VENV (the environment's folder), PYTHON (its interpreter) and BASE (what to make it with, or
# nothing where the environment was brought by the user and is used as it is).
choose_environment() {
    local facts version
    BASE=""
    if [[ -n "$PYTHON_OPTION" ]]; then
        PYTHON="$(command -v "$PYTHON_OPTION")" || die "--python $PYTHON_OPTION: there is no such program"
        runs_supported_python "$PYTHON" || die "--python $PYTHON_OPTION: not a Python 3.8 to 3.13 that runs"
        facts="$("$PYTHON" "$ROOT/scripts/environment.py" describe)"
        version="$(sed -n 1p <<<"$facts")"
        if [[ -z "$VENV_OPTION" && "$(sed -n 3p <<<"$facts")" == 1 ]]; then
            VENV="$(sed -n 2p <<<"$facts")"
            PYTHON="$(absolute "$PYTHON")"
            return
        fi
        BASE="$PYTHON"
        VENV="${VENV_OPTION:-$ROOT/.venv}"
    elif [[ -n "$VENV_OPTION" ]]; then
        VENV="$VENV_OPTION"
    elif [[ -n "${VIRTUAL_ENV:-}" ]]; then
        VENV="$VIRTUAL_ENV"
        [[ -x "$VENV/bin/python" ]] ||
            die "VIRTUAL_ENV names $VENV, where there is no environment: activate one, or unset the variable."
    elif [[ -n "${CONDA_PREFIX:-}" && "${CONDA_DEFAULT_ENV:-base}" != base ]]; then
        VENV="$CONDA_PREFIX"
    else
        VENV="$ROOT/.venv"
    fi
    VENV="$(absolute "$VENV")"
    PYTHON="$VENV/bin/python"
    if [[ -L "$PYTHON" && ! -e "$PYTHON" ]]; then
        die "the Python that $VENV was made with is gone: delete that folder and run this again."
    fi
    if [[ -x "$PYTHON" ]] && runs_supported_python "$PYTHON"; then
        if [[ -n "$BASE" ]] &&
            ! "$PYTHON" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')"; then
            die "$VENV holds another Python than $BASE ($version): choose another folder with --venv."
        fi
    elif [[ -x "$PYTHON" && ! -e "$VENV/.fairseq_sam/owned" ]]; then
        die "$PYTHON is not a Python 3.8 to 3.13 that runs: choose another environment with --venv or --python."
    elif [[ -z "$BASE" ]]; then
        BASE="$(find_python)"
    fi
}

make_virtual_environment() {
    if [[ -x "$PYTHON" ]] && "$PYTHON" -m pip --version >/dev/null 2>&1; then
        return
    fi
    if [[ -e "$PYTHON" && ! -e "$STATE/owned" ]]; then
        die "$PYTHON has no pip: install it there (for instance $PYTHON -m ensurepip), or choose another" \
            "environment with --venv."
    fi
    [[ -n "$BASE" ]] || BASE="$(find_python)"
    # Marked before it is made, so that one cut off in the middle is known to be ours to repair.
    mkdir -p "$STATE"
    touch "$STATE/owned"
    timed "Making the environment $VENV with $("$BASE" --version)" "$LOG" "$BASE" -m venv "$VENV" ||
        die "the environment could not be made. On Debian and Ubuntu, install python3-venv."
}

pip_install() {
    "$PYTHON" "$ROOT/scripts/environment.py" constraints "$ROOT/scripts/constraints.txt" \
        ${OWNED_FLAG:+"$OWNED_FLAG"} >"$STATE/constraints.txt" &&
        "$PYTHON" -m pip install --disable-pip-version-check --no-input --no-warn-script-location \
            -c "$STATE/constraints.txt" "$@"
}

# Without build isolation no second torch is fetched; with CUDA_HOME set the build looks for sources that
# the archive lacks; -O0 slows two extensions that are hardly used and halves the time.
build_fairseq_fixed() (
    unset CUDA_HOME
    export CFLAGS="-O0 -g0 ${CFLAGS:-}"
    pip_install --no-build-isolation -e "${ROOT}[fairseq]"
)

below_3_11() { "$PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; }

# Prints where a module is; a mere folder of that name in the working directory has no origin.
module_origin() {
    "$PYTHON" -c 'import importlib.util as u, sys; print(getattr(u.find_spec(sys.argv[1]), "origin", None) or "")' "$1"
}

has_module() { [[ -n "$(module_origin "$1")" ]]; }

torch_works() { "$PYTHON" -c 'import torch' >>"$LOG" 2>&1; }

# The compiled module is what every training run needs; a checkout that was never built lacks it.
fairseq_works() {
    "$PYTHON" -c 'import fairseq, fairseq.checkpoint_utils, fairseq.data.data_utils_fast' >>"$LOG" 2>&1
}

# Known to pip, or from somewhere else than the environment (a checkout on PYTHONPATH). Files in the
# environment that pip does not know of are what an interrupted installation left.
fairseq_is_there() {
    local origin
    "$PYTHON" -m pip show -q fairseq >/dev/null 2>&1 && return
    "$PYTHON" -m pip show -q fairseq-fixed >/dev/null 2>&1 && return
    origin="$(module_origin fairseq)"
    [[ -n "$origin" && "$origin" != "$VENV"/lib/* ]]
}

check_compiler() {
    local probe="$STATE/probe.cpp" include
    include="$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')"
    printf '#include <vector>\nint main() { return std::vector<int>().size(); }\n' >"$probe"
    if ! ${CXX:-c++} -c "$probe" -o "$STATE/probe.o" >>"$LOG" 2>&1; then
        die "fairseq has to be built here and ${CXX:-c++} does not compile: install a C and C++ compiler" \
            "(Debian, Ubuntu: apt-get install build-essential) and run this again."
    fi
    printf '#include <Python.h>\n' >"$probe"
    if ! ${CXX:-c++} -I "$include" -c "$probe" -o "$STATE/probe.o" >>"$LOG" 2>&1; then
        die "fairseq has to be built here and Python's headers are not in $include: install them (Debian," \
            "Ubuntu: apt-get install python3-dev) or use another interpreter with --python, and run this again."
    fi
    rm -f "$probe" "$STATE/probe.o"
}

has_prebuilt_fairseq() {
    [[ "$(uname -sm)" == "Linux x86_64" ]] &&
        "$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 8), (3, 12)))'
}

install_torch() {
    local spec
    if has_module torch && torch_works; then return; fi
    # Split into words: the variable may hold options of pip too.
    read -r -a spec <<<"${TORCH_SPEC:-torch}"
    timed "Installing torch (200 MB without CUDA, several GB with it)" "$LOG" pip_install "${spec[@]}" ||
        die "torch could not be installed. Choose another with TORCH_SPEC, or run this again to go on from here."
    torch_works || die "torch was installed, but cannot be imported: see $LOG"
}

install_fairseq() {
    local again="Run this again to go on from here."
    if fairseq_is_there; then
        fairseq_works && return
        tail -n 8 "$LOG" | sed 's/^/    | /' >&2
        if [[ -n "$OWNED_FLAG" ]]; then
            die "the fairseq in $VENV cannot be imported (above). Delete that folder and run this again."
        fi
        die "there is a fairseq in $VENV, but it cannot be imported (above), and another one is not laid over" \
            "it. Repair or remove it (pip uninstall fairseq fairseq-fixed), or choose another environment with --venv."
    fi
    has_prebuilt_fairseq || check_compiler
    if below_3_11; then
        timed "Installing pip < 24.1: newer ones refuse a dependency of fairseq 0.12.2" "$LOG" \
            pip_install 'pip<24.1' || die "pip could not be changed. $again"
        timed "Building fairseq 0.12.2 (a few minutes)" "$LOG" pip_install -e "${ROOT}[fairseq]" ||
            die "fairseq could not be installed. $again"
    else
        timed "Installing what fairseq is built with" "$LOG" \
            pip_install 'setuptools>=64' wheel cython numpy || die "the build tools could not be installed. $again"
        timed "Building fairseq (one to three minutes)" "$LOG" build_fairseq_fixed ||
            die "fairseq could not be built. $again"
    fi
}

# Changes when anything does that decides what is installed.
fingerprint() {
    printf '%s\n%s\n' "$ROOT" "$1"
    cat "$ROOT/setup.py" "$ROOT/scripts/constraints.txt" | cksum
}

# The stamp is written last, so an installation that was cut off has none. It names what was installed,
# and the modules must still be there.
is_complete() {
    [[ -f "$STAMP" && ! -e "$STATE/unfinished" && -x "$PYTHON" && "$(cat "$STAMP")" == "$(fingerprint "$1")" ]] &&
        has_module torch && has_module fairseq && has_module fairseq_sam
}

complete_environment() {
    local begin=$SECONDS
    make_virtual_environment
    if [[ -e "$STATE/unfinished" ]]; then
        note "continuing an installation that did not finish"
        "$PYTHON" "$ROOT/scripts/environment.py" repair >>"$LOG"
    fi
    rm -f "$STAMP"
    touch "$STATE/unfinished"
    install_torch
    install_fairseq
    timed "Installing fairseq_sam and its tools ($1)" "$LOG" pip_install -e "${ROOT}[$1]" ||
        die "fairseq_sam could not be installed. Run this again to go on from here."
    fairseq_works || die "fairseq was installed, but cannot be imported: see $LOG"
    fingerprint "$1" >"$STAMP"
    rm -f "$STATE/unfinished"
    note "the environment $VENV is complete ($((SECONDS - begin)) s)"
}

# lock_descriptor NUMBER [wait]: locks an open file; false if another process has it. Python's lock is that of
# flock, which not every system has as a command, and stays with this shell's descriptor.
lock_descriptor() {
    local python="$PYTHON"
    if ! command -v "$python" >/dev/null; then python="$(find_python 2>/dev/null || true)"; fi
    if [[ -z "$python" ]]; then return; fi
    "$python" - "$1" "${2:-}" <<'END'
import fcntl, sys
try:
    fcntl.flock(int(sys.argv[1]), fcntl.LOCK_EX | (0 if sys.argv[2] else fcntl.LOCK_NB))
except BlockingIOError:
    sys.exit(1)
except OSError:  # a file system without locks: the user has to see to it
    pass
END
}

ensure_environment() {
    choose_environment
    STATE="$VENV/.fairseq_sam"
    STAMP="$STATE/$1.stamp"
    LOG="$STATE/install.log"
    if ! is_complete "$2"; then
        mkdir -p "$STATE" 2>/dev/null || die "cannot write to $VENV: choose another environment with --venv."
        # One installation at a time.
        exec 9>>"$STATE/lock"
        lock_descriptor 9 || { note "waiting for another installation into $VENV" && lock_descriptor 9 wait; }
        OWNED_FLAG=""
        if [[ -e "$STATE/owned" || ! -e "$PYTHON" ]]; then OWNED_FLAG="--owned"; fi
        if ! is_complete "$2"; then complete_environment "$2"; fi
        exec 9>&-
    fi
    activate
}

# The environment as it is, for --no-install.
use_environment() {
    choose_environment
    [[ -x "$PYTHON" ]] || die "there is no environment in $VENV: leave --no-install out to make it."
    activate
}

activate() {
    PATH="$(dirname "$PYTHON"):$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH"
    export PATH
    if [[ -f "$VENV/pyvenv.cfg" ]]; then export VIRTUAL_ENV="$VENV"; fi
    hash -r
}
