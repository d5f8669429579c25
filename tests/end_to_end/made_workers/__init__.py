"""A ``--user-dir`` with what only several GPUs have, made for workers on a CPU.

* Architecture ``transformer_in_float64``: tensors in float64 count as those of an accelerator. Like
  fairseq for tensors of a device, workers add up what they log there apart from the rest.
* Architecture ``synchronised_transformer``: its forward and its backward pass wait for the other
  workers, as those of ``SyncBatchNorm`` do.
* ``--ddp-backend pytorch_ddp``, which fairseq runs on GPUs only.
* Criterion ``failing_cross_entropy``: the second worker runs out of memory, once.
* Criterion ``tempered_cross_entropy``: has a weight of its own.
"""

import logging
import math
from dataclasses import dataclass, field

import torch
import torch.distributed
import torch.distributed.nn
from fairseq import utils
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import (
    CrossEntropyCriterion,
    CrossEntropyCriterionConfig,
)
from fairseq.distributed import utils as distributed_utils
from fairseq.models import distributed_fairseq_model, register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel, base_architecture
from torch import nn

import fairseq_sam

fairseq_sam.register()

logger = logging.getLogger(__name__)


@register_model("transformer_in_float64")
class Float64Transformer(TransformerModel):
    @classmethod
    def build_model(cls, cfg, task):
        return super().build_model(cfg, task).double()


def log_softmax_in_float64(x, dim, onnx_trace=False):
    return nn.functional.log_softmax(x, dim, dtype=torch.promote_types(x.dtype, torch.float32))


def clip_grad_norm_in_float64(params, max_norm, aggregate_norm_fn=None):
    return nn.utils.clip_grad_norm_(params, max_norm or math.inf)


def all_reduce_by_kind(data, device, group):
    """Stands in for fairseq's ``all_reduce_dict``; asserts that all workers bring the same keys."""
    kinds = {"device": {}, "host": {}}
    for key, value in data.items():
        kind = "device" if torch.is_tensor(value) and value.dtype == torch.float64 else "host"
        kinds[kind][key] = torch.as_tensor(value, dtype=torch.float64)
    ours = {kind: list(found) for kind, found in kinds.items()}
    workers = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(workers, ours, group=group)
    assert all(each == ours for each in workers), f"workers log different keys: {workers}"
    reduced = {}
    for found in kinds.values():
        if found:
            values = torch.stack(list(found.values()))
            torch.distributed.all_reduce(values, group=group)
            reduced.update(zip(found, values))
    logger.info(f"on the device: {', '.join(ours['device'])}")
    logger.info(f"sample size {int(reduced['extra_stats_0'])}")
    return {key: reduced[key] for key in data}


@register_model("synchronised_transformer")
class SynchronisedTransformer(TransformerModel):
    """Subtracts the mean over all workers' tokens from what the encoder returns."""

    @classmethod
    def build_model(cls, cfg, task):
        model = super().build_model(cfg, task)
        model.encoder.register_forward_hook(subtract_mean)
        return model


def subtract_mean(encoder, inputs, output):
    (states,) = output["encoder_out"]
    if encoder.training:
        mean = states.mean(dim=(0, 1)) / torch.distributed.get_world_size()
        output["encoder_out"] = [states - torch.distributed.nn.all_reduce(mean)]
    return output


for name in ("transformer_in_float64", "synchronised_transformer"):
    register_model_architecture(name, name)(base_architecture)


class DataParallelOnCPU(nn.parallel.DistributedDataParallel):
    def __init__(self, *args, device_ids, output_device, **kwargs):
        super().__init__(*args, **kwargs)


@dataclass
class FailingConfig(CrossEntropyCriterionConfig):
    failing_call: int = field(default=0, metadata={"help": "counted from 1"})


class Calls(list):
    """A list that is no part of the state that the passes of a step share."""


@register_criterion("failing_cross_entropy", dataclass=FailingConfig)
class FailingCrossEntropy(CrossEntropyCriterion):
    def __init__(self, task, sentence_avg, failing_call):
        super().__init__(task, sentence_avg)
        self.failing_call = failing_call
        self.calls = Calls()

    def forward(self, model, sample, reduce=True):
        output = super().forward(model, sample, reduce)
        self.calls.append(len(self.calls))
        if len(self.calls) == self.failing_call and torch.distributed.get_rank() == 1:
            raise RuntimeError("CUDA out of memory. (made)")
        return output


@register_criterion("tempered_cross_entropy", dataclass=CrossEntropyCriterionConfig)
class TemperedCrossEntropy(CrossEntropyCriterion):
    def __init__(self, task, sentence_avg):
        super().__init__(task, sentence_avg)
        self.temperature = nn.Parameter(torch.tensor([1.2, 0.8]))

    def compute_loss(self, model, net_output, sample, reduce=True):
        logits = net_output[0] * self.temperature[0] / self.temperature[1]
        return super().compute_loss(model, (logits, *net_output[1:]), sample, reduce)


utils.log_softmax = log_softmax_in_float64
utils.clip_grad_norm_ = clip_grad_norm_in_float64
distributed_utils.all_reduce_dict = all_reduce_by_kind
distributed_fairseq_model.DistributedDataParallel = DataParallelOnCPU
