#!/usr/bin/env python3
"""Tests scripts/convert_checkpoint.py; exits with 0 when all is well. Needs torch; ctest runs it."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

import torch

SCRIPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


def read_safetensors(path: str) -> dict[str, torch.Tensor]:
    """Reads by the format's definition, not by the code under test."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = file.read()
    header.pop("__metadata__")
    if sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values()) != len(data):
        raise AssertionError(f"{path}: the tensors do not add up to the file")
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        flat = torch.frombuffer(bytearray(data[first:last]), dtype=DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def run(*arguments: str) -> subprocess.CompletedProcess:
    script = os.path.join(SCRIPTS, "convert_checkpoint.py")
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)


class ConvertCheckpoint(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.folder = os.path.join(self.scratch.name, "model")
        os.mkdir(self.folder)
        generator = torch.Generator().manual_seed(1)
        self.weights = {
            "half": torch.randn(5, 7, generator=generator).to(torch.float16),
            "brain": torch.randn(3, generator=generator).to(torch.bfloat16),
            "transposed": torch.randn(4, 6, generator=generator).t(),
            "scalar": torch.tensor(2.5),
            "whole": torch.arange(9),
        }
        self.weights["shared"] = self.weights["half"][1:3]

    def assert_same(self, expected, found):
        self.assertEqual(set(expected), set(found))
        for name, tensor in expected.items():
            self.assertEqual(tensor.dtype, found[name].dtype, name)
            self.assertTrue(torch.equal(tensor, found[name]), name)

    def test_single_file(self):
        torch.save(self.weights, os.path.join(self.folder, "pytorch_model.bin"))
        done = run(self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assert_same(self.weights, read_safetensors(os.path.join(self.folder, "model.safetensors")))

    def test_file_of_before_torch_1_6(self):
        path = os.path.join(self.folder, "pytorch_model.bin")
        torch.save(self.weights, path, _use_new_zipfile_serialization=False)
        done = run(self.folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assert_same(self.weights, read_safetensors(os.path.join(self.folder, "model.safetensors")))

    def test_shards_into_another_folder(self):
        parts = {"pytorch_model-00001-of-00002.bin": ["half", "scalar"]}
        parts["pytorch_model-00002-of-00002.bin"] = ["brain", "transposed", "whole", "shared"]
        weight_map = {name: file for file, names in parts.items() for name in names}
        for file, names in parts.items():
            torch.save({name: self.weights[name] for name in names}, os.path.join(self.folder, file))
        with open(os.path.join(self.folder, "pytorch_model.bin.index.json"), "w") as file:
            json.dump({"metadata": {"total_size": 7}, "weight_map": weight_map}, file)
        with open(os.path.join(self.folder, "config.json"), "w") as file:
            file.write("{}")
        out = os.path.join(self.scratch.name, "out")
        done = run(self.folder, out)
        self.assertEqual(done.returncode, 0, done.stderr)
        shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        self.assertEqual(sorted(os.listdir(out)), sorted([*shards, "config.json", "model.safetensors.index.json"]))
        with open(os.path.join(out, "model.safetensors.index.json")) as file:
            converted = json.load(file)
        self.assertEqual(converted["metadata"], {"total_size": 7})
        for shard in shards:
            found = read_safetensors(os.path.join(out, shard))
            self.assert_same({name: self.weights[name] for name in found}, found)
            self.assertEqual(set(found), {name for name, file in converted["weight_map"].items() if file == shard})
        self.assertEqual(set(converted["weight_map"]), set(self.weights))

    def assert_refused(self, *fragments: str):
        done = run(self.folder)
        self.assertEqual(done.returncode, 1)
        for fragment in ("convert_checkpoint.py: ", *fragments):
            self.assertIn(fragment, done.stderr)
        self.assertNotIn("Traceback", done.stderr)
        self.assertEqual([name for name in os.listdir(self.folder) if name.endswith(".safetensors")], [])

    def test_no_bin_file(self):
        self.assert_refused("pytorch_model.bin", "No such file")

    def test_code_in_the_pickle_is_not_run(self):
        torch.save({"evil": os.getcwd}, os.path.join(self.folder, "pytorch_model.bin"))
        self.assert_refused("Weights only load failed")

    def test_no_tensor(self):
        torch.save({"epoch": 3}, os.path.join(self.folder, "pytorch_model.bin"))
        self.assert_refused("epoch is of type int, not a tensor")

    def test_dtype_without_a_name(self):
        torch.save({"waves": torch.zeros(2, dtype=torch.complex64)}, os.path.join(self.folder, "pytorch_model.bin"))
        self.assert_refused("waves: torch.complex64")

    def test_index_without_weight_map(self):
        with open(os.path.join(self.folder, "pytorch_model.bin.index.json"), "w") as file:
            json.dump({"metadata": {}}, file)
        self.assert_refused("pytorch_model.bin.index.json: weight_map is missing")

    def test_index_that_leaves_the_folder(self):
        with open(os.path.join(self.folder, "pytorch_model.bin.index.json"), "w") as file:
            json.dump({"weight_map": {"half": "../pytorch_model.bin"}}, file)
        self.assert_refused("'../pytorch_model.bin' is not a file of this folder")


if __name__ == "__main__":
    unittest.main()
