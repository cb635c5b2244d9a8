"""A file in the folder of data by which replicas see that they share it with the server, and that the server lives."""

import secrets
import socket
import threading
import time
from pathlib import Path

from ...atomic import check_folder_writable, complete_file

# How often the server writes, how often a replica looks, and after which silence the server is taken for dead.
_BEAT_S, _LOOK_S, _SILENCE_S = 5.0, 1.0, 60.0


class Pulse:
    """The server's side: writes the file for as long as it lives.

    Args:
        file: The file. A server that is started anew takes over the one of its former life, whose replicas stop then.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.token = file, secrets.token_hex(16)
        self._ended = threading.Event()
        self._write(0)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Remove the file."""
        self._ended.set()
        self._thread.join()
        self.file.unlink(missing_ok=True)

    def _beat(self) -> None:
        count = 0
        while not self._ended.wait(_BEAT_S):
            count += 1
            try:
                self._write(count)
            except OSError:
                # The folder may be away for a while; runs go on for as long as replicas are patient.
                continue

    def _write(self, count: int) -> None:
        with complete_file(self.file) as place:
            place.write_text(f"{self.token} {count}")


class PulseReader:
    """A replica's side.

    Args:
        file: The file.
        token: Of the server that started the replica.
    """

    def __init__(self, file: Path, token: str) -> None:
        self._file, self._token = file, token
        self._seen, self._changed, self._looked = token, time.monotonic(), -_LOOK_S

    def check(self) -> None:
        """See that this machine and the server have the same folder, and that it can be written to.

        Raises:
            ValueError: If not; the message says what to do.
        """
        folder, machine = self._file.parent, socket.gethostname()
        try:
            said = self._file.read_text().split()
            check_folder_writable(folder)
        except OSError as error:
            raise ValueError(
                f"--data {folder} cannot be used on the machine {machine}: {error.strerror}; it has to be a folder that all "
                "machines share, under the same name"
            ) from error
        if said[:1] != [self._token]:
            raise ValueError(
                f"--data {folder} on the machine {machine} is another folder than the server's; it has to be one that all "
                "machines share"
            )

    def lost(self) -> bool:
        """Whether the server is gone, or lives anew and has other replicas."""
        now = time.monotonic()
        if now - self._looked > _LOOK_S:
            self._looked = now
            try:
                said = self._file.read_text()
            except OSError:
                said = self._seen
            if said != self._seen:
                self._seen, self._changed = said, now
        return now - self._changed > _SILENCE_S or not self._seen.startswith(self._token)
