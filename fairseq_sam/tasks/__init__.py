"""Registered tasks; fairseq imports this folder by itself under ``--user-dir``."""

from fairseq_sam.tasks import sentence_similarity  # noqa: F401  (importing registers)
