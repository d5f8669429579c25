"""Where the plugin meets fairseq's training loop; the one room that does.

:mod:`.optimizers` registers the names of ``--optimizer``, whose flags are in :mod:`.flags`;
:mod:`.seam` repeats the training steps that are to be perturbed.
"""
