#!/usr/bin/env python3
"""`cmake --install` gives a folder that carries its libraries: moved elsewhere, it runs with the build tree out of sight.

usage: install_test.py CMAKE BUILD_FOLDER PROJECT_ROOT
"""
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path


class Install(unittest.TestCase):
    cmake: str
    build: Path
    project: Path

    @classmethod
    def setUpClass(cls):
        folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="pipeinfer-install-")))
        subprocess.run([cls.cmake, "--install", cls.build, "--prefix", folder / "first"], check=True,
                       stdout=subprocess.DEVNULL)
        cls.tree = folder / "moved"
        (folder / "first").rename(cls.tree)
        cls.program = cls.tree / "bin/pipeinfer"
        cls.environment = {k: v for k, v in os.environ.items() if k not in ("LD_LIBRARY_PATH", "LD_PRELOAD")}

    def run_program(self, *arguments: str) -> str:
        done = subprocess.run([self.program, *arguments], env=self.environment, cwd="/", text=True,
                              capture_output=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_version_and_describe(self):
        self.assertRegex(self.run_program("--version"), r"\d+\.\d+\.\d+")
        self.assertIn("stage", self.run_program("describe", "--config", str(self.project / "configs/demo.json")))

    def test_every_library_comes_from_the_tree_or_the_system(self):
        listing = subprocess.run(["ldd", self.program], env=self.environment, text=True, check=True,
                                 capture_output=True).stdout
        self.assertNotIn("not found", listing)
        for path in re.findall(r"=> (\S+) \(", listing):
            with self.subTest(path=path):
                real = os.path.realpath(path)
                self.assertTrue(real.startswith((str(self.tree), "/lib", "/usr/lib")), real)

    def test_nothing_points_back_to_the_build(self):
        for file in [self.program, *self.tree.glob("lib/*.so*")]:
            paths = subprocess.run(["readelf", "-d", file], text=True, check=True, capture_output=True).stdout
            for path in re.findall(r"R(?:UN)?PATH\)\s+Library r(?:un)?path: \[(.*)\]", paths):
                with self.subTest(file=file.name):
                    self.assertNotIn(str(self.project), path)


if __name__ == "__main__":
    Install.cmake, Install.build, Install.project = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]).resolve()
    unittest.main(argv=sys.argv[:1] + sys.argv[4:])
