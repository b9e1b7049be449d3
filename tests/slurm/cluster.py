"""A real Slurm of a few nodes on one machine, for tests: munged, slurmctld, and one slurmd a node, as root; with
`accounting`, a database and slurmdbd too, so that sacct tells of jobs.

    with Cluster(nodes=2) as cluster:
        cluster.run(["srun", "--nodes=2", "hostname"])

All of it lives in a folder of its own and on free ports, and is gone at the end. Each slurmd has its own UTS
namespace, so that its tasks see the node's name; what Slurm calls a GPU is a device file that nobody opens.
"""
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

PROGRAMS = ["munged", "slurmctld", "slurmd", "srun", "sbatch", "unshare", "slurmdbd", "mariadbd"]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    def __init__(self, nodes: int = 2, cpus: int = 4, gpus: int = 1, accounting: bool = False):
        self.names = [f"node{i + 1}" for i in range(nodes)]
        self.cpus = cpus
        self.gpus = gpus
        self.accounting = accounting
        self.daemons: list[subprocess.Popen] = []

    @staticmethod
    def cannot_run() -> str:
        """Why no cluster can be started here; empty where one can."""
        missing = [p for p in PROGRAMS if not shutil.which(p)]
        if missing:
            return f"not installed: {', '.join(missing)} (scripts/setup.sh --tests installs them)"
        return "" if os.geteuid() == 0 else "needs root, to start slurmd in namespaces"

    def __enter__(self) -> "Cluster":
        self.root = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: socket paths end at 107 bytes
        self.root.chmod(0o755)  # munged refuses a socket in a folder that others can write to
        try:
            self._configure()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        # Jobs first: the process that runs a job's step outlives its slurmd.
        if len(self.daemons) > 1:
            for state in (["--state=PENDING"], ["--state=RUNNING"]):
                self.run(["scancel", "--quiet", "--user=root", *state], check=False)
            self._wait("the last job's end", lambda: not self.run(["squeue", "-h"], check=False).stdout.strip(), 30)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """For Slurm's commands; OpenMPI, as root, is told that the only network is the loopback."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "OMPI_", "PMIX_"))},
            "SLURM_CONF": str(self.root / "etc/slurm.conf"),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_btl_tcp_if_include": "lo",
            "OMPI_MCA_oob_tcp_if_include": "lo",
        }

    def run(self, command: list[str], check: bool = True, timeout: float = 120, **environment: str):
        """Runs a command against the cluster. -> CompletedProcess with text output; with `check`, 0 is expected."""
        done = subprocess.run(command, env={**self.environment(), **environment}, text=True, timeout=timeout,
                              stdin=subprocess.DEVNULL, capture_output=True)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def wait_for_job(self, job: str, timeout: float = 180) -> dict[str, str]:
        """-> the fields of `scontrol show job` once the job has ended."""
        fields: dict[str, str] = {}

        def ended() -> bool:
            show = self.run(["scontrol", "--oneliner", "show", "job", job]).stdout
            fields.update(field.split("=", 1) for field in show.split() if "=" in field)
            return fields["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

        self._wait(f"job {job}", ended, timeout)
        return fields

    def logs(self) -> str:
        """The last lines of every daemon's log."""
        return "\n".join(f"--- {p.name}\n" + "\n".join(p.read_text(errors="replace").splitlines()[-15:])
                         for p in sorted(self.root.glob("*.log")))

    def _configure(self) -> None:
        etc = self.root / "etc"
        etc.mkdir()
        (self.root / "munge").mkdir()
        (self.root / "state").mkdir()
        controller, self.database_port, accounting, *slurmds = free_ports(3 + len(self.names))
        # Open MPI names its shared memory after node and job: two clusters of one machine need other jobs.
        # A requeued job waits for the end of its old credential (cred_expire; 120 s unless given).
        lines = f"""
            ClusterName=test
            SlurmctldHost=localhost(127.0.0.1)
            SlurmctldPort={controller}
            FirstJobId={controller * 100}
            SlurmUser=root
            SlurmdUser=root
            AuthType=auth/munge
            AuthInfo=socket={self.root}/munge/socket,cred_expire=5
            StateSaveLocation={self.root}/state
            SlurmdSpoolDir={self.root}/spool-%n
            SlurmctldPidFile={self.root}/slurmctld.pid
            SlurmdPidFile={self.root}/slurmd-%n.pid
            SlurmdParameters=config_overrides
            ProctrackType=proctrack/linuxproc
            TaskPlugin=task/none
            SelectType=select/cons_tres
            SelectTypeParameters=CR_Core_Memory
            SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=1,bf_interval=1
            ReturnToService=2
            KillWait=5
            GresTypes=gpu
            """.split()
        if self.accounting:
            lines += f"""
                AccountingStorageType=accounting_storage/slurmdbd
                AccountingStorageHost=127.0.0.1
                AccountingStoragePort={accounting}
                AccountingStoragePass={self.root}/munge/socket
                AccountingStorageTRES=gres/gpu
                JobAcctGatherType=jobacct_gather/linux
                JobAcctGatherFrequency=task=1
                """.split()
            database = etc / "slurmdbd.conf"
            database.write_text("\n".join(f"""
                DbdHost=localhost
                DbdAddr=127.0.0.1
                DbdPort={accounting}
                SlurmUser=root
                AuthType=auth/munge
                AuthInfo=socket={self.root}/munge/socket
                PidFile={self.root}/slurmdbd.pid
                StorageType=accounting_storage/mysql
                StorageHost=127.0.0.1
                StoragePort={self.database_port}
                StorageUser=slurm
                StoragePass=slurm
                """.split()) + "\n")
            database.chmod(0o600)
        else:
            lines += ["JobCompType=jobcomp/filetxt", f"JobCompLoc={self.root}/jobs"]
        gres = []
        for i in range(self.gpus):
            device = self.root / f"gpu{i}"
            os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))  # a character device, the null one
            gres += [f"NodeName={name} Name=gpu File={device}" for name in self.names]
        for name, port in zip(self.names, slurmds):
            lines.append(f"NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
                         f"RealMemory=4000 Gres=gpu:{self.gpus} State=UNKNOWN")
        lines.append(f"PartitionName=test Nodes={','.join(self.names)} Default=YES MaxTime=INFINITE State=UP")
        (etc / "slurm.conf").write_text("\n".join(lines) + "\n")
        (etc / "gres.conf").write_text("\n".join(gres) + "\n")
        for name in self.names:
            # PMIx keeps a job step's sockets in a folder named after job and step only: one folder a node.
            own = self.root / f"etc-{name}"
            sockets = self.root / f"pmix-{name}"
            for folder in (own, sockets, self.root / f"spool-{name}"):
                folder.mkdir()
            for file in ("slurm.conf", "gres.conf"):
                (own / file).symlink_to(etc / file)
            (own / "mpi.conf").write_text(f"PMIxCliTmpDirBase={sockets}\n")

    def _start(self) -> None:
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        munge = self.root / "munge"
        self._spawn("munged", ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}/socket",
                               f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed"])
        self._wait("munged", lambda: self.run(["munge", "-n", f"--socket={munge}/socket"], check=False).returncode == 0)
        if self.accounting:
            self._start_accounting()
        self._spawn("slurmctld", ["slurmctld", "-D"])
        for name in self.names:
            self._spawn(name, ["unshare", "--uts", "sh", "-c", f"hostname {name} && exec slurmd -D -N {name}"],
                        SLURM_CONF=str(self.root / f"etc-{name}/slurm.conf"))
        self._wait("idle nodes", lambda: self.run(["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"],
                                                  check=False).stdout.split() == self.names)

    def _start_accounting(self) -> None:
        data = self.root / "database"
        self.run(["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}", "--skip-test-db",
                  "--auth-root-authentication-method=normal"])
        self._spawn("mariadbd", ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}",
                                 f"--socket={data}/socket", f"--pid-file={data}/pid", "--bind-address=127.0.0.1",
                                 f"--port={self.database_port}", "--innodb-flush-log-at-trx-commit=0"])
        statement = "CREATE USER slurm@'%' IDENTIFIED BY 'slurm'; GRANT ALL ON *.* TO slurm@'%'"
        self._wait("mariadbd", lambda: self.run(["mariadb", "--no-defaults", "--user=root", f"--socket={data}/socket",
                                                 "--execute", statement], check=False).returncode == 0)
        self._spawn("slurmdbd", ["slurmdbd", "-D"])
        self._wait("slurmdbd", lambda: self.run(["sacctmgr", "--immediate", "--quiet", "add", "cluster", "test"],
                                                check=False).returncode == 0)

    def _spawn(self, name: str, command: list[str], **environment: str) -> None:
        with open(self.root / f"{name}.log", "wb") as log:
            self.daemons.append(subprocess.Popen(command, env={**self.environment(), **environment}, stdout=log,
                                                 stderr=log, stdin=subprocess.DEVNULL, start_new_session=True))

    def _wait(self, what: str, ready, timeout: float = 30) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout:.0f} s for {what}\n{self.logs()}")
            time.sleep(0.1)
