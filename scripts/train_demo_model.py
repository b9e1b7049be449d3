#!/usr/bin/env python3
"""Trains the demo model of configs/demo_model: a small Llama that writes sentences of the King James Bible.

    apt-get install bible-kjv               # the text (public domain) and the program that prints it
    pip install torch sentencepiece
    scripts/train_demo_model.py OUT [--minutes 25] [--threads 1]

A document is one verse, or a few that follow each other, so the model ends after a verse with EOS. The learning
rate follows the wall clock, so that a slow machine ends in time too, with less training.
"""

import argparse
import io
import json
import math
import os
import random
import re
import subprocess
import sys
import time

import sentencepiece
import torch
import torch.nn.functional as F
from torch import nn

from safetensors_io import from_torch, write_checkpoint

VOCAB = 2000
HIDDEN = 200
HEADS = 2
HEAD_DIM = HIDDEN // HEADS
LAYERS = 6
INTERMEDIATE = 540
CONTEXT = 512
BATCH = 6  # rows of CONTEXT tokens
ROPE_THETA = 10000.0
RMS_EPS = 1e-6
LEARNING_RATE = 3e-3
BOS, EOS = 1, 2

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": CONTEXT,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": HEADS,
    "rms_norm_eps": RMS_EPS,
    "rope_theta": ROPE_THETA,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vocab_size": VOCAB,
}
GENERATION_CONFIG = {"bos_token_id": BOS, "eos_token_id": EOS}
TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "model_max_length": CONTEXT,
    "tokenizer_class": "LlamaTokenizer",
    "unk_token": "<unk>",
}


def read_chapters() -> list[list[str]]:
    """The verses of each chapter, in the order of the book."""
    try:
        printed = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True)
    except FileNotFoundError:
        sys.exit("train_demo_model.py: the program 'bible' is missing: apt-get install bible-kjv")
    chapters: list[list[str]] = []
    current = None
    for line in printed.stdout.splitlines():
        chapter, verse = re.fullmatch(r"(\w+):\d+ (.*)", line).groups()
        if chapter != current:
            chapters.append([])
            current = chapter
        chapters[-1].append(verse)
    return chapters


def train_tokenizer(verses: list[str], folder: str) -> sentencepiece.SentencePieceProcessor:
    """A byte-fallback BPE tokenizer with Llama's settings, as tokenizer.model in `folder`."""
    proto = io.BytesIO()  # trained to a file, the model would hold the file's path
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(verses),
        model_writer=proto,
        vocab_size=VOCAB,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    with open(os.path.join(folder, "tokenizer.model"), "wb") as file:
        file.write(proto.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue())


def token_stream(chapters: list[list[str]], tokenizer, rng: random.Random):
    """Endless rows of CONTEXT + 1 tokens: every epoch cuts the chapters into new documents, shuffled."""
    buffer: list[int] = []
    while True:
        documents = []
        for chapter in chapters:
            start = 0
            while start < len(chapter):
                count = 1
                while rng.random() < 0.3:
                    count += 1
                documents.append(" ".join(chapter[start : start + count]))
                start += count
        rng.shuffle(documents)
        for tokens in tokenizer.encode(documents):
            buffer += [BOS, *tokens, EOS]
            while len(buffer) > CONTEXT:
                yield buffer[: CONTEXT + 1]
                del buffer[:CONTEXT]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.k_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.v_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.o_proj = nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, x, cos, sin):
        def heads(y):  # [batch, time, hidden] -> [batch, heads, time, head_dim]
            return y.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2)

        def rotate(y):  # pairs are (i, i + head_dim / 2), as Hugging Face's checkpoints store them
            low, high = y.chunk(2, -1)
            return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        out = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INTERMEDIATE, bias=False)
        self.down_proj = nn.Linear(INTERMEDIATE, HIDDEN, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(HIDDEN, RMS_EPS)
        self.self_attn = Attention()
        self.post_attention_layernorm = nn.RMSNorm(HIDDEN, RMS_EPS)
        self.mlp = Mlp()

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Its parameters carry the names of a Hugging Face checkpoint."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.model.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.model.norm = nn.RMSNorm(HIDDEN, RMS_EPS)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.05 / math.sqrt(2 * LAYERS) if residual else 0.05)
        inverse = ROPE_THETA ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        angles = torch.outer(torch.arange(CONTEXT), inverse)  # [CONTEXT, head_dim / 2]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens):
        """[batch, time] tokens -> [batch, time, vocab] logits."""
        x = self.model.embed_tokens(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.model.norm(x))


def train(model: Llama, rows, minutes: float) -> None:
    matrices = [p for p in model.model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    optimizers = [
        # Muon learns more from a small text than AdamW does; it is for matrices inside the layers only.
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=LEARNING_RATE, weight_decay=0.01, betas=(0.9, 0.95)),
    ]
    start = time.monotonic()
    smoothed = math.log(VOCAB)
    step = 0
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        rate = LEARNING_RATE * min(1, (step + 1) / 30) * min(1, (1 - progress) / 0.7)
        batch = torch.tensor([next(rows) for _ in range(BATCH)])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        smoothed += 0.05 * (loss.item() - smoothed)
        if step % 20 == 0:
            tokens = step * BATCH * CONTEXT
            print(f"step {step}  {tokens / 1e6:.2f} M tokens  loss {smoothed:.3f}  {progress:.0%}", flush=True)


@torch.no_grad()
def complete(model: Llama, tokenizer, prompt: str, most: int = 80) -> str:
    tokens = [BOS, *tokenizer.encode(prompt)]
    for _ in range(most):
        token = model(torch.tensor([tokens]))[0, -1].argmax().item()
        if token == EOS:
            break
        tokens.append(token)
    return tokenizer.decode(tokens)


def save(model: Llama, folder: str) -> None:
    weights = {name: weight.to(torch.float16) for name, weight in model.state_dict().items()}
    write_checkpoint(folder, [from_torch(name, weight) for name, weight in weights.items()])
    for name, content in (
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION_CONFIG),
        ("tokenizer_config.json", TOKENIZER_CONFIG),
    ):
        with open(os.path.join(folder, name), "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="folder of the checkpoint, created if it is not there")
    parser.add_argument("--minutes", type=float, default=25, help="wall clock of the training (default: 25)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    os.makedirs(args.out, exist_ok=True)
    chapters = read_chapters()
    tokenizer = train_tokenizer([verse for chapter in chapters for verse in chapter], args.out)
    model = Llama()
    train(model, token_stream(chapters, tokenizer, random.Random(args.seed)), args.minutes)
    save(model, args.out)
    for prompt in ("In the beginning", "And the LORD said unto Moses,", "Blessed is the man", "The king of Israel"):
        print(complete(model, tokenizer, prompt))


if __name__ == "__main__":
    main()
