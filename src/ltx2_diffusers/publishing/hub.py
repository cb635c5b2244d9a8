"""Uploading to the Hub what lies saved in a folder, with a model card; what is saved stays where it is, whatever happens."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from ..atomic import complete_file, temporary_folder
from .card import CARD_NAME, Card, MakesCard, is_renewable, may_write

_REMEDIES = {
    401: "the token is missing or not valid; log in with `hf auth login`, or pass a `token` that may write",
    403: "the token may not write there; use one that may, or a name of your own",
    404: "there is no such repository or revision, or the token may not see it",
}


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


def publish_folder(folder: str | os.PathLike, push: Push, card: MakesCard) -> str:
    """Upload all files of a folder, which stays as it is but for its card.

    Args:
        folder: What is uploaded. A `README.md` in it that somebody wrote or edited is the card; else the repository's is,
            if somebody wrote or edited that one, and in it only metadata are added; else a new one is.
        push: Where to.
        card: Makes the new card.

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
        is_own = may_write(folder / CARD_NAME)
        if push.subfolder is None and is_own:
            with complete_file(folder / CARD_NAME) as partial:
                content = _card_for(repo_id, push, card(repo_id))
                partial.write_text(content, encoding="utf-8", newline="\n")
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=push.subfolder,
            commit_message=push.commit_message or "Upload with ltx2-diffusers",
            create_pr=push.create_pr,
            revision=push.revision,
            # A folder of a repository has no card, unless somebody wrote one.
            ignore_patterns=[CARD_NAME] if push.subfolder is not None and is_own else None,
        )
    return str(url)


def _card_for(repo_id: str, push: Push, card: Card) -> str:
    """What the card of a repository is to be: this one, unless somebody wrote or edited the one that is there."""
    try:
        path = hf_hub_download(repo_id, CARD_NAME, revision=push.revision, token=push.token)
    except EntryNotFoundError:
        return card.content
    # As it is, also its ends of lines.
    with open(path, encoding="utf-8-sig", newline="") as file:
        present = file.read()
    return card.content if is_renewable(present) else card.completing(present)


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
