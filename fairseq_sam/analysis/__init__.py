"""What is measured on a trained model; the command line is in :mod:`fairseq_sam.commands`."""
