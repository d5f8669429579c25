"""The parameter shift where it is known in closed form, and on digits; the readers of digits."""

import doctest
import gzip
import subprocess
import sys
from pathlib import Path
from typing import Callable, List, Tuple

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from fairseq_sam.analysis import digit_network, shift
from fairseq_sam.analysis.digit_network import digit_loss, drawn_mixture, small_network
from fairseq_sam.analysis.digits import (
    Digits,
    Examples,
    read_idx,
    read_mnist,
    sklearn_digits,
)
from fairseq_sam.analysis.shift import ShiftTrials, correlation, linear_fit, weighted_mixture
from fairseq_sam.files.reading import DataError
from tests.idx_files import write_idx, write_mnist

SHARES = [0.1, 0.25, 0.5, 0.9, 1.0]


def bowl(weights: List[Tensor], curvature: Tensor, minimum: Tensor) -> Callable[[], Tensor]:
    """½ (w − minimum)ᵀ curvature (w − minimum), with w in as many tensors as one likes."""

    def loss() -> Tensor:
        away = torch.cat([w.flatten() for w in weights]) - minimum
        return 0.5 * away @ curvature @ away

    return loss


def random_bowls(seed: int) -> Tuple[List[Tensor], List[Tensor], List[Tensor]]:
    """Two weights, two positive definite curvatures, two minima."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = [normal(2, 2).requires_grad_(), normal(3).requires_grad_()]
    factors = [normal(7, 7) for _ in range(2)]
    return weights, [f @ f.t() + torch.eye(7).double() for f in factors], [normal(7), normal(7)]


class TestQuadratic:
    @pytest.mark.parametrize("seed", range(3))
    def test_lengths_in_closed_form(self, seed: int) -> None:
        weights, (a, b), (u, v) = random_bowls(seed)
        trials = ShiftTrials(weights, weighted_mixture(bowl(weights, a, u), bowl(weights, b, v)))
        torch.testing.assert_close(trials.theta, u, atol=1e-5, rtol=0)
        found = list(trials.lengths(SHARES))
        assert [share for share, _ in found] == SHARES
        for share, length in found:
            mixed = (1 - share) * a + share * b
            minimum = torch.linalg.solve(mixed, (1 - share) * a @ u + share * b @ v)
            assert length == pytest.approx(float((minimum - u).norm()), abs=1e-5)
        torch.testing.assert_close(trials.delta(), v - u, atol=1e-5, rtol=0)
        assert trials.largest_gradient <= 1e-6

    def test_same_curvature_makes_both_claims_exact(self) -> None:
        """Theorem 1 without its o(1): then H* = H; and δ(η) = η δ(1)."""
        weights, (a, _), (u, v) = random_bowls(0)
        lift = bowl(weights, a, v)
        trials = ShiftTrials(weights, weighted_mixture(bowl(weights, a, u), lambda: lift() + 0.75))
        fit = linear_fit(*zip(*trials.lengths(SHARES)))
        assert fit == pytest.approx((float((v - u).norm()), 0.0, 1.0), abs=1e-5)
        before = [w.detach().clone() for w in weights]
        curves = trials.curves(trials.delta(), [-1.0, 0.0, 0.5, 1.0, 2.0])
        assert curves.shifted == pytest.approx(curves.test, abs=1e-4)
        assert curves.test[1] == pytest.approx(0.75)
        assert curves.train[3] == pytest.approx(0.0, abs=1e-9)
        assert curves.train[1] == pytest.approx(curves.test[3] - 0.75, abs=1e-4)
        assert all(torch.equal(w, b) for w, b in zip(weights, before))

    def test_shifted_by_delta_and_not_by_its_opposite(self) -> None:
        weights, (a, b), (u, v) = random_bowls(1)
        train, test = bowl(weights, a, u), bowl(weights, b, v)
        trials = ShiftTrials(weights, weighted_mixture(train, test))
        list(trials.lengths([1.0]))
        (alpha, delta) = (0.3, v - u)
        curves = trials.curves(trials.delta(), [alpha])
        w = alpha * u + (1 - alpha) * v
        away = w - delta - u
        assert curves.shifted == pytest.approx([float(0.5 * away @ a @ away)], abs=1e-4)

    def test_steps_that_run_out_are_told(self) -> None:
        weights, (a, b), (u, v) = random_bowls(2)
        mixture = weighted_mixture(bowl(weights, a, u), bowl(weights, b, v))
        assert ShiftTrials(weights, mixture, max_steps=1).largest_gradient > 1e-3

    def test_infinite_loss(self) -> None:
        w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        nowhere = weighted_mixture(lambda: (w / 0).sum(), lambda: w.sum())
        with pytest.raises(FloatingPointError, match="not finite"):
            ShiftTrials([w], nowhere)


class TestLine:
    def test_equals_scipy(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.uniform(size=20)
        y = 3 * x - 1 + 0.3 * rng.normal(size=20)
        fit, theirs = linear_fit(x, y), scipy.stats.linregress(x, y)
        assert fit == pytest.approx((theirs.slope, theirs.intercept, theirs.rvalue**2))
        assert correlation(x, y) == pytest.approx(theirs.rvalue)

    @pytest.mark.parametrize(
        ("x", "y"), [([0, 1], [0, 1]), ([1, 1, 1], [0, 1, 2]), ([0, 1, 2], [1, 1, 1])]
    )
    def test_no_line(self, x: List[float], y: List[float]) -> None:
        with pytest.raises(ValueError, match="three points or more"):
            linear_fit(x, y)


def few_digits(num_train: int = 40, num_test: int = 20, pixels: int = 9) -> Digits:
    generator = torch.Generator().manual_seed(0)

    def examples(count: int) -> Examples:
        return Examples(torch.rand(count, pixels, generator=generator), torch.arange(count) % 10)

    return Digits(examples(num_train), examples(num_test))


class TestNetwork:
    def test_is_the_papers_and_leaves_the_random_state(self) -> None:
        state = torch.get_rng_state()
        network = small_network(784, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        shapes = [tuple(w.shape) for w in network.parameters() if w.dim() == 2]
        assert shapes == [(100, 784), (100, 100), (10, 100)]
        same, other = small_network(784, seed=3), small_network(784, seed=4)
        assert torch.equal(network[0].weight, same[0].weight)
        assert not torch.equal(network[0].weight, other[0].weight)

    def test_loss_by_hand(self) -> None:
        examples = few_digits().test
        network = small_network(9)
        with torch.no_grad():
            log_probabilities = network(examples.inputs.double()).log_softmax(-1)
        picked = [float(row[label]) for row, label in zip(log_probabilities, examples.labels)]
        decay = 0.5 * 0.3 * sum(float((w.detach() ** 2).sum()) for w in network.parameters())
        ours = float(digit_loss(network, examples, 0.3)().detach())
        assert ours == pytest.approx(-sum(picked) / len(picked) + decay)

    def test_drawn_mixture_ends_are_the_whole_sets(self) -> None:
        digits, network = few_digits(), small_network(9)
        mixture = drawn_mixture(network, digits, 0.1, torch.Generator().manual_seed(1))
        for share, examples in ((0.0, digits.train), (1.0, digits.test)):
            whole = digit_loss(network, examples, 0.1)
            assert torch.equal(mixture(share)(), whole())

    @torch.no_grad()
    def test_drawn_mixture_is_right_on_average(self) -> None:
        digits, network = few_digits(), small_network(9)
        train, test = (float(digit_loss(network, part, 0.1)()) for part in digits)
        mixture = drawn_mixture(network, digits, 0.1, torch.Generator().manual_seed(1))
        drawn = [float(mixture(0.3)()) for _ in range(400)]
        assert len(set(drawn)) > 300
        error = np.std(drawn) / np.sqrt(len(drawn))
        assert np.mean(drawn) == pytest.approx(0.7 * train + 0.3 * test, abs=4 * error)


class TestReaders:
    def test_round_trip(self, tmp_path: Path) -> None:
        images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        for name in ("images", "images.gz"):
            assert np.array_equal(read_idx(write_idx(tmp_path / name, images), 3), images)

    def test_mnist(self, tmp_path: Path) -> None:
        write_mnist(tmp_path)
        digits = read_mnist(tmp_path)
        assert digits.train.inputs.shape == (30, 16)
        assert digits.test.inputs.shape == (20, 16)
        assert float(digits.train.inputs.max()) <= 1
        assert digits.train.labels[:12].tolist() == [*range(10), 0, 1]

    @pytest.mark.parametrize("name", ["t1k-images.idx3-ubyte", "test-images", "t10k-images.gz"])
    def test_names_of_test_sets(self, tmp_path: Path, name: str) -> None:
        write_mnist(tmp_path)
        images = read_idx(tmp_path / "t10k-images-idx3-ubyte", 3)
        (tmp_path / "t10k-images-idx3-ubyte").unlink()
        write_idx(tmp_path / name, images)
        assert len(read_mnist(tmp_path).test.labels) == 20

    def test_unpacked_copy_comes_first(self, tmp_path: Path) -> None:
        write_mnist(tmp_path)
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"rubbish")
        assert len(read_mnist(tmp_path).train.labels) == 30

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "starts with nothing"),
            (b"\0\0\x08\x01\0\0\0\x02ab", "starts with 00000801, where an IDX file has 00000803"),
            (b"\0\0\x0d\x03" + bytes(12), "starts with 00000d03"),
            (b"\0\0\x08\x03\0\0\0\x01", "truncated within its header"),
            (b"\0\0\x08\x03" + b"\0\0\0\x02" * 3 + b"seven77", "has 7 values, its header says 2 x"),
            (b"\0\0\x08\x03" + b"\0\0\0\x02" * 3 + b"nine99999", "has 9 values"),
        ],
    )
    def test_damage(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "images").write_bytes(content)
        with pytest.raises(DataError, match=f"images: {message}"):
            read_idx(tmp_path / "images", 3)

    @pytest.mark.parametrize("cut", [5, 25, -4])
    def test_truncated_gzip(self, tmp_path: Path, cut: int) -> None:
        path = write_idx(tmp_path / "images.gz", np.zeros((2, 3, 4), np.uint8))
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(DataError, match=r"images\.gz: cannot be read"):
            read_idx(path, 3)

    def test_not_gzip(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.gz"
        path.write_bytes(b"plain text")
        with pytest.raises(DataError, match=r"labels\.gz: cannot be read .*damaged"):
            read_idx(path, 1)
        path.write_bytes(gzip.compress(b"x" * 100)[:-9] + b"000000000")
        with pytest.raises(DataError, match=r"labels\.gz: cannot be read .*damaged"):
            read_idx(path, 1)

    def test_files_that_do_not_fit(self, tmp_path: Path) -> None:
        write_mnist(tmp_path)
        labels = tmp_path / "train-labels-idx1-ubyte"
        write_idx(labels, np.zeros(29, np.uint8))
        with pytest.raises(DataError, match="29 labels for 30 images"):
            read_mnist(tmp_path)
        write_idx(labels, np.full(30, 10, np.uint8))
        with pytest.raises(DataError, match="a label 10, digits go from 0 to 9"):
            read_mnist(tmp_path)
        write_mnist(tmp_path)
        write_idx(tmp_path / "t10k-images-idx3-ubyte", np.zeros((20, 5, 5), np.uint8))
        with pytest.raises(DataError, match="training images have 16 pixels, test 25"):
            read_mnist(tmp_path)
        for name, shape in (("images-idx3", (0, 4, 4)), ("labels-idx1", (0,))):
            write_idx(tmp_path / f"train-{name}-ubyte", np.zeros(shape, np.uint8))
        with pytest.raises(DataError, match="train-images-idx3-ubyte: holds no pixels"):
            read_mnist(tmp_path)

    def test_missing_and_ambiguous(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="absent: no such directory"):
            read_mnist(tmp_path / "absent")
        with pytest.raises(DataError, match=r"no file is called \*train\*images\*"):
            read_mnist(tmp_path)
        write_mnist(tmp_path)
        write_idx(tmp_path / "other-train-images", np.zeros((1, 4, 4), np.uint8))
        with pytest.raises(DataError, match=r"several files .*: other-train-images, train-images"):
            read_mnist(tmp_path)


class TestSklearn:
    def test_enlarged_and_parted(self) -> None:
        pytest.importorskip("sklearn")
        digits = sklearn_digits(size=28)
        assert digits.train.inputs.shape == (1348, 784)
        assert digits.test.inputs.shape == (449, 784)
        small = sklearn_digits(size=8)
        pixels = digits.train.inputs.view(-1, 28, 28)
        assert torch.equal(pixels[:, 3:26:3, 3:26:3].reshape(-1, 64), small.train.inputs)
        assert float(pixels[:, 2:26, 2:26].sum()) == float(pixels.sum())
        assert not torch.equal(sklearn_digits(8, seed=2).train.labels, small.train.labels)

    def test_too_small(self) -> None:
        pytest.importorskip("sklearn")
        with pytest.raises(ValueError, match="size is 7"):
            sklearn_digits(size=7)


def test_examples_in_the_documentation() -> None:
    for module in (shift, digit_network):
        assert doctest.testmod(module).failed == 0
    assert doctest.testmod(shift).attempted > 3


def test_imports_nothing_of_fairseq() -> None:
    code = (
        "import sys, fairseq_sam.analysis.digit_network\n"
        "sys.exit('fairseq' in sys.modules or 'sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
