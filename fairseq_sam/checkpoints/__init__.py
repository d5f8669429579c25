"""fairseq's checkpoints as files: read, written, averaged, and made of other people's encoders."""
