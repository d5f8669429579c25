"""Repairs as such: idempotent, and harmless to a fairseq they do not know."""

import sys
import types
from types import SimpleNamespace

from fairseq import options
from fairseq.data import data_utils
from fairseq.file_io import PathManager

from fairseq_sam import host
from fairseq_sam.host import patching


def test_repairing_twice_changes_nothing():
    before = (data_utils.batch_by_size, PathManager.copy, options.parse_args_and_arch)
    host.repair()
    assert before == (data_utils.batch_by_size, PathManager.copy, options.parse_args_and_arch)
    assert not any(repair.is_present() for repair in host.REPAIRS)


def test_a_fairseq_without_the_faulty_part_is_left_alone(monkeypatch):
    applied = []
    missing = host.Repair("?", lambda: SimpleNamespace().batch_by_size, lambda: applied.append(1))
    monkeypatch.setattr(host, "REPAIRS", (missing,))
    host.repair()
    assert applied == []


def test_rebinding_reaches_modules_that_imported_the_name(monkeypatch):
    early = types.ModuleType("early")
    early.batch = original = object()
    monkeypatch.setitem(sys.modules, "early", early)
    patching.rebind("batch", original, "new")
    assert early.batch == "new"
