"""How files spell the tensors of an adapter: which module, and which part of its LoRA, a name means."""

import re
from collections.abc import Iterable, Mapping

from ..checkpoints import keys
from .modules import ModuleShapes

# Parts of one module's LoRA: the factors, alpha, what DoRA and LoRA with biases add.
DOWN, UP, ALPHA, MAGNITUDE, BIAS = "down", "up", "alpha", "magnitude", "bias"

_TENSOR = re.compile(
    r"(?P<module>.+?)"
    r"(?:[._](?P<factor>lora[._](?:linear_layer\.)?(?:A|B|down|up)|lora_magnitude_vector)"
    # An adapter's name may stand between a factor and its ending.
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<kind>weight|bias))?"
    r"|\.(?P<scalar>alpha|lora_alpha|dora_scale))"
)
# What training and saving code puts in front of a module's name, in any order and any number.
_WRAPPER = re.compile(
    r"(?P<name>base_model|model|module|diffusion_model|transformer|connectors|text_embedding_projection)[._]"
    r"|lora_(unet|transformer|connectors)_|lycoris_"
)
_CONNECTOR_WRAPPERS = ("connectors", "text_embedding_projection")
# Every module that `torch.compile` wraps holds the real one under this name.
_COMPILED = "_orig_mod."
_OTHER_KINDS = {
    "a full weight difference": (".diff", ".diff_b", ".set_weight"),
    "LoKr": ("lokr_",),
    "LoHa": ("loha_", "hada_"),
    "OFT": ("oft_",),
    "a LoRA of convolutions": ("lora_mid.weight",),
}


def refuse_other_kinds(names: Iterable[str]) -> None:
    """Raise `ValueError` if any tensor belongs to an adapter that is no LoRA."""
    for name in names:
        for kind, marks in _OTHER_KINDS.items():
            if any(name.endswith(mark) if mark.startswith(".") else mark in name for mark in marks):
                raise ValueError(f"this adapter is {kind} (tensor {name!r}); only LoRA and DoRA are supported")


def without_compilation(name: str) -> str:
    """A name without what `torch.compile` put into it."""
    return name.replace(_COMPILED, "")


def split_name(name: str) -> tuple[str, str]:
    """Module as written, and its part; an empty part if the name is that of no LoRA tensor."""
    match = _TENSOR.fullmatch(without_compilation(name))
    if match is None:
        return name, ""
    # Attention processors held their LoRA themselves, under the name of the layer.
    module = match["module"].replace(".processor.", ".")
    if module.endswith(".to_out"):
        module += ".0"
    if match["scalar"]:
        return module, MAGNITUDE if match["scalar"] == "dora_scale" else ALPHA
    if match["factor"] == "lora_magnitude_vector":
        return module, MAGNITUDE
    side = DOWN if match["factor"].endswith(("A", "down")) else UP
    if match["kind"] == "bias":
        return module, BIAS if side == UP else ""
    return module, side


def find_module(
    name: str, modules: ModuleShapes, underscored: Mapping[str, tuple[str, str]]
) -> tuple[str, str] | None:
    """The component and diffusers path that a module name of any layout stands for; `None` if there is none.

    Args:
        name: The name as written.
        modules: The modules that there are.
        underscored: Their names in all layouts with underscores in place of dots -> component and path.
    """
    is_connector = False
    while True:
        place = _exact(name, is_connector, modules, underscored)
        if place is not None:
            return place
        wrapper = _WRAPPER.match(name)
        if wrapper is None:
            return None
        is_connector = is_connector or wrapper["name"] in _CONNECTOR_WRAPPERS
        name = name[wrapper.end() :]


def without_wrappers(name: str) -> str:
    """A module name without all that may stand in front of it."""
    while wrapper := _WRAPPER.match(name):
        name = name[wrapper.end() :]
    return name


def _exact(
    name: str, is_connector: bool, modules: ModuleShapes, underscored: Mapping[str, tuple[str, str]]
) -> tuple[str, str] | None:
    is_connector = is_connector or name.partition(".")[0] in keys.CONNECTOR_ROOTS
    component = "connectors" if is_connector else "transformer"
    path = keys.rename(component, [name], to="diffusers")[name]
    if path in modules.get(component, {}):
        return component, path
    place = None if "." in name else underscored.get(name)
    return place if place is None or place[0] == component or not is_connector else None
