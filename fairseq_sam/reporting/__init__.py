"""What finished runs have to say: their logs and scores as a table and as curves.

Pure parts (no fairseq, no torch): ``train_log`` reads fairseq's logs, ``scores`` reads sacrebleu's
results, ``runs`` puts a run directory together, ``runs_table`` and ``runs_plot`` show them.
"""
