#!/usr/bin/env python3
"""What `pipeinfer bench` measures, with Hugging Face transformers: a figure to compare with, on the same GPU.

    bench_transformers.py --batch-size 1,64 [--prompt-tokens 128] [--new-tokens 128] [--mode eager|static]

OpenLLaMA-3B's shape with random fp16 weights, random prompts, greedy. `static` is transformers' static cache with its
compiled forward. Prints one JSON object a batch size; decode_tok_s is batch x (new - 1) over the time that the tokens
after the first one take (medians of three runs each). Needs torch, transformers and a GPU.
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


def generate_s(model, prompts, new_tokens: int, mode: str) -> float:
    """Seconds of one generation, without ends before `new_tokens`."""
    options = {"cache_implementation": "static"} if mode == "static" else {}
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with torch.inference_mode():
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", required=True)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--mode", choices=("eager", "static"), default="eager")
    args = parser.parse_args()
    model = make_model()
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
