"""Killing a process at every step it takes in a file system."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Write = Callable[[], Any]

_STEPS = ("open", "os.", "shutil.", "ctypes.dlsym")
_LIMIT_S = 120


def child(write: Write, prepare: Callable[[], None] = lambda: None) -> int:
    """Start a process that writes and ends; its id."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            # Threads of the parent do not exist here.
            torch.set_num_threads(1)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            prepare()
            write()
            status = 0
        finally:
            os._exit(status)
    return process


def ended(process: int) -> int:
    """How a process ended: 0, its status, or minus the signal."""
    for _ in range(_LIMIT_S * 200):
        finished, status = os.waitpid(process, os.WNOHANG)
        if finished:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError("the process does not end")


def _at_steps(folder: Path, step: Callable[[], None]) -> None:
    """Have a function called before every step that this process takes in a folder, or that exchanges folders."""

    def hook(event: str, arguments: tuple) -> None:
        text = repr(arguments)
        # Trees are removed by names within open folders.
        removed = event in ("os.remove", "os.rmdir") and arguments[1] != -1
        if removed or (event.startswith(_STEPS) and (str(folder) in text or "renameat2" in text)):
            step()

    sys.addaudithook(hook)


def count_steps(write: Write, folder: Path) -> int:
    """How many steps a writer takes in a folder."""
    receiver, sender = os.pipe()
    seen: list[None] = []

    def report() -> None:
        write()
        os.write(sender, str(len(seen)).encode())

    status = ended(child(report, lambda: _at_steps(folder, lambda: seen.append(None))))
    os.close(sender)
    with os.fdopen(receiver) as answer:
        text = answer.read()
    assert status == 0, "the writer fails although nobody kills it"
    return int(text)


def killed_before(write: Write, folder: Path, number: int) -> bool:
    """Run a writer and kill it before a step, counted from 0; whether it got there."""
    seen: list[None] = []

    def step() -> None:
        seen.append(None)
        if len(seen) > number:
            os.kill(os.getpid(), signal.SIGKILL)

    return ended(child(write, lambda: _at_steps(folder, step))) == -signal.SIGKILL


def killed_after(write: Write, seconds: float) -> bool:
    """Run a writer and kill it after a time; whether it was running still."""
    process = child(write)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return ended(process) == -signal.SIGKILL


def some_steps(count: int, most: int, seed: int = 0) -> Iterator[int]:
    """Steps to kill at: all of them, or the last ones and a sample of the others."""
    if count <= most:
        yield from range(count)
        return
    last = most // 2
    yield from sorted(random.Random(seed).sample(range(count - last), most - last))
    yield from range(count - last, count)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder that are not hidden."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    named = {path.relative_to(folder): path for path in files}
    return {
        name.as_posix(): path.read_bytes() for name, path in named.items() if not any(p[0] == "." for p in name.parts)
    }


def hidden(folder: Path) -> list[str]:
    """Hidden files and folders below a folder."""
    return sorted(path.name for path in folder.rglob(".*"))
