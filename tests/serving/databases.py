"""A PostgreSQL of the tests' own, where its programs are installed."""

import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest


def _program(name: str) -> str | None:
    """A program of PostgreSQL: on PATH, or where Debian has it."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


class PostgreSQL:
    """A database server in a temporary folder that listens at this machine alone."""

    def __init__(self) -> None:
        if importlib.util.find_spec("psycopg") is None:
            pytest.skip("needs psycopg, of the extra postgres")
        if _program("initdb") is None or _program("pg_ctl") is None:
            pytest.skip("needs the programs of PostgreSQL")
        self._folder = Path(tempfile.mkdtemp(prefix="ltx2-postgres-"))
        # It refuses to run as root.
        self._user = "nobody" if hasattr(os, "getuid") and os.getuid() == 0 else None
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"postgresql://jobs@127.0.0.1:{self._port}/postgres"
        self._call("initdb", "--no-sync", "--auth", "trust", "--username", "jobs", "--encoding", "UTF8")
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._call("pg_ctl", "--wait", "--silent", "-l", str(self._folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        """End it as a crash does: nobody is told, and all connections are cut."""
        self._call("pg_ctl", "--wait", "--silent", "--mode", "immediate", "stop")

    def remove(self) -> None:
        """End it, and remove its files."""
        self.stop()
        shutil.rmtree(self._folder)

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(_program(program)), "--pgdata", str(self._folder / "data"), *arguments]
        # The server keeps what it inherits open, so that its output is no pipe that could be waited for.
        with (self._folder / "calls").open("ab") as output:
            subprocess.run(command, check=True, user=self._user, cwd="/", stdout=output, stderr=output)
