"""Class names in `model_index.json`: diffusers' on the way out, ours on the way in."""

import importlib

import diffusers
import pytest

from ltx2_diffusers.checkpoints.class_names import class_name_for, component_of, to_ours, to_portable
from ltx2_diffusers.schedulers.scheduling_ltx2 import LTX2Scheduler
from tests.golden_data import load_json

from .tiny import CLASSES, MODELS, expected_folder

PAIRS = {
    ("diffusers", "LTX2VideoTransformer3DModel"): "LTX2AVTransformer3DModel",
    ("diffusers", "AutoencoderKLLTX2Video"): "AutoencoderKLLTX2Video",
    ("diffusers", "AutoencoderKLLTX2Audio"): "AutoencoderKLLTX2Audio",
    ("ltx2", "LTX2TextConnectors"): "LTX2TextConnectors",
    ("ltx2", "LTX2Vocoder"): "LTX2Vocoder",
    ("ltx2", "LTX2VocoderWithBWE"): "LTX2VocoderWithBWE",
    ("ltx2", "LTX2LatentUpsamplerModel"): "LTX2LatentUpsamplerModel",
}


@pytest.mark.parametrize("pair, name", PAIRS.items())
def test_known_pairs_translate_both_ways(pair, name):
    assert to_ours(*pair) == ("ltx2_diffusers", name)
    assert to_portable("ltx2_diffusers", name) == pair
    assert to_portable(CLASSES[name].__module__, name) == pair
    assert to_ours(CLASSES[name].__module__, name) == ("ltx2_diffusers", name)


@pytest.mark.parametrize("pair", PAIRS)
def test_portable_pairs_exist_in_diffusers(pair):
    library = diffusers if pair[0] == "diffusers" else importlib.import_module("diffusers.pipelines.ltx2")
    name = pair[1]
    if not hasattr(library, name):
        modules = {"LTX2TextConnectors": "connectors", "LTX2LatentUpsamplerModel": "latent_upsampler"}
        library = importlib.import_module(f"diffusers.pipelines.ltx2.{modules.get(name, 'vocoder')}")
    assert component_of(getattr(library, name)) == component_of(CLASSES[PAIRS[pair]])


def test_schedulers_are_portable_but_keep_their_own_class_on_the_way_in():
    pair = ("diffusers", "FlowMatchEulerDiscreteScheduler")
    assert to_portable(LTX2Scheduler.__module__, LTX2Scheduler.__name__) == pair
    assert to_ours(*pair) == pair


def test_other_libraries_stay():
    assert to_ours("transformers", "Gemma3ForConditionalGeneration") == (
        "transformers",
        "Gemma3ForConditionalGeneration",
    )
    assert to_portable("transformers", "GemmaTokenizer") == ("transformers", "GemmaTokenizer")
    assert to_portable("ltx2_diffusers.models.extra", "Extra") == ("ltx2_diffusers", "Extra")


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_the_golden_index_survives_the_round_trip(path):
    index = load_json(expected_folder(path) / "model_index.json")
    pairs = {name: tuple(pair) for name, pair in index.items() if isinstance(pair, list) and pair[0]}
    assert {name: to_portable(*to_ours(*pair)) for name, pair in pairs.items()} == pairs


def test_the_vocoder_class_follows_from_its_config():
    assert class_name_for("vocoder", {"bwe_hidden_channels": 32}) == "LTX2VocoderWithBWE"
    assert class_name_for("vocoder", {"hidden_channels": 32}) == "LTX2Vocoder"
