"""The contact sheet shows every clip's caption, frames and sound where they belong."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from examples.mini_world import contact_sheet
from examples.mini_world.contact_sheet import FRAMES, GAP, MARGIN, SOUND_HEIGHT, TEXT_HEIGHT, WIDTH, Card
from examples.mini_world.drawing import draw
from examples.mini_world.scenes import MOTIONS, caption, random_scene, triples
from examples.mini_world.sounding import sound
from tests.tiny_checkpoints import tiny_checkpoint

RATE, INNER = 24_000, WIDTH - 2 * MARGIN


def card_of(motion: str, width: int = 64, num_frames: int = 33) -> Card:
    chance = random.Random(1)
    scene = random_scene(chance, "held_out", width / 64, motion)
    frames = draw([scene], num_frames, 64, width)[0].movedim(0, 1) / 2 + 0.5
    return Card(caption(scene, chance), frames, sound([scene], num_frames, RATE, width / 64)[0], RATE)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_blocks_stand_below_each_other():
    cards = [card_of("bounces"), card_of("right", 96)]
    sheet, blocks = contact_sheet.sheet(cards), [contact_sheet.block(card) for card in cards]
    assert sheet.width == WIDTH and [block.width for block in blocks] == [INNER] * 2
    assert sheet.height == 2 * MARGIN + sum(block.height for block in blocks) + contact_sheet.BLOCK_GAP
    assert (pixels(sheet)[MARGIN : MARGIN + blocks[0].height, MARGIN:-MARGIN] == pixels(blocks[0])).all()
    assert (pixels(sheet)[-MARGIN - blocks[1].height : -MARGIN, MARGIN:-MARGIN] == pixels(blocks[1])).all()
    # Frames that are wider than high make a lower row.
    assert blocks[1].height < blocks[0].height


def test_a_silent_clip_and_a_sound_alone_take_less_room():
    whole = card_of("right")
    silent, unseen = Card("", whole.frames, None, 0), Card("", None, whole.audio, RATE)
    pictures, sounds = (pixels(contact_sheet.block(card))[TEXT_HEIGHT:] for card in (silent, unseen))
    both = pixels(contact_sheet.block(whole))[TEXT_HEIGHT:]
    assert (both == np.concatenate([pictures, np.full_like(pictures[:GAP], 255), sounds])).all()
    assert (silent.facts, unseen.facts) == ("1.4 s", "1.4 s, left and right up to 12 kHz")


def test_frames_are_those_in_the_middle_of_their_places():
    frames = torch.linspace(0, 1, 33)[:, None, None, None].expand(33, 3, 64, 64)
    row = pixels(contact_sheet.frame_row(frames, INNER))
    for number in range(FRAMES):
        centre = row[row.shape[0] // 2, round((number + 0.5) * INNER / FRAMES)]
        assert centre == pytest.approx([255 * (number + 0.5) / FRAMES] * 3, abs=255 / 33)
    assert (row[:, round(INNER / FRAMES) - GAP + 1] == 255).all()


def test_sound_stands_below_the_moment_when_it_is_heard():
    audio = torch.zeros(2, RATE)
    audio[:, 6000:6500] = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)) * 0.3
    light = pixels(contact_sheet.spectrograms(audio, RATE, INNER)).sum((0, 2))
    assert light.argmax() == pytest.approx(0.26 * INNER, abs=8)
    assert light[int(0.35 * INNER) :].max() < 0.2 * light.max()


def test_high_tones_stand_above_low_ones_and_left_above_right():
    time = torch.arange(RATE) / RATE
    high, low = (0.3 * torch.sin(2 * torch.pi * pitch * time) for pitch in (3000, 300))
    picture = pixels(contact_sheet.spectrograms(torch.stack([high, low]), RATE, INNER)).sum((1, 2))
    left, right = picture[:SOUND_HEIGHT], picture[-SOUND_HEIGHT:]
    assert left.argmax() < SOUND_HEIGHT / 2 < SOUND_HEIGHT * 0.7 < right.argmax()


def test_a_long_caption_leaves_room_for_the_facts():
    def first_line(text: str) -> np.ndarray:
        card = card_of("stays")
        return pixels(contact_sheet.block(Card(text, card.frames, card.audio, card.rate)))[:TEXT_HEIGHT]

    short, long, longer = (first_line("word " * count) for count in (1, 60, 90))
    dark = [(line.min(2) < 100).any(0).nonzero()[0].max() for line in (short, long)]
    assert dark[0] < 60 < 300 < dark[1] < INNER - 150
    assert (long == longer).all()


def test_captions_tell_every_motion_with_held_out_combinations():
    texts = contact_sheet.captions("held_out", 0)
    assert len(texts) == len(MOTIONS) and len(set(texts)) == len(texts)
    held_out = triples("held_out")
    for text in texts:
        words = set(text.lower().replace(".", "").replace(",", "").replace(";", "").split())
        assert any(set(triple) <= words for triple in held_out)


def test_a_checkpoint_fills_the_sheet(tmp_path, capsys):
    file = tmp_path / "sheet.png"
    options = ["-o", str(file), "--checkpoint", str(tiny_checkpoint()), "--steps", "2"]
    texts = ["--prompt", "a red circle grows", "--prompt", "a blue square turns"]
    assert contact_sheet.main([*options, *texts, "--num-frames", "9", "--size", "96", "64"]) == 0
    assert str(file) in capsys.readouterr().out
    with Image.open(file) as sheet:
        assert sheet.size == contact_sheet.sheet([card_of("stays", 96)] * 2).size
        half = pixels(sheet)[: sheet.height // 2]
    assert half.std() > 10
