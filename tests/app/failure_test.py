#!/usr/bin/env python3
"""Bad input, stops and lost ranks, as a user sees them: one clear sentence, the right exit code, nothing lost.

usage: failure_test.py PROGRAM PROJECT_ROOT PYTHON_WITH_NUMPY
"""
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time

import program

STRIPPED = ("ttft_s", "latency_s", "throughput_tok_s")


def plain(records):
    return [{key: value for key, value in record.items() if key not in STRIPPED} for record in records]


def children(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as line:
            found += map(int, line.read().split())
    return found


class Failures(program.ProgramTest):
    expected = None

    def refused(self, *arguments, ranks=1, say):
        """Exit code 2, and the sentence exactly once."""
        done = self.run_program(ranks, *arguments, expect=2)
        for words in say:
            self.assertIn(words, done.stderr)
        self.assertEqual(done.stderr.count("pipeinfer: "), 1, done.stderr)

    def demo_arguments(self, *more):
        return ["run", "--config", self.project / "configs/demo.json", "--device", "cpu", "--output-dir",
                self.folder / "out", *more]

    def test_bad_prompts_are_rejected_and_the_others_complete(self):
        bad = [
            b'{"id": "a", "prompt": "And God said"}',
            b'{"id": "b", "prompt": ',
            b'',
            b'{"id": "c"}',
            b'{"id": "d", "prompt": "\xff"}',
            b'{"id": "e", "prompt_token_ids": []}',
            b'{"id": "a", "prompt": "again"}',
            b'{"id": "f", "prompt_token_ids": [1, 2000]}',
            b'{"id": "g", "prompt": "x", "temperature": "hot"}',
            b'{"id": "h", "prompt_token_ids": [' + b"5, " * 511 + b'5]}',
            b'{"id": "i", "prompt": "The LORD", "max_new_tokens": 4, "unknown": 1}\r',
            b'{"prompt": "And he"}',
        ]
        prompts = self.write("bad.jsonl", b"\n".join(bad) + b"\n")
        for ranks in program.either(2, 1):
            output = self.folder / f"bad-{ranks}"
            records = self.demo(prompts, output, ranks, "--max-new-tokens", 8, expect=3)
            self.assertEqual([record["prompt_index"] for record in records], list(range(11)))
            good = [record["id"] for record in records if record["finish_reason"] != "error"]
            self.assertEqual(good, ["a", "i", "line-12"])
            self.assertIsNone(records[1]["id"])
            for record, line in zip(records, (1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12)):
                if record["finish_reason"] == "error":
                    self.assertIn(f"line {line}", record["error"])
                else:
                    self.assertGreater(record["tokens_generated"], 0)

    def test_usage_errors_are_said_once(self):
        config = self.write("config.json", json.dumps({"model": {"model_path": "x", "modle": 1}}))
        for ranks in program.either(1, 2):
            self.refused("run", "--config", config, ranks=ranks, say=["config.json", "modle"])
            self.refused(*self.demo_arguments("--partition", "6,6"), "--pp", 2, ranks=2, say=["12", "6"])
            self.refused(*self.demo_arguments("--tensor-parallel-size", 2), ranks=ranks, say=["tensor_parallel_size"])
            self.refused(*self.demo_arguments("--prompts", "/nowhere.jsonl"), ranks=ranks, say=["/nowhere.jsonl"])
            self.refused(*self.demo_arguments("--model", self.folder), ranks=ranks, say=["config.json"])
        self.refused(*self.demo_arguments("--pp", 3), ranks=2, say=["3", "2"])
        self.refused(*self.demo_arguments(), ranks=7, say=["more ranks than layers"])
        self.refused(*self.demo_arguments("--output-dir", self.write("file", "x") / "out"), say=["file"])
        self.refused(*self.demo_arguments("--prompts", self.write("empty.jsonl", "\n")), say=["empty.jsonl"])
        self.assertFalse((self.folder / "out").exists())

    def test_broken_checkpoints_are_named(self):
        def model(change):
            folder = self.folder / f"model-{change.__name__}"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self.project / "configs/demo_model", folder)
            weights = folder / "model.safetensors"
            data = weights.read_bytes()
            size = struct.unpack("<Q", data[:8])[0]
            weights.write_bytes(change(json.loads(data[8:8 + size]), data[8 + size:]))
            return folder

        def pack(header, body):
            text = json.dumps(header).encode()
            return struct.pack("<Q", len(text)) + text + body

        def truncated(header, body):
            return pack(header, body[:-100])

        def oversized(header, body):
            return struct.pack("<Q", 1 << 50) + b"{}" + body

        def overlapping(header, body):
            names = [name for name in header if name != "__metadata__"]
            header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
            header[names[1]]["shape"] = header[names[0]]["shape"]
            return pack(header, body)

        def wrong_shape(header, body):
            header["model.norm.weight"]["shape"] = [2, 100]
            return pack(header, body)

        for change, words in ((truncated, "model.safetensors"), (oversized, "model.safetensors"),
                              (overlapping, "overlap"), (wrong_shape, "model.norm.weight")):
            for ranks in program.either(1, 2):
                with self.subTest(change=change.__name__, ranks=ranks):
                    self.refused(*self.demo_arguments("--overwrite", "--model", model(change)), ranks=ranks, say=[words])

    def many(self):
        """Enough prompts to be interrupted in the middle."""
        lines = [json.dumps({"id": f"p{i}", "prompt": f"And the LORD said {i}", "ignore_eos": True}) for i in range(24)]
        return self.write("many.jsonl", "\n".join(lines))

    def undisturbed(self, prompts):
        """What many() gives, computed once for all tests."""
        if Failures.expected is None:
            Failures.expected = plain(self.demo(prompts, self.folder / "undisturbed", 1, "--max-new-tokens", 100,
                                                "--threads", 1))
        return Failures.expected

    def interrupted(self, ranks, prompts, output, *arguments):
        """A run in which at least one prompt and not all of them are done."""
        run = self.start(ranks, "run", "--model", self.project / "configs/demo_model", "--prompts", prompts, "--device",
                         "cpu", "--output-dir", output, "--max-new-tokens", 100, "--batch-size", 4, "--threads", 1, *arguments)
        records = output / "completions_rank_0.jsonl"
        program.wait_until(lambda: records.exists() and records.stat().st_size > 0, 60, 0.01)
        self.assertIsNone(run.poll(), "the run ended before it could be interrupted")
        return run

    def resume(self, prompts, output, ranks):
        return plain(self.demo(prompts, output, ranks, "--max-new-tokens", 100, "--threads", 1, "--resume"))

    def test_a_signal_stops_resumably(self):
        prompts = self.many()
        expected = self.undisturbed(prompts)
        for ranks, grace in ((1, 30), *program.either((2, 0), (1, 0))):
            with self.subTest(ranks=ranks, grace=grace):
                output = self.folder / f"stop-{ranks}-{grace}"
                run = self.interrupted(ranks, prompts, output, "--grace-s", grace)
                victim = run.pid if ranks == 1 else children(run.pid)[0]
                os.kill(victim, signal.SIGUSR1)
                _, errors = run.communicate(timeout=60)
                self.assertEqual(run.returncode, 75, errors)
                self.assertFalse((output / "completions.jsonl").exists())
                self.assertEqual(self.resume(prompts, output, 3 - ranks), expected)

    def test_a_killed_rank_ends_the_run_and_loses_nothing(self):
        prompts = self.many()
        expected = self.undisturbed(prompts)
        for blow in (signal.SIGKILL, signal.SIGSTOP):
            with self.subTest(blow=blow.name):
                output = self.folder / f"killed-{blow.name}"
                run = self.interrupted(2, prompts, output, "--timeout-s", 2)
                victim = children(run.pid)[1]
                os.kill(victim, blow)
                begin = time.monotonic()
                _, errors = run.communicate(timeout=60)
                self.assertLess(time.monotonic() - begin, 2 + 10 + 5)
                self.assertNotEqual(run.returncode, 0, errors)
                if blow == signal.SIGSTOP:
                    self.assertIn("rank 1", errors)
                    try:
                        os.kill(victim, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                self.assertEqual(self.resume(prompts, output, 2), expected)

    def stopped_by_a_write_error(self, run, output, why):
        """Exit code 1, one sentence that names the file, and whole records. -> those, by file."""
        _, errors = run.communicate(timeout=60)
        self.assertEqual(run.returncode, 1, errors)
        said = re.findall(rf"^pipeinfer: cannot write ({re.escape(str(output))}/\S+): {why}$", errors, re.MULTILINE)
        self.assertEqual(len(said), 1, errors)
        files = {file: file.read_bytes() for file in output.glob("completions_rank_*.jsonl")}
        for data in files.values():
            for line in data.splitlines(keepends=True):
                self.assertTrue(line.endswith(b"\n"), line)
                json.loads(line)
        return files

    def start_writing(self, ranks, prompts, output, **options):
        return self.start(ranks, "run", "--model", self.project / "configs/demo_model", "--prompts", prompts, "--device",
                          "cpu", "--output-dir", output, "--max-new-tokens", 100, "--batch-size", 4, "--threads", 1, **options)

    def reserve_page(self, run, file):
        program.wait_until(lambda: file.exists() or run.poll() is not None, 60, 0.001)
        self.assertTrue(file.exists(), "the run ended, or had no such file after a minute")
        subprocess.run(["fallocate", "--keep-size", "--length", "4096", file], check=True)

    def check_completed(self, prompts, output, before, expected):
        self.assertEqual(self.resume(prompts, output, 1), expected)
        for file, data in before.items():
            self.assertTrue(file.read_bytes().startswith(data), file)
        lines = b"".join(file.read_bytes() for file in output.glob("completions_rank_*.jsonl")).splitlines()
        self.assertEqual(len(lines), len(expected))

    def test_a_full_disk_stops_the_run_and_loses_nothing(self):
        disk = self.folder / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "none", disk]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            self.skipTest("tmpfs cannot be mounted here; test_a_file_size_limit covers a failed write")
        self.addCleanup(subprocess.run, ["umount", disk], check=True)
        prompts = self.many()
        expected = self.undisturbed(prompts)
        # Too small for the second record, for the manifest, for the merged file.
        for ranks, pages in program.either((2, 7), (1, 1), (1, 12)):
            with self.subTest(ranks=ranks, pages=pages):
                output = disk / f"out-{pages}"
                subprocess.run(["mount", "-o", f"remount,size={4 * pages}k", disk], check=True)
                run = self.start_writing(ranks, prompts, output)
                # It is rank 0 that finds the disk full: another's samples, whenever they come, have a page.
                for rank in range(1, ranks):
                    self.reserve_page(run, output / f"metrics_rank_{rank}.jsonl")
                before = self.stopped_by_a_write_error(run, output, "No space left on device")
                subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
                self.check_completed(prompts, output, before, expected)
                shutil.rmtree(output)

    def test_a_file_size_limit_is_a_write_error(self):
        prompts = self.many()
        output = self.folder / "limited"
        run = self.start_writing(1, prompts, output,
                                 preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)))
        before = self.stopped_by_a_write_error(run, output, "File too large")
        self.assertGreater(sum(map(len, before.values())), 0)
        self.check_completed(prompts, output, before, self.undisturbed(prompts))

    def test_resume_drops_a_torn_line_and_refuses_changed_results(self):
        prompts = self.many()
        output = self.folder / "out"
        expected = plain(self.demo(prompts, output, 1, "--max-new-tokens", 100, "--threads", 1))
        records = output / "completions_rank_0.jsonl"
        lines = records.read_bytes().splitlines(keepends=True)
        (output / "completions.jsonl").unlink()
        records.write_bytes(b"".join(lines[:10]) + lines[10][:37])
        for changed, words in ((["--temperature", 0.5], ["temperature was 0.0 and is 0.5"]),
                               (["--max-new-tokens", 99], ["max_new_tokens was 100 and is 99"]),
                               (["--prompts", self.write("other.jsonl", prompts.read_text().replace("said 3", "spake 3"))],
                                ["prompt 3 (from 0) of the prompts file has changed"])):
            done = self.run_program(1, "run", "--model", self.project / "configs/demo_model", "--prompts", prompts, "--device",
                                    "cpu", "--output-dir", output, "--max-new-tokens", 100, "--resume", *changed, expect=2)
            for word in [str(output), *words]:
                self.assertIn(word, done.stderr)
        self.assertEqual(self.resume(prompts, output, 2), expected)
        self.assertEqual(records.read_bytes().splitlines(keepends=True)[:10], lines[:10])


if __name__ == "__main__":
    program.main(sys.argv)
