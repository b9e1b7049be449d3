#!/usr/bin/env python3
"""The program gives transformers' tokens for every model feature, at 1, 2, 3 and 6 ranks, whatever the batch size, the
prefill chunk, the lanes and the KV blocks; and sampled text does not depend on them either.

usage: [PIPEINFER_TEST_RANKS=1,2,3,6] [PIPEINFER_TEST_SHAPES=tiny,...] equality_test.py PROGRAM PROJECT_ROOT PYTHON_WITH_NUMPY
"""
import os
import random
import subprocess
import sys

import program

ALL_SHAPES = "tiny,tiny-gqa,tiny-tied,tiny-bias,tiny-hd64,tiny-linear,tiny-dynamic,tiny-llama3"
SHAPES = os.environ.get("PIPEINFER_TEST_SHAPES", ALL_SHAPES).split(",")
IN_LAYERS = ("tiny", "tiny-bias", "tiny-hd64")  # nothing but a layer knows what they have: 2 ranks are enough
RANKS = [int(text) for text in os.environ.get("PIPEINFER_TEST_RANKS", "1,2,3,6").split(",")]
STRIPPED = ("ttft_s", "latency_s", "throughput_tok_s")


class Equality(program.ProgramTest):
    def reference(self, name):
        fixtures = self.project / "tests/fixtures"
        return fixtures / f"{name}.prompts.jsonl", program.lines_of(fixtures / f"{name}.reference.jsonl")

    def checkpoint(self, shape):
        folder = self.folder / shape
        subprocess.run([self.python, self.project / "scripts/make_random_checkpoint.py", shape, folder], check=True,
                       stdout=subprocess.DEVNULL)
        return folder

    def expect_tokens(self, reference, output):
        made = {record["id"]: record for record in program.lines_of(output / "completions.jsonl")}
        self.assertEqual(set(made), {record["id"] for record in reference})
        for record in reference:
            self.assertEqual(made[record["id"]]["token_ids"], record["token_ids"], record["id"])

    def test_every_shape_at_every_number_of_ranks(self):
        choose = random.Random(7)
        preemptions = 0
        for shape in SHAPES:
            prompts, reference = self.reference(shape)
            model = self.checkpoint(shape)
            for ranks in [2] if shape in IN_LAYERS else RANKS:
                options = ["--batch-size", choose.choice([1, 3, 8, 20]), "--prefill-chunk", choose.choice([1, 7, 64, 512]),
                           "--lanes", choose.choice(["auto", 1, 2, 5]), "--block-size", 8]
                if ranks in (2, 6) or ranks == RANKS[-1]:  # the longest sequence fits, not many at a time
                    options += ["--kv-blocks", 26, "--batch-size", 8]
                output = self.folder / f"{shape}-{ranks}"
                with self.subTest(shape=shape, ranks=ranks, options=options):
                    self.run_program(ranks, "run", "--model", model, "--prompts", prompts, "--dtype", "fp32", "--device",
                                     "cpu", "--threads", 1, "--output-dir", output, *options)
                    self.expect_tokens(reference, output)
                    preemptions += program.json.loads((output / "summary.json").read_text())["preemptions"]
        self.assertGreater(preemptions, 0)

    def test_logits_of_local_debug(self):
        for shape in program.either("tiny-dynamic", "tiny-gqa"):
            prompts, reference = self.reference(shape)
            output = self.folder / f"{shape}-debug"
            self.run_program(1, "run", "--model", self.checkpoint(shape), "--prompts", prompts, "--device", "cpu",
                             "--local-debug", "--output-dir", output)
            made = {record["id"]: record for record in program.lines_of(output / "reference.jsonl")}
            for record in reference:
                ours = made[record["id"]]
                self.assertEqual(ours["token_ids"], record["token_ids"])
                self.assertEqual(ours["prompt_token_ids"], record["prompt_token_ids"])
                self.assertEqual(len(ours["top"]), len(record["top"]))
                for mine, theirs in zip(ours["top"], record["top"]):
                    scale = max(map(abs, theirs["logits"]))
                    for a, b in zip(mine["logits"], theirs["logits"]):
                        self.assertLessEqual(abs(a - b), 1e-4 * scale)

    def test_text_of_the_demo_model(self):
        prompts, reference = self.reference("demo")
        texts = {record["id"]: record["completion"]
                 for record in program.lines_of(self.project / "tests/fixtures/demo.completions.jsonl")}
        for ranks in program.either(2, 1, 3, 6):
            output = self.folder / f"demo-{ranks}"
            records = self.demo(prompts, output, ranks)
            self.expect_tokens(reference, output)
            for record in records:
                self.assertEqual(record["completion"], texts[record["id"]])

    def test_sampled_text_depends_on_the_seed_alone(self):
        prompts = self.project / "prompts/demo.jsonl"
        sampling = ["--temperature", 0.8, "--top-k", 40, "--top-p", 0.95, "--seed", 3, "--max-new-tokens", 24]

        def texts(name, ranks, *options):
            records = self.demo(prompts, self.folder / name, ranks, *sampling, *options)
            return [{key: value for key, value in record.items() if key not in STRIPPED} for record in records]

        alone = texts("alone", 1, "--batch-size", 1)
        for layout in program.either(("ranks", 3, "--lanes", 4, "--batch-size", 7),
                                     ("batched", 1, "--batch-size", 10, "--prefill-chunk", 3)):
            self.assertEqual(alone, texts(*layout))
        self.assertNotEqual(alone, texts("seed", 1, "--seed", 4))


if __name__ == "__main__":
    program.main(sys.argv)
