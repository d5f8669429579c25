# shellcheck shell=bash
# shellcheck disable=SC2034 # variables that other files of this folder read
# GA-SAM's ablations (its Tables 2 and 3): variants of ga_sam that differ from it in one part.

ABLATIONS="ga_sam_single ga_sam_element ga_sam_model ga_sam_weight_over_gradient ga_sam_inverse_gradient"
ABLATIONS+=" ga_sam_weight_strength ga_sam_weight"
STEPS="ga_sam_k2 ga_sam_k3 ga_sam_k4 ga_sam_k5"
OTHER_NORM="ga_sam_l2"

# choose_ablations RADII-UNDER-L∞ RADII-UNDER-L2: sets METHODS to all of them, as the tables have them.
choose_ablations() {
    local radius
    METHODS="baseline sam ga_sam multi_step_defense $ABLATIONS $STEPS" # multi_step_defense is T = 1
    for radius in $1; do METHODS+=" ga_sam@$radius"; done
    for radius in $2; do METHODS+=" ga_sam_l2@$radius"; done
    METHODS="${METHODS// /,}"
}

# ablation_flags METHOD RADIUS: sets METHOD_FLAGS; false for another method.
ablation_flags() {
    METHOD_FLAGS=(--optimizer ga_sam --base-optimizer "$BASE_OPTIMIZER" --sam-rho "$2" --sam-norm linf)
    case "$1" in
        ga_sam_single) METHOD_FLAGS+=(--sam-risk perturbed) ;;
        ga_sam_element) METHOD_FLAGS+=(--sam-granularity element) ;;
        ga_sam_model) METHOD_FLAGS+=(--sam-granularity model) ;;
        ga_sam_weight_over_gradient) METHOD_FLAGS+=(--sam-scale weight-over-gradient) ;;
        ga_sam_inverse_gradient) METHOD_FLAGS+=(--sam-scale inverse-gradient) ;;
        ga_sam_weight_strength) METHOD_FLAGS+=(--sam-scale weight-strength) ;;
        ga_sam_weight) METHOD_FLAGS+=(--sam-scale weight) ;;
        ga_sam_k[2-5]) METHOD_FLAGS+=(--sam-steps "${1#ga_sam_k}") ;;
        ga_sam_l2) METHOD_FLAGS+=(--sam-norm l2) ;;
        *) return 1 ;;
    esac
}
