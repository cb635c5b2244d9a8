"""The segments that are finished, in a folder beside the clip: their files, and what was asked for when they were made."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...atomic import write_json
from ...checkpoints.safetensors_io import Entry, SafetensorsFile, write_file
from ...declared import shown
from ...media.streaming import ClipWriter
from ...media.writing import Frames
from ...pipelines.recipes.extension.plan import ClipLatents

_KIND, _SCHEMA = "ltx2 storyboard", 1
_STATE = "state.json"


class FinishedSegments:
    """The folder `FILE.segments` beside a clip that is being made.

    `0001.mp4` holds what a segment adds to the clip, with its sound, and `0001.safetensors` its latents and samples;
    `state.json` names both, once they are whole.

    Args:
        clip: File of the clip.
    """

    def __init__(self, clip: str | os.PathLike) -> None:
        clip = Path(clip)
        self.folder = clip.with_name(f"{clip.name}.segments")
        self._state: dict[str, Any] = {"kind": _KIND, "schema": _SCHEMA, "asked": {}, "prompts": None, "segments": []}

    def __len__(self) -> int:
        return len(self._state["segments"])

    def read(self) -> None:
        """Take up what an earlier run has left.

        Raises:
            ValueError: If the folder holds something else.
        """
        path = self.folder / _STATE
        if not path.is_file():
            if self.folder.is_dir() and any(self.folder.glob("[!.]*")) and not self._holds_first_segment_alone():
                raise ValueError(
                    f"{str(self.folder)!r} is in the way: it holds something else; move it, or choose another name"
                )
            return
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            known = (state["kind"], state["schema"]) == (_KIND, _SCHEMA)
        except (ValueError, TypeError, KeyError, RecursionError):
            known = False
        if not known:
            raise ValueError(
                f"{str(path)!r} was not written by this version of ltx2-diffusers; move the folder away to begin anew"
            )
        self._state = state

    def begin(self, asked: Mapping[str, Any], remake: bool) -> None:
        """Compare what holds for all segments with what held for those that are kept.

        Args:
            asked: What is asked for now.
            remake: Whether segments that were asked for in another way are given up.

        Raises:
            ValueError: If there are such, and they are not to be given up; the message names what has changed.
        """
        asked = _plain(asked)
        change = _change(self._state["asked"], asked)
        if change is not None:
            if len(self):
                self._check_given_up(change, remake)
            self._state |= {"asked": asked, "prompts": None, "segments": []}

    @property
    def prompts(self) -> list[str] | None:
        """What a language model wrote for what is asked for, if it did."""
        return self._state["prompts"]

    def keep_prompts(self, texts: Sequence[str]) -> None:
        """Keep what a language model wrote."""
        self._state["prompts"] = list(texts)
        self._write()

    def take_up(self, segments: Sequence[Mapping[str, Any]], remake: bool) -> None:
        """Keep those segments from the start on that are as they are asked for now, and whole.

        Args:
            segments: What each is asked to be.
            remake: Whether segments that were asked for in another way, and all behind them, are given up.

        Raises:
            ValueError: As in [`begin`].
        """
        kept = self._state["segments"][: len(segments)]
        changes = [_change(before["asked"], _plain(now)) for before, now in zip(kept, segments)]
        same = next((index for index, change in enumerate(changes) if change is not None), len(changes))
        if same < len(changes):
            self._check_given_up(f"of segment {same + 1}, {changes[same]}", remake)
        whole = next((index for index, one in enumerate(kept[:same]) if not self._is_whole(one)), same)
        self._state["segments"] = kept[:whole]

    def _check_given_up(self, change: str, remake: bool) -> None:
        if not remake:
            raise ValueError(
                f"{str(self.folder)!r} holds segments of another storyboard: {change}; set it back, have what has changed made "
                "anew (remake=True), or choose another name"
            )

    def add(
        self,
        asked: Mapping[str, Any],
        info: Mapping[str, Any],
        rates: tuple[float, int | None],
        frames: Frames,
        latents: ClipLatents,
        made: torch.Tensor | None,
        heard: torch.Tensor | None,
    ) -> Path:
        """Write a finished segment and return the file of its clip.

        Args:
            asked: What it was asked to be.
            info: How it was made.
            rates: Frames and samples per second.
            frames: Its new frames `[F, H, W, 3]`.
            latents: Its normalised latents, shared ones included.
            made: Samples `[C, N]` that the model made for these frames.
            heard: Samples `[C, N]` that are heard with them.
        """
        clip, data = (self.folder / f"{len(self) + 1:04d}{suffix}" for suffix in (".mp4", ".safetensors"))
        with ClipWriter(clip, *rates) as writer:
            writer.write(frames, heard)
        tensors = {"video": latents.video, "audio": latents.audio, "samples": made}
        # Of a view, only what it shows.
        given = {name: Entry.of(t.detach().cpu().contiguous()) for name, t in tensors.items() if t is not None}
        write_file(data, given)
        files = {file.name: content_name(file) for file in (clip, data)}
        self._state["segments"].append({"asked": _plain(asked), "info": _plain(info), "files": files})
        self._write()
        return clip

    def latents(self, index: int) -> ClipLatents:
        """The latents of a segment, counted from 0, on the CPU."""
        entries = self._data(index)
        audio = entries["audio"].load() if "audio" in entries else None
        return ClipLatents(entries["video"].load(), audio)

    def samples(self, places: Iterable[int] | None = None) -> Iterator[torch.Tensor]:
        """What the model made to be heard, segment by segment; of all, or of those at some places."""
        for index in range(len(self)) if places is None else places:
            yield self._data(index)["samples"].load()

    @property
    def clips(self) -> list[Path]:
        """Files of the segments."""
        return [self.folder / f"{index + 1:04d}.mp4" for index in range(len(self))]

    @property
    def infos(self) -> list[dict[str, Any]]:
        """How segments were made."""
        return [one["info"] for one in self._state["segments"]]

    def remove(self) -> None:
        """Remove the folder, what tells of the others last: killed in between, it is still one to go on with."""
        for path in self.clips + [clip.with_suffix(".safetensors") for clip in self.clips]:
            path.unlink(missing_ok=True)
        (self.folder / _STATE).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _data(self, index: int) -> dict[str, Entry]:
        return SafetensorsFile(self.folder / f"{index + 1:04d}.safetensors").entries

    def _is_whole(self, segment: Mapping[str, Any]) -> bool:
        paths = {self.folder / name: content for name, content in segment["files"].items()}
        return all(path.is_file() and content_name(path) == content for path, content in paths.items())

    def _holds_first_segment_alone(self) -> bool:
        """Whether a run was killed while it wrote the first segment."""
        return {path.name for path in self.folder.glob("[!.]*")} <= {"0001.mp4", "0001.safetensors"}

    def _write(self) -> None:
        write_json(self.folder / _STATE, self._state)


def _change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing that is another one now, in words."""
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            return f"`{name}` was {shown(before.get(name))} and is {shown(now.get(name))}"
    return None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from a file."""
    return json.loads(json.dumps(values, default=os.fspath))


def content_name(path: str | os.PathLike) -> str:
    """Name of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
