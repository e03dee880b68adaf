"""Scores of CLIP models, on features encoded once: zero-shot, multi-label, retrieval, probes, k-NN, selection.

`evaluate.run.evaluate` is the library entry; `python -m evaluate` is the command. Nothing here imports
the trainer: the in-loop check hands its live model in as an `Encoder`.
"""
