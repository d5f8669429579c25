"""Models, criterions and tasks that do what users' own ones do, registered as ``yardstick_…``."""

import copy
import random

import numpy as np
import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.data import BaseWrapperDataset
from fairseq.logging import metrics
from fairseq.models import register_model, register_model_architecture
from fairseq.models.transformer import TransformerModel, base_architecture
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import nn
from torch.nn.utils import spectral_norm, weight_norm

PREFIX = "yardstick_"
WIDTH = 8  # of the encoder's output


def made_model(name):
    """Registers a model and an architecture under one name."""

    def register(cls):
        cls = register_model(PREFIX + name)(cls)
        register_model_architecture(PREFIX + name, PREFIX + name)(base_architecture)
        return cls

    return register


class Changed(TransformerModel):
    """A Transformer whose encoder's output goes through :meth:`change`."""

    def __init__(self, args, encoder, decoder):
        super().__init__(args, encoder, decoder)
        self.add_parts()

    def add_parts(self):
        """Adds modules and buffers."""

    def change(self, states):
        raise NotImplementedError

    def forward(self, src_tokens, src_lengths, prev_output_tokens, **kwargs):
        encoder_out = self.encoder(src_tokens, src_lengths=src_lengths)
        states = self.change(encoder_out["encoder_out"][0])
        encoder_out = {**encoder_out, "encoder_out": [states]}
        return self.decoder(prev_output_tokens, encoder_out=encoder_out)


@made_model("spectral_norm")
class SpectralNorm(Changed):
    def add_parts(self):
        self.layer = spectral_norm(nn.Linear(WIDTH, WIDTH))

    def change(self, states):
        return self.layer(states)


@made_model("weight_norm")
class WeightNorm(Changed):
    def add_parts(self):
        self.layer = weight_norm(nn.Linear(WIDTH, WIDTH))

    def change(self, states):
        return self.layer(states)


@made_model("batch_norm")
class BatchNorm(Changed):
    def add_parts(self):
        self.layer = nn.BatchNorm1d(WIDTH)

    def change(self, states):
        return self.layer(states.permute(1, 2, 0)).permute(2, 0, 1)


@made_model("running_mean")
class RunningMean(Changed):
    """A home-made norm, with a counter."""

    def add_parts(self):
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def change(self, states):
        if self.training:
            self.calls += 1
            self.mean.lerp_(states.detach().mean((0, 1)), 0.5)
        return states - self.mean * self.calls


@made_model("replaced_buffer")
class ReplacedBuffer(Changed):
    """Puts a new tensor in place of the buffer instead of writing into it."""

    def add_parts(self):
        self.register_buffer("mean", torch.zeros(WIDTH))

    def change(self, states):
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * states.detach().mean((0, 1))
        return states - self.mean


@made_model("late_buffer")
class LateBuffer(Changed):
    """Fills its buffer in the first pass."""

    def add_parts(self):
        self.register_buffer("mean", None)

    def change(self, states):
        if self.mean is None:
            self.mean = states.detach().mean((0, 1))
        return states - self.mean


@made_model("max_norm")
class MaxNorm(Changed):
    """The lookup itself shortens the rows of the weight that are too long."""

    def add_parts(self):
        self.table = nn.Embedding(6, WIDTH, max_norm=0.5)

    def change(self, states):
        positions = torch.arange(states.size(0)).clamp(max=5)
        return states + self.table(positions).unsqueeze(1)


@made_model("writes_weights")
class WritesWeights(Changed):
    """Clips a weight before it is used, as Wasserstein critics do."""

    def add_parts(self):
        self.layer = nn.Linear(WIDTH, WIDTH)

    def change(self, states):
        if self.training:
            self.layer.weight.data.mul_(0.9)
        return self.layer(states)


@made_model("attribute_counter")
class AttributeCounter(Changed):
    """Counts its passes in a plain attribute, and fades a layer in accordingly."""

    def add_parts(self):
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.passes = 0

    def change(self, states):
        if self.training:
            self.passes += 1
        return states + self.layer(states) * min(1.0, self.passes / 8)


@made_model("memory")
class Memory(Changed):
    """Attends to the batch before, as truncated backpropagation does."""

    def add_parts(self):
        self._mems = None

    def change(self, states):
        now = states.detach().mean((0, 1))
        changed = states if self._mems is None else states + self._mems
        if self.training:
            self._mems = now
        return changed


@made_model("other_randomness")
class OtherRandomness(Changed):
    """Draws from numpy's and Python's generators, of its own and global."""

    def add_parts(self):
        self.layer = nn.Linear(WIDTH, WIDTH)

    def change(self, states):
        if not self.training:
            return states
        if random.random() < 0.5:
            states = self.layer(states)
        noise = np.random.standard_normal(WIDTH).astype(np.float32)
        return states * random.choice([0.5, 2.0]) + torch.from_numpy(noise)


@made_model("thaws")
class Thaws(Changed):
    """The encoder is frozen for two updates."""

    def change(self, states):
        return states

    def set_num_updates(self, num_updates):
        super().set_num_updates(num_updates)
        for weight in self.encoder.layers.parameters():
            weight.requires_grad_(num_updates >= 2)


@made_model("freezes")
class Freezes(Changed):
    """The encoder is frozen after two updates."""

    def change(self, states):
        return states

    def set_num_updates(self, num_updates):
        super().set_num_updates(num_updates)
        for weight in self.encoder.layers.parameters():
            weight.requires_grad_(num_updates < 2)


@made_model("teacher")
class Teacher(Changed):
    """A moving average of itself that moves in ``set_num_updates``, as data2vec's teacher does."""

    def add_parts(self):
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.teacher = copy.deepcopy(self.layer).requires_grad_(False)

    def set_num_updates(self, num_updates):
        super().set_num_updates(num_updates)
        for mine, own in zip(self.teacher.parameters(), self.layer.parameters()):
            mine.data.lerp_(own.data, 0.3)

    def change(self, states):
        return self.layer(states) + self.teacher(states)


@made_model("own_losses")
class OwnLosses(Changed):
    """Brings its losses along, for the criterion ``model``."""

    def change(self, states):
        return states

    def get_losses(self, net_output, sample):
        lprobs = self.get_normalized_probs(net_output, log_probs=True)
        losses = nn.functional.nll_loss(
            lprobs.flatten(0, 1), sample["target"].flatten(), ignore_index=1, reduction="sum"
        )
        return {"words": losses, "length": 0.01 * net_output[0].pow(2).sum()}


@made_model("two_answers")
class TwoAnswers(Changed):
    """Answers twice, for the criterion ``composite_loss``."""

    def add_parts(self):
        self.noise = nn.Dropout(0.3)

    def change(self, states):
        return states

    def forward(self, *args, **kwargs):
        logits, extra = super().forward(*args, **kwargs)
        return [logits, self.noise(logits)], extra


register_model_architecture("roberta_enc_dec", PREFIX + "roberta_enc_dec")(
    lambda args: _small_roberta_enc_dec(args)
)


def _small_roberta_enc_dec(args):
    from fairseq.models.roberta.enc_dec import base_enc_dec_architecture

    for part in ("encoder", "decoder"):
        for key, size in (("embed_dim", 8), ("ffn_embed_dim", 8), ("layers", 1)):
            setattr(args, f"{part}_{key}", size)
        setattr(args, f"{part}_attention_heads", 2)
    args.max_positions = 64
    base_enc_dec_architecture(args)


def made_criterion(name):
    return register_criterion(PREFIX + name)


class Own(CrossEntropyCriterion):
    """A cross-entropy; what is built differs."""

    def __init__(self, task, sentence_avg=False):
        super().__init__(task, sentence_avg)


@made_criterion("repeats_batch")
class RepeatsBatch(Own):
    """Doubles the batch in place, as forks of R-Drop do."""

    def forward(self, model, sample, reduce=True):
        if model.training:
            inputs = sample["net_input"]
            sample["net_input"] = {key: torch.cat([each, each]) for key, each in inputs.items()}
            sample["target"] = torch.cat([sample["target"]] * 2)
            sample["ntokens"] *= 2
        return super().forward(model, sample, reduce)


@made_criterion("pops_key")
class PopsKey(Own):
    """Takes something out of the batch, and something out of a list in it."""

    def forward(self, model, sample, reduce=True):
        lengths = sample["net_input"].pop("src_lengths")
        inputs = {**sample["net_input"], "src_lengths": lengths}
        net_output = model(**inputs)
        loss, _ = self.compute_loss(model, net_output, sample, reduce=reduce)
        size = sample.pop("ntokens")
        logging_output = {"loss": loss.data, "ntokens": size, "nsentences": 1, "sample_size": size}
        return loss, size, logging_output


@made_criterion("writes_target")
class WritesTarget(Own):
    """Replaces a word of the target tensor itself, another in each call."""

    def forward(self, model, sample, reduce=True):
        if model.training:
            first = sample["target"][:, 0]
            first.copy_(torch.where(first > 1, (first - 4 + 1) % 20 + 4, first))
        return super().forward(model, sample, reduce)


@made_criterion("buffers")
class Buffers(Own):
    """Divides by a running mean of its losses, as criterions that balance losses do."""

    def __init__(self, task, sentence_avg=False):
        super().__init__(task, sentence_avg)
        self.register_buffer("mean", torch.ones(()))

    def forward(self, model, sample, reduce=True):
        loss, size, logging_output = super().forward(model, sample, reduce)
        if model.training:
            self.mean.lerp_(loss.detach() / size, 0.5)
        return loss / self.mean, size, logging_output


@made_criterion("shares_parameter")
class SharesParameter(Own):
    """Keeps one of the model's weights as its own, which counts once."""

    def __init__(self, task, sentence_avg=False):
        super().__init__(task, sentence_avg)
        self.weight = None

    def forward(self, model, sample, reduce=True):
        loss, size, logging_output = super().forward(model, sample, reduce)
        decay = self.shared(model).pow(2).sum() * size
        logging_output["loss"] = (loss + decay).data
        return loss + decay, size, logging_output

    def shared(self, model):
        return self.weight if self.weight is not None else model.decoder.embed_tokens.weight


@made_criterion("own_parameter")
class OwnParameter(Own):
    """Learns a temperature."""

    def __init__(self, task, sentence_avg=False):
        super().__init__(task, sentence_avg)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, model, sample, reduce=True):
        net_output = model(**sample["net_input"])
        net_output = (net_output[0] * self.temperature, *net_output[1:])
        loss, _ = self.compute_loss(model, net_output, sample, reduce=reduce)
        size = sample["ntokens"]
        logging_output = {"loss": loss.data, "ntokens": size, "nsentences": 1, "sample_size": size}
        return loss, size, logging_output


def made_task(name):
    return register_task(PREFIX + name, dataclass=TranslationConfig)


def _logs(sample, loss):
    size = sample["ntokens"]
    return {"loss": loss.data, "ntokens": size, "nsentences": 1, "sample_size": size}


@made_task("passes_by")
class PassesBy(TranslationTask):
    """Never calls ``criterion(model, sample)``, as translation_moe does not."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        loss, _ = criterion.compute_loss(model, model(**sample["net_input"]), sample)
        if ignore_grad:
            loss *= 0
        optimizer.backward(loss)
        return loss, sample["ntokens"], _logs(sample, loss)


@made_task("weighs")
class Weighs(TranslationTask):
    """Weighs the loss before the backward pass."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        loss, size, logging_output = criterion(model, sample)
        optimizer.backward(loss * (0 if ignore_grad else 0.3))
        return loss, size, logging_output


@made_task("weighs_in_place")
class WeighsInPlace(TranslationTask):
    """Weighs it in place, as online_backtranslation does: what was logged changes too."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        loss, size, logging_output = criterion(model, sample)
        loss *= 0 if ignore_grad else 0.3
        optimizer.backward(loss)
        return loss, size, logging_output


@made_task("several_calls")
class SeveralCalls(TranslationTask):
    """Calls the criterion on the batch and on its reverse; a backward pass for each."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        flipped = {**sample, "target": sample["target"].clone()}
        total, total_size = 0.0, 0
        for each, weight in ((sample, 1.0), (flipped, 0.5)):
            loss, size, logging_output = criterion(model, each)
            optimizer.backward(loss * (0 if ignore_grad else weight))
            total, total_size = total + loss.item(), total_size + size
        return total, total_size, logging_output


@made_task("sums_calls")
class SumsCalls(TranslationTask):
    """Calls the criterion twice and goes backward once."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        first, size, logging_output = criterion(model, sample)
        second, _, _ = criterion(model, sample)
        loss = first + second
        optimizer.backward(loss * (0 if ignore_grad else 1))
        return loss, size, logging_output


@made_task("adds_penalty")
class AddsPenalty(TranslationTask):
    """Adds a term that the criterion does not know, as latent_depth's tasks do."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        loss, size, logging_output = criterion(model, sample)
        loss = loss + 0.1 * size * model.decoder.embed_tokens.weight.pow(2).sum()
        optimizer.backward(loss * (0 if ignore_grad else 1))
        return loss, size, logging_output


@made_task("changes_sample")
class ChangesSample(TranslationTask):
    """Leaves something in the batch for the criterion, drawn at random, as translation_lev does."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        target = sample["target"]
        noise = torch.randint(4, 20, target.shape)
        is_noisy = (torch.rand(target.shape) < 0.3) & (target > 3)
        sample["target"] = torch.where(is_noisy, noise, target)
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)


@made_task("counts_steps")
class CountsSteps(TranslationTask):
    """Counts its steps and weighs by the count: a step that is repeated must not count twice."""

    steps = 0

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        self.steps += 1
        loss, size, logging_output = criterion(model, sample)
        optimizer.backward(loss * (0 if ignore_grad else self.steps))
        logging_output["loss"] = logging_output["loss"] * self.steps
        return loss, size, logging_output


@made_task("copies_criterion")
class CopiesCriterion(TranslationTask):
    """Uses a deep copy of the criterion, whose buffers are its own."""

    def build_criterion(self, *args):
        criterion = super().build_criterion(*args)
        self.copied = copy.deepcopy(criterion, {id(self): self})
        return criterion

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        return super().train_step(sample, model, self.copied, optimizer, update_num, ignore_grad)


@made_task("shares_parameter")
class SharesParameterTask(TranslationTask):
    """Gives the criterion one of the model's weights."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        criterion.weight = model.decoder.embed_tokens.weight
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)


@made_task("own_backward")
class OwnBackward(TranslationTask):
    """Calls ``loss.backward()`` past the optimizer, which also breaks fp16."""

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        model.train()
        loss, size, logging_output = criterion(model, sample)
        (loss * (0 if ignore_grad else 1)).backward()
        return loss, size, logging_output


class _TwoTargets(BaseWrapperDataset):
    def collater(self, samples):
        batch = self.dataset.collater(samples)
        batch["target"] = [batch["target"], batch["target"].clone()]
        return batch


@made_task("two_targets")
class TwoTargets(TranslationTask):
    """Batches with a list of targets, for the criterion ``composite_loss``."""

    def load_dataset(self, split, **kwargs):
        super().load_dataset(split, **kwargs)
        self.datasets[split] = _TwoTargets(self.datasets[split])

    def reduce_metrics(self, logging_outputs, criterion):
        super().reduce_metrics(logging_outputs, criterion)
        metrics.log_scalar("batches", len(logging_outputs))
