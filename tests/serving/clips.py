"""What tests send, and how they look at what comes back."""

import base64
import io
import time
from pathlib import Path

import av
import numpy as np

from ltx2_diffusers.serving.running import LocalRunner

FINISHED = ("completed", "failed", "cancelled")


def data_uri(file: Path, kind: str = "image/png") -> str:
    """A file as requests bring it."""
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def decoded(content: bytes | str) -> tuple[np.ndarray, np.ndarray | None, int | None]:
    """Frames `[F, H, W, 3]`, samples `[C, N]` and their rate of an MP4 file or of a data URI of one."""
    content = base64.b64decode(content.partition(",")[2]) if isinstance(content, str) else content
    with av.open(io.BytesIO(content)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        if not file.streams.audio:
            return frames, None, None
        file.seek(0)
        sound = [frame.to_ndarray() for frame in file.decode(audio=0)]
        return frames, np.concatenate(sound, axis=1), file.streams.audio[0].rate


def generate(client, **wanted) -> dict:
    """The answer of `/generate`."""
    answer = client.post("/generate", json=wanted)
    assert answer.status_code == 200, answer.text
    return answer.json()


def create(client, headers=None, **wanted) -> str:
    """The name of a new job."""
    answer = client.post("/v1/videos", json=wanted, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def finished(client, job: str, seconds: float = 60) -> dict:
    """A job when it has ended."""
    ends = time.monotonic() + seconds
    while (video := client.get(f"/v1/videos/{job}").json())["status"] not in FINISHED:
        assert time.monotonic() < ends, video
        time.sleep(0.02)
    return video


def left(folder: Path, pattern: str, seconds: float = 20) -> list[Path]:
    """Files of an ended job that are still there after a while: they are removed behind the note that it has ended."""
    ends = time.monotonic() + seconds
    while (found := list(folder.glob(pattern))) and time.monotonic() < ends:
        time.sleep(0.02)
    return found


class Standing:
    """A runner on which runs of more than ten steps stand still after their first step, or shot, until they are to end.

    They are under way for as long as a test looks, however fast the machine is.

    Args:
        runner: What makes the clips.
    """

    slots = 1

    def __init__(self, runner: LocalRunner) -> None:
        self._runner = runner

    @property
    def model(self):
        return self._runner.model

    def run(self, jobs, report, stopped):
        def stand(job: str, kind: str, event: dict) -> None:
            report(job, kind, event)
            ends = time.monotonic() + 60
            while event.get("steps", 0) > 10 and event.get("shots", 1) and not stopped(job):
                assert time.monotonic() < ends, event
                time.sleep(0.002)

        return self._runner.run(jobs, stand, stopped)

    def close(self) -> None:
        """The runner goes on."""


def steps(client) -> float:
    """How many steps a server has made."""
    return client.app.state.server.metrics.registry.get_sample_value("ltx2_steps_total")


def content(client, job: str) -> bytes:
    """The file of a job that is finished."""
    answer = client.get(f"/v1/videos/{job}/content")
    assert answer.status_code == 200, answer.text
    return answer.content


def refusal(answer) -> tuple[str, str]:
    """The field that is refused, and why."""
    assert answer.status_code == 422, answer.text
    detail = answer.json()["detail"][0]
    return str(detail["loc"][-1]), detail["msg"]
