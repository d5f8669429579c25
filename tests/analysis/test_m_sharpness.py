"""m-sharpness of losses whose maximum in a ball is known."""

import subprocess
import sys
from typing import Any

import pytest
import torch

from fairseq_sam.analysis.m_sharpness import batch_sharpness
from tests.analysis.closed_forms import bowl, closed_form, copies, flat, identical


def shifted(w: torch.Tensor, sample: Any) -> torch.Tensor:
    """A round bowl with another bottom for each mini-batch."""
    return 0.5 * (w - sample["bottom"]).pow(2).sum()


def test_round_bowls() -> None:
    """From distance D the worst point in a ball is straight uphill: the growth is ρD + ρ²/2."""
    samples = [{"size": size, "bottom": bottom} for size, bottom in ((2, 0.3), (5, -1.0))]
    loss = closed_form(shifted, samples=samples)
    w = flat(loss.weights)
    distances = [float((w - sample["bottom"]).norm()) for sample in samples]
    for rho in (1e-3, 0.4):
        expected = [rho * distance + 0.5 * rho**2 for distance in distances]
        assert list(batch_sharpness(loss, rho)) == pytest.approx(expected, rel=1e-8)


def test_everything_is_left_as_it_was() -> None:
    loss = closed_form(bowl, torch.float32)
    origins = copies(loss.weights)
    loss.weights[1].grad = torch.ones(5)
    loss.model.train()
    for _ in batch_sharpness(loss, 0.1):
        assert identical(loss.weights, origins)
    assert torch.equal(loss.weights[1].grad, torch.ones(5))
    assert loss.weights[0].grad is None
    assert loss.model.training


@pytest.mark.parametrize("rho", [0.0, -1.0])
def test_impossible(rho: float) -> None:
    with pytest.raises(ValueError, match="rho is"):
        next(batch_sharpness(closed_form(bowl), rho))


def test_the_analyses_import_nothing_of_fairseq() -> None:
    code = (
        "import sys; from fairseq_sam.analysis import corruption, landscape, m_sharpness; "
        "sys.exit(any(name.split('.')[0] == 'fairseq' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120).returncode == 0
