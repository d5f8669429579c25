"""``--sam-rho 5%``: the logged sharpness is that share of the logged loss, whatever the method."""

import pytest

from fairseq_sam.perturbation import METHODS
from tests.end_to_end.test_methods import criterion

SHARE = "--sam-rho 5% --max-update 4 --dropout 0.0"


def shares(run):
    """Sharpness by loss, update for update; both are in bits."""
    return [s / loss for s, loss in zip(run.values("sharpness"), run.values("loss"))]


@pytest.mark.parametrize("method", sorted(m for m, s in METHODS.items() if s.needs_pass))
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_loss_rises_by_about_the_share(fairseq_train, method, norm):
    run = fairseq_train(
        f"--optimizer {method} --sam-norm {norm} {SHARE}",
        criterion(method, "label_smoothed_cross_entropy"),
        "--label-smoothing 0.1",
    )
    # δ-SAM climbs the weighted loss, so that its own loss rises less than it could.
    low = 0.01 if METHODS[method].needs_sentences else 0.05 / 1.5
    assert all(low < share < 0.05 * 1.5 for share in shares(run)), shares(run)
    assert all(rho > 0 for rho in run.values("rho"))
    assert len(set(run.values("rho"))) == 4


def test_the_limit_is_kept_and_logged(fairseq_train):
    limited = fairseq_train(f"--optimizer sam {SHARE} --sam-rho-max 1e-3")
    fixed = fairseq_train("--optimizer sam --sam-rho 1e-3 --max-update 4 --dropout 0.0")
    limited.assert_same_training(fixed)
    assert limited.values("rho") == pytest.approx([1e-3] * 4)


def test_no_share_is_the_base_optimizer(fairseq_train):
    off = fairseq_train("--optimizer sam --sam-rho 0% --max-update 3")
    off.assert_same_training(fairseq_train("--optimizer adam --max-update 3"))


def test_a_run_goes_on_where_it_stopped(fairseq_train):
    flags = "--optimizer ga_sam --sam-rho 5% --max-update 6 --save-interval-updates 3"
    whole = fairseq_train(flags)
    half = fairseq_train(flags.replace("--max-update 6", "--max-update 3"))
    resumed = fairseq_train(flags, f"--restore-file {half.save_dir}/checkpoint_last.pt")
    resumed.assert_same_training(whole)


def test_ga_sams_default_is_a_share_that_can_be_capped_or_replaced(fairseq_train):
    flags = "--optimizer ga_sam --max-update 2"
    by_default = fairseq_train(flags)
    by_default.assert_same_training(fairseq_train(f"{flags} --sam-rho 2%"))
    capped = fairseq_train(f"{flags} --sam-rho-max 1e-6")
    assert capped.values("rho") == pytest.approx([1e-6] * 2)
    assert fairseq_train(f"{flags} --sam-rho 1e-5").values("rho") == pytest.approx([1e-5] * 2)
