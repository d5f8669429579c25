"""The flags of the regularisers. Each dataclass is put in front of a criterion's own."""

from dataclasses import dataclass, field
from typing import Optional

from fairseq.dataclass import ChoiceEnum

from fairseq_sam.flags.checked_fields import CheckedConfig, checked
from fairseq_sam.flags.number_types import at_least_zero, num_steps, positive

NOISES = ChoiceEnum(["uniform", "normal"])
NORMS = ChoiceEnum(["l2", "linf"])


@dataclass
class RDropConfig(CheckedConfig):
    """Flags of R-Drop."""

    r_drop_alpha: float = checked(
        at_least_zero,
        1.0,
        "α as in the paper, the weight of the divergence of two passes with different dropout",
    )


@dataclass
class R3FConfig(CheckedConfig):
    """Flags of R3F."""

    r3f_lambda: float = checked(at_least_zero, 1.0, "λ, the weight of the divergence")
    r3f_noise: NOISES = field(  # type: ignore[valid-type]
        default="uniform", metadata={"help": "what the noise is drawn from"}
    )
    r3f_radius: float = checked(
        positive,
        1e-5,
        "half the width of the uniform noise, or standard deviation of the normal noise",
    )


@dataclass
class SmartConfig(CheckedConfig):
    """Flags of SMART."""

    smart_lambda: float = checked(at_least_zero, 1.0, "λ_s, the weight of the divergence")
    smart_radius: float = checked(positive, 1e-5, "ε, the radius of the perturbation under L∞")
    smart_step_size: float = checked(positive, 1e-3, "η, the length of an ascent step under L∞")
    smart_steps: int = checked(num_steps, 1, "ascent steps")
    smart_init: float = checked(
        positive, 1e-5, "σ, the standard deviation of the perturbation at first"
    )
    smart_mu: float = checked(
        at_least_zero,
        0.0,
        "μ, the weight of the divergence from the moving average of the weights; above 0 it needs "
        "--store-ema, of which --ema-decay is the paper's β",
    )


@dataclass
class FreeLBConfig(CheckedConfig):
    """Flags of FreeLB."""

    free_lb_steps: int = checked(
        num_steps,
        2,
        "K, ascent steps; the mean over K + 1 passes is minimised (the paper counts passes)",
    )
    free_lb_radius: float = checked(positive, 0.1, "ε, the radius of each sentence's perturbation")
    free_lb_norm: NORMS = field(  # type: ignore[valid-type]
        default="l2", metadata={"help": "norm of the radius"}
    )
    free_lb_step_size: Optional[float] = checked(
        positive, None, "length of an ascent step (default: 1.5 ε / K, as for the weights)"
    )
