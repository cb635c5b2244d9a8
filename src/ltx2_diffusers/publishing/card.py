"""Model cards: what the Hub reads, what people read, and which card may be written anew.

A card that is written here ends with a line that a page does not show: a checksum of all above it. It is renewed as long
as that is true of it. A card with a changed letter, or without that line, is somebody's own and stays as it is.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, try_to_load_from_cache

from ..atomic import complete_file, is_part_of_a_save

CARD_NAME = "README.md"
TAGS = ("ltx-2", "ltx-video", "ltx2-diffusers")
"""Tags of everything."""
CLIP_TAGS = ("text-to-video", "audio-video")
"""Tags of what makes clips."""
LICENCE = (
    "The weights derive from the base model and inherit its licence: whoever uses them has to follow the terms under which "
    "the base model was published."
)
_SEAL = "<!-- ltx2-diffusers wrote this card and renews it with the files beside it, until somebody edits it: {} -->"
_SEALED = re.compile(r"(?P<content>.*\n)<!-- ltx2-diffusers [^\n]*: (?P<sum>[0-9a-f]{16}) -->\s*", re.DOTALL)
_LICENCE_FIELDS = ("license", "license_name", "license_link")
# Beginnings of the names of original files, and where their models lie on the Hub in the layout that pipelines load.
_PUBLISHED = {"ltx-2-19b": "Lightricks/LTX-2", "ltx-2.3-22b": "diffusers/LTX-2.3-Diffusers"}
_SNAPSHOT = re.compile(r"models--(?P<owner>[^/\\]+?)--(?P<name>[^/\\]+)[/\\]snapshots[/\\]")


@dataclass(frozen=True)
class Origin:
    """Where weights come from, as far as it is known.

    Args:
        name: What to call it: a Hub id, or the name of a file or folder without its place.
        base_model: Its Hub id.
        licence: The Hub's fields `license`, `license_name` and `license_link`; empty if no licence is known.
        terms: What an original file says about its licence.
    """

    name: str | None = None
    base_model: str | None = None
    licence: Mapping[str, str] = field(default_factory=dict)
    terms: str | None = None

    @property
    def shown(self) -> str:
        """Markdown that names it."""
        if self.name is not None and self.name == self.base_model:
            return f"[{self.name}](https://huggingface.co/{self.name})"
        return f"`{self.name}`"

    @property
    def section(self) -> str:
        """What a card says about the licence."""
        known = self.licence.get("license_name") or self.licence.get("license")
        said = LICENCE if known in (None, "other") else f"The weights are under the licence `{known}`."
        if link := self.licence.get("license_link"):
            said += f" See [{link}]({link})."
        if known is None:
            said += " Which one that is was not recorded."
        if self.terms is not None:
            said += f"\n\n<details><summary>What the original file says</summary>\n\n```text\n{self.terms}\n```\n\n</details>"
        return f"## Licence\n\n{said}"


def hub_id(source: str | os.PathLike | None) -> str | None:
    """The Hub id that a model was loaded from; `None` for a local one."""
    text = os.fspath(source) if source is not None else ""
    if cached := _SNAPSHOT.search(text):
        return f"{cached['owner']}/{cached['name']}"
    return text if text.count("/") == 1 and not text.startswith(("/", ".", "~")) and not Path(text).exists() else None


def origin(source: str | os.PathLike | None, terms: str | None = None) -> Origin:
    """What a Hub id, a file or a folder tells about weights that come from there, with what its card says; no network.

    Args:
        source: Where weights were read; `None` if that is not known.
        terms: What an original file says about its licence.
    """
    if not source:
        return Origin(terms=terms)
    name = Path(source).name
    known = hub_id(source) or next((known for begin, known in _PUBLISHED.items() if name.startswith(begin)), None)
    data = _metadata(known, Path(source))
    said = data.get("base_model")
    base = known or (said if isinstance(said, str) else None)
    licence = {key: str(data[key]) for key in _LICENCE_FIELDS if data.get(key)}
    link = licence.get("license_link")
    if known is not None and link and "://" not in link:
        licence["license_link"] = f"https://huggingface.co/{known}/blob/main/{link}"
    if base is not None and not licence:
        licence = {"license": "other", "license_link": f"https://huggingface.co/{base}"}
    return Origin(known or name, base, licence, terms)


def _metadata(repository: str | None, folder: Path) -> Mapping[str, Any]:
    """What the card of a local folder or of a cached repository says to machines."""
    cached = None if repository is None or folder.is_dir() else try_to_load_from_cache(repository, CARD_NAME)
    path = Path(cached) if isinstance(cached, str) else folder / CARD_NAME
    try:
        return ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    except Exception:
        # There is none, or one that cannot be read, in whatever way: it is a text that people write.
        return {}


@dataclass(frozen=True)
class Card:
    """A model card.

    Args:
        title: Its heading.
        sections: Markdown below it; empty ones are left out.
        origin: What the weights come from.
        tags: Tags beside `TAGS`.
        relation: What the weights are to the base model, such as "adapter".
        pipeline_tag: The Hub's name of the task.
        instance_prompt: What a prompt says to make use of the weights.
        widget: Samples, each `{"text": prompt, "output": {"url": file}}`.
    """

    title: str
    sections: Sequence[str]
    origin: Origin = field(default_factory=Origin)
    tags: Sequence[str] = ()
    relation: str | None = None
    pipeline_tag: str | None = "text-to-video"
    instance_prompt: str | None = None
    widget: Sequence[Mapping[str, Any]] = ()

    @property
    def metadata(self) -> dict[str, Any]:
        """What the Hub reads."""
        base = self.origin.base_model
        found = {
            "language": "en",
            **self.origin.licence,
            "library_name": "diffusers",
            "pipeline_tag": self.pipeline_tag,
            "base_model": base,
            "base_model_relation": self.relation if base else None,
            "instance_prompt": self.instance_prompt,
            "widget": [dict(sample) for sample in self.widget],
            "tags": list(dict.fromkeys((*TAGS, *self.tags))),
        }
        return {name: value for name, value in found.items() if value}

    @property
    def model_card(self) -> ModelCard:
        """The card, with metadata and text."""
        text = "\n\n".join([f"# {self.title}", *filter(None, self.sections), self.origin.section, ""])
        return ModelCard(f"---\n{ModelCardData(**self.metadata).to_yaml()}\n---\n\n{text}")

    @property
    def content(self) -> str:
        """The card as it is written, with its seal."""
        content = f"{self.model_card}\n"
        return f"{content}{_SEAL.format(_checksum(content))}\n"

    def completing(self, content: str) -> str:
        """Somebody's own card, whose text stays, with the metadata of this one that it lacks."""
        try:
            card = ModelCard(content)
        except Exception:
            # Whatever its metadata are, they are not ours to correct.
            return content
        data: Any = card.data
        before = data.to_dict()
        present = data.tags or []
        own = self.metadata if data.license is None else {**self.metadata, **dict.fromkeys(_LICENCE_FIELDS)}
        for name, value in own.items():
            if value and name != "tags" and data.get(name) is None:
                data[name] = value
        data.tags = [*present, *(tag for tag in own["tags"] if tag not in present)]
        return content if data.to_dict() == before else str(card)


MakesCard = Callable[[str], Card]
"""From the name of a folder, or the whole name of a repository, to its card."""


def is_renewable(content: str) -> bool:
    """Whether a card was written here and never edited."""
    match = _SEALED.fullmatch(content.replace("\r\n", "\n"))
    return match is not None and _checksum(match["content"]) == match["sum"]


def may_write(path: Path) -> bool:
    """Whether a card may be written: there is none, or one of ours that nobody edited."""
    if not os.path.lexists(path):
        return True
    try:
        return not path.is_symlink() and is_renewable(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False


def put_card(place: str | os.PathLike, folder: str | os.PathLike, card: MakesCard) -> None:
    """Write a card beside what is being saved, unless the folder has one that somebody wrote or edited.

    A folder within one that is being saved as a whole gets none.

    Args:
        place: Where the files are, on their way into `folder` or in it.
        folder: The folder that is saved to, after which the card is named.
        card: Makes it.
    """
    present = Path(folder, CARD_NAME)
    if is_part_of_a_save(folder) or not may_write(present):
        return
    # Names of folders may hold what no text can.
    name = Path(os.path.realpath(folder)).name.encode("utf-8", "replace").decode("utf-8")
    content = card(name or "model").content
    # What is alone in its place is put there without exchanging the folder.
    if not present.is_file() or present.read_text(encoding="utf-8") != content:
        with complete_file(Path(place, CARD_NAME)) as partial:
            partial.write_text(content, encoding="utf-8", newline="\n")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _checksum(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]
