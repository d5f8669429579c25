# shellcheck shell=bash
# run_recipe NAME EXTRA "$@": hands a script's options over to fairseq_sam.experiments, which any Python can read.
# They are checked, explained or printed before anything is installed; then the environment is made or found.

# Threads that wait by spinning crawl when anything else wants the cores; these sleep instead.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

run_recipe() {
    local name="$1" extra="$2" install=1 show="" arguments=() environment=() bare
    shift 2
    while (($#)); do
        parse_environment_option "$@"
        case "$1" in
            -h | --help) show=help arguments+=("$1") ;;
            --dry-run) show="${show:-commands}" arguments+=("$1") ;;
            --no-install) install=0 environment+=("$1") ;;
            *) if ((CONSUMED)); then environment+=("${@:1:CONSUMED}"); else arguments+=("$1"); fi ;;
        esac
        shift "$((CONSUMED > 1 ? CONSUMED : 1))"
    done
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
    choose_environment
    bare="$PYTHON"
    if [[ ! -x "$bare" ]]; then bare="${BASE:-$(find_python)}"; fi
    if [[ -n "$show" ]]; then
        "$bare" -m fairseq_sam.experiments "$name" "${arguments[@]}"
        if [[ "$show" == help ]]; then printf '\n' && environment_help; fi
        return
    fi
    "$bare" -m fairseq_sam.experiments "$name" --check ${arguments[@]+"${arguments[@]}"}
    if ((install)); then ensure_environment "$extra" "$extra"; else use_environment; fi
    FAIRSEQ_SAM_PROGRAM="$(printf '%q ' bash "$0" ${environment[@]+"${environment[@]}"})"
    export FAIRSEQ_SAM_PROGRAM="${FAIRSEQ_SAM_PROGRAM% }"
    exec "$PYTHON" -m fairseq_sam.experiments "$name" ${arguments[@]+"${arguments[@]}"}
}
