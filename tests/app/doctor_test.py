#!/usr/bin/env python3
"""`pipeinfer doctor`, the program itself: a healthy job is fit, and each planted fault is found, named, said to be
cured how, and hides no other finding."""
import json
import os
import shutil
import subprocess
import sys

import program
from program import MPI_ENVIRONMENT, ProgramTest, either

CHECKS = {"launch", "config", "driver", "device", "model", "weights", "reading", "output", "prompts", "tokenizer",
          "gpus", "partition", "memory", "links"}


class DoctorTest(ProgramTest):
    def doctor(self, *more):
        """A command line that is in order, but for what `more` says."""
        return ["doctor", "--model", self.project / "configs/demo_model", "--prompts",
                self.project / "prompts/demo.jsonl", "--device", "cpu", "--output-dir", self.folder / "out", *more]

    def parse(self, text):
        """(verdict, check, rest) of each line but the last one, which counts them."""
        lines = [tuple(line.split(None, 2)) for line in text.splitlines()]
        *findings, last = lines
        count = {verdict: sum(line[0] == verdict for line in findings) for verdict in ("OK", "WARN", "FAIL")}
        self.assertTrue(" ".join(last).endswith("{OK} OK, {WARN} WARN, {FAIL} FAIL".format(**count)), text)
        self.assertEqual({line[1] for line in findings}, CHECKS, text)
        return findings

    def finds(self, arguments, fails, words, *, ranks=1, verdict="FAIL"):
        """What is not OK is exactly of the checks `fails`; the first of them says all `words`."""
        done = self.run_program(ranks, *arguments, expect=2 if verdict == "FAIL" else 0)
        findings = self.parse(done.stdout)
        self.assertEqual({check for level, check, _ in findings if level == verdict}, set(fails), done.stdout)
        text = " ".join(rest for level, check, rest in findings if level == verdict and check == fails[0])
        for word in words:
            self.assertIn(str(word), text)

    def model(self):
        return shutil.copytree(self.project / "configs/demo_model", self.folder / "model")

    def test_a_healthy_job_is_fit(self):
        for ranks in either(2, 1):
            with self.subTest(ranks=ranks):
                done = self.run_program(ranks, *self.doctor())
                findings = self.parse(done.stdout)
                self.assertEqual({level for level, _, _ in findings}, {"OK"}, done.stdout)
                self.assertEqual(sum(check == "links" for _, check, _ in findings), ranks, done.stdout)
                self.assertIn("fit to run", done.stdout)
                self.assertEqual(done.stderr, "")
                self.assertFalse((self.folder / "out").exists(), "doctor leaves nothing behind")
                self.assertEqual(list(self.folder.iterdir()), [])

    def test_nothing_given_is_nothing_checked(self):
        findings = self.parse(self.run_program(1, "doctor").stdout)
        self.assertEqual({check for _, check, rest in findings if rest.startswith("not checked")},
                         {"model", "weights", "reading", "output", "prompts", "tokenizer", "partition", "memory"})

    def test_json_says_the_same(self):
        for ranks in either(1, 2):
            done = self.run_program(ranks, *self.doctor("--json", "--prompts", "/nowhere.jsonl"), expect=2)
            report = json.loads(done.stdout)
            self.assertEqual(report["fail"], 1)
            self.assertEqual(len(report["hosts"]), ranks)
            (failed,) = [finding for finding in report["findings"] if finding["verdict"] == "FAIL"]
            self.assertEqual(failed["check"], "prompts")
            self.assertIn("/nowhere.jsonl", failed["text"])
            self.assertIn("--prompts", failed["advice"])

    def launched(self, command, **environment):
        return subprocess.run(list(map(str, command)), env=os.environ | MPI_ENVIRONMENT | environment, text=True,
                              capture_output=True, timeout=120)

    def test_a_launcher_of_another_mpi(self):
        for variables, remedy in (("OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK", "use the mpirun"),
                                  ("SLURM_STEP_NUM_TASKS SLURM_PROCID", "--mpi=pmix")):
            with self.subTest(variables=variables):
                size, rank = variables.split()
                first = self.launched([self.program, *self.doctor()], **{size: "4", rank: "0"})
                self.assertEqual(first.returncode, 2, first.stderr)
                failed = [line for line in self.parse(first.stdout) if line[0] == "FAIL"]
                self.assertEqual([check for _, check, _ in failed], ["launch"])
                self.assertIn("4 tasks", failed[0][2])
                self.assertIn("world of 1", failed[0][2])
                self.assertIn(remedy, failed[0][2])
                other = self.launched([self.program, *self.doctor()], **{size: "4", rank: "3"})
                self.assertEqual((other.returncode, other.stdout, other.stderr), (0, "", ""), "one task speaks for all")

    def test_unknown_config_key(self):
        config = self.write("config.json", json.dumps({"model": {"aaa": 1, "model_path": str(self.folder / "model")},
                                                       "runtime": {"device": "cpu"}}))
        self.model()
        for ranks in either(1, 2):
            self.finds(["doctor", "--config", config], ["config"], [config, "model.aaa", "keys"], ranks=ranks)

    def test_contradicting_options(self):
        self.finds(self.doctor("--tensor-parallel-size", 2), ["config", "partition"], ["tensor_parallel_size 2"])

    def test_model_folder_missing(self):
        for ranks in either(1, 2):
            self.finds(self.doctor("--model", self.folder / "none"), ["model", "weights"],
                       [self.folder / "none", "--model"], ranks=ranks)

    def test_one_host_sees_no_model(self):
        done = self.launched(["mpirun", "-n", 1, self.program, *self.doctor(), ":",
                              "-n", 1, self.program, *self.doctor("--model", self.folder / "none")])
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        failed = [rest for level, _, rest in self.parse(done.stdout) if level == "FAIL"]
        self.assertEqual(len(failed), 2)
        for text in failed:
            self.assertTrue(text.startswith("rank 1 ("), text)

    def test_one_host_hangs(self):
        config = self.model() / "config.json"
        config.unlink()
        os.mkfifo(config)  # nobody writes: opening it takes for ever
        patience = ["--timeout-s", 5]
        done = self.launched(["mpirun", "-n", 1, self.program, *self.doctor(*patience), ":",
                              "-n", 1, self.program, *self.doctor("--model", self.folder / "model", *patience)])
        self.assertEqual(done.returncode, 2, done.stdout + done.stderr)
        failed = [(check, rest) for level, check, rest in self.parse(done.stdout) if level == "FAIL"]
        self.assertEqual([check for check, _ in failed], ["launch"])
        self.assertTrue(failed[0][1].startswith("rank 1 ("), failed)

    def test_truncated_safetensors(self):
        weights = self.model() / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        for ranks in either(1, 2):
            self.finds(self.doctor("--model", self.folder / "model"), ["weights"], [weights, "again"], ranks=ranks)

    def test_tensors_of_another_shape(self):
        config = self.model() / "config.json"
        values = json.loads(config.read_text())
        values["intermediate_size"] += 8
        config.write_text(json.dumps(values))
        self.finds(self.doctor("--model", self.folder / "model"), ["weights"], ["gate_proj", "shape", "expected"])

    def test_shard_missing(self):
        folder = self.model()
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        index = {"weight_map": {"model.norm.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}}
        self.write("model/model.safetensors.index.json", json.dumps(index))
        self.finds(self.doctor("--model", folder), ["weights"], ["model-2.safetensors"])

    def test_tokenizer_missing(self):
        folder = self.model()
        (folder / "tokenizer.model").unlink()
        self.finds(self.doctor("--model", folder), ["tokenizer"], [folder, "tokenizer.model", "--tokenizer"])
        ids = self.write("ids.jsonl", '{"prompt_token_ids": [1, 5, 6]}\n')
        done = self.run_program(1, *self.doctor("--model", folder, "--prompts", ids))
        self.assertIn("token ids", done.stdout)

    def test_prompts_file(self):
        self.finds(self.doctor("--prompts", "/nowhere.jsonl"), ["prompts"], ["/nowhere.jsonl", "--prompts"])
        broken = self.write("broken.jsonl", '{"prompt": "good"}\n{"prompt": \n{"prompt_token_ids": [1, 999999]}\n')
        self.finds(self.doctor("--prompts", broken), ["prompts"], [broken, "2 of 3 prompts", "line 2", "correct"],
                   verdict="WARN")
        long = self.write("long.jsonl", json.dumps({"prompt": "And God said " * 600}) + "\n")
        self.finds(self.doctor("--prompts", long), ["prompts"], ["1 of 1 prompt", "context"], verdict="WARN")

    def test_output_cannot_be_written(self):
        under_a_file = self.write("file", "x") / "out"
        self.finds(self.doctor("--output-dir", under_a_file), ["output"], [under_a_file, "--output-dir"])
        self.finds(self.doctor("--output-dir", "/proc"), ["output"], ["/proc", "--output-dir"], ranks=2)

    def test_output_holds_a_run(self):
        self.write("out/completions.jsonl", "")
        self.finds(self.doctor(), ["output"], ["completions.jsonl", "--resume"])
        self.run_program(1, *self.doctor("--overwrite"))

    def test_full_disk(self):
        disk = self.folder / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "full", disk], capture_output=True).returncode != 0:
            self.skipTest("no permission to mount")
        self.addCleanup(subprocess.run, ["umount", disk], check=True)
        self.finds(self.doctor("--output-dir", disk), ["output"], [disk, "make space"], verdict="WARN")
        (disk / "data").write_bytes(bytes((1 << 20) - 4096))
        self.finds(self.doctor("--output-dir", disk), ["output"], [disk, "No space left", "space left"])

    def test_memory_does_not_fit(self):
        for ranks in either(1, 2):
            self.finds(self.doctor("--kv-blocks", 100_000_000), ["memory"], ["KV blocks", "free", "--kv-blocks"],
                       ranks=ranks)

    def test_more_ranks_than_layers(self):
        self.finds(self.doctor(), ["partition"], ["more ranks than layers", "7", "--pp"], ranks=7)

    def test_partition_does_not_add_up(self):
        self.finds(self.doctor("--partition", "3,4"), ["partition"], ["7", "6", "--partition"], ranks=2)
        self.finds(self.doctor("--pp", 3), ["partition"], ["3", "2", "ranks"], ranks=2)

    def test_no_gpu(self):
        if os.path.exists("/dev/nvidia0"):
            self.skipTest("there is one")
        for ranks in either(1, 2):
            self.finds(self.doctor("--device", "cuda"), ["driver", "device"], ["no GPU", "--device cpu"], ranks=ranks)


if __name__ == "__main__":
    program.main(sys.argv)
