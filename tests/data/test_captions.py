import pytest

from ltx2_diffusers.data.captions import LLM_PREFIXES, with_trigger, without_captioner_phrases, without_llm_prefix
from tests.golden_data import load_json

GOLDEN = load_json("training/captions.json")


def test_all_phrases_are_known():
    assert len(LLM_PREFIXES) == GOLDEN["phrase_count"]


@pytest.mark.parametrize("case", GOLDEN["llm_prefix_removal"], ids=lambda case: case["text"])
def test_phrases_of_language_models_are_removed(case):
    assert without_llm_prefix(case["text"]) == case["cleaned"]


@pytest.mark.parametrize("case", GOLDEN["captioner_cleanup"], ids=lambda case: case["text"])
def test_phrases_of_captioners_are_removed(case):
    assert without_captioner_phrases(case["text"]) == case["cleaned"]


@pytest.mark.parametrize("case", GOLDEN["trigger"], ids=lambda case: repr(case["trigger"]))
def test_a_trigger_stands_in_front(case):
    blank = case["trigger"] is not None and not case["trigger"].strip()
    # The reference writes a blank for a trigger of blanks; here it counts as none.
    assert with_trigger(case["text"], case["trigger"]) == (case["text"] if blank else case["prompt"])
