"""Captions of clips by a local model that sees pictures and, if it can, hears sound.

Shapes: F sampled frames, H and W rows and columns of pixels, C channels, N samples, T tokens.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch

from ..atomic import complete_file
from ..checks import check_at_least_one, check_positive
from ..extras import library
from ..media.images import still_picture
from ..media.reading import iterate_video, probe, read_audio
from ..models.mel import resample
from . import captions
from .tables import (
    CAPTION_COLUMNS,
    DATASET_FILE,
    MEDIA_COLUMNS,
    TABLE_SUFFIXES,
    Row,
    column_of,
    dataset_file,
    media_of,
    read_rows,
    relative_name,
    write_rows,
)

Sound = tuple[torch.Tensor, int]
"""A waveform `[C, N]` in [-1, 1] and its samples per second."""

SUFFIXES = (*TABLE_SUFFIXES, ".txt")
"""Endings of the files that captions are written to."""

# What is described, in the order of the answer; the second and third part need ears.
_SECTIONS = {
    "[VISUAL]": "what can be seen from the first moment to the last: place, light, people with their looks and clothes, "
    "things, every action in its order, the camera and how it moves",
    "[SPEECH]": "every word that is said or sung, in the language in which it is said and in quotation marks, with who says "
    "it and how the voice sounds",
    "[SOUNDS]": "music and all other sounds, in the order in which they are heard",
    "[TEXT]": "every word that can be read in the picture, as it is written, with where it stands",
}
_HEARD = ("[SPEECH]", "[SOUNDS]")
# Some models go on with a question that nobody asked.
_OTHER_TURN = re.compile(r"^[ \t]*Human[ \t]*(?::.*)?$", re.MULTILINE)


class Captioner(Protocol):
    """Something that describes clips. Without the attribute `hears`, or if it is true, it is given sound."""

    def caption(self, frames: np.ndarray, audio: Sound | None, instruction: str) -> str:
        """Describe a clip.

        Args:
            frames: Bytes `[F, H, W, 3]`, spread evenly over the clip; one frame of a picture.
            audio: Its sound; `None` if it has none, or if it is not to be described.
            instruction: What to write.
        """


@dataclass
class CaptionReport:
    """What was captioned.

    Args:
        written: Clips with a new caption.
        kept: Clips that had one already.
        unreadable: Clips that cannot be read, with the reasons.
        unanswered: Clips to which the model had nothing to say.
        output: Files that hold the captions.
    """

    written: int = 0
    kept: int = 0
    unreadable: dict[Path, str] = field(default_factory=dict)
    unanswered: list[Path] = field(default_factory=list)
    output: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class CaptionOptions:
    """How clips are captioned.

    Args:
        instruction: What the model is asked to write; `None` for the package's own, see [`default_instruction`].
        frame_rate: Frames that are looked at per second, default 3.0.
        max_frames: Most frames that are looked at; those of a longer clip lie further apart. Default 96.
        with_audio: Whether sound is described, too. Default true.
        clean: Whether phrases like "The video shows" are taken out. Default true.
        override: Whether clips that have a caption are captioned anew. Default false.
        save_every: Captions after which the file is written, default 5.
    """

    instruction: str | None = None
    frame_rate: float = 3.0
    max_frames: int = 96
    with_audio: bool = True
    clean: bool = True
    override: bool = False
    save_every: int = 5

    def __post_init__(self) -> None:
        check_positive(frame_rate=self.frame_rate)
        check_at_least_one(max_frames=self.max_frames, save_every=self.save_every)


def default_instruction(with_audio: bool) -> str:
    """What a model is asked to write: labelled sections, those about sound only if there is some."""
    sections = {label: what for label, what in _SECTIONS.items() if with_audio or label not in _HEARD}
    kind = "video and listen to its sound" if with_audio else "video"
    lines = "\n".join(f"{label}: {what}." for label, what in sections.items())
    return (
        f"Watch this {kind}, and describe it for somebody who is to make it anew from your words alone. Answer with exactly "
        f"these {len(sections)} sections, each on a line of its own behind its label:\n{lines}\n"
        'Write "None" in a section for which there is nothing. State what is there, plainly and in full sentences; do not '
        "guess what cannot be perceived, and write nothing before or after the sections."
    )


def default_output(source: Path) -> Path:
    """Where captions of a folder (its dataset file, if it has one) or of one clip are written."""
    if source.is_dir():
        return dataset_file(source) or source / DATASET_FILE
    return source.with_name(f"{source.name}.{DATASET_FILE}")


def without_other_turns(text: str) -> str:
    """An answer up to where its model begins to speak for somebody else."""
    return _OTHER_TURN.split(text, maxsplit=1)[0].strip()


def write_captions(
    files: Sequence[Path],
    output: Path,
    captioner: Captioner,
    options: CaptionOptions = CaptionOptions(),
    on_file: Callable[[Path], None] = lambda _path: None,
) -> CaptionReport:
    """Caption media files, and write the captions to a dataset file as they come.

    What was written stands: broken off and begun again, it goes on. Other columns and entries of the file stay.

    Args:
        files: Clips and pictures.
        output: A `.json`, `.jsonl` or `.csv` file with the columns `media_path`, relative to it, and `caption`; or a
            `.txt` file, in whose place `<stem>_captions.txt` and `<stem>_paths.txt` are written, line by line.
        captioner: Describes them.
        options: How.
        on_file: Called after each file.

    Raises:
        ValueError: If the output has another ending, or is damaged.
    """
    entries = _Entries(output)
    report = CaptionReport(output=entries.files)
    unsaved = 0
    try:
        for file in files:
            if entries.caption(file) and not options.override:
                report.kept += 1
            elif (text := _captioned(file, captioner, options, report)) is not None:
                entries.set(file, text)
                report.written += 1
                unsaved = (unsaved + 1) % options.save_every
                if not unsaved:
                    entries.write()
            on_file(file)
    finally:
        # Also what precedes an error of the model, which took long to make.
        if unsaved:
            entries.write()
    return report


@dataclass(frozen=True)
class ChangedCaption:
    """A caption before and after it was cleaned; `entry` counts from 1."""

    entry: int
    before: str
    after: str


def clean_captions(
    dataset: Path,
    output: Path | None = None,
    column: str | None = None,
    prefixes: bool = True,
    phrases: bool = True,
    writes: bool = True,
) -> list[ChangedCaption]:
    """Take phrases of language models out of the captions of a dataset file; everything else in it stays.

    Args:
        dataset: A `.csv`, `.json` or `.jsonl` file.
        output: File to write; `None` for the same.
        column: Column of the captions; `None` for `caption`, `text` or `prompt`.
        prefixes: Whether the phrase with which a caption begins is removed, such as "In this video,". Default true.
        phrases: Whether phrases like "The scene shows " are removed wherever they stand first. Default true.
        writes: Whether anything is written. Default true.

    Returns:
        What changes.

    Raises:
        FileNotFoundError, ValueError: If the file cannot be read, or has no such column.
    """
    rows = read_rows(dataset)
    column = column_of(rows, CAPTION_COLUMNS, dataset, column, everywhere=False)
    changed = []
    for entry, row in enumerate(rows, start=1):
        before = str(row.get(column) or "")
        after = captions.without_llm_prefix(before) if prefixes else before
        after = captions.without_captioner_phrases(after).strip() if phrases else after
        if after != before:
            row[column] = after
            changed.append(ChangedCaption(entry, before, after))
    target = output or dataset
    if writes and (changed or target != dataset):
        media = next((name for name in MEDIA_COLUMNS if any(name in row for row in rows)), None)
        for row in rows if media is not None and target.parent != dataset.parent else ():
            row[media] = relative_name(media_of(row, media, dataset), target)  # type: ignore[index, arg-type]
        write_rows(target, rows)
    return changed


def sampled_frames(path: Path, frame_rate: float, max_frames: int) -> np.ndarray:
    """Frames of a clip as a captioner sees them.

    Args:
        path: A clip or a picture.
        frame_rate: Frames per second.
        max_frames: Most of them.

    Returns:
        Bytes `[F, H, W, 3]`, in equal distances from the first one on.

    Raises:
        ValueError: If it cannot be read.
    """
    if (picture := still_picture(path)) is not None:
        return np.asarray(picture)[None]
    duration_s = probe(path).duration_s
    rate = min(frame_rate, max_frames / duration_s) if duration_s else frame_rate
    return np.stack(list(iterate_video(path, max_frames, frame_rate=rate)))


class TransformersCaptioner:
    """A vision-language model of transformers, which answers greedily.

    A processor that takes videos is given the frames as one, any other as pictures; one that takes sound is given that.

    Args:
        model: Model that generates text from text and pictures.
        processor: What makes its inputs.
        max_new_tokens: Longest answer, default 1024.
    """

    def __init__(self, model: Any, processor: Any, max_new_tokens: int = 1024) -> None:
        check_at_least_one(max_new_tokens=max_new_tokens)
        self.model = model.eval()
        self.processor = processor
        self.max_new_tokens = max_new_tokens

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        use_8bit: bool = False,
        max_new_tokens: int = 1024,
    ) -> "TransformersCaptioner":
        """Load a model and its processor.

        Args:
            source: Folder or Hub id of a model for images, videos or all media, such as Gemma 3, Qwen2.5-VL or
                Qwen2.5-Omni, of which the part that writes text is loaded.
            device: Where to compute, default `"cpu"`.
            dtype: Type of the weights; `None` as stored.
            use_8bit: Whether linear layers are held in 8 bits, which needs bitsandbytes and CUDA. Default false.
            max_new_tokens: Longest answer, default 1024.

        Raises:
            ImportError: If a package that the model needs is not installed; the message names it.
            ValueError: If there is no such model.
        """
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

        options: dict[str, Any] = {"dtype": dtype or "auto"}
        if use_8bit:
            library("bitsandbytes", "a captioner in 8 bits")
            options |= {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}
        try:
            config = AutoConfig.from_pretrained(source)
            # Of a model that also speaks.
            config = getattr(config, "thinker_config", config)
            model: Any = AutoModelForImageTextToText.from_pretrained(source, config=config, **options)
            processor = AutoProcessor.from_pretrained(_processor_place(source))
        except (OSError, ValueError) as error:
            raise ValueError(f"{str(source)!r} cannot be loaded as a model that captions: {error}") from error
        return cls(model if use_8bit else model.to(device), processor, max_new_tokens)

    @property
    def hears(self) -> bool:
        """Whether sound is an input of the model."""
        return getattr(self.processor, "feature_extractor", None) is not None

    @torch.no_grad()
    def caption(self, frames: np.ndarray, audio: Sound | None, instruction: str) -> str:
        """Describe a clip; see [`Captioner`]."""
        inputs = self._inputs(frames, audio, instruction).to(self.model.device)
        kinds = {name: value.to(self.model.dtype) for name, value in inputs.items() if value.is_floating_point()}
        tokens = self.model.generate(**{**inputs, **kinds}, do_sample=False, max_new_tokens=self.max_new_tokens)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.decode(answer, skip_special_tokens=True).strip()

    def _inputs(self, frames: np.ndarray, audio: Sound | None, instruction: str) -> Any:
        """Tokens `[1, T]` of a conversation with the clip in front of the instruction, and what is seen and heard."""
        media: dict[str, Any] = {}
        if getattr(self.processor, "video_processor", None) is None or len(frames) == 1:
            parts = [{"type": "image"} for _ in frames]
            media["images"] = [[PIL.Image.fromarray(frame) for frame in frames]]
        else:
            parts = [{"type": "video"}]
            media |= {"videos": [frames], "videos_kwargs": {"do_sample_frames": False}}
        if audio is not None and self.hears:
            rate = self.processor.feature_extractor.sampling_rate
            mono = resample(audio[0][None], audio[1], rate)[0].mean(0)
            parts.append({"type": "audio"})
            media |= {"audio": [mono.numpy()], "audio_kwargs": {"sampling_rate": rate}}
            if "videos" in media:
                # Lets the model see and hear at one time.
                media["videos_kwargs"]["fps"] = len(frames) * audio[1] / audio[0].shape[1]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": instruction}]}]
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # The template already writes the tokens that begin a text.
        return self.processor(text=[text], text_kwargs={"add_special_tokens": False}, return_tensors="pt", **media)


def _processor_place(source: str | os.PathLike) -> str | os.PathLike:
    """Where the processor of a model lies: beside its weights, or in the folder `processor` beside that of a pipeline."""
    beside = Path(source).parent / "processor"
    own = any((Path(source) / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    return beside if not own and beside.is_dir() else source


def _captioned(file: Path, captioner: Captioner, options: CaptionOptions, report: CaptionReport) -> str | None:
    """The caption of a file; `None`, and a note in the report, if it cannot be had."""
    hears = options.with_audio and getattr(captioner, "hears", True)
    try:
        frames = sampled_frames(file, options.frame_rate, options.max_frames)
        heard = read_audio(file) if hears and still_picture(file) is None else None
    except (ValueError, OSError) as error:
        report.unreadable[file] = str(error)
        return None
    audio = None if heard is None else (heard[0][0], heard[1])
    text = captioner.caption(frames, audio, options.instruction or default_instruction(audio is not None))
    text = without_other_turns(text)
    text = captions.without_captioner_phrases(text).strip() if options.clean else text
    if not text:
        report.unanswered.append(file)
    return text or None


class _Entries:
    """The captions of a dataset file, or of the two files of text that stand for one.

    Args:
        output: See [`write_captions`].
    """

    def __init__(self, output: Path) -> None:
        if output.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"captions are written to {', '.join(SUFFIXES)}, got {str(output)!r}; use {output.with_suffix('.json').name!r}"
            )
        self.output = output
        self.is_text = output.suffix.lower() == ".txt"
        self.files = [output]
        if self.is_text:
            self.files = [output.with_name(f"{output.stem}_{part}.txt") for part in ("captions", "paths")]
        self.rows = self._read_lines() if self.is_text else read_rows(output) if output.is_file() else []
        columns = {column for row in self.rows for column in row}
        self.media = next((name for name in MEDIA_COLUMNS if name in columns), MEDIA_COLUMNS[0])
        self.text = next((name for name in CAPTION_COLUMNS if name in columns), CAPTION_COLUMNS[0])
        self.by_place = {self._place(row.get(self.media) or ""): row for row in self.rows}

    def caption(self, file: Path) -> str:
        """The caption of a file, which may be empty."""
        return str(self.by_place.get(self._place(self._name(file)), {}).get(self.text) or "").strip()

    def set(self, file: Path, caption: str) -> None:
        """Take up a caption, or change it."""
        name = self._name(file)
        if (row := self.by_place.get(self._place(name))) is None:
            row = self.by_place[self._place(name)] = {self.media: name}
            self.rows.append(row)
        row[self.text] = " ".join(caption.split()) if self.is_text else caption

    def write(self) -> None:
        """Write the files."""
        if not self.is_text:
            write_rows(self.output, self.rows)
            return
        # A kill between the two leaves a caption too many, which is found when they are read.
        for file, column in zip(self.files, (self.text, self.media)):
            with complete_file(file) as partial:
                partial.write_text("".join(f"{row[column]}\n" for row in self.rows), encoding="utf-8")

    def _read_lines(self) -> list[Row]:
        if not all(file.is_file() for file in self.files):
            return []
        texts, paths = (file.read_text(encoding="utf-8").split("\n")[:-1] for file in self.files)
        if len(texts) < len(paths):
            raise ValueError(
                f"{str(self.files[0])!r} has {len(texts)} lines, fewer than {str(self.files[1])!r} with {len(paths)}; remove both"
            )
        return [{MEDIA_COLUMNS[0]: path, CAPTION_COLUMNS[0]: text} for path, text in zip(paths, texts)]

    def _name(self, file: Path) -> str:
        return relative_name(file, self.output)

    @staticmethod
    def _place(name: str) -> str:
        return os.path.normpath(str(name).strip())
