"""Names under which classes stand in `model_index.json`: ours and diffusers', both ways.

Saved folders carry the portable pair, which diffusers resolves without this package; loading turns it into ours.
"""

from collections.abc import Mapping
from typing import Any

PACKAGE = "ltx2_diffusers"

# Our class -> the pair that diffusers resolves to its class of the same weights and configuration.
_PORTABLE_COMPONENTS = {
    "LTX2AVTransformer3DModel": ("diffusers", "LTX2VideoTransformer3DModel"),
    "AutoencoderKLLTX2Video": ("diffusers", "AutoencoderKLLTX2Video"),
    "AutoencoderKLLTX2Audio": ("diffusers", "AutoencoderKLLTX2Audio"),
    "LTX2TextConnectors": ("ltx2", "LTX2TextConnectors"),
    "LTX2Vocoder": ("ltx2", "LTX2Vocoder"),
    "LTX2VocoderWithBWE": ("ltx2", "LTX2VocoderWithBWE"),
    "LTX2LatentUpsamplerModel": ("ltx2", "LTX2LatentUpsamplerModel"),
    "LTX2DurationHead": ("ltx2", "LTX2DurationHead"),
    "LTX2VideoDiffusionDecoderModel": ("diffusers", "LTX2VideoDiffusionDecoderModel"),
}
# Guiders have no weights; they lie in the folders of modular pipelines.
_PORTABLE_BOTH_WAYS = _PORTABLE_COMPONENTS | {"LTX2Guidance": ("diffusers", "LTX2Guidance")}
_OURS = {pair: name for name, pair in _PORTABLE_BOTH_WAYS.items()}
# Its configuration is a superset of the portable class's, so that it is translated only on the way out: a plain
# FlowMatchEuler folder keeps FlowMatchEuler's schedule.
_PORTABLE = _PORTABLE_BOTH_WAYS | {"LTX2Scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler")}

# Pipelines that diffusers has under the same name; it can run every other one's folder as text to video.
_PORTABLE_PIPELINES = (
    "LTX2Pipeline",
    "LTX2ImageToVideoPipeline",
    "LTX2ConditionPipeline",
    "LTX2InContextPipeline",
    "LTX2LatentUpsamplePipeline",
    "LTX2VideoDiffusionDecodePipeline",
    "LTX2DFRPipeline",
    "LTX2DFRTemporalRefinePipeline",
    "LTX2HDRPipeline",
)

# What an original file of a whole model holds, and a pipeline needs besides its text encoder.
PIPELINE_COMPONENTS = ("transformer", "connectors", "vae", "audio_vae", "vocoder")
# What the original files of some models hold beside these, and pipelines take.
OPTIONAL_COMPONENTS = ("duration_head", "diffusion_decoder")
# Component folder -> our class; the vocoder has two.
COMPONENT_CLASSES = {
    "transformer": ("LTX2AVTransformer3DModel",),
    "connectors": ("LTX2TextConnectors",),
    "vae": ("AutoencoderKLLTX2Video",),
    "audio_vae": ("AutoencoderKLLTX2Audio",),
    "vocoder": ("LTX2Vocoder", "LTX2VocoderWithBWE"),
    "latent_upsampler": ("LTX2LatentUpsamplerModel",),
    "duration_head": ("LTX2DurationHead",),
    "diffusion_decoder": ("LTX2VideoDiffusionDecoderModel",),
}
# Class name, ours or diffusers' -> component folder.
COMPONENT_OF = {
    name: component
    for component, classes in COMPONENT_CLASSES.items()
    for ours in classes
    for name in (ours, _PORTABLE_COMPONENTS[ours][1])
}
# Classes of diffusers whose original files are read here, though they have no class of this package.
LTX_VIDEO_CLASSES = {
    "transformer": "LTXVideoTransformer3DModel",
    "vae": "AutoencoderKLLTXVideo",
    "latent_upsampler": "LTXLatentUpsamplerModel",
}
_COMPONENT_OF_FILE = COMPONENT_OF | {name: component for component, name in LTX_VIDEO_CLASSES.items()}
FAMILIES = ("ltx2", "ltx_video")
# What an original file of a whole model holds, by family.
FILE_COMPONENTS = {"ltx2": PIPELINE_COMPONENTS, "ltx_video": ("transformer", "vae")}


def to_ours(library: str, class_name: str) -> tuple[str, str]:
    """The pair to load for an entry of `model_index.json`: this package's class where it has one.

    Entries with a full module path of this package, as diffusers writes them for foreign classes, are shortened.
    Other pairs are returned as they are.
    """
    if _is_ours(library):
        return PACKAGE, class_name
    ours = _OURS.get((library, class_name))
    return (PACKAGE, ours) if ours else (library, class_name)


def model_pair(class_name: str | None) -> tuple[str, str] | None:
    """The pair to load for a model whose own configuration says only the name of its class, ours or diffusers'."""
    if class_name is not None and class_name in LTX_VIDEO_CLASSES.values():
        return ("ltx" if class_name == LTX_VIDEO_CLASSES["latent_upsampler"] else "diffusers"), class_name
    names = {portable[1]: ours for ours, portable in _PORTABLE_COMPONENTS.items()}
    name = names.get(class_name or "", class_name)
    return (PACKAGE, name) if name in _PORTABLE_COMPONENTS else None


def to_portable(library: str, class_name: str) -> tuple[str, str]:
    """The pair to save for an entry of `model_index.json`: diffusers' class where it has the same model.

    Classes of this package that diffusers lacks keep the package's name; other libraries' pairs are returned as they
    are.
    """
    if not _is_ours(library):
        return library, class_name
    return _PORTABLE.get(class_name, (PACKAGE, class_name))


def portable_pipeline(class_name: str) -> str:
    """The pipeline to name in a saved folder: the same one where diffusers has it, else the plain one."""
    return class_name if class_name in _PORTABLE_PIPELINES else "LTX2Pipeline"


def component_of(cls: type) -> str:
    """The component folder of a model class (also of subclasses, and of diffusers' classes).

    Raises:
        ValueError: If `cls` is no class of such a component.
    """
    for base in cls.__mro__:
        if base.__name__ in _COMPONENT_OF_FILE:
            return _COMPONENT_OF_FILE[base.__name__]
    known = ", ".join([*_PORTABLE_COMPONENTS, *LTX_VIDEO_CLASSES.values()])
    raise ValueError(f"{cls.__name__} is no component of an LTX-2 or LTX-Video checkpoint; known are {known}")


def family_of(cls: type) -> str:
    """The family of a model class, one of `FAMILIES`."""
    return FAMILIES[any(base.__name__ in LTX_VIDEO_CLASSES.values() for base in cls.__mro__)]


def class_name_for(component: str, config: Mapping[str, Any]) -> str:
    """Our class for a component with the given diffusers config."""
    names = COMPONENT_CLASSES[component]
    return names[-1] if component == "vocoder" and "bwe_hidden_channels" in config else names[0]


def ltx_video_class(component: str) -> type[Any]:
    """diffusers' class for a component of LTX-Video, one of `LTX_VIDEO_CLASSES`."""
    import diffusers
    from diffusers.pipelines.ltx.modeling_latent_upsampler import LTXLatentUpsamplerModel

    if component == "latent_upsampler":
        return LTXLatentUpsamplerModel
    return getattr(diffusers, LTX_VIDEO_CLASSES[component])


def _is_ours(module: str) -> bool:
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")
