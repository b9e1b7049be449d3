#!/usr/bin/env python3
"""Six seeded rounds of chaos.py: lost ranks under mpirun as it comes, and with survivors left alive.

usage: chaos_test.py PROGRAM PROJECT_ROOT PYTHON_WITH_NUMPY
"""
import signal
import sys

import program
from chaos import Chaos


class LostRanks(program.ProgramTest):
    def setUp(self):
        super().setUp()
        self.chaos = Chaos(self.program, self.project, self.folder)

    def test_start(self):
        self.rounds(("mpirun", 3, 1, signal.SIGSTOP, "start"), ("recovery", 2, 0, signal.SIGKILL, "start"))

    def test_serving(self):
        self.rounds(("mpirun", 2, 1, signal.SIGKILL, "serving"), ("recovery", 3, 0, signal.SIGSTOP, "serving"))

    def test_end(self):
        self.rounds(("recovery", 3, 2, signal.SIGSTOP, "end"), ("mpirun", 2, 0, signal.SIGKILL, "end"))

    def rounds(self, *plans):
        for seed, plan in enumerate(plans):
            with self.subTest(plan=plan):
                print(self.chaos.round(seed, *plan), flush=True)


if __name__ == "__main__":
    program.main(sys.argv)
