"""`ltx2 serve` under load: 200 mixed requests, some malformed, some cancelled, the worker killed half way and the server
killed and started again once; and what the server adds to the time of a call.

The packaged checkpoint, at small sizes: what is measured is the server, not the model.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from .common import write_results

FINISHED = ("completed", "failed", "cancelled")
SMALL = {"width": 64, "height": 64, "num_frames": 9}
_START_S, _JOB_S = 300.0, 120.0


class Server:
    """An `ltx2 serve` that can be killed and started again.

    Args:
        data: Its folder.
        options: Its options, beyond folder and port.
    """

    def __init__(self, data: Path, *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = ["serve", "--device", "cpu", "--port", str(self.port), "--data", str(data), *options]
        self._command = [sys.executable, "-m", "ltx2_diffusers.cli.main", *arguments]
        self._log = data.parent / "serve.log"
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        ends = time.monotonic() + _START_S
        while True:
            if self.process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"the server did not start: {self.log()}")
            try:
                if self.ask("GET", "/health", timeout=1)[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)

    def log(self) -> str:
        """What it said."""
        return self._log.read_text(errors="replace")

    def ask(self, method: str, path: str, body: Any = None, timeout: float = 300, **headers: str) -> tuple[int, bytes]:
        """Status and content of an answer."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, content, {"Content-Type": "application/json", **headers}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def told(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The JSON of an answer that is none of a refusal."""
        status, content = self.ask(method, path, body, **headers)
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {content[:500]!r}")
        return json.loads(content)

    def finished(self, job: str, seconds: float = _JOB_S) -> dict[str, Any]:
        """A job when it has ended."""
        ends = time.monotonic() + seconds
        while (video := self.told("GET", f"/v1/videos/{job}"))["status"] not in FINISHED:
            if time.monotonic() > ends:
                raise RuntimeError(f"{job} does not end: {video}")
            time.sleep(0.1)
        return dict(video)

    def processes(self) -> list[int]:
        """The ids of the processes that it started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        threads = Path(f"/proc/{self.process.pid}/task").iterdir()
        found = {int(child) for task in threads for child in (task / "children").read_text().split()}
        return sorted(found | {int(child) for child in children.split()})

    def worker(self) -> int:
        """The id of the process that holds the checkpoint."""
        commands = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in self.processes()}
        return next(child for child, command in commands.items() if b"serving.worker" in command)

    def memory_mb(self) -> dict[str, float]:
        """Resident memory of the server and of its worker, in MB."""
        return {
            name: _resident_mb(process) for name, process in (("server", self.process.pid), ("worker", self.worker()))
        }

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end, and return its status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def _resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def requests(count: int, rng: random.Random) -> list[tuple[str, dict[str, Any]]]:
    """Kinds and bodies of requests: a fifth malformed, a tenth cancelled, the others to be made."""
    malformed: list[dict[str, Any]] = [
        {"width": 65},
        {"num_frames": 8},
        {"prompt": None},
        {"image": "/etc/hostname"},
        {"audio": "aGVsbG8="},
        {"nonsense": 1},
        {"steps": 10**9},
        {"seed": 2**80},
    ]
    kinds = ["malformed"] * (count // 5) + ["cancelled"] * (count // 10)
    kinds += ["made"] * (count - len(kinds))
    rng.shuffle(kinds)
    found = []
    for index, kind in enumerate(kinds):
        frames = rng.choice([9, 17])
        body: dict[str, Any] = {
            "prompt": f"clip {index}",
            "seed": index,
            **SMALL,
            "num_frames": frames,
            "steps": rng.choice([2, 3]),
        }
        body |= rng.choice([{}, {"no_audio": True}, {"guidance_scale": 1.0}])
        if kind == "malformed":
            body |= rng.choice(malformed)
        found.append((kind, body))
    return found


def load(count: int, folder: Path) -> dict[str, Any]:
    """What becomes of many requests while worker and server are killed."""
    rng = random.Random(0)
    # Once the worker has run every shape it takes no more memory.
    server = Server(folder / "data", "--max-queue", "24")
    statuses: Counter[int] = Counter()
    jobs: dict[str, str] = {}
    memory = []
    began = time.perf_counter()
    for index, (kind, body) in enumerate(requests(count, rng)):
        while True:
            key = {"Idempotency-Key": f"request {index}"}
            status, content = server.ask("POST", "/v1/videos", body, **key)
            statuses[status] += 1
            if status != 429:
                break
            time.sleep(0.2)
        if kind == "malformed":
            assert status == 422, (body, status, content)
            continue
        job = json.loads(content)["id"]
        jobs[job] = kind
        if kind == "cancelled":
            statuses[server.ask("POST", f"/v1/videos/{job}/cancel")[0]] += 1
        if index == count // 3:
            os.kill(server.worker(), signal.SIGKILL)
        if index == 2 * count // 3:
            server.kill()
            server.start()
        if index % 10 == 9:
            memory.append(server.memory_mb())
    videos = {job: server.finished(job) for job in jobs}
    seconds = time.perf_counter() - began
    for job, video in videos.items():
        if video["status"] == "completed":
            statuses[server.ask("GET", f"/v1/videos/{job}/content")[0]] += 1
    states = Counter(f"{kind}: {videos[job]['status']}" for job, kind in jobs.items())
    log = server.log()
    ends = Counter(line.split()[-2] for line in log.splitlines() if line.endswith((" completed", " failed")))
    flat = _growth(server)
    status = server.stop()
    lost = [job for job, kind in jobs.items() if kind == "made" and videos[job]["status"] != "completed"]
    return {
        "requests": count,
        "seconds": round(seconds, 1),
        "answers by status": {str(one): statuses[one] for one in sorted(statuses)},
        "states": dict(sorted(states.items())),
        "jobs lost": len(lost),
        "jobs done twice": sum(times > 1 for times in ends.values()),
        "answers of 500 and above": sum(times for one, times in statuses.items() if one >= 500),
        "memory in MB, while it was killed": memory[:: max(1, len(memory) // 10)],
        "memory over 100 further jobs": flat,
        "status after SIGTERM": status,
    }


def _growth(server: Server) -> dict[str, Any]:
    """Memory after 20 jobs and after 100 more, in MB."""
    found = []
    for part, count in enumerate((20, 100)):
        for index in range(count):
            body = {"prompt": f"part {part} clip {index}", **SMALL, "steps": 2}
            server.told("DELETE", f"/v1/videos/{server.finished(server.told('POST', '/v1/videos', body)['id'])['id']}")
        found.append(server.memory_mb())
    growth = {name: round(100 * (found[1][name] / found[0][name] - 1), 2) for name in found[0]}
    return {"before": found[0], "after": found[1], "growth in percent": growth}


def overhead(folder: Path, steps: int, repeats: int) -> dict[str, Any]:
    """Seconds of calls over HTTP and of the same calls in this process, taken in turns."""
    import torch

    from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint

    pipeline = LTX2Pipeline.from_pretrained(packaged_checkpoint("ltx2-mini"))
    pipeline.set_progress_bar_config(disable=True)
    server = Server(folder / "overhead")
    size = {"width": 128, "height": 128, "num_frames": 25}
    negative = "blurry, low quality, distorted, glitchy, watermark"

    def bare() -> float:
        began = time.perf_counter()
        generator = torch.Generator().manual_seed(7)
        call = {"num_inference_steps": steps, "guidance_scale": 3.0, "frame_rate": 25.0, "output_type": "uint8"}
        pipeline("a red circle", negative, generator=generator, save_path=folder / "bare.mp4", **size, **call)
        return time.perf_counter() - began

    def served() -> float:
        body = {"prompt": "a red circle", "seed": 7, **size, "num_inference_steps": steps}
        began = time.perf_counter()
        server.told("POST", "/generate", body)
        return time.perf_counter() - began

    for run in (bare, served):
        run()
    pairs = [(bare(), served()) for _ in range(repeats)]
    server.stop()
    calls, answers = (median(column) for column in zip(*pairs))
    extra = median(answer - call for call, answer in pairs)
    return {
        "steps": steps,
        "bare call, seconds": round(calls, 3),
        "over HTTP, seconds": round(answers, 3),
        "difference, milliseconds": round(1000 * extra, 1),
        "share in percent": round(100 * extra / calls, 2),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run both and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_load", description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        loaded = load(options.requests, folder)
        print(json.dumps(loaded, indent=2))
        times = [overhead(folder, steps, options.repeats) for steps in (2, 16)]
    write_results("serving_load", {"load": loaded, "overhead": times})


if __name__ == "__main__":
    main()
