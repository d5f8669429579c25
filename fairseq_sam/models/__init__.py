"""Registered models; fairseq imports this folder by itself under ``--user-dir``."""

from fairseq_sam.models import bert, textcnn  # noqa: F401  (importing registers)
