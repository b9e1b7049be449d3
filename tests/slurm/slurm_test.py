#!/usr/bin/env python3
"""The scripts of slurm/ run the demo on two nodes of a real Slurm, and get what one process gets.

usage: slurm_test.py PIPEINFER PROJECT_ROOT [Demo|Requeue] [unittest options]     exits with 77 where Slurm cannot run
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

from cluster import Cluster

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "app"))
from chaos import Chaos  # noqa: E402

SKIPPED = 77


class SlurmTest(unittest.TestCase):
    program: Path
    project: Path
    accounting = False

    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.enterClassContext(Cluster(nodes=2, accounting=cls.accounting))
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="slurm-test-", dir="/tmp")))

    @staticmethod
    def completions(folder: Path) -> list[dict]:
        lines = (folder / "completions.jsonl").read_text().splitlines()
        return [{key: record[key] for key in ("id", "completion", "token_ids", "finish_reason")}
                for record in map(json.loads, lines)]

    @classmethod
    def complete_alone(cls, config: Path, *options: str) -> list[dict]:
        """What one process without Slurm makes of a configuration."""
        alone = cls.folder / "alone"
        subprocess.run([cls.program, "run", "--config", config, "--output-dir", alone, *options], check=True,
                       env=cls.cluster.environment(), capture_output=True, timeout=240)
        return cls.completions(alone)


class Demo(SlurmTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = str(cls.project / "configs/demo.json")
        cls.expected = cls.complete_alone(cls.config)

    def launch(self, output: Path, **environment: str):
        return self.cluster.run([str(self.project / "slurm/interactive.sh"), "run", "--config", self.config],
                                PIPEINFER=str(self.program), DEVICE="cpu", OUTPUT_DIR=str(output), **environment)

    def submit(self, *arguments: str, **environment: str) -> tuple[dict[str, str], str]:
        """-> the ended job's fields and what it printed."""
        output = self.folder / "job-%j.out"
        job = self.cluster.run(["sbatch", "--parsable", f"--chdir={self.folder}", f"--output={output}", *arguments],
                               PIPEINFER=str(self.program), DEVICE="cpu", **environment).stdout.strip()
        fields = self.cluster.wait_for_job(job)
        return fields, (self.folder / f"job-{job}.out").read_text()

    def check(self, output: Path, ranks: int):
        self.assertGreater(len(self.expected), 0)
        self.assertEqual(self.completions(output), self.expected)
        self.assertEqual(len(list(output.glob("rank_*.log"))), ranks)

    def test_interactive_with_srun(self):
        self.launch(self.folder / "srun", NODES="2", LAUNCHER="srun")
        self.check(self.folder / "srun", ranks=2)

    def test_interactive_with_two_ranks_a_node(self):
        self.launch(self.folder / "four", NODES="2", TASKS_PER_NODE="2")
        self.check(self.folder / "four", ranks=4)

    def test_interactive_with_mpirun(self):
        self.launch(self.folder / "mpirun", NODES="2", LAUNCHER="mpirun")
        self.check(self.folder / "mpirun", ranks=2)

    def test_sbatch(self):
        output = self.folder / "batch"
        fields, printed = self.submit(str(self.project / "slurm/submit.sbatch"), "--config", self.config,
                                      OUTPUT_DIR=str(output))
        self.assertEqual((fields["JobState"], fields["ExitCode"]), ("COMPLETED", "0:0"), printed)
        self.assertEqual(fields["NodeList"], "node[1-2]")
        self.check(output, ranks=2)

    def test_sbatch_refuses_more_nodes_than_it_has(self):
        fields, printed = self.submit(str(self.project / "slurm/submit.sbatch"), NODES="3",
                                      OUTPUT_DIR=str(self.folder / "none"))
        self.assertEqual((fields["JobState"], fields["ExitCode"]), ("FAILED", "2:0"), printed)
        self.assertIn("NODES=3, but this allocation has 2: submit it with sbatch --nodes=3", printed)

    def test_an_absent_profiler_is_a_warning(self):
        output = self.folder / "profiled"
        said = self.launch(output, NODES="2", LAUNCHER="srun", PROFILER="nsys",
                           PATH=os.environ["PATH"] + ":/nowhere").stderr
        self.check(output, ranks=2)
        self.assertIn("nsys is not installed: the run is not profiled", said)

    def test_lost_ranks_on_two_nodes(self):
        folder = self.folder / "chaos"
        folder.mkdir()
        chaos = Chaos(self.program, self.project, folder, cluster=self.cluster)
        for seed, blow in ((1, signal.SIGKILL), (2, signal.SIGSTOP)):
            print(chaos.round(seed, "srun", 2, seed - 1, blow, "serving"), flush=True)

    def test_tasks_without_pmix_are_refused(self):
        # Each task would believe that it is alone and run all prompts by itself.
        output = self.folder / "singletons"
        done = self.cluster.run(["srun", "--mpi=none", "--nodes=2", str(self.program), "run", "--config", self.config,
                                 "--output-dir", str(output), "--device", "cpu"], check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertFalse((output / "completions.jsonl").exists())


class Requeue(SlurmTest):
    """Jobs that are stopped in the middle of 100 prompts, or of the first 40, on a Slurm with a database."""
    accounting = True

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.expected = cls.complete_alone(cls.configure("all", 100), "--batch-size", "64")

    @classmethod
    def configure(cls, name: str, n_prompts: int) -> Path:
        """-> the configuration of a run of one sequence at a time."""
        prompts = cls.folder / f"{name}.jsonl"
        prompts.write_text("".join(json.dumps({"id": f"p{i}", "prompt": f"And the LORD said {i}"}) + "\n"
                                   for i in range(n_prompts)))
        config = cls.folder / f"{name}.json"
        config.write_text(json.dumps({
            "model": {"model_path": str(cls.project / "configs/demo_model")},
            "inference": {"max_new_tokens": 300, "ignore_eos": True, "batch_size": 1},
            "inputs": {"prompt_path": prompts.name},
            "runtime": {"device": "cpu", "threads": 1, "grace_s": 1}}))
        return config

    def submit_slow(self, name: str, n_prompts: int, **environment: str) -> tuple[str, Path]:
        """Submits it through slurm/submit.sh. -> job, run folder."""
        config = self.configure(name, n_prompts)
        folder = self.folder / name
        said = self.cluster.run([str(self.project / "slurm/submit.sh")], PIPEINFER=str(self.program), DEVICE="cpu",
                                CONFIG=str(config), RUN_DIR=str(folder), **environment).stdout
        job = (folder / "jobs").read_text().strip()
        self.assertIn(f"job {job}, run folder {folder}", said)
        return job, folder

    def check_requeued(self, job: str, folder: Path, n_prompts: int):
        """The job is queued again, ends well, and has completed every id exactly once; collect.sh tells of it."""
        expected = self.expected[:n_prompts]
        output = folder / f"slurm-{job}.out"
        self.await_true("the requeue", lambda: "stopped, and queued again (1 of at most" in output.read_text())
        config = folder / "config.json"  # the rest goes faster
        config.write_text(config.read_text().replace('"batch_size": 1', '"batch_size": 64'))
        self.cluster.run(["scontrol", "update", f"JobId={job}", "TimeLimit=10"])  # however slow the machine is
        fields = self.cluster.wait_for_job(job, 300)
        self.assertEqual((fields["JobState"], fields["ExitCode"]), ("COMPLETED", "0:0"), output.read_text())
        self.assertGreaterEqual(int(fields["Restarts"]), 1)
        self.assertEqual(self.completions(folder / "output"), expected)
        files = folder.glob("output/completions_rank_*.jsonl")
        self.assertEqual(sum(file.read_bytes().count(b"\n") for file in files), len(expected))
        # The controller tells the database of a job's end some time after it.
        states = ["sacct", f"--jobs={job}", "--duplicates", "--noheader", "--format=State"]
        self.await_true("sacct to know of the end", lambda: "RUNNING" not in self.cluster.run(states).stdout)
        copy = self.folder / f"{folder.name}-copy"
        self.cluster.run([str(self.project / "slurm/collect.sh"), str(folder), str(copy)])
        jobs = (copy / "slurm_jobs.txt").read_text()
        source, names, *lines = jobs.splitlines()
        self.assertEqual(source, "# sacct")
        attempts = [fields for fields in (dict(zip(names.split("|"), line.split("|"))) for line in lines)
                    if fields["JobID"] == job]
        self.assertEqual([fields["State"] for fields in attempts],
                         ["REQUEUED"] * (len(attempts) - 1) + ["COMPLETED"], jobs)
        self.assertGreaterEqual(len(attempts), 2, jobs)
        self.assertEqual(attempts[-1]["NodeList"], "node[1-2]")

    def await_true(self, what: str, ready):
        deadline = time.monotonic() + 300
        while not ready():
            self.assertLess(time.monotonic(), deadline, f"waited 300 s for {what}")
            time.sleep(0.05)

    def await_completions(self, folder: Path, count: int):
        file = folder / "output/completions_rank_0.jsonl"
        self.await_true(f"{count} completions", lambda: file.exists() and file.read_bytes().count(b"\n") >= count)

    def test_a_signalled_job_is_requeued_and_resumes(self):
        job, folder = self.submit_slow("signalled", 40)
        self.await_completions(folder, 2)
        self.cluster.run(["scancel", "--signal=USR1", "--full", job])
        self.check_requeued(job, folder, 40)

    def test_a_job_at_its_time_limit_is_requeued_and_resumes(self):
        # The shortest limit is a minute; slurmctld looks every 30 s whose end is near.
        job, folder = self.submit_slow("limited", 100, TIME="1", SBATCH_OPTIONS="--signal=B:USR1@50")
        self.await_completions(folder, 1)
        self.check_requeued(job, folder, 100)

    def test_a_cancelled_job_is_not_requeued(self):
        job, folder = self.submit_slow("cancelled", 40)
        self.await_completions(folder, 1)
        self.cluster.run(["scancel", job])
        self.assertEqual(self.cluster.wait_for_job(job)["JobState"], "CANCELLED")
        self.assertFalse((folder / "output/completions.jsonl").exists())


if __name__ == "__main__":
    SlurmTest.program, SlurmTest.project = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    reason = Cluster.cannot_run()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
