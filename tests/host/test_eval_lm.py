"""``fairseq-eval-lm``: what it accepts alone, and once repaired."""

import logging
import sys
import types
from types import SimpleNamespace

import pytest
from fairseq import checkpoint_utils
from fairseq.tasks.language_modeling import LanguageModelingTask

from fairseq_sam.host import eval_lm


class TestEvalLm:
    def test_refuses_to_score_no_text(self, unrepaired):
        batches = SimpleNamespace(next_epoch_itr=lambda shuffle: ())
        task = SimpleNamespace(get_batch_iterator=lambda **_: batches)
        with pytest.raises(ValueError, match="--tokens-per-sample"):
            LanguageModelingTask.eval_lm_dataloader(task, [[1, 2]])
        assert unrepaired(LanguageModelingTask.eval_lm_dataloader)(task, [[1, 2]]) == ()

    @pytest.mark.parametrize(("trained", "warnings"), [("eos", 1), ("none", 0)])
    def test_announces_another_break_mode(self, trained, warnings, monkeypatch, caplog):
        task = SimpleNamespace(args=SimpleNamespace(sample_break_mode="none"))
        model = SimpleNamespace(task=SimpleNamespace(sample_break_mode=trained))
        monkeypatch.setitem(sys.modules, "fairseq_cli.eval_lm", types.ModuleType("eval_lm"))
        monkeypatch.setattr(
            checkpoint_utils, "load_model_ensemble_and_task", lambda _, task: ([], model, task)
        )
        with caplog.at_level(logging.WARNING, logger=eval_lm.__name__):
            checkpoint_utils.load_model_ensemble_and_task([], task=task)
            assert caplog.records == []
            eval_lm._announce_other_break_mode()
            checkpoint_utils.load_model_ensemble_and_task([], task=task)
        assert len(caplog.records) == warnings
