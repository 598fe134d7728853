"""A real PostgreSQL server for tests, from the programs that are installed on the machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import psycopg

from harness.service import eventually, free_port, processes_below

USER, PASSWORD = "percore", "a-pass:word/of@tests"
QUOTED = "a-pass%3Aword%2Fof%40tests"
"""The password, encoded for a URL."""
FOLDERS = "lib/postgresql/*/bin"
# Debian keeps it where only root's PATH has it.
POOLER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def programs() -> Path | None:
    """Return the folder of the newest ``postgres`` and ``initdb``; None if they are not installed."""
    # Debian keeps them out of PATH.
    found = [each for each in Path("/usr").glob(FOLDERS) if (each / "postgres").exists() and (each / "initdb").exists()]
    if found:
        return max(found, key=lambda each: int(each.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path and shutil.which("postgres") else None


class PostgreSQL:
    """One server on a port of this machine. It requires a password, like the servers of operators."""

    def __init__(self, folder: Path) -> None:
        self._programs = folder
        self._folder = Path(tempfile.mkdtemp(prefix="percore-postgresql-"))
        # It refuses to run as root.
        self._as: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        if self._as:
            shutil.chown(self._folder, "nobody", "nogroup")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        arguments = ["--pgdata=data", f"--username={USER}", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync"]
        self._run("initdb", *arguments, "--encoding=UTF8", "--locale=C")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / name, *arguments], cwd=self._folder, capture_output=True, check=False, **self._as
        )
        assert done.returncode == 0, done.stderr.decode()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = (f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=200")
        arguments = [part for option in options for part in ("-c", option)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", "data", *arguments], cwd=self._folder, stdout=log, stderr=log, **self._as
            )
        eventually(self._answers, 60)

    def _answers(self, port: int = 0) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(self.url("postgres", port), connect_timeout=10).close()
            return True
        return False

    @contextlib.contextmanager
    def pooled(self) -> Iterator[int]:
        """Have PgBouncer in front, in transaction mode: each transaction may use another connection. Yield its port."""
        port = free_port()
        (self._folder / "users").write_text(f'"{USER}" "{PASSWORD}"\n')
        (self._folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={self.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n"
            f"auth_file = {self._folder}/users\npool_mode = transaction\ndefault_pool_size = 3\n"
        )
        with (self._folder / "pooler.log").open("ab") as log:
            process = subprocess.Popen(
                [POOLER or "pgbouncer", self._folder / "pgbouncer.ini"], stdout=log, stderr=log, **self._as
            )
        try:
            eventually(lambda: self._answers(port), 60)
            yield port
        finally:
            process.terminate()
            process.wait(60)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it. The default mode ``immediate`` has the effect of a power loss."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Any:
        """Freeze all its processes: connections stay open, and no bytes come."""
        assert self._process is not None
        pids = [self._process.pid, *processes_below(self._process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """Run a statement, and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str, port: int = 0) -> str:
        return f"postgresql://{USER}:{QUOTED}@127.0.0.1:{port or self.port}/{database}"

    def create(self, database: str) -> str:
        """Make a database and return its URL."""
        self.execute(f"CREATE DATABASE {database}")
        return self.url(database)
