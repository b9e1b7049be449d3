#!/usr/bin/env python3
"""slurm/submit.sbatch and slurm/interactive.sh run the demo on two nodes of a real Slurm, and get what one process gets.

usage: slurm_test.py PIPEINFER PROJECT_ROOT [unittest options]     exits with 77 where Slurm cannot run
"""
import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from cluster import Cluster

SKIPPED = 77


class Demo(unittest.TestCase):
    program: Path
    project: Path

    @classmethod
    def setUpClass(cls):
        cls.cluster = cls.enterClassContext(Cluster(nodes=2))
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="slurm-demo-", dir="/tmp")))
        cls.config = str(cls.project / "configs/demo.json")
        alone = cls.folder / "alone"
        subprocess.run([cls.program, "run", "--config", cls.config, "--output-dir", alone], check=True,
                       env=cls.cluster.environment(), capture_output=True, timeout=120)
        cls.expected = cls.completions(alone)

    @staticmethod
    def completions(folder: Path) -> list[dict]:
        lines = (folder / "completions.jsonl").read_text().splitlines()
        return [{key: record[key] for key in ("id", "completion", "token_ids", "finish_reason")}
                for record in map(json.loads, lines)]

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

    def test_tasks_without_pmix_are_refused(self):
        # Each task would believe that it is alone and run all prompts by itself.
        output = self.folder / "singletons"
        done = self.cluster.run(["srun", "--mpi=none", "--nodes=2", str(self.program), "run", "--config", self.config,
                                 "--output-dir", str(output), "--device", "cpu"], check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertFalse((output / "completions.jsonl").exists())


if __name__ == "__main__":
    Demo.program, Demo.project = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    reason = Cluster.cannot_run()
    if reason:
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
