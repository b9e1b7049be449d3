#!/usr/bin/env python3
"""Makes tests/fixtures: what Hugging Face transformers generates, so that the tests need no transformers.

    apt-get install bible-kjv; pip install torch transformers==5.17 sentencepiece
    scripts/make_fixtures.py [NAME ...]     # default: all of them

For the demo model and for each tiny shape of make_random_checkpoint.py (seed 0), greedy in fp32 on the CPU with eager
attention. tests/fixtures/README.md describes the files.
"""

import argparse
import json
import os
import random
import subprocess
import tempfile

import sentencepiece
import torch
from transformers import AutoModelForCausalLM

from make_random_checkpoint import SHAPES, write_random_checkpoint

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
FIXTURES = os.path.join(ROOT, "tests", "fixtures")
DEMO_MODEL = os.path.join(ROOT, "configs", "demo_model")
NAMES = ["demo"] + [shape for shape in SHAPES if shape.startswith("tiny")]

PROMPTS = 20
NEW_TOKENS = 24
# Tokens are only worth comparing where the best logit leads the second clearly: other prompts are drawn instead.
SMALLEST_MARGIN = 2e-3

SAMPLES_OF_TEXT = [
    "In the beginning God created the heaven and the earth.",
    "  two leading spaces, two  inside, one behind ",
    "",
    " ",
    "a\ttab, a\nnewline, and\r\nboth",
    "Zürich, naïve, 東京, ελληνικά, 🙂 and 👩‍👩‍👧",
    "1611 and 31,102 verses",
    "<s> </s> <unk> <0x41>",
    "▁a lower one eighth block",
    "MixedCASE-and_punctuation!? (so; it: is) \"quoted\" 'text'",
    "e\u0301 is two code points",
    "\u0000 is a control character",
]


def context_of(config) -> int:
    """The most tokens of a sequence: linear and dynamic scaling stretch max_position_embeddings."""
    rope = config.rope_parameters
    stretch = rope["factor"] if rope["rope_type"] in ("linear", "dynamic") else 1
    return int(config.max_position_embeddings * stretch)


def lengths_of(context: int) -> list[tuple[int, int]]:
    """(prompt tokens, most new tokens) of each prompt; the last ones fill the context exactly."""
    mixed = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, context // 2]
    wanted = [(length, NEW_TOKENS) for length in mixed]
    wanted.append((9, min(context - 9, 160)))  # a long generation, over the whole context of a tiny shape
    wanted += [(context - new, new) for new in (NEW_TOKENS, 7, 2, 1)]
    assert len(wanted) == PROMPTS
    return wanted


def forget_dynamic_rope(model) -> None:
    """Undoes what a dynamic rope has grown to in earlier prompts, which transformers keeps between calls.

    From there on generate() with a cache rotates position p for length max(prompt, p + 1, original) and never rotates
    a cached key again: the definition that pipeinfer uses.
    """
    rotary = model.model.rotary_emb
    rotary.inv_freq = rotary.original_inv_freq.clone()
    rotary.max_seq_len_cached = rotary.original_max_seq_len


@torch.no_grad()
def generate(model, tokens: list[int], new_tokens: int) -> tuple[list[int], torch.Tensor]:
    """The greedy continuation, EOS included, and its logits [positions, vocab]."""
    forget_dynamic_rope(model)
    out = model.generate(
        torch.tensor([tokens]),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return out.sequences[0, len(tokens) :].tolist(), torch.cat(out.logits)


def margin(logits: torch.Tensor) -> float:
    best = logits.topk(2).values
    return (best[:, 0] - best[:, 1]).min().item()


def reference_line(name: str, prompt: list[int], tokens: list[int], logits: torch.Tensor) -> dict:
    top = logits.topk(5)
    rows = zip(top.indices.tolist(), top.values.tolist())
    positions = [{"ids": ids, "logits": [float(f"{value:.7g}") for value in values]} for ids, values in rows]
    return {"id": name, "prompt_token_ids": prompt, "token_ids": tokens, "top": positions}


def write_lines(name: str, lines: list[dict]) -> None:
    with open(os.path.join(FIXTURES, name), "w") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def load(folder: str):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def clear_case(model, draw, new_tokens: int) -> tuple[list[int], list[int], torch.Tensor]:
    """A drawn prompt, its tokens and logits: the first whose tokens are beyond doubt."""
    while True:
        prompt = draw()
        tokens, logits = generate(model, prompt, new_tokens)
        if margin(logits) >= SMALLEST_MARGIN:
            return prompt, tokens, logits


def make_tiny(shape: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_random_checkpoint(shape, folder, seed=0)
        model = load(folder)
    rng = random.Random(shape)
    prompts, references = [], []
    for index, (length, new) in enumerate(lengths_of(context_of(model.config))):

        def draw():
            return [rng.randrange(3, model.config.vocab_size) for _ in range(length)]

        prompt, tokens, logits = clear_case(model, draw, new)
        name = f"{shape}-{index:02}"
        prompts.append({"id": name, "prompt_token_ids": prompt, "max_new_tokens": new})
        references.append(reference_line(name, prompt, tokens, logits))
    write_lines(f"{shape}.prompts.jsonl", prompts)
    write_lines(f"{shape}.reference.jsonl", references)


def make_demo() -> None:
    """The demo model's prompts are text, cut from the Bible to about the wanted numbers of tokens."""
    model = load(DEMO_MODEL)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=os.path.join(DEMO_MODEL, "tokenizer.model"))
    printed = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True)
    verses = [line.split(" ", 1)[1] for line in printed.stdout.splitlines()]
    rng = random.Random("demo")
    prompts, references, completions = [], [], []
    for index, (length, new) in enumerate(lengths_of(context_of(model.config))):
        text = ""

        def draw():
            nonlocal text
            while True:
                start = rng.randrange(len(verses) - 100)
                ids = tokenizer.encode(" ".join(verses[start : start + 100]))[: length - 1]
                text = tokenizer.decode(ids)
                ids = [tokenizer.bos_id(), *tokenizer.encode(text)]
                if len(ids) == length and "\ufffd" not in text:  # cut text need not encode as it was
                    return ids

        prompt, tokens, logits = clear_case(model, draw, new)
        name = f"demo-{index:02}"
        prompts.append({"id": name, "prompt": text, "max_new_tokens": new})
        references.append(reference_line(name, prompt, tokens, logits))
        shown = tokens[:-1] if tokens[-1] == tokenizer.eos_id() else tokens
        whole = tokenizer.decode(prompt + shown)
        completions.append({"id": name, "completion": whole[len(text) :]})
    write_lines("demo.prompts.jsonl", prompts)
    write_lines("demo.reference.jsonl", references)
    write_lines("demo.completions.jsonl", completions)
    encoded = [(text, tokenizer.encode(text)) for text in SAMPLES_OF_TEXT]
    write_lines(
        "tokenizer.jsonl", [{"text": text, "ids": ids, "decoded": tokenizer.decode(ids)} for text, ids in encoded]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of: " + ", ".join(NAMES))
    args = parser.parse_args()
    unknown = set(args.names) - set(NAMES)
    if unknown:
        parser.error(f"no such fixture: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    os.makedirs(FIXTURES, exist_ok=True)
    for name in args.names or NAMES:
        make_demo() if name == "demo" else make_tiny(name)


if __name__ == "__main__":
    main()
