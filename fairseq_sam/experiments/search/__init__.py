"""The search for the radius (``--sam-rho``, ε in GA-SAM): what ``fairseq-sam search`` does.

``strategy`` decides which radii to try and knows nothing of training; ``training_command`` reads
the user's ``fairseq-train`` arguments; ``trials`` holds what is known of one run, which
``trial_jobs`` makes; ``course`` is the whole search; ``summary`` and ``radius_plot`` show it.

Optuna is not used: the order of magnitude is bisected and the grid fixed, which no sampler of it
does, so it would only be told what to try. Nor is its storage needed: a trial is a directory with
fairseq's own log and checkpoints, which is all that it takes to go on after an interruption.
"""
