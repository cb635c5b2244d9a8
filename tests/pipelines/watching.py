"""What tests watch: models that run, packets of files, frame rates and samples."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import pytest
import torch

from ltx2_diffusers.pipelines import decoding
from ltx2_diffusers.pipelines.recipes.extension import segments
from ltx2_diffusers.prompts.encoding import Prompts, TextEncoder


@contextmanager
def calls_of(*modules: torch.nn.Module) -> Iterator[list[str]]:
    """The class names of the modules that run inside the block, one per call."""
    calls = []

    def note(module: torch.nn.Module, _args: Any) -> None:
        calls.append(type(module).__name__)

    hooks = [module.register_forward_pre_hook(note) for module in modules]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def no_forward(pipe: Any) -> Iterator[None]:
    """Fails if a model of a pipeline runs inside the block."""
    models = (pipe.transformer, pipe.text_encoder, pipe.connectors, pipe.vae.encoder, pipe.audio_vae.encoder)
    with calls_of(*models) as calls:
        yield
    assert calls == []


def encoded_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that language models encode from now on, in their order."""
    texts, states = [], TextEncoder.states

    def note(encoder: TextEncoder, prompts: Prompts, with_negative: bool, *rest: Any) -> Any:
        texts.extend([prompts.prompt, prompts.negative_prompt][: 1 + with_negative])
        return states(encoder, prompts, with_negative, *rest)

    monkeypatch.setattr(TextEncoder, "states", note)
    return texts


@contextmanager
def segments_alive(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """How many decoded frames, and latents, of the segments made so far are alive whenever one is decoded in the block."""
    frames: list[weakref.ref] = []
    latents: list[weakref.ref] = []
    alive: list[tuple[int, int]] = []
    decode, generate = decoding.video_as, segments.generate

    def decode_and_note(*args: Any) -> Any:
        result = decode(*args)
        frames.append(weakref.ref(result))
        return result

    def generate_and_note(*request: Any) -> Any:
        result = generate(*request)
        latents.append(weakref.ref(result[0].video))
        return result

    def count(_module: torch.nn.Module, _args: Any) -> None:
        alive.append((sum(ref() is not None for ref in frames), sum(ref() is not None for ref in latents)))

    monkeypatch.setattr(decoding, "video_as", decode_and_note)
    monkeypatch.setattr(segments, "generate", generate_and_note)
    hook = pipe.vae.decoder.register_forward_pre_hook(count)
    try:
        yield alive
    finally:
        hook.remove()
    assert len(frames) == len(latents) == len(alive)


def packets(path: Any, kind: str) -> list[bytes]:
    """The packets of a file's first `"video"` or `"audio"` stream."""
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(**{kind: 0}) if packet.size]


def average_rate(path: Any) -> Fraction:
    """The frame rate of a file."""
    with av.open(str(path)) as container:
        return container.streams.video[0].average_rate
