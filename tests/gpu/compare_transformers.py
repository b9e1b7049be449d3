#!/usr/bin/env python3
"""Compares pipeinfer's logits with Hugging Face transformers', and its tokens with a reference run's.

    compare_transformers.py logits MODEL SEQUENCES.jsonl LOGITS.bin
    compare_transformers.py tokens REFERENCE.jsonl COMPLETIONS.jsonl [COMPLETIONS.jsonl ...]

`logits`: each line of SEQUENCES has `prompt_token_ids` and `token_ids` (others are ignored), and LOGITS.bin is our raw
float32 dump, [positions, vocab] of each sequence in turn, for every position from 0 of both lists together, teacher
forced. transformers runs the same weights in fp16 and in fp32. Needs torch, transformers and a GPU (or --device cpu).

`tokens`: free runs. REFERENCE.jsonl is what `run --local-debug` writes; each COMPLETIONS.jsonl is compared with it up to
the first token that differs.

Equal means: max|a-b| / max|b| of the logits is at most 1e-2; and our choice is the reference's, or the reference's
logit for it lies within 4e-3 of max|logit| below its top, at 1% of the positions at most. Prints one JSON object; exits
with 0 if all is equal, else with 1, and with 2 on input that cannot be compared.
"""

import argparse
import json
import os
import sys

LOGITS_TOLERANCE = 1e-2
CHOICE_TOLERANCE = 4e-3
LARGEST_SHARE = 0.01


def read_lines(path: str) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def compare(ours, reference) -> dict:
    """Both: lists of [positions, vocab] float32 CPU tensors."""
    difference = largest = 0.0
    positions = other_choices = beyond = 0
    for a, b in zip(ours, reference):
        difference = max(difference, (a - b).abs().max().item())
        largest = max(largest, b.abs().max().item())
        choice = a.argmax(-1, keepdim=True)
        gap = (b.max(-1, keepdim=True).values - b.gather(-1, choice)).squeeze(-1)
        other = choice.squeeze(-1) != b.argmax(-1)
        positions += len(a)
        other_choices += int(other.sum())
        beyond += int((other & ~(gap <= CHOICE_TOLERANCE * b.abs().amax(-1))).sum())
    relative = difference / largest
    share = other_choices / positions
    return {
        "positions": positions,
        "relative_difference": relative,
        "other_choices": other_choices,
        "other_choices_share": share,
        "beyond_tolerance": beyond,
        "equal": relative <= LOGITS_TOLERANCE and share <= LARGEST_SHARE and beyond == 0,
    }


def run_transformers(folder: str, sequences: list[list[int]], dtype, device: str) -> list:
    """The logits [positions, vocab] of each sequence, float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(device).eval()
    with torch.no_grad():
        return [
            model(torch.tensor([tokens], device=device), use_cache=False).logits[0].float().cpu()
            for tokens in sequences
        ]


def compare_logits(args) -> dict:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False  # fp32 is to mean fp32
    sequences = [line["prompt_token_ids"] + line["token_ids"] for line in read_lines(args.sequences)]
    with open(os.path.join(args.model, "config.json")) as file:
        vocab = json.load(file)["vocab_size"]
    count = sum(map(len, sequences))
    expected, found = count * vocab * 4, os.path.getsize(args.logits)
    if expected != found:
        raise ValueError(
            f"{args.logits}: expected {expected} bytes ({count} positions x {vocab} float32), found {found}"
        )
    if count < args.min_positions:
        raise ValueError(f"{args.sequences}: {count} positions are too few, at least {args.min_positions} are wanted")
    whole = torch.from_file(args.logits, size=count * vocab, dtype=torch.float32).view(count, vocab)
    ours = list(whole.split([len(tokens) for tokens in sequences]))
    if not all(torch.isfinite(part).all() for part in ours):
        raise ValueError(f"{args.logits}: not every logit is finite")

    fp16 = run_transformers(args.model, sequences, torch.float16, args.device)
    fp32 = run_transformers(args.model, sequences, torch.float32, args.device)
    report = {"with_fp16": compare(ours, fp16), "with_fp32": compare(ours, fp32)}
    report["pass"] = all(part["equal"] for part in report.values())
    report["transformers_fp16_with_fp32"] = compare(fp16, fp32)  # a yardstick: how equal transformers is to itself
    return report


def compare_tokens(reference: list[dict], completions: dict[str, dict]) -> dict:
    positions = same = 0
    near, failed = [], []
    for line in reference:
        expected = line["token_ids"]
        found = completions.get(line["id"], {}).get("token_ids")
        if found is None:
            failed.append({"id": line["id"], "why": "missing"})
            continue
        pairs = enumerate(zip(expected, found))
        at = next((index for index, (a, b) in pairs if a != b), min(len(expected), len(found)))
        positions += at
        if expected == found:
            same += 1
            continue
        if at == min(len(expected), len(found)):
            why = f"{len(found)} tokens instead of {len(expected)}, the others equal"
            failed.append({"id": line["id"], "position": at, "why": why})
            continue
        positions += 1
        top = line["top"][at]
        gaps = dict(zip(top["ids"], (top["logits"][0] - logit for logit in top["logits"])))
        # The largest of the five stands for max|logit|: never more than it, so never laxer.
        allowed = CHOICE_TOLERANCE * max(map(abs, top["logits"]))
        gap = gaps.get(found[at])
        entry = {"id": line["id"], "position": at, "expected": expected[at], "found": found[at], "gap": gap}
        if gap is not None and gap <= allowed:
            near.append(entry)
        else:
            failed.append(entry | {"why": f"beyond {allowed:.3g}"})
    share = len(near) / positions if positions else 0.0
    return {
        "sequences": len(reference),
        "same": same,
        "positions": positions,
        "within_tolerance": near,
        "within_tolerance_share": share,
        "failed": failed,
        "equal": not failed and share <= LARGEST_SHARE,
    }


def compare_runs(args) -> dict:
    reference = read_lines(args.reference)
    if not reference:
        raise ValueError(f"{args.reference}: no lines")
    report: dict = {}
    for path in args.completions:
        report[path] = compare_tokens(reference, {line["id"]: line for line in read_lines(path)})
    report["pass"] = all(part["equal"] for part in report.values())
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    logits = commands.add_parser("logits", help="teacher-forced logits with transformers")
    logits.add_argument("model")
    logits.add_argument("sequences")
    logits.add_argument("logits")
    logits.add_argument("--device", default="cuda")
    logits.add_argument("--min-positions", type=int, default=2000)
    logits.set_defaults(run=compare_logits)
    tokens = commands.add_parser("tokens", help="free runs with a reference run")
    tokens.add_argument("reference")
    tokens.add_argument("completions", nargs="+")
    tokens.set_defaults(run=compare_runs)
    args = parser.parse_args()
    try:
        report = args.run(args)
    except (OSError, ValueError, KeyError) as error:
        print(f"compare_transformers.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(report, indent=2))
    sys.exit(0 if report["pass"] else 1)


if __name__ == "__main__":
    main()
