"""Writes checkpoints in the safetensors format, with nothing but the standard library.

A file is the header's length (8 bytes, little-endian), a JSON header {name: {dtype, shape, data_offsets}},
and the tensors' bytes, which the offsets count from the header's end
(https://github.com/huggingface/safetensors, section "Format").
"""

import ctypes
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Tensor:
    """A tensor to write; `load` makes its row-major little-endian bytes, when its turn comes."""

    name: str
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    load: Callable[[], bytes | memoryview]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


TORCH_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
}


def from_torch(name: str, tensor) -> Tensor:
    """A CPU torch.Tensor as it is; neither torch nor numpy is imported for it. Raises ValueError on other dtypes."""
    dtype = TORCH_DTYPES.get(str(tensor.dtype))
    if dtype is None:
        raise ValueError(f"{name}: {tensor.dtype} is no dtype of safetensors")

    def load() -> bytes:
        data = tensor.detach().contiguous()
        return ctypes.string_at(data.data_ptr(), data.numel() * data.element_size())

    return Tensor(name, dtype, tuple(tensor.shape), load)


def write_file(path: str, tensors: list[Tensor], threads: int = 1) -> None:
    """Writes one file, appearing under its name only when complete; tensors are loaded by `threads` threads."""
    header: dict = {"__metadata__": {"format": "pt"}}
    offsets = []
    end = 0
    for tensor in tensors:
        offsets.append(end)
        end += tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offsets[-1], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data then starts at a multiple of 8
    start = 8 + len(text)

    partial = f"{path}.part"
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()

        def put(tensor: Tensor, offset: int) -> None:
            data = memoryview(tensor.load()).cast("B")
            if data.nbytes != tensor.nbytes:
                raise ValueError(f"{tensor.name}: expected {tensor.nbytes} bytes, found {data.nbytes}")
            position = start + offset
            while data.nbytes:
                written = os.pwrite(file.fileno(), data, position)
                data = data[written:]
                position += written

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(put, tensors, offsets))
    os.replace(partial, path)


def write_checkpoint(folder: str, tensors: list[Tensor], shards: int = 1, threads: int = 1) -> None:
    """Writes model.safetensors, or `shards` files of about equal size and their index, into `folder`."""
    if not 1 <= shards <= len(tensors):
        raise ValueError(f"{len(tensors)} tensors cannot be written as {shards} files")
    if shards == 1:
        write_file(os.path.join(folder, "model.safetensors"), tensors, threads)
        return
    total = sum(tensor.nbytes for tensor in tensors)
    groups: list[list[Tensor]] = [[]]
    done = 0
    for index, tensor in enumerate(tensors):
        groups[-1].append(tensor)
        done += tensor.nbytes
        left = len(tensors) - index - 1  # every later file needs at least one tensor
        files_left = shards - len(groups)
        if files_left and (done * shards >= total * len(groups) or left == files_left):
            groups.append([])
    names = [f"model-{n + 1:05}-of-{shards:05}.safetensors" for n in range(shards)]
    for name, group in zip(names, groups):
        write_file(os.path.join(folder, name), group, threads)
    weight_map = {tensor.name: name for name, group in zip(names, groups) for tensor in group}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as file:
        json.dump(index, file, indent=2)
        file.write("\n")
