#!/usr/bin/env python3
"""What `pipeinfer bench` measures, with Hugging Face transformers: a figure to compare with, on the same GPU.

    bench_transformers.py --batch-size 1,64 [--prompt-tokens 128] [--new-tokens 128] [--mode eager|static]
    bench_transformers.py --batch-size 32 --lengths-of completions.jsonl --new-tokens 64 [--mode eager|static]

OpenLLaMA-3B's shape with random fp16 weights, random prompts, greedy. `static` is transformers' static cache with its
compiled forward. Prints one JSON object a batch size; decode_tok_s is batch x (new - 1) over the time that the tokens
after the first one take (medians of three runs each). With --lengths-of the prompts are as long
as those of a run's completions, in batches of their order, all padded to the longest so that the static cache's forward
is compiled once, and tok_s is all new tokens over the time of all batches. Needs torch, transformers and a GPU.
"""

import argparse
import json
import statistics
import time

import torch
import transformers


def make_model():
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=3200,
        intermediate_size=8640,
        num_hidden_layers=26,
        num_attention_heads=32,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    return model


def generate_s(model, prompts, new_tokens: int, mode: str, mask=None) -> float:
    """Seconds of one generation, without ends before `new_tokens`."""
    options = {"cache_implementation": "static"} if mode == "static" else {}
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts) if mask is None else mask,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def padded_batches(path: str, size: int):
    """Prompts of the file's lengths, left-padded, with their masks; the last batch is filled up with its first length."""
    with open(path, encoding="utf-8") as file:
        all_lengths = [json.loads(line)["prompt_tokens"] for line in file]
    longest = max(all_lengths)
    for first in range(0, len(all_lengths), size):
        lengths = all_lengths[first : first + size]
        rows = torch.tensor(lengths + lengths[:1] * (size - len(lengths)), device="cuda")
        ids = torch.randint(3, 32000, (size, longest), device="cuda")
        mask = (torch.arange(longest, device="cuda") >= longest - rows[:, None]).long()
        yield len(lengths), ids, mask


def bench_sequences(model, args) -> None:
    size = int(args.batch_size)
    batches = list(padded_batches(args.lengths_of, size))
    generate_s(model, batches[0][1], args.new_tokens, args.mode, batches[0][2])
    seconds = sum(generate_s(model, ids, args.new_tokens, args.mode, mask) for _, ids, mask in batches)
    n = sum(count for count, _, _ in batches)
    figures = {
        "sequences": n,
        "batch_size": size,
        "new_tokens": args.new_tokens,
        "mode": args.mode,
        "seconds": seconds,
        "tok_s": n * args.new_tokens / seconds,
        "transformers": transformers.__version__,
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--mode", choices=("eager", "static"), default="eager")
    parser.add_argument("--lengths-of")
    args = parser.parse_args()
    model = make_model()
    if args.lengths_of:
        bench_sequences(model, args)
        return
    for batch in map(int, args.batch_size.split(",")):
        prompts = torch.randint(3, 32000, (batch, args.prompt_tokens), device="cuda")
        generate_s(model, prompts, args.new_tokens, args.mode)
        first = statistics.median(generate_s(model, prompts, 1, args.mode) for _ in range(3))
        whole = statistics.median(generate_s(model, prompts, args.new_tokens, args.mode) for _ in range(3))
        figures = {
            "batch_size": batch,
            "prompt_tokens": args.prompt_tokens,
            "new_tokens": args.new_tokens,
            "mode": args.mode,
            "ttft_s": first,
            "decode_tok_s": batch * (args.new_tokens - 1) / (whole - first),
            "transformers": transformers.__version__,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
