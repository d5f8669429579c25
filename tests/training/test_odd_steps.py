"""Steps in which the perturbed weights rest, or in which another thread writes to the task."""

import threading

import pytest
import torch
from fairseq.modules import SinusoidalPositionalEmbedding

import fairseq_sam
from fairseq_sam.perturbation import method_settings
from fairseq_sam.perturbation.replay import Holders, Replay
from fairseq_sam.training import seam
from fairseq_sam.training.configuration import Gate, SharpnessAwareConfig
from tests.training.test_seam import Criterion, Model, Task, optimizer

fairseq_sam.register()


def test_weights_that_rest_in_the_first_step_are_no_reason_to_stop():
    """A layer that is skipped at random (LayerDrop), or that thaws later."""
    task, model, criterion = Task(), Model(), Criterion()
    model.layer = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    forward, seen = criterion.forward, []

    def skipping(model, sample, reduce=True):
        loss, size, log = forward(model, sample, reduce)
        return loss + (sample - 1) * model.layer.sum() if sample > 1 else loss, size, log

    criterion.forward = skipping
    seam.connect(task)
    settings = method_settings("sam", rho=0.5)
    flags = optimizer()
    flags.sharpness_aware = SharpnessAwareConfig("sam", settings, Gate(), exclude="weight")
    for sample in (1.0, 2.0):
        seen.append(task.train_step(sample, model, criterion, flags, 0)[2])
    assert [float(log["sam_norm"]) for log in seen] == pytest.approx([0.0, 0.5])


def test_what_another_thread_notes_on_the_task_stays():
    """A loader's thread, which runs at any time of a step (plain values are the passes')."""
    task, model, criterion = Task(), Model(), Criterion()
    seam.connect(task)
    forward, number = criterion.forward, [0]

    def loading(*args, **kwargs):
        number[0] += 1
        thread = threading.Thread(target=setattr, args=(task, "loaded", [number[0]]))
        thread.start()
        thread.join()
        return forward(*args, **kwargs)

    criterion.forward = loading
    task.train_step(1.0, model, criterion, optimizer(), 0)
    assert task.loaded == [number[0]] == [2]


def test_a_table_of_positions_is_not_copied_and_may_grow():
    positions = SinusoidalPositionalEmbedding(4, padding_idx=1, init_size=6)
    replay = Replay(Holders.among([positions]), [])
    positions.weights.fill_(7)  # nobody does: what stays was not put back
    sizes = []
    for _ in range(2):
        with replay.one_pass():
            sizes.append(len(positions.weights))
            assert bool(positions.weights.eq(7).all())
            positions(torch.full((1, 9), 5))
    replay.finish()
    assert sizes == [6, 6]
    assert len(positions.weights) > 6
