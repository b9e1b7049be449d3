#!/usr/bin/env python3
"""Converts a checkpoint from pytorch_model*.bin to safetensors; needs torch only.

    scripts/convert_checkpoint.py MODEL          # writes beside the .bin files
    scripts/convert_checkpoint.py MODEL OUT      # into OUT, with MODEL's .json and tokenizer files

Names, shapes and dtypes are kept, and each .bin file becomes one .safetensors file. The .bin files are read with
weights_only=True, so nothing in them is executed.
"""

import argparse
import json
import os
import pickle
import re
import shutil
import sys
import zipfile

import torch

from safetensors_io import from_torch, write_file

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"


def safetensors_name(bin_name: str) -> str:
    """pytorch_model-00001-of-00002.bin -> model-00001-of-00002.safetensors, as others name them."""
    return re.sub(r"^pytorch_", "", re.sub(r"\.bin$", "", bin_name)) + ".safetensors"


def read_index(folder: str) -> tuple[list[str], dict | None]:
    """The names of the .bin files in `folder`, and the index where there is one."""
    path = os.path.join(folder, INDEX)
    if not os.path.exists(path):
        return [SINGLE], None
    with open(path) as file:
        index = json.load(file)
    if "weight_map" not in index:
        raise ValueError(f"{path}: weight_map is missing")
    names = sorted(set(index["weight_map"].values()))
    for name in names:
        if name != os.path.basename(name):
            raise ValueError(f"{path}: {name!r} is not a file of this folder")
    return names, index


def convert_file(source: str, target: str) -> set[str]:
    """Converts one .bin file; returns its tensors' names."""
    # Files from before torch 1.6 are not zip archives and cannot be mapped; others need not fit in memory.
    weights = torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{source}: {name} is of type {type(value).__name__}, not a tensor")
    write_file(target, [from_torch(name, tensor) for name, tensor in weights.items()])
    return set(weights)


def convert(folder: str, out: str) -> None:
    names, index = read_index(folder)
    os.makedirs(out, exist_ok=True)
    for name in names:
        target = safetensors_name(name)
        found = convert_file(os.path.join(folder, name), os.path.join(out, target))
        if index is not None:
            listed = {tensor for tensor, file in index["weight_map"].items() if file == name}
            missing = sorted(listed - found)
            if missing:
                raise ValueError(f"{os.path.join(folder, name)} lacks {missing[0]}, which {INDEX} says it holds")
        print(f"{name} -> {target}: {len(found)} tensors")
    if index is not None:
        weight_map = {tensor: safetensors_name(file) for tensor, file in index["weight_map"].items()}
        with open(os.path.join(out, "model.safetensors.index.json"), "w") as file:
            json.dump({"metadata": index.get("metadata", {}), "weight_map": weight_map}, file, indent=2)
            file.write("\n")
    if os.path.realpath(out) != os.path.realpath(folder):
        for name in os.listdir(folder):
            if name != INDEX and name.endswith((".json", "tokenizer.model")):
                shutil.copy(os.path.join(folder, name), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder with pytorch_model*.bin", metavar="MODEL")
    parser.add_argument("out", nargs="?", help="folder to write to (default: MODEL)", metavar="OUT")
    args = parser.parse_args()
    try:
        convert(args.model, args.out or args.model)
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        sys.exit(f"convert_checkpoint.py: {error}")


if __name__ == "__main__":
    main()
