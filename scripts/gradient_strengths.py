#!/usr/bin/env python3
"""Prints the strength of each tensor's gradient relative to that of the whole gradient.

The figures of docs/results/noise_floor.md: ‖g_i‖/√n_i over ‖g‖/√n on training batches, weakest
first.

Example:
    python scripts/gradient_strengths.py CHECKPOINT --batches 40
"""

import argparse
import itertools
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="of a translation, classification or language model")
    parser.add_argument("--batches", type=int, default=1, help="training batches (default: 1)")
    parser.add_argument("--max-tokens", type=int, default=1000, help="in a batch")
    parser.add_argument("--bf16", action="store_true", help="compute under bfloat16 autocast")
    parser.add_argument("--tensors", type=int, default=20, help="how many to print")
    args = parser.parse_args()
    import fairseq  # noqa: F401  (before fairseq_sam, which then registers itself)
    from fairseq import checkpoint_utils

    import fairseq_sam

    fairseq_sam.register()
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task([args.checkpoint])
    task.load_dataset("train")
    criterion = task.build_criterion(cfg.criterion)
    batches = task.get_batch_iterator(
        task.dataset("train"), max_tokens=args.max_tokens, required_batch_size_multiple=1
    ).next_epoch_itr(shuffle=True)
    model.train()
    criterion.train()
    extremes = {}
    for batch in itertools.islice(batches, args.batches):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            loss = criterion(model, batch)[0]
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        size = sum(g.numel() for g in gradients.values())
        whole = (sum(float(g.norm()) ** 2 for g in gradients.values()) / size) ** 0.5
        for name, g in gradients.items():
            strength = float(g.norm()) / g.numel() ** 0.5 / whole
            low, high = extremes.get(name, (strength, strength))
            extremes[name] = (min(low, strength), max(high, strength))
    print(f"| tensor | least | most |  ({args.batches} batches)\n| --- | ---: | ---: |")
    for name, (low, high) in sorted(extremes.items(), key=lambda item: item[1])[: args.tensors]:
        print(f"| {name} | {low:.1e} | {high:.1e} |")


if __name__ == "__main__":
    main()
