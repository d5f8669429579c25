"""The tables of the papers, and the search for a radius, on one runner.

A *recipe* (:mod:`fairseq_sam.experiments.recipes`) says what a table is made of: data and their
preparation, the flags that all trainings share, each method's, how runs are scored, and what the
paper reports. ``experiment`` makes jobs of it, ``jobs`` runs them: several at once, resumed, each
done once. ``conduct`` goes through the stages; ``search`` decides which radii to try.
"""
