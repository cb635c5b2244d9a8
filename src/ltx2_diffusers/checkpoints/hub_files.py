"""Where a checkpoint file is: a local path, a link into a Hub repository, or `owner/repository/file`."""

import os
import re
from typing import Any

from huggingface_hub import hf_hub_download

_LINK = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/]+)/(?:(?:blob|resolve|raw)/([^/]+)/)?([^?]+)"
)
_SHORT = re.compile(r"([\w.-]+/[\w.-]+)/(?:(?:blob|resolve)/([^/]+)/)?(.+\.(?:safetensors|gguf))")


def local_file(path_or_link: str | os.PathLike, revision: str | None = None, **hub_options: Any) -> str:
    """The local path of a checkpoint, fetched through the Hub's cache if it is a link.

    Args:
        path_or_link: An existing file, `https://huggingface.co/<owner>/<repository>/blob/<revision>/<file>`, or
            `<owner>/<repository>/<file>`.
        revision: Branch, tag or commit; wins over the one in the link.
        hub_options: `cache_dir`, `token`, `local_files_only`, `force_download` for the download.
    """
    text = os.fspath(path_or_link)
    if os.path.exists(text):
        return text
    match = _LINK.fullmatch(text) or _SHORT.fullmatch(text)
    if match is None or text.startswith(("/", ".")):
        raise FileNotFoundError(
            f"there is no checkpoint file {text!r}; give a path, or a link like "
            "'https://huggingface.co/Lightricks/LTX-2/blob/main/ltx-2-19b-dev.safetensors'"
        )
    repository, link_revision, filename = match.groups()
    return hf_hub_download(repository, filename, revision=revision or link_revision, **hub_options)
