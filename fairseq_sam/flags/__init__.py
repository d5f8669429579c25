"""What all flags have in common, those of fairseq-train, of fairseq-sam and of the scripts."""
