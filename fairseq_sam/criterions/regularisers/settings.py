"""The flags of the regularisers. Each dataclass is put in front of a criterion's own."""

import math
from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

NOISES = ChoiceEnum(["uniform", "normal"])
NORMS = ChoiceEnum(["l2", "linf"])


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class RDropConfig(FairseqDataclass):
    """Flags of R-Drop."""

    r_drop_alpha: float = _flag(
        1.0, "α as in the paper, the weight of the divergence of two passes with different dropout"
    )


@dataclass
class R3FConfig(FairseqDataclass):
    """Flags of R3F."""

    r3f_lambda: float = _flag(1.0, "λ, the weight of the divergence")
    r3f_noise: NOISES = field(  # type: ignore[valid-type]
        default="uniform", metadata={"help": "what the noise is drawn from"}
    )
    r3f_radius: float = _flag(
        1e-5, "half the width of the uniform noise, or standard deviation of the normal noise"
    )


@dataclass
class SmartConfig(FairseqDataclass):
    """Flags of SMART."""

    smart_lambda: float = _flag(1.0, "λ_s, the weight of the divergence")
    smart_radius: float = _flag(1e-5, "ε, the radius of the perturbation under L∞")
    smart_step_size: float = _flag(1e-3, "η, the length of an ascent step under L∞")
    smart_steps: int = _flag(1, "ascent steps")
    smart_init: float = _flag(1e-5, "σ, the standard deviation of the perturbation at first")
    smart_mu: float = _flag(
        0.0,
        "μ, the weight of the divergence from the moving average of the weights; above 0 it needs "
        "--store-ema, of which --ema-decay is the paper's β",
    )


@dataclass
class FreeLBConfig(FairseqDataclass):
    """Flags of FreeLB."""

    free_lb_steps: int = _flag(
        2, "K, ascent steps; the mean over K + 1 passes is minimised (the paper counts passes)"
    )
    free_lb_radius: float = _flag(0.1, "ε, the radius of each sentence's perturbation")
    free_lb_norm: NORMS = field(  # type: ignore[valid-type]
        default="l2", metadata={"help": "norm of the radius"}
    )
    free_lb_step_size: Optional[float] = _flag(
        None, "length of an ascent step (default: 1.5 ε / K, as for the weights)"
    )


_LIMITS = {
    "r_drop_alpha": (0.0, False),
    "r3f_lambda": (0.0, False),
    "r3f_radius": (0.0, True),
    "smart_lambda": (0.0, False),
    "smart_radius": (0.0, True),
    "smart_step_size": (0.0, True),
    "smart_init": (0.0, True),
    "smart_steps": (1, False),
    "smart_mu": (0.0, False),
    "free_lb_steps": (1, False),
    "free_lb_radius": (0.0, True),
    "free_lb_step_size": (0.0, True),
}


def check(cfg: Any) -> None:
    """Refuses values that make no sense, before any training.

    Args:
        cfg: a criterion's configuration.

    Raises:
        SystemExit: with one line that names the flag, its value and what is allowed.
    """
    for name, (least, excluded) in _LIMITS.items():
        value = getattr(cfg, name, None)
        if value is None:
            continue
        if not math.isfinite(value) or value < least or (excluded and value == least):
            allowed = f"above {least:g}" if excluded else f"{least:g} or more"
            raise SystemExit(
                f"error: argument --{name.replace('_', '-')}: {value} is not allowed: it must be "
                f"a finite number, {allowed}"
            )
