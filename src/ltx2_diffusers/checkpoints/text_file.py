"""The text encoder of LTX-2.5 in its original file: a Gemma 4 and its tokenizer, beside the text projections.

The metadata `gemma_config` are its configuration, the tensor `tokenizer_json` is the file of that name, and tensors
`hf_asset__NAME` are further files of the tokenizer. Encoding takes nothing that sees or hears, which is left out.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from .json_files import parse_object
from .safetensors_io import SafetensorsFile

TEXT_CONFIG = "gemma_config"
"""Key of the metadata by which such a file is told."""
_TOKENIZER, _ASSET = "tokenizer_json", "hf_asset__"
# What reads texts, in the names of transformers and in flattened ones.
_READS = re.compile(r"(?:language_model\.)?model\.(?:language_model\.)?((?:embed_tokens|layers|norm)\..*)")


def is_text_file(path: str | os.PathLike) -> bool:
    """Whether a path is an original file with a text encoder."""
    file = Path(path)
    return file.suffix == ".safetensors" and file.is_file() and TEXT_CONFIG in SafetensorsFile(file).metadata


def load_text_file(path: str | os.PathLike, dtype: torch.dtype | None = None, **options: Any) -> tuple[Any, Any]:
    """The language model and the tokenizer of an original file.

    Args:
        path: The file.
        dtype: Data type of the weights, default as stored.
        options: Further arguments of the model's `from_pretrained`.

    Raises:
        ValueError: If the file lacks the tokenizer or any weights of the language model.
    """
    import transformers

    file = SafetensorsFile(path, mmap=True)
    fields = parse_object(file.metadata[TEXT_CONFIG], f"the `{TEXT_CONFIG}` metadata of {str(path)!r}")
    kind = getattr(transformers, (fields.get("architectures") or ["Gemma4UnifiedForConditionalGeneration"])[0])
    config = kind.config_class.from_dict({**fields, "vision_config": None, "audio_config": None})
    found = {match[1]: entry for name, entry in file.entries.items() if (match := _READS.fullmatch(name))}
    state = {f"model.language_model.{name}": entry.load() for name, entry in found.items()}
    how = {"config": config, "state_dict": state, "dtype": dtype or next(iter(state.values())).dtype, **options}
    model, report = kind.from_pretrained(None, output_loading_info=True, **how)
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("lm_head")):
        raise ValueError(
            f"{str(path)!r} lacks {len(missing)} tensors of the text encoder, such as {missing[0]}; fetch it again"
        )
    return model.eval(), _tokenizer(file)


def _tokenizer(file: SafetensorsFile) -> Any:
    """The tokenizer whose files are tensors of bytes."""
    from transformers import AutoTokenizer

    names = {_TOKENIZER: "tokenizer.json"}
    names |= {name: Path(name.removeprefix(_ASSET)).name for name in file.entries if name.startswith(_ASSET)}
    if _TOKENIZER not in file.entries:
        raise ValueError(f"{str(file.path)!r} has no tensor {_TOKENIZER}, which is its tokenizer; give `tokenizer`")
    with tempfile.TemporaryDirectory() as folder:
        for name, target in names.items():
            Path(folder, target).write_bytes(file.entries[name].load().view(torch.uint8).numpy().tobytes())
        return AutoTokenizer.from_pretrained(folder)
