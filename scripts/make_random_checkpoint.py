#!/usr/bin/env python3
"""Writes a LlamaForCausalLM checkpoint of random weights; needs numpy only.

    scripts/make_random_checkpoint.py openllama-3b OUT --tokenizer demo
    scripts/make_random_checkpoint.py tiny-gqa OUT --seed 3 --shards 2

The same shape, seed and dtype give the same bytes on every machine and with every numpy: the bits come from
Philox keyed by (seed, tensor name), and only exact arithmetic follows.
"""

import argparse
import json
import math
import os
import shutil
import sys
import zlib

import numpy as np

from safetensors_io import Tensor, write_checkpoint

DEMO_MODEL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "configs", "demo_model")
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json")

# The standard deviation of a matrix is its gain over sqrt(input size). The layers' makes attention sharp enough for the
# context to matter, and no sharper, for then fp16's errors would grow from layer to layer.
LAYER_GAIN = 1.1
HEAD_GAIN = 2.0
NORM_STD = 0.1  # around 1
BIAS_STD = 0.3

# head_dim 100 and an intermediate size that is no multiple of 8, as awkward as OpenLLaMA-3B's sizes.
TINY = {
    "hidden_size": 200,
    "intermediate_size": 348,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 2000,
    "max_position_embeddings": 160,
}

# What each shape adds to config.json. "dtype" and "rope_parameters" are the newer spelling of "torch_dtype",
# "rope_theta" and "rope_scaling"; readers must know both.
SHAPES = {
    "openllama-3b": {
        "hidden_size": 3200,
        "intermediate_size": 8640,
        "num_hidden_layers": 26,
        "num_attention_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "torch_dtype": "float16",
    },
    "tiny": TINY | {"torch_dtype": "float32"},
    "tiny-gqa": TINY
    | {
        "hidden_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "eos_token_id": [2, 897, 1865],  # tokens that this model does choose, so that EOS is seen
        "torch_dtype": "float32",
    },
    "tiny-tied": TINY | {"tie_word_embeddings": True, "torch_dtype": "float32"},
    "tiny-bias": TINY | {"attention_bias": True, "mlp_bias": True, "torch_dtype": "float32"},
    "tiny-hd64": TINY
    | {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "dtype": "float32",
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
    "tiny-linear": TINY
    | {
        "max_position_embeddings": 80,
        "torch_dtype": "float32",
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "tiny-dynamic": TINY
    | {
        "max_position_embeddings": 64,
        "torch_dtype": "float32",
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "dynamic", "factor": 3.0},
    },
    "tiny-llama3": TINY
    | {
        "num_key_value_heads": 1,
        "dtype": "float32",
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
}
DTYPES = {"fp32": ("F32", "float32"), "fp16": ("F16", "float16"), "bf16": ("BF16", "bfloat16")}


def make_config(shape: str, dtype: str) -> dict:
    """config.json's content; `dtype` is Hugging Face's name of one."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    } | SHAPES[shape]
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype
    return config


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Hugging Face's names of the tensors, in the order of use, and their shapes ([out, in] for matrices)."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    q_size, kv_size = heads * head_dim, config.get("num_key_value_heads", heads) * head_dim

    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}

    def linear(name: str, rows: int, columns: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if bias:
            shapes[f"{name}.bias"] = (rows,)

    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        linear(f"{layer}.self_attn.q_proj", q_size, hidden, config["attention_bias"])
        linear(f"{layer}.self_attn.k_proj", kv_size, hidden, config["attention_bias"])
        linear(f"{layer}.self_attn.v_proj", kv_size, hidden, config["attention_bias"])
        linear(f"{layer}.self_attn.o_proj", hidden, q_size, config["attention_bias"])
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        linear(f"{layer}.mlp.gate_proj", inner, hidden, config["mlp_bias"])
        linear(f"{layer}.mlp.up_proj", inner, hidden, config["mlp_bias"])
        linear(f"{layer}.mlp.down_proj", hidden, inner, config["mlp_bias"])
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def uniform(seed: int, name: str, count: int) -> np.ndarray:
    """`count` float32 numbers of mean 0 and standard deviation 1, uniform in 65536 levels."""
    bits = np.random.Philox(key=[seed, zlib.crc32(name.encode())]).random_raw((count + 3) // 4)
    numbers = bits.astype("<u8", copy=False).view("<i2")[:count].astype(np.float32)
    numbers *= np.float32(math.sqrt(3) / 32768)
    return numbers


def loudness(seed: int, rows: int) -> np.ndarray:
    """A factor for each row of the LM head, [rows, 1]: x^(-1/8) for x uniform in (0, 1].

    A few tokens are much likelier than the rest, as in a trained model. With rows of one length the best logits of a
    large vocabulary crowd together, and the choice between them would be decided by fp16's rounding.
    """
    x = uniform(seed, "loudness", rows) * np.float32(0.5 / math.sqrt(3)) + np.float32(0.5)
    return 1 / np.sqrt(np.sqrt(np.sqrt(np.maximum(x, np.float32(1 / rows)))))[:, None]


def to_bytes(numbers: np.ndarray, dtype: str) -> memoryview:
    """float32 numbers rounded to `dtype`, little-endian."""
    if dtype == "F16":
        return numbers.astype("<f2").data
    if dtype == "BF16":  # the upper half of a float32, rounded to the nearest, ties to even
        words = numbers.view(np.uint32)
        return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype("<u2").data
    return numbers.astype("<f4", copy=False).data


def make_tensor(seed: int, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    def load() -> memoryview:
        numbers = uniform(seed, name, math.prod(shape)).reshape(shape)
        if name.endswith("norm.weight"):
            numbers *= np.float32(NORM_STD)
            numbers += 1
        elif name.endswith(".bias"):
            numbers *= np.float32(BIAS_STD)
        elif name == "lm_head.weight":
            numbers *= np.float32(HEAD_GAIN / math.sqrt(shape[1])) * loudness(seed, shape[0])
        else:
            numbers *= np.float32(LAYER_GAIN / math.sqrt(shape[1]))
        return to_bytes(numbers, dtype)

    return Tensor(name, dtype, shape, load)


def write_random_checkpoint(
    shape: str, out: str, seed: int = 0, dtype: str = "", shards: int = 1, tokenizer: str = "none"
) -> None:
    """Makes the folder `out`; `dtype` is a key of DTYPES, or empty for the shape's own."""
    own = SHAPES[shape].get("torch_dtype") or SHAPES[shape]["dtype"]
    stored, named = DTYPES[dtype] if dtype else next(pair for pair in DTYPES.values() if pair[1] == own)
    config = make_config(shape, named)
    tensors = [make_tensor(seed, name, size, stored) for name, size in tensor_shapes(config).items()]
    os.makedirs(out, exist_ok=True)
    write_checkpoint(out, tensors, shards, threads=len(os.sched_getaffinity(0)))
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    if tokenizer == "demo":
        for name in TOKENIZER_FILES:
            shutil.copyfile(os.path.join(DEMO_MODEL, name), os.path.join(out, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES, help="one of: " + ", ".join(SHAPES), metavar="SHAPE")
    parser.add_argument("out", help="folder of the checkpoint, created if it is not there", metavar="OUT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="", help="default: openllama-3b fp16, others fp32")
    parser.add_argument("--shards", type=int, default=1, help="files to spread the tensors over (default: 1)")
    parser.add_argument(
        "--tokenizer", choices=("none", "demo"), default="none", help="demo: copy the demo model's tokenizer"
    )
    args = parser.parse_args()
    try:
        write_random_checkpoint(args.shape, args.out, args.seed, args.dtype, args.shards, args.tokenizer)
    except (OSError, ValueError) as error:
        sys.exit(f"make_random_checkpoint.py: {error}")


if __name__ == "__main__":
    main()
