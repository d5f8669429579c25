"""The command-line flags of the sharpness-aware optimizers, and what they add up to.

The flags are declared once, here, for ``fairseq-train`` and ``fairseq-hydra-train`` alike. Values
that make no sense are refused while the command line is parsed, before any data is read.
"""

import logging
import math
import re
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from typing import Any, Tuple

from fairseq.criterions import CRITERION_REGISTRY

from fairseq_sam.criterions import PerSentenceCriterion, per_sentence_name_of
from fairseq_sam.flags.number_types import (
    at_least_zero,
    fraction,
    fraction_or_zero,
    num_steps,
    positive,
    radius,
    share_of,
    whole_number,
)
from fairseq_sam.perturbation import PerturbationSettings, method_settings
from fairseq_sam.perturbation.ascent import DIRECTIONS, GRANULARITIES, SCALES
from fairseq_sam.perturbation.settings import LOSS_REDUCTIONS, METHODS, NORMS, RISKS, WEIGHTINGS
from fairseq_sam.training.configuration import Gate, SharpnessAwareConfig

logger = logging.getLogger(__name__)


def add_flags(parser: ArgumentParser, method: str) -> None:
    """Adds the flags with the method's own values named in the help texts."""
    preset = method_settings(method)
    group = parser.add_argument_group(f"Sharpness-aware minimisation ({method})")
    add = group.add_argument
    # fmt: off
    add("--sam-rho", type=radius, metavar="R",
        help="radius of the constraint set (ρ in SAM and δ-SAM, ε in GA-SAM), or a share like 5%%: "
             "the radius at which the loss of the mini-batch rises by that share to first order; "
             "0 is the base optimizer alone (default: "
             f"{preset.describe_radius().replace('%', '%%')})")
    add("--sam-rho-max", type=positive, metavar="R",
        help="with a share: the greatest radius (default: none)")
    add("--sam-norm", choices=NORMS, help=f"norm of the constraint (default: {preset.norm})")
    add("--sam-scale", choices=list(SCALES),
        help=f"scale T of the perturbation (default: {preset.scale})")
    add("--sam-granularity", choices=GRANULARITIES,
        help="what shares one value of T; under filter the weights of one-dimensional tensors "
             f"have values of their own (default: {preset.granularity})")
    add("--sam-risk", choices=RISKS,
        help="perturbed: minimise L(w + a_K), single-step; mean: minimise the mean of "
             "L(w + a_k), k = 0..K, multi-step; functional: as perturbed, with the gradient with "
             f"respect to the model's outputs held from w (default: {preset.risk})")
    add("--sam-direction", choices=list(DIRECTIONS),
        help="what the ascent follows: the gradient; the base optimizer's momentum, at no pass "
             "more; a running mean of gradients (smoothed), or what differs from it (friendly); a "
             f"random direction, as a control (default: {preset.direction})")
    add("--sam-smoothing", type=fraction, metavar="THETA",
        help="θ, how much a gradient counts in the running mean (default: of smoothed "
             f"{DIRECTIONS['smoothed'].smoothing}, of friendly {DIRECTIONS['friendly'].smoothing})")
    add("--sam-friendly", type=at_least_zero, default=preset.friendly, metavar="SIGMA",
        help="σ, how much of the running mean a friendly direction leaves out")
    add("--sam-ascent-fraction", type=fraction, default=preset.ascent_fraction, metavar="Q",
        help="the ascent sees this part of each mini-batch's sentences, which makes it as much "
             "cheaper")
    add("--sam-ascent-share", type=fraction, default=preset.ascent_share, metavar="Q",
        help="with --update-freq U: the first ⌈Q U⌉ micro-batches of an update have an ascent of "
             "their own, and the others take the last one's perturbation")
    add("--sam-steps", type=num_steps, metavar="K",
        help="ascent steps; a perturbed update costs K + 1 forward-backward passes "
             f"(default: {preset.num_steps})")
    add("--sam-start-epoch", type=whole_number(1), default=1, metavar="N",
        help="first epoch that is perturbed; earlier ones are the base optimizer's, bit for bit")
    add("--sam-start-update", type=whole_number(0), default=0, metavar="N",
        help="first update that is perturbed")
    add("--sam-start-fraction", type=fraction_or_zero, metavar="F",
        help="first perturbed update as a share of --max-update, or first perturbed epoch as a "
             "share of --max-epoch, whichever comes first; in place of the two above")
    add("--sam-ramp-updates", type=whole_number(0), default=0, metavar="N",
        help="let the radius grow from nothing for the first N updates from the start on")
    add("--sam-interval", type=whole_number(1), default=1, metavar="N",
        help="perturb every N-th update only")
    add("--sam-loss-reduction", choices=LOSS_REDUCTIONS,
        help="the loss whose gradient the scales see: the mean, or the sum over the batch as in "
             f"the GA-SAM paper's radii (default: {preset.loss_reduction})")
    add("--sam-exclude", type=_pattern, metavar="REGEX",
        help="leave parameters unperturbed in whose names this regular expression is found")
    add("--sam-log-gradients", type=whole_number(1), metavar="N",
        help="log the norm of each layer's gradient every N-th update, as gnorm_LAYER; with "
             "--sam-rho 0 too (default: never)")
    add("--delta-sam-variant", choices=WEIGHTINGS[1:],
        help="weigh the sentences in the ascent direction as the published paper or as its draft "
             "does; needs a per_sentence_... criterion "
             f"(default: {'none' if preset.weighting == 'uniform' else preset.weighting})")
    add("--delta-sam-eta", type=positive, default=preset.eta, metavar="E",
        help="η of the published weights: least first difference of a sentence's loss, in nats")
    add("--delta-sam-beta", type=at_least_zero, default=preset.beta, metavar="B",
        help="β of the draft's weights: how far they lie from uniform ones")
    add("--delta-sam-probe-radius", type=positive, metavar="H",
        help="length of the random displacement at which the weights are measured; differences "
             "are scaled back to --sam-rho; the value of --sam-rho is the paper to the letter "
             "(default: as long as the floating-point format needs, docs/results/delta_weights.md)")
    # fmt: on


def config_from(args: Namespace, method: str) -> SharpnessAwareConfig:
    """Returns what the flags add up to.

    Raises:
        ValueError: for combinations that cannot work, naming flag, value and what is allowed.
    """
    _refuse_unsupported(args, method)
    share = METHODS[method].share if args.sam_rho is None else share_of(args.sam_rho)
    if args.sam_rho_max is not None and share is None and args.sam_rho != 0:
        raise ValueError(
            f"argument --sam-rho-max: {args.sam_rho_max:g} is not allowed: it needs a share as "
            "--sam-rho, such as 5%"
        )
    try:
        perturbation = method_settings(
            method,
            rho=args.sam_rho if share is None else args.sam_rho_max,
            share=share,
            norm=args.sam_norm,
            scale=args.sam_scale,
            granularity=args.sam_granularity,
            risk=args.sam_risk,
            num_steps=args.sam_steps,
            loss_reduction=args.sam_loss_reduction,
            direction=args.sam_direction,
            smoothing=args.sam_smoothing,
            friendly=args.sam_friendly,
            ascent_fraction=args.sam_ascent_fraction,
            ascent_share=args.sam_ascent_share,
            weighting=args.delta_sam_variant,
            eta=args.delta_sam_eta,
            beta=args.delta_sam_beta,
            probe_radius=args.delta_sam_probe_radius,
        )
        gate = _gate_from(args)
    except ValueError as error:
        raise ValueError(f"argument {_flag_named(str(error))}") from None
    _refuse_without_effect(args, METHODS[method], perturbation)
    _refuse_state_elsewhere(args, perturbation)
    if args.sam_exclude is not None:
        _pattern(args.sam_exclude)
    if perturbation.needs_sentences and isinstance(getattr(args, "criterion", None), str):
        require_sentences(CRITERION_REGISTRY.get(args.criterion), args.criterion)
    return SharpnessAwareConfig(
        method,
        perturbation,
        gate,
        args.sam_exclude,
        args.sam_log_gradients or 0,
        _update_freq(args),
    )


def _refuse_without_effect(
    args: Namespace, preset: PerturbationSettings, settings: PerturbationSettings
) -> None:
    """Refuses flags that the other parts make no use of: whoever gives them wants something else.

    Raises:
        ValueError: naming flag, value and what it needs.
    """
    remembers = DIRECTIONS[settings.direction].smoothing is not None
    published, draft = settings.weighting == "published", settings.weighting == "draft"
    for name, usual, has_effect, needed in (
        ("sam_smoothing", None, remembers, "--sam-direction smoothed or friendly"),
        (
            "sam_friendly",
            preset.friendly,
            settings.direction == "friendly",
            "--sam-direction friendly",
        ),
        ("delta_sam_eta", preset.eta, published, "--delta-sam-variant published"),
        ("delta_sam_beta", preset.beta, draft, "--delta-sam-variant draft"),
        ("delta_sam_probe_radius", None, settings.needs_sentences, "--delta-sam-variant"),
    ):
        value = getattr(args, name)
        if not has_effect and value not in (usual, None):
            flag = name.replace("_", "-")
            raise ValueError(f"argument --{flag}: {value:g} is not allowed: it needs {needed}")


def _refuse_state_elsewhere(args: Namespace, settings: PerturbationSettings) -> None:
    """Refuses to look at what the base optimizer remembers where that is not to be had.

    Raises:
        ValueError: naming the flag and what looks there.
    """
    if settings.needs_pass and not settings.needs_second_moments:
        return
    looks = "--sam-scale adam" if settings.needs_pass else "--sam-direction momentum"
    if getattr(args, "zero_sharding", None) == "os":
        raise ValueError(
            f"argument --zero-sharding: os does not go with {looks}, which looks at what the base "
            "optimizer remembers: each worker would have a part of it alone"
        )
    if getattr(args, "amp", False) and SCALES[settings.scale].divides_by_gradient:
        raise ValueError(
            f"argument --amp: it does not go with {looks}, which looks at what the base optimizer "
            "remembers: fairseq divides the gradients by the loss scale twice before it sees them; "
            "use --fp16 or --bf16"
        )


def _update_freq(args: Namespace) -> Tuple[int, ...]:
    """Returns fairseq's flag; while the command line is parsed it is text, and not looked at."""
    value = getattr(args, "update_freq", None)
    return (1,) if not value or isinstance(value, str) else tuple(value)


def _gate_from(args: Namespace) -> Gate:
    """Returns when the run is perturbed.

    Raises:
        ValueError: for what cannot be together, in the words of ``_flag_named``.
    """
    epoch, update, share = args.sam_start_epoch, args.sam_start_update, args.sam_start_fraction
    if share is not None:
        max_update = getattr(args, "max_update", None) or 0
        max_epoch = getattr(args, "max_epoch", None) or 0
        if epoch > 1 or update > 0:
            raise ValueError(
                f"start_fraction is {share:g}: it takes the place of --sam-start-epoch and "
                "--sam-start-update"
            )
        if max_update > 0:
            update = math.ceil(share * max_update - 1e-9)
        if max_epoch > 0:
            epoch = 1 + math.floor(share * max_epoch + 1e-9)
        if max(max_update, max_epoch) <= 0:
            raise ValueError(
                f"start_fraction is {share:g}: it needs the end of the run, --max-update or "
                "--max-epoch"
            )
    if args.sam_ramp_updates and epoch > 1:
        raise ValueError(
            f"ramp_updates is {args.sam_ramp_updates}: where the run starts with an epoch, the "
            "first perturbed update is not known; use --sam-start-update, or --sam-start-fraction "
            "with --max-update and no --max-epoch"
        )
    # Whichever limit ends the run, its share of it comes before that of the other.
    either = share is not None and update > 0 and epoch > 1
    return Gate(epoch, update, args.sam_interval, args.sam_ramp_updates, either)


def require_sentences(criterion: Any, name: str) -> None:
    """Refuses a criterion that does not know the loss of each sentence.

    Args:
        criterion: its class.
        name: what to call it.

    Raises:
        ValueError: naming the criterion to use instead.
    """
    if criterion is None or issubclass(criterion, PerSentenceCriterion):
        return
    stand_in = per_sentence_name_of(name)
    known = sorted(n for n, c in CRITERION_REGISTRY.items() if issubclass(c, PerSentenceCriterion))
    use = (
        stand_in or f"one of {', '.join(known)}, or your own made per-sentence (docs/criterions.md)"
    )
    raise ValueError(
        f"argument --criterion: {name} does not give the loss of each sentence, which δ-SAM's "
        f"weights need: use {use}"
    )


def warn_of_no_effect(config: SharpnessAwareConfig, args: Namespace) -> None:
    """Warns of a start that is not the one asked for, and of ascents that nothing can share."""
    gate = config.gate
    max_epoch = getattr(args, "max_epoch", None) or 0
    max_update = getattr(args, "max_update", None) or 0
    share = getattr(args, "sam_start_fraction", None)
    if config.perturbation.ascent_share < 1 and max(config.update_freq) == 1:
        logger.warning(
            f"--sam-ascent-share {config.perturbation.ascent_share:g} shares nothing with "
            "--update-freq 1: each update has one micro-batch, with an ascent of its own"
        )
    late = (0 < max_epoch < gate.start_epoch, 0 < max_update <= gate.start_update)
    if all(late) if gate.either else any(late):
        end = f"--max-epoch {max_epoch}" if late[0] else f"--max-update {max_update}"
        start = f"epoch {gate.start_epoch}" if late[0] else f"update {gate.start_update}"
        flag = f"start-{start}" if share is None else f"start-fraction {share:g}"
        logger.warning(f"--sam-{flag} is beyond {end}: no update of this run will be perturbed")
    if share and max_epoch > 0 and gate.start_epoch == 1:
        start = "its first update on"
        if gate.start_update:
            start = f"update {gate.start_update} on, if it comes that far"
        logger.warning(
            f"--sam-start-fraction {share:g} of --max-epoch {max_epoch} is less than one epoch: "
            f"the run is perturbed from {start}"
        )


def _refuse_unsupported(args: Namespace, method: str) -> None:
    """Refuses what computes gradients or holds weights where we cannot perturb them."""
    if getattr(args, "use_bmuf", False):
        reason = "--use-bmuf averages diverged copies of the model and replaces the optimizer"
    elif getattr(args, "ddp_backend", None) == "fully_sharded":
        reason = "--ddp-backend fully_sharded frees the weights between passes"
    elif getattr(args, "pipeline_model_parallel", False):
        reason = "--pipeline-model-parallel spreads one pass over several batches"
    elif (getattr(args, "model_parallel_size", 1) or 1) > 1:
        reason = "--model-parallel-size above 1 leaves each worker a part of the gradient's norm"
    else:
        return
    raise ValueError(f"--optimizer {method} cannot work here: {reason}")


def _flag_named(message: str) -> str:
    """Turns "NAME is VALUE: REASON" into a message about the flag that sets NAME."""
    name, _, rest = message.partition(" is ")
    value, _, reason = rest.partition(": ")
    flags = {"num_steps": "sam-steps", "weighting": "delta-sam-variant"}
    flags.update({part: f"delta-sam-{part}" for part in ("eta", "beta", "probe_radius")})
    flag = flags.get(name, f"sam-{name}").replace("_", "-")
    if name == "share":
        flag, value = "sam-rho", f"{float(value) * 100:g}%"
    if name == "weighting":  # no value of the flag
        reason = reason.replace("it must be uniform", "it must be left out")
    return f"--{flag}: {value} is not allowed: {reason}"


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ArgumentTypeError(f"{text} is not a regular expression: {error}") from None
    if all(re.search(text, character) for character in "aZ0_"):
        raise ArgumentTypeError(
            f"{text} is found in the name of every parameter: it must leave at least one to perturb"
        )
    return text
