#!/usr/bin/env python3
"""What users rely on beside the tokens: the files of a run, resume, --prompt, bench's figures, where paths start.

usage: contract_test.py PROGRAM PROJECT_ROOT PYTHON_WITH_NUMPY
"""
import csv
import json
import os
import shutil
import signal
import sys
import time

import program

TIMES = ("ttft_s", "latency_s", "throughput_tok_s")
CPU = ("--device", "cpu", "--threads", 1)
RANK_KEYS = {"rank", "layers", "step_ms", "compute_ms", "comm_ms", "idle_ms"}
BENCH_KEYS = {"batch_size", "prompt_tokens", "new_tokens", "ranks", "lanes", "ttft_s", "prefill_tok_s", "decode_tok_s",
              "ms_per_step", "bytes_per_step", "read_limit_gbps", "limit_tok_s", "percent_of_limit", "pp_ceiling",
              "warmup_s", "stages"}


def untimed(records):
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def json_of(path):
    return json.loads(path.read_text(encoding="utf-8"))


class Contract(program.ProgramTest):
    def prompts(self, n):
        return self.write("prompts.jsonl", "\n".join(json.dumps({"id": f"p{i}", "prompt": f"And the LORD said {i}"})
                                                     for i in range(n)))

    def run_demo(self, output, *arguments, ranks=1, expect=0):
        """stderr, and the completions where there are any."""
        done = self.run_program(ranks, "run", "--model", self.project / "configs/demo_model", *CPU, "--output-dir", output,
                                *arguments, expect=expect)
        merged = output / "completions.jsonl"
        return done.stderr, untimed(program.lines_of(merged)) if merged.exists() else None

    def changed_model(self, name, **changes):
        """A copy of the demo model with other values in one of its JSON files."""
        folder = self.folder / "changed-model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.project / "configs/demo_model", folder)
        (folder / name).write_text(json.dumps(json_of(folder / name) | changes), encoding="utf-8")
        return folder

    def test_a_run_that_cannot_load_is_in_nobodys_way(self):
        prompts, output = self.prompts(2), self.folder / "out"
        options = ["--prompts", prompts, "--max-new-tokens", 2]
        broken = ["--model", self.changed_model("config.json", attention_bias=True)]
        for ranks in program.either(1, 2):
            errors, _ = self.run_demo(output, *options, *broken, ranks=ranks, expect=2)
            self.assertIn("q_proj.bias", errors)
        self.run_demo(output, *options, *broken, "--dry-run", expect=2)
        self.assertFalse(output.exists())
        # What only shows while loading: a stage that does not fit.
        errors, _ = self.run_demo(output, *options, "--kv-blocks", 10**9, ranks=2, expect=2)
        self.assertIn("does not fit", errors)
        _, records = self.run_demo(output, *options)
        self.run_demo(output, *options, "--kv-blocks", 10**9, "--overwrite", expect=2)
        self.assertEqual(untimed(program.lines_of(output / "completions.jsonl")), records)
        errors, _ = self.run_demo(output, *options, expect=2)
        self.assertIn("--overwrite", errors)

    def test_every_rank_has_its_files_and_the_summary_adds_up(self):
        prompts, output = self.prompts(3), self.folder / "out"
        with prompts.open("a", encoding="utf-8") as file:
            file.write('\n{"id": "bad"}\n')
        for attempt in ((), ("--resume",)):  # the second has nothing to do
            errors, records = self.run_demo(output, "--prompts", prompts, "--max-new-tokens", 4, "--trace", *attempt, ranks=3,
                                            expect=3)
            self.assertIn("1 prompt was rejected", errors)
            for rank in range(3):
                self.assertTrue((output / f"completions_rank_{rank}.jsonl").exists())
                self.assertTrue((output / f"rank_{rank}.log").exists())
                self.assertEqual(program.lines_of(output / f"metrics_rank_{rank}.jsonl")[-1]["kind"], "summary")
            summary = json_of(output / "summary.json")
            self.assertEqual((summary["requests_done"], summary["requests_rejected"]), (3, 1))
            for key in ("prompt_tokens", "tokens_generated"):
                self.assertEqual(summary[key], sum(record[key] for record in records))
            self.assertGreater(summary["preprocess_s"], 0)
            for key in ("wall_s", "load_s", "decode_tok_s", "preemptions", "steps", "versions", "config"):
                self.assertIn(key, summary)
            with (output / "summary.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self.assertEqual(len(rows), max(1, len(summary["ranks"])))
            for row in rows:
                self.assertEqual(row["requests_done"], "3")
                self.assertEqual(row["config.inference.max_new_tokens"], "4")
            if not attempt:
                self.assertEqual([row["rank.rank"] for row in rows], ["0", "1", "2"])
        spans = [event for event in json_of(output / "trace.json")["traceEvents"] if event["ph"] == "X"]
        self.assertEqual({event["pid"] for event in spans}, {0, 1, 2})
        self.assertTrue(all(event["ts"] >= 0 and event["dur"] >= 0 for event in spans))

    def test_resume_takes_up_what_is_done_and_refuses_other_results(self):
        output = self.folder / "out"
        options = ["--prompts", self.prompts(4), "--max-new-tokens", 4, "--resume"]
        self.run_demo(output, *options, "--limit", 2, "--no-write-per-rank")
        self.assertEqual(list(output.glob("completions_rank_*")), [])
        errors, records = self.run_demo(output, *options, ranks=2)
        self.assertIn("2 prompts, 8 tokens", errors)
        self.prompts(6)
        errors, more = self.run_demo(output, *options)
        self.assertIn("2 prompts, 8 tokens", errors)
        self.assertEqual(more[:4], records)
        for changes, words in (
                (["--limit", 3], "limit"), (["--seed", 1], "seed"), (["--stop", "x"], "stop"),
                (["--model", self.changed_model("generation_config.json", eos_token_id=[2, 5])], "generation_config.json"),
        ):
            errors, _ = self.run_demo(output, *options, *changes, expect=2)
            self.assertIn(words, errors)
        tokenizer = self.changed_model("tokenizer_config.json", add_bos_token=False)
        errors, _ = self.run_demo(output, *options, "--tokenizer", tokenizer, expect=2)
        self.assertIn("tokenizer_config.json", errors)

    def test_a_signal_before_anything_is_loaded_stops_resumably(self):
        output = self.folder / "out"
        options = ["--prompts", self.prompts(200), "--max-new-tokens", 100, "--batch-size", 2]
        run = self.start(1, "run", "--model", self.project / "configs/demo_model", *CPU, "--output-dir", output, "--grace-s",
                         0, *options)
        caught = 0
        while not caught >> (signal.SIGTERM - 1) & 1:
            self.assertIsNone(run.poll())
            with open(f"/proc/{run.pid}/status", encoding="ascii") as status:
                caught = int(dict(line.split(":", 1) for line in status)["SigCgt"], 16)
            time.sleep(0.001)
        run.send_signal(signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
        self.assertEqual(run.returncode, 75, errors)
        self.assertIn("stopped with 200 prompts left: --resume continues", errors)

    def test_readers_that_leave_do_not_end_a_run(self):
        output = self.folder / "out"
        run = self.start(1, "run", "--model", self.project / "configs/demo_model", *CPU, "--output-dir", output, "--prompts",
                         self.prompts(3), "--max-new-tokens", 4)
        run.stdout.close()
        run.stderr.close()
        self.assertEqual(run.wait(timeout=60), 0)
        self.assertEqual(len(program.lines_of(output / "completions.jsonl")), 3)

    def test_one_prompt_is_printed_and_refused_where_it_does_not_fit(self):
        for ranks in program.either(2, 1):
            done = self.run_program(ranks, "run", "--model", self.project / "configs/demo_model", *CPU, "--prompt",
                                    "And God said", "--max-new-tokens", 8)
            self.assertEqual(done.stdout, " unto him, I will not go up\n")
        long = "And God said " * 200
        for text, more, words in ((long, (), "fills the context of 512"), (os.fsdecode(b"a\xff"), (), "UTF-8"),
                                  ("And God said", ("--kv-blocks", 1), "KV blocks")):
            done = self.run_program(1, "run", "--model", self.project / "configs/demo_model", *CPU, "--prompt", text, *more,
                                    expect=2)
            self.assertIn(words, done.stderr)
            self.assertNotIn("line", done.stderr)

    def test_stops_are_found_across_tokens_and_rules_have_their_order(self):
        prompt = "And the LORD said unto Moses,"
        whole = self.run_demo(self.folder / "whole", "--prompts", self.write("p.jsonl", json.dumps({"prompt": prompt})))[1][0]
        text, n = whole["completion"], whole["tokens_generated"]
        self.assertEqual(whole["finish_reason"], "eos")
        self.assertEqual(whole["token_ids"][-1], 2)
        stops = [text[i:i + size] for size in (1, 3, 8) for i in range(0, 40, 5)]
        lines = [{"prompt": prompt, "stop": stop} for stop in stops]
        lines += [{"prompt": prompt, "max_new_tokens": n}, {"prompt": prompt, "max_new_tokens": n - 1},
                  {"prompt": prompt, "token_budget": whole["prompt_tokens"] + 3}]
        prompts = self.write("stops.jsonl", "\n".join(map(json.dumps, lines)))
        _, records = self.run_demo(self.folder / "stops", "--prompts", prompts, ranks=2)
        for stop, record in zip(stops, records):
            self.assertEqual((record["finish_reason"], record["completion"]), ("stop", text[:text.index(stop)]))
            self.assertEqual(record["token_ids"], whole["token_ids"][:record["tokens_generated"]])
        ends = [(record["finish_reason"], record["tokens_generated"]) for record in records[len(stops):]]
        self.assertEqual(ends, [("eos", n), ("length", n - 1), ("length", 3)])
        # The token that completes a stop string, and is the last one allowed.
        last = records[0]["tokens_generated"]
        prompts = self.write("last.jsonl", json.dumps({"prompt": prompt, "stop": stops[0], "max_new_tokens": last}))
        _, records = self.run_demo(self.folder / "last", "--prompts", prompts)
        self.assertEqual(records[0]["finish_reason"], "stop")

    def test_paths_of_a_config_file_are_relative_to_it_and_a_dry_run_writes_nothing(self):
        shutil.copytree(self.project / "configs/demo_model", self.folder / "models/demo")
        config = {"model": {"model_path": "../models/demo"}, "inputs": {"prompt_path": "../prompts.jsonl", "limit": 1},
                  "outputs": {"output_dir": "../out"}, "inference": {"max_new_tokens": 2}, "runtime": {"device": "cpu"}}
        self.write("configs/run.json", json.dumps(config))
        self.prompts(2)
        (self.folder / "elsewhere").mkdir()
        for options, output in (((), "out"), (("--output-dir", "mine", "--prompts", "../prompts.jsonl"), "elsewhere/mine")):
            for dry in (("--dry-run",), ()):
                run = self.start(1, "run", "--config", "../configs/run.json", *options, *dry, cwd=self.folder / "elsewhere")
                text, errors = run.communicate(timeout=60)
                self.assertEqual(run.returncode, 0, errors)
                self.assertEqual((self.folder / output).exists(), not dry)
                if dry:
                    self.assertIn("1 prompt to serve, 0 rejected", text)
            self.assertEqual(len(program.lines_of(self.folder / output / "completions.jsonl")), 1)
        done = self.run_program(2, "run", "--config", self.folder / "configs/run.json", "--output-dir", self.folder / "dry",
                                "--kv-blocks", 1, "--max-new-tokens", 100, "--dry-run", expect=3)
        self.assertIn("rejected: line 1: ", done.stdout)
        self.assertIn("0 prompts to serve, 1 rejected", done.stdout)

    def test_bench_writes_its_figures(self):
        options = ["bench", "--shape", "tiny", *CPU, "--batch-size", "1,2", "--prompt-tokens", "8,9", "--new-tokens", 4]
        for ranks in program.either(2, 1):
            figures = self.folder / "bench.jsonl"
            self.run_program(ranks, *options, "--json", figures)
            lines = program.lines_of(figures)
            self.assertEqual([(line["batch_size"], line["prompt_tokens"]) for line in lines], [(1, 8), (1, 9), (2, 8), (2, 9)])
            for line in lines:
                self.assertEqual(BENCH_KEYS - line.keys(), set())
                self.assertEqual(line["ranks"], ranks)
                self.assertEqual([stage["rank"] for stage in line["stages"]], list(range(ranks)))
                self.assertTrue(all(stage.keys() == RANK_KEYS for stage in line["stages"]))
        self.assertIn("2 ranks", self.run_program(2, *options, "--pp", 3, expect=2).stderr)

    def test_more_lanes_than_sequences_change_nothing(self):
        options = ["--prompts", self.prompts(3), "--max-new-tokens", 8]
        _, expected = self.run_demo(self.folder / "few", *options)
        _, records = self.run_demo(self.folder / "many", *options, "--lanes", 65536, ranks=2)
        self.assertEqual(records, expected)


if __name__ == "__main__":
    program.main(sys.argv)
