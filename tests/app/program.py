"""What the tests of the whole program share: running it alone or under mpirun, and reading what it wrote."""
import json
import os
import subprocess
import tempfile
import time
import unittest
from pathlib import Path

MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    # Open MPI itself leaves memory behind at exit.
    "ASAN_OPTIONS": "detect_leaks=0",
}


def either(*cases):
    """Ranks, say, between which a test hardly differs: all of them, or only the first under a sanitizer."""
    return cases[:1] if "PIPEINFER_TEST_EITHER" in os.environ else cases


def lines_of(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def wait_until(ready, timeout, step=0.002):
    """-> the first true value of ready(), or the last one."""
    deadline = time.monotonic() + timeout
    while not (value := ready()) and time.monotonic() < deadline:
        time.sleep(step)
    return value


class ProgramTest(unittest.TestCase):
    program: str
    project: Path
    python: str

    def setUp(self):
        self.folder = Path(self.enterContext(tempfile.TemporaryDirectory(prefix="pipeinfer-test-")))

    def command(self, ranks, *arguments):
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        return [*launcher, self.program, *map(str, arguments)]

    def start(self, ranks, *arguments, **options):
        return subprocess.Popen(self.command(ranks, *arguments), env=os.environ | MPI_ENVIRONMENT, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def run_program(self, ranks, *arguments, expect=0):
        done = subprocess.run(self.command(ranks, *arguments), env=os.environ | MPI_ENVIRONMENT, text=True,
                              capture_output=True, timeout=120)
        self.assertEqual(done.returncode, expect, f"{arguments}\n{done.stdout}\n{done.stderr}")
        return done

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def demo(self, prompts, output, ranks=1, *arguments, expect=0):
        """Runs the demo model on a prompts file; returns its completions."""
        self.run_program(ranks, "run", "--model", self.project / "configs/demo_model", "--prompts", prompts, "--device",
                         "cpu", "--output-dir", output, *arguments, expect=expect)
        return lines_of(output / "completions.jsonl") if (output / "completions.jsonl").exists() else None


def main(arguments):
    ProgramTest.program, ProgramTest.project, ProgramTest.python = arguments[1], Path(arguments[2]), arguments[3]
    unittest.main(module="__main__", argv=arguments[:1] + arguments[4:])
