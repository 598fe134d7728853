"""A PostgreSQL server for a test: Debian's, on a free port of loopback, with its data in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.service.harness import eventually, free_port

PASSWORD = "s3cret-of-the-test"


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs; None if it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if Path("/usr/lib/postgresql").exists() else []
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


class Server:
    """A server that can be stopped, killed and started again. PostgreSQL refuses to be root, so it is `nobody` then."""

    def __init__(self, bin_folder: Path) -> None:
        self.bin = bin_folder
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="percore-postgresql-"))
        self.as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
            self.as_user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self.run("initdb", "-D", str(self.data), "-U", "percore", "-A", "scram-sha-256", f"--pwfile={password}", "-N")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def run(self, program: str, *arguments: str) -> None:
        subprocess.run([self.bin / program, *arguments], check=True, capture_output=True, cwd="/", timeout=120, **self.as_user)

    def start(self) -> None:
        options = ["-D", str(self.data), "-p", str(self.port), "-h", "127.0.0.1", "-k", str(self.folder)]
        log = (self.folder / "log").open("ab")
        with log:
            self.process = subprocess.Popen([self.bin / "postgres", *options], stdout=log, stderr=log, cwd="/", **self.as_user)
        eventually(self.answers, 60)

    def answers(self) -> bool:
        command = [str(self.bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        return subprocess.run(command, check=False, timeout=10).returncode == 0

    def restart(self, gone_seconds: float) -> None:
        """End it at once, as a power cut does to its processes, and start it again after a time."""
        assert self.process is not None
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)
        time.sleep(gone_seconds)
        self.start()

    def database(self, name: str) -> str:
        """Make a database and return its URL."""
        command = [str(self.bin / "createdb"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "percore", name]
        subprocess.run(command, check=True, timeout=30, env={**os.environ, "PGPASSWORD": PASSWORD})
        return f"postgresql://percore:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)
