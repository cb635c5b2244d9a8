"""Uploading to the Hub what lies saved in a folder, with a model card; what is saved stays where it is, whatever happens.

The card follows diffusers' conventions (its tags and metadata), so that the Hub shows a widget and counts downloads.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers.utils.hub_utils import load_or_create_model_card, populate_model_card
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .atomic import complete_file, temporary_folder

CARD_NAME = "README.md"
TAGS = ("ltx-2", "ltx-video", "text-to-video", "audio-video")
"""Tags of everything that is published."""
LICENCE = (
    "The weights derive from the base model and inherit its licence: whoever uses them has to follow the terms under which "
    "the base model was published."
)
_REMEDIES = {
    401: "the token is missing or not valid; log in with `hf auth login`, or pass a `token` that may write",
    403: "the token may not write there; use one that may, or a name of your own",
    404: "there is no such repository or revision, or the token may not see it",
}


@dataclass(frozen=True)
class Card:
    """A model card.

    Args:
        text: Markdown below the metadata.
        tags: Tags beside `TAGS`.
        base_model: Hub id of the model that the weights derive from, if it is known.
        instance_prompt: What a prompt says to make use of the weights.
        widget: Samples, each `{"text": prompt, "output": {"url": file}}`.
        pipeline_tag: The Hub's name of the task. Default "text-to-video".
    """

    text: str
    tags: Sequence[str] = ()
    base_model: str | None = None
    instance_prompt: str | None = None
    widget: Sequence[Mapping[str, Any]] = ()
    pipeline_tag: str = "text-to-video"

    def new(self) -> ModelCard:
        """The card of a repository that has none."""
        return self._described(ModelCard(f"---\nlicense: other\n---\n{self.text}"), renew=False)

    def for_repository(self, repo_id: str, token: str | None, renew: bool) -> ModelCard:
        """The card for a repository that exists.

        Args:
            repo_id: The repository.
            token: For private ones.
            renew: Whether a card that is there is written anew, keeping licence, language and tags; else it stays.
        """
        description = self.new().content
        card = load_or_create_model_card(
            repo_id, token, is_modular=True, model_description=description, update_model_card=renew
        )
        return self._described(card, renew)

    def _described(self, card: ModelCard, renew: bool) -> ModelCard:
        """A card with this one's metadata; what it says itself stays, unless it is to be renewed."""
        data: Any = card.data
        own = {"base_model": self.base_model, "instance_prompt": self.instance_prompt, "widget": list(self.widget)}
        fixed = {"language": "en", "license": "other", "pipeline_tag": self.pipeline_tag}
        for name, value in {**fixed, **own}.items():
            if value and (data.get(name) is None or (renew and name in own)):
                data[name] = value
        present = data.tags or []
        return populate_model_card(card, [tag for tag in (*TAGS, *self.tags) if tag not in present])


@dataclass(frozen=True)
class Push:
    """Where to publish, as the arguments of `save_pretrained` and `push_to_hub` say it.

    Args:
        repo_id: Name of the repository, `owner/name` or a name in one's own space.
        token: Token that may write, default the stored one.
        private: Whether a new repository is private, default the owner's setting.
        commit_message: Default "Upload with ltx2-diffusers".
        create_pr: Whether to propose the change instead of making it. Default `False`.
        revision: Branch, made if it does not exist. Default "main".
        subfolder: Folder in the repository; what lies in one gets no card. Default its root.
    """

    repo_id: str
    token: str | None = None
    private: bool | None = None
    commit_message: str | None = None
    create_pr: bool = False
    revision: str | None = None
    subfolder: str | None = None

    def __post_init__(self) -> None:
        check_repository_name(self.repo_id)


def check_repository_name(repo_id: str) -> None:
    """Raise `ValueError` for what cannot name a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"`repo_id` is {repo_id!r}, which cannot name a repository of the Hub ({str(error).splitlines()[0]}); use "
            "'owner/name' with letters, digits, '-', '_' and '.'"
        ) from None


MakesCard = Callable[[str], Card]
"""From the whole name of a repository to its card."""


def publish_folder(folder: str | os.PathLike, push: Push, card: MakesCard, renew_card: bool = False) -> str:
    """Upload all files of a folder, which stays as it is but for its card.

    Args:
        folder: What is uploaded. A `README.md` in it is the card; else `card` is written there.
        push: Where to.
        card: Makes the card, if there is none in the folder; one of the repository stays.
        renew_card: Whether the repository's card is written anew, too. Default `False`.

    Returns:
        Address of the repository.

    Raises:
        OSError: If the Hub cannot be reached or refuses; the message names the repository.
    """
    folder = Path(folder)
    with _named_errors(push.repo_id):
        api = HfApi(token=push.token)
        url = api.create_repo(push.repo_id, private=push.private, exist_ok=True)
        repo_id = url.repo_id
        if push.revision is not None:
            api.create_branch(repo_id, branch=push.revision, exist_ok=True)
        if push.subfolder is None and not (folder / CARD_NAME).is_file():
            content = card(repo_id).for_repository(repo_id, push.token, renew_card).content
            with complete_file(folder / CARD_NAME) as partial:
                partial.write_text(content, encoding="utf-8")
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=push.subfolder,
            commit_message=push.commit_message or "Upload with ltx2-diffusers",
            create_pr=push.create_pr,
            revision=push.revision,
        )
    return str(url)


def publish_files(files: Sequence[Path], push: Push, card: MakesCard) -> str:
    """Upload single files, and the card that lies beside the first of them, if one does; returns the repository's address."""
    place = files[0].parent
    with temporary_folder(place) as gathered:
        for file in (*files, *(path for path in [place / CARD_NAME] if path.is_file())):
            link_or_copy(file, gathered / file.name)
        return publish_folder(gathered, push, card)


def link_or_copy(file: Path, target: Path) -> None:
    """Give a file a second place, without copying it where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file, target)
    except OSError:
        shutil.copy2(file, target)


OPTIONS = ("repo_id", "token", "private", "commit_message", "create_pr", "subfolder")
"""Arguments of `save_pretrained` that say where to push."""


def usage(statements: Sequence[str]) -> str:
    """A section of a card with a script that uses the weights."""
    return "\n".join(["## Use", "", "```python", *statements, "```"])


def card_text(title: str, *sections: str) -> str:
    """Text of a card: its title, sections, and the licence."""
    return "\n\n".join([f"# {title}", *(section for section in sections if section), f"## Licence\n\n{LICENCE}", ""])


def hub_id(source: str | os.PathLike | None) -> str | None:
    """The Hub id that a model was loaded from; `None` for a local one."""
    text = os.fspath(source) if source is not None else ""
    return text if text.count("/") == 1 and not text.startswith(("/", ".", "~")) and not Path(text).exists() else None


@contextmanager
def _named_errors(repo_id: str) -> Iterator[None]:
    """Errors of the Hub as such of the system that name the repository and say what to do."""
    where = f"{repo_id!r} on {constants.ENDPOINT}"
    kept = "nothing local was lost"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = _REMEDIES.get(status, str(error).strip().splitlines()[-1])
        kind = PermissionError if status in (401, 403) else OSError
        raise kind(f"cannot push to {where} (status {status}): {remedy}; {kept}") from error
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"cannot push to {where}: the Hub's offline mode is on; unset HF_HUB_OFFLINE; {kept}"
        ) from error
    except Exception as error:
        # Errors of the connection belong to the client that the Hub's library uses, which has changed its name.
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise ConnectionError(
            f"cannot push to {where}: it cannot be reached ({error}); check the network and push again; {kept}"
        ) from error
