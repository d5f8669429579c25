#!/usr/bin/env python3
"""Prints the strength of each bias's gradient relative to that of its layer's matrix.

The figures of docs/results/noise_floor.md: ‖g_i‖/√n_i on training batches over that of the matrix
of the same module, and over ‖g‖/√n of the whole gradient, weakest first.

Example:
    python research/gradient_strengths.py CHECKPOINT --batches 40
"""

import argparse
import itertools

import torch

from fairseq_sam.flags.number_types import count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="of a translation, classification or language model")
    parser.add_argument("--batches", type=count, default=1, help="training batches (default: 1)")
    parser.add_argument("--max-tokens", type=count, default=1000, help="in a batch")
    parser.add_argument("--bf16", action="store_true", help="compute under bfloat16 autocast")
    parser.add_argument("--tensors", type=count, default=20, help="how many to print")
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
        strengths = {n: float(g.norm()) / g.numel() ** 0.5 for n, g in gradients.items()}
        for name, strength in strengths.items():
            matrix = strengths.get(name.rpartition(".")[0] + ".weight")
            if name.endswith(".bias") and matrix and gradients[name[:-4] + "weight"].dim() > 1:
                extremes.setdefault(name, []).append((strength / matrix, strength / whole))
    print(f"| bias | of its matrix | of the whole |  ({args.batches} batches)")
    print("| --- | ---: | ---: |")
    for name, found in sorted(extremes.items(), key=lambda item: max(item[1]))[: args.tensors]:
        own, all_of_it = zip(*found)
        ranges = [f"{min(each):.1e}–{max(each):.1e}" for each in (own, all_of_it)]
        print(f"| {name} | {' | '.join(ranges)} |")


if __name__ == "__main__":
    main()
