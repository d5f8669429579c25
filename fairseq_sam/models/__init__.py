"""Model architectures; importing this package registers them."""

from fairseq_sam.models import textcnn  # noqa: F401
