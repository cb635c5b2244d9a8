"""A table of fields is checked, read and written by one rule."""

import pytest

from ltx2_diffusers.checkpoints.config_fields import Field, Note, check_fields, read_fields, same_names, write_fields

TABLE = {
    "_class_name": Note("Model"),
    "dropout": 0.0,
    **same_names(width=8),
    "max_pos": Field(("frames", "height"), [20, 2048]),
    "precision": Field(
        "is_double", "float32", read=lambda name: name == "float64", write=lambda on: "float64" if on else "float32"
    ),
    "activation": Field("act_fn", "snake", choices=("snake", "snakebeta")),
    "gated": Field("gated_attn", False, is_optional=True),
    "inner": {"rate": Field("sample_rate", 16000), "width": Field("width", is_read=False)},
}
OWN = {"width": 4, "frames": 1, "height": 2, "is_double": True, "act_fn": "snakebeta", "gated_attn": True}
OWN |= {"sample_rate": 1}


def test_a_table_is_written_and_read_back():
    fields = write_fields(TABLE, OWN)
    assert fields == {
        "_class_name": "Model",
        "dropout": 0.0,
        "width": 4,
        "max_pos": [1, 2],
        "precision": "float64",
        "activation": "snakebeta",
        "gated": True,
        "inner": {"rate": 1, "width": 4},
    }
    assert read_fields(TABLE, fields) == OWN
    check_fields("model", TABLE, fields)


def test_absent_fields_pass_and_stand_for_their_defaults():
    check_fields("model", TABLE, {})
    defaults = {"width": 8, "frames": 20, "height": 2048, "is_double": False, "act_fn": "snake", "gated_attn": False}
    assert read_fields(TABLE, {}) == defaults | {"sample_rate": 16000}


def test_an_optional_field_is_written_only_where_it_differs():
    assert "gated" not in write_fields(TABLE, OWN | {"gated_attn": False})


def test_what_our_config_lacks_is_named():
    with pytest.raises(KeyError, match="height"):
        write_fields(TABLE, {name: value for name, value in OWN.items() if name != "height"})


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"dropout": 0.1}, r"sets model\.dropout to 0\.1; only 0\.0 is supported"),
        ({"activation": "relu"}, r"sets model\.activation to 'relu'; supported are 'snake' and 'snakebeta'"),
        ({"max_pos": [20]}, r"has model\.max_pos = \[20\]; expected 2 numbers"),
        ({"max_pos": 20}, r"has model\.max_pos = 20; expected 2 numbers"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        check_fields("model", TABLE, fields)
    with pytest.raises(ValueError, match=r"sets model\.inner\.rate to 2; only 1 is supported"):
        check_fields("model", {"inner": {"rate": 1}}, {"inner": {"rate": 2}})
