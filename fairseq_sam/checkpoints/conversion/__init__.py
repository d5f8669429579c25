"""Encoders from elsewhere as fairseq checkpoints (``fairseq-sam convert``)."""
