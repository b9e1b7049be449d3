#!/usr/bin/env python3
"""Kills or stops a random rank of a run at a random moment, then resumes the run. One line a round; exit 1 on a failure.

usage: chaos.py PROGRAM PROJECT_ROOT [--rounds N] [--seed S] [--timeout-s T] [--launcher mpirun|recovery|srun ...]
                [--device cpu|cuda] [--ranks N ...]

What must hold after each round:
- every process of the run (found by a marker in its environment) is gone within timeout_s + 10 s of the blow;
- the launcher and each surviving rank exit non-zero, and nobody but the victim is called lost or stuck;
- the victim is named with its host, by a survivor or (where the launcher takes the others down first) by the launcher;
- the run can be resumed, with any number of ranks: every id exactly once, nothing finished is computed again, and
  completions.jsonl is that of an undisturbed run, but for the times.
"""
import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from program import MPI_ENVIRONMENT, lines_of, wait_until

N_PROMPTS = 24
MORE_S = 10  # what the survivors may take beyond timeout_s
# Leaves a surviving rank's exit code behind, where the launcher doesn't tell it.
KEEP_EXIT_CODE = ["sh", "-c", '"$@"; code=$?; echo $code >"$CHAOS_EXITS/$PMIX_RANK"; exit $code', "sh"]
LOST = re.compile(r"pipeinfer: .*\brank (\d+) \(([^)]*)\) is (?:lost|stuck)")
# Before MPI runs, and once it ends, nobody need know who is missing.
NAMELESS = re.compile(r"pipeinfer: (MPI_Init did not finish within|MPI_Finalize did not finish within .*: some rank)")
BY_LAUNCHER = re.compile(r"process rank (\d+) with PID \d+ on node \S+ exited on signal|"
                         r"(?:srun|slurmstepd): error: [^\n]* task (\d+): Killed")


class Violation(AssertionError):
    """Something that must not happen did."""


def processes(marker):
    """{pid: environment} of every live process that carries the marker."""
    found = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            environment = Path(entry.path, "environ").read_bytes()
        except OSError:
            continue  # gone meanwhile
        if marker in environment:
            found[int(entry.name)] = dict(v.split(b"=", 1) for v in environment.split(b"\0") if b"=" in v)
    return found


def signal_all(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def plain(records):
    return [{key: value for key, value in record.items() if not key.endswith("_s")} for record in records]


def whole_lines(folder):
    """{name: bytes up to the last end of line} of the folder's per-rank completions."""
    return {path.name: (data := path.read_bytes())[:data.rfind(b"\n") + 1]
            for path in folder.glob("completions_rank_*.jsonl")}


class Chaos:
    def __init__(self, program, project, folder, timeout_s=2.0, cluster=None, device="cpu", ranks=(2, 3)):
        self.program = str(program)
        self.folder = Path(folder)
        self.timeout_s = timeout_s
        self.ranks = ranks
        self.environment = {**(cluster.environment() if cluster else os.environ), **MPI_ENVIRONMENT}
        prompts = self.folder / "prompts.jsonl"
        prompts.write_text("".join(
            json.dumps({"id": f"p{i}", "prompt": f"And the LORD said {i}", "ignore_eos": True}) + "\n"
            for i in range(N_PROMPTS)))
        self.arguments = ["run", "--model", str(project / "configs/demo_model"), "--prompts", str(prompts), "--device",
                          device, "--precision", "fp32", "--threads", "1", "--max-new-tokens", "80", "--batch-size", "6"]
        self.expected = self.complete(self.folder / "undisturbed")

    def launch(self, launcher, ranks):
        return {
            "mpirun": ["mpirun", "-n", str(ranks)],
            "recovery": ["mpirun", "--enable-recovery", "-n", str(ranks), *KEEP_EXIT_CODE],
            "srun": ["srun", "--mpi=pmix", "--kill-on-bad-exit=0", "--nodes=2", f"--ntasks={ranks}", *KEEP_EXIT_CODE],
        }[launcher] + [self.program]

    def complete(self, output, ranks=1, *more):
        launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
        done = subprocess.run([*launcher, self.program, *self.arguments, "--output-dir", output, *more],
                              env=self.environment, text=True, capture_output=True, timeout=120)
        if done.returncode != 0:
            raise Violation(f"a run that nobody disturbed exited with {done.returncode}:\n{done.stderr}")
        return plain(lines_of(output / "completions.jsonl"))

    def random_round(self, seed, launchers):
        dice = random.Random(seed)
        launcher, ranks = dice.choice(launchers), dice.choice(self.ranks)
        victim, blow = dice.randrange(ranks), dice.choice((signal.SIGKILL, signal.SIGSTOP))
        moment = dice.choice(("start", "start", "serving", "serving", "end"))
        return self.round(seed, launcher, ranks, victim, blow, moment)

    def round(self, seed, launcher, ranks, victim, blow, moment):
        """One blow and its consequences. -> a line that says what happened; raises Violation."""
        dice = random.Random(seed)
        what = f"seed {seed}: {launcher}, rank {victim} of {ranks}, {blow.name} at "
        output = self.folder / f"{launcher}-{ranks}-{victim}-{blow.name}-{moment}-{seed}"
        try:
            fate = self.attempt(dice, output, launcher, ranks, victim, blow, moment)
            self.check_resume(output, dice.choice((1, *self.ranks)))
            return what + fate
        except Violation as violation:
            raise Violation(f"{what}{moment}: {violation}") from None

    def attempt(self, dice, output, launcher, ranks, victim, blow, moment):
        marker = f"CHAOS={uuid.uuid4()}"
        exits = self.folder / f"{output.name}-exits"
        exits.mkdir()
        environment = {**self.environment, "CHAOS": marker.split("=")[1], "CHAOS_EXITS": str(exits)}
        command = [*self.launch(launcher, ranks), *self.arguments, "--output-dir", str(output), "--timeout-s",
                   str(self.timeout_s)]
        with open(exits / "stderr", "w+", encoding="utf-8") as errors:
            run = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors,
                                   stdin=subprocess.DEVNULL)
            try:
                pid, at = self.await_moment(dice, marker.encode(), run, output, victim, moment)
                signal_all([pid], blow)
                begin = time.monotonic()
                left = wait_until(lambda: run.poll() is not None and not processes(marker.encode()),
                                  self.timeout_s + MORE_S, 0.05)
                took = time.monotonic() - begin
                errors.seek(0)
                said = errors.read()
                codes = {int(file.name): int(file.read_text()) for file in exits.glob("[0-9]*")}
                survivors = {rank: code for rank, code in codes.items() if rank != victim}
                finished = (output / "completions.jsonl").exists()
                if not left:
                    remaining = processes(marker.encode())
                    # Everyone had said farewell, and nobody waits for a rank that stops on its last few lines.
                    if blow == signal.SIGSTOP and finished and 0 in survivors.values():
                        return f"{at}: after the farewell"
                    raise Violation(f"{len(remaining)} processes are left after {took:.0f} s: "
                                    f"{[Path(f'/proc/{p}/cmdline').read_bytes()[:60] for p in remaining]}\n{said}")
                fate = self.judge(said, launcher, run.returncode, survivors, victim, finished)
                return f"{at}: {fate} after {took:.1f} s"
            finally:
                signal_all(processes(marker.encode()), signal.SIGKILL)
                run.kill()
                run.wait()

    def await_moment(self, dice, marker, run, output, victim, moment):
        """-> the victim's process id once it is time for the blow, and the moment in words."""
        def victim_pid():
            for pid, environment in processes(marker).items():
                try:
                    if environment.get(b"PMIX_RANK") == str(victim).encode() and \
                            os.readlink(f"/proc/{pid}/exe") == os.path.realpath(self.program):
                        return pid
                except OSError:
                    pass
            return None

        pid = wait_until(victim_pid, 30)
        if not pid:
            raise Violation("the run did not start within 30 s")
        records = output / "completions_rank_0.jsonl"
        count = 0 if moment == "start" else dice.randrange(1, N_PROMPTS) if moment == "serving" else N_PROMPTS
        wait_until(lambda: count == 0 or run.poll() is not None
                   or (records.exists() and records.read_bytes().count(b"\n") >= count), 60)
        delay = dice.uniform(0, {"start": 0.8, "serving": 0.03, "end": 0.15}[moment])
        time.sleep(delay)
        return pid, f"{count} completions + {delay:.3f} s"

    def judge(self, said, launcher, code, survivors, victim, finished):
        """Whether the survivors said and did the right thing. -> what they did, in words."""
        lost = {(int(rank), host) for rank, host in LOST.findall(said)}
        if any(rank != victim for rank, _ in lost):
            raise Violation(f"a healthy rank is called lost:\n{said}")
        # A launcher that lets survivors live answers for none of them.
        if (code == 0 and launcher == "mpirun") or 0 in survivors.values():
            # The blow came after the victim's last word: then everything is there.
            if finished:
                return "all done"
            raise Violation(f"launcher {code}, survivors {survivors}, but the run is not done:\n{said}")
        if lost:
            return "named"
        if nameless := NAMELESS.search(said):
            return nameless[1].split()[0] + "'s deadline"
        named = {int(a or b) for a, b in BY_LAUNCHER.findall(said)}
        if victim not in named:
            raise Violation(f"nobody names rank {victim}:\n{said}")
        return "named by the launcher"

    def check_resume(self, output, ranks):
        before = whole_lines(output) if output.exists() else {}
        if self.complete(output, ranks, "--resume") != self.expected:
            raise Violation("the resumed completions are not those of an undisturbed run")
        after = whole_lines(output)
        if any(not after.get(name, b"").startswith(lines) for name, lines in before.items()):
            raise Violation("a finished completion was lost or changed by the resume")
        ids = [json.loads(line)["id"] for lines in after.values() for line in lines.splitlines()]
        if sorted(ids) != sorted(record["id"] for record in self.expected):
            raise Violation(f"{len(ids)} completions were computed for {N_PROMPTS} prompts")


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("program", type=Path)
    parser.add_argument("project", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--timeout-s", type=float, default=2)
    parser.add_argument("--launcher", nargs="+", default=["mpirun", "recovery", "srun"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3])
    options = parser.parse_args()
    failures = 0
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="pipeinfer-chaos-"))
        cluster = None
        if "srun" in options.launcher:
            sys.path.append(str(options.project / "tests/slurm"))
            from cluster import Cluster
            if reason := Cluster.cannot_run():
                print(f"without srun: {reason}", flush=True)
                options.launcher.remove("srun")
            else:
                cluster = stack.enter_context(Cluster(nodes=2))
        chaos = Chaos(options.program.resolve(), options.project.resolve(), folder, options.timeout_s, cluster,
                      options.device, options.ranks)
        for seed in range(options.seed, options.seed + options.rounds):
            try:
                print(chaos.random_round(seed, options.launcher), flush=True)
            except Violation as violation:
                failures += 1
                print(f"FAILED {violation}", flush=True)
    print(f"{options.rounds} rounds, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
