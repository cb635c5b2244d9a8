"""Configuration files: YAML in and out, single values on top of them, and messages that name place, value and remedy.

A place is written with dots, as in `optimization.steps`; so are the overrides `section.key=value`.
"""

import difflib
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..atomic import complete_file
from ..declared import shown
from ..yaml_files import read_mapping
from .config import GUIDANCE_KEYS, STRATEGY_SECTIONS, Section, StrategySection, TrainingConfig

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo

_NEAR = 0.6
# Names of files are shown whole, up to here.
_LONG = 400
_NULLS = ("null", "~", "")
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true|false", Path: "path", dict: "mapping"}
# Pydantic's kinds of errors -> what is allowed, with the numbers of the error.
_ALLOWED = {
    "finite_number": "has to be a finite number",
    "greater_than": "has to be greater than {gt:g}",
    "greater_than_equal": "has to be at least {ge:g}",
    "less_than": "has to be less than {lt:g}",
    "less_than_equal": "has to be at most {le:g}",
    "string_too_short": "has to be a text that is not empty",
    "too_long": "has to have {max_length} entries",
    "too_short": "has to have {min_length} entries",
    "union_tag_invalid": "has to have a `type` among {expected_tags}",
    "union_tag_not_found": "has to have a `type`",
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text", "path": "a path"}
_KINDS |= {"list": "a list", "tuple": "a list", "dict": "a mapping", "model": "a mapping of keys to values"}


def load_config(
    path: str | os.PathLike | None,
    overrides: Sequence[str] = (),
    changes: Mapping[str, str | bool | Sequence[str]] = types.MappingProxyType({}),
) -> TrainingConfig:
    """The settings in a YAML file, with single values changed.

    Args:
        path: The file; `None` begins with nothing but defaults, and an adapter.
        overrides: `section.key=value`, each value as YAML writes it.
        changes: The same by place, as the command line gives them; they win.

    Raises:
        ValueError: If the file is no YAML or no mapping, or holds what is not allowed; all of it is named, a line each.
        FileNotFoundError: If there is no such file.
    """
    values = {} if path is None else read_mapping(path)
    for override in overrides:
        place, mark, text = override.partition("=")
        if not mark or not place:
            raise ValueError(f"{override!r} is neither an option nor section.key=value")
        _set(values, place, _read(place, text))
    for place, given in changes.items():
        _set(values, place, given if isinstance(given, bool) else _read(place, given))
    if path is None and values.get("model", {}).get("training_mode", "lora") == "lora":
        values.setdefault("lora", {})
    return parse_config(values)


def parse_config(values: Mapping[str, Any]) -> TrainingConfig:
    """The settings in a mapping of sections.

    Raises:
        ValueError: Naming everything that is wrong, one line each: place, value and what is allowed.
    """
    from pydantic import ValidationError

    try:
        return TrainingConfig.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError("\n".join(_problems(error, values))) from None


def save_config(config: TrainingConfig, path: str | os.PathLike) -> None:
    """Write settings as a YAML file from which [`load_config`] reads them again."""
    with complete_file(path) as partial:
        partial.write_text(config_text(config), encoding="utf-8")


def config_text(config: TrainingConfig) -> str:
    """Settings as YAML.

    Keys of `validation` whose meaning depends on the model's generation are left out unless they were given.
    """
    import yaml

    values = config.model_dump(mode="json")
    for name in GUIDANCE_KEYS:
        if name not in config.validation.model_fields_set:
            del values["validation"][name]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=119)


def _set(values: dict[str, Any], place: str, value: Any) -> None:
    """Set one value in nested mappings; missing ones are made."""
    *parents, last = place.split(".")
    for name in parents:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[last] = value


def _read(place: str, given: str | Sequence[str]) -> Any:
    """The value of a key as YAML writes it; what stands for a text stays as it is, and one entry makes a list."""
    row = next((row for row in fields() if row.name == place), None)
    if row is None:
        return _read_yaml(place, str(given))
    if not row.is_list:
        return _read_one(row, given if isinstance(given, str) else " ".join(given))
    texts = [given] if isinstance(given, str) else list(given)
    if len(texts) == 1 and (texts[0].startswith("[") or texts[0] in _NULLS):
        return _read_yaml(place, texts[0])
    return [_read_one(row, text) for text in texts]


def _read_one(row: "FieldRow", text: str) -> Any:
    if not row.holds_text or text in _NULLS:
        return _read_yaml(row.name, text)
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if is_quoted else text


def _read_yaml(place: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{place}: {text!r} is no YAML: {getattr(error, 'problem', None) or error}") from None


@dataclass(frozen=True)
class FieldRow:
    """What one key of the file is.

    Args:
        name: Its place, `section.key`.
        type: Its type in words.
        default: Its default as YAML writes it, `required`, or several for different strategies.
        description: One sentence.
        kinds: Its Python types; of a list, those of its entries.
        is_list: Whether it is a list.
        strategies: Names of the strategies that have it, where not all have; else empty.
    """

    name: str
    type: str
    default: str
    description: str
    kinds: frozenset[Any]
    is_list: bool = False
    strategies: tuple[str, ...] = ()

    @property
    def section(self) -> str:
        """The section, `""` for what stands outside all."""
        return self.name.rpartition(".")[0]

    @property
    def entry_type(self) -> str:
        """The type of a list's entries in words."""
        return "|".join(sorted(_NAMES.get(kind, "mapping") for kind in self.kinds))

    @property
    def holds_text(self) -> bool:
        """Whether its value, or an entry of it, is a text."""
        return bool(self.kinds & {str, Path})

    @property
    def key(self) -> str:
        """The last part of its place."""
        return self.name.rpartition(".")[2]


def fields() -> list[FieldRow]:
    """All keys of the file, in its order; a key that several strategies have stands once."""
    rows: list[FieldRow] = []
    for name, info in TrainingConfig.model_fields.items():
        section = next((kind for kind in _classes(info.annotation)), None)
        if section is None:
            rows.append(_row(name, info))
        elif issubclass(section, StrategySection):
            rows.extend(_strategy_rows(name))
        else:
            rows.extend(_row(f"{name}.{key}", part) for key, part in section.model_fields.items())
    return rows


def _row(name: str, info: "FieldInfo", strategies: tuple[str, ...] = ()) -> FieldRow:
    kinds = _alternatives(info.annotation)
    # What names layers is anything to pydantic, since one preset may stand for a list.
    entries = [str] if Any in kinds else [part for kind in kinds for part in _entries(kind)]
    plain = frozenset(one for kind in entries or kinds for one in _plain(kind))
    default = "required" if info.is_required() else _yaml(info.get_default(call_default_factory=True))
    words = _type_words(info.annotation)
    return FieldRow(name, words, default, info.description or "", plain, bool(entries), strategies)


def _entries(kind: Any) -> tuple[Any, ...]:
    """The types of a list's entries; none for what is no list."""
    is_list = typing.get_origin(kind) in (list, tuple)
    return tuple(one for part in typing.get_args(kind) for one in _alternatives(part)) if is_list else ()


def _strategy_rows(section: str) -> Iterator[FieldRow]:
    keys = dict.fromkeys(key for kind in STRATEGY_SECTIONS.values() for key in kind.model_fields)
    for key in keys:
        having = {name: kind.model_fields[key] for name, kind in STRATEGY_SECTIONS.items() if key in kind.model_fields}
        place, names = f"{section}.{key}", tuple(having) if len(having) < len(STRATEGY_SECTIONS) else ()
        if key == "name":
            what = "; ".join(f"{name}: {(info.description or '').rstrip('.')}" for name, info in having.items())
            yield FieldRow(place, "|".join(having), "text_to_video", f"{what}.", frozenset({str}))
            continue
        first = _row(place, next(iter(having.values())), names)
        defaults: dict[str, list[str]] = {}
        for name, info in having.items():
            defaults.setdefault(_row(place, info).default, []).append(name)
        texts = [default if len(defaults) == 1 else f"{default} for {', '.join(n)}" for default, n in defaults.items()]
        yield replace(first, default="; ".join(texts))


def _yaml(value: Any) -> str:
    """A value as YAML writes it on one line."""
    import yaml

    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows, without marks and without None."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _alternatives(parts[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(kind for part in parts if part is not type(None) for kind in _alternatives(part))
    return (annotation,)


def _plain(kind: Any) -> tuple[Any, ...]:
    """The classes behind a type: those of a literal's values, `list` for a list of something."""
    if typing.get_origin(kind) is typing.Literal:
        return tuple(type(value) for value in typing.get_args(kind))
    return (typing.get_origin(kind) or kind,)


def _allows_null(annotation: Any) -> bool:
    parts = typing.get_args(annotation)
    return type(None) in parts or (typing.get_origin(annotation) is typing.Annotated and _allows_null(parts[0]))


def _type_words(annotation: Any) -> str:
    words = [_kind_words(kind) for kind in _alternatives(annotation)]
    return "|".join(dict.fromkeys([*words, *(["null"] if _allows_null(annotation) else [])]))


def _kind_words(kind: Any) -> str:
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return "|".join(_yaml(value) for value in parts)
    if origin is list:
        return f"list of {_type_words(parts[0])}"
    if origin is tuple:
        return f"[{', '.join(_type_words(part) for part in parts)}]"
    if isinstance(kind, type) and issubclass(kind, Section):
        return "mapping"
    return _NAMES.get(origin or kind, "text or list of text")


def _classes(annotation: Any) -> Iterator[type[Section]]:
    """The sections that an annotation allows, also as entries of a list."""
    for kind in _alternatives(annotation):
        if typing.get_origin(kind) is list:
            yield from _classes(typing.get_args(kind)[0])
        elif isinstance(kind, type) and issubclass(kind, Section):
            yield kind


def _problems(error: "ValidationError", values: Mapping[str, Any]) -> list[str]:
    """What is wrong, one line each, without repetitions."""
    found = [line for one in error.errors() for line in _problem(one, values)]
    return list(dict.fromkeys(found))


def _problem(error: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    kind, context = error["type"], error.get("ctx", {})
    place, section, info = _locate(error["loc"], values, kind == "missing")
    name = ".".join(map(str, place))
    if kind == "extra_forbidden":
        return [f"{name}: unknown key; {_nearest_key(str(place[-1]), section)}"]
    if kind == "missing":
        needed = [row.name for row in fields() if row.section == name and row.default == "required"]
        what = info.description if info is not None and info.description else f"Give {', '.join(needed)}."
        return [f"{name}: is missing; {what[0].lower()}{what[1:].rstrip('.')}"]
    if kind == "value_error":
        rules = str(context["error"]).split("\n")
    else:
        rules = [_choices(info) if kind == "literal_error" else _allowed(kind, context)]
    return [_with_value(f"{name}: {rule}" if place else rule, error["input"]) for rule in rules]


def _choices(info: "FieldInfo | None") -> str:
    words = [] if info is None else _type_words(info.annotation).split("|")
    return f"has to be one of {', '.join(words)}"


def _allowed(kind: str, context: Mapping[str, Any]) -> str:
    """What a value has to be where pydantic found an error of some kind."""
    if kind in _ALLOWED:
        return _ALLOWED[kind].format(**context)
    return f"has to be {_KINDS.get(kind.partition('_')[0], 'a value of another kind')}"


def _with_value(rule: str, value: Any) -> str:
    """A rule together with the value that breaks it, unless it names what is wrong itself."""
    rule, mark, remedy = rule.partition(";")
    if " has to " not in rule or " but " in rule:
        return rule + mark + remedy
    is_name = isinstance(value, (str, Path)) and len(str(value)) < _LONG
    return f"{rule} but is {repr(value) if is_name else shown(value)}{mark}{remedy}"


def _locate(
    loc: Sequence[str | int], values: Any, lacks_last: bool
) -> tuple[list[str | int], type[Section] | None, "FieldInfo | None"]:
    """The place of an error in the file, the section it lies in, and the field.

    Tags of unions, which are no keys, are left out of the place; `lacks_last` says that the last part is a missing key.
    """
    place: list[str | int] = []
    section: type[Section] | None = TrainingConfig
    info: FieldInfo | None = None
    annotation: Any = TrainingConfig
    for index, part in enumerate(loc):
        is_there = part in values if isinstance(values, Mapping) else isinstance(part, int)
        if not is_there and not (lacks_last and index == len(loc) - 1):
            continue
        place.append(part)
        values = _child(values, part)
        if isinstance(part, int):
            continue
        section = _section_of(annotation, loc[:index])
        info = section.model_fields.get(part) if section is not None else None
        annotation = None if info is None else _with_strategy(info.annotation, values)
    return place, section, info


def _child(values: Any, part: str | int) -> Any:
    try:
        return values[part]
    except (LookupError, TypeError):
        return None


def _with_strategy(annotation: Any, values: Any) -> Any:
    """The section of the named strategy, where an annotation says only that there is one."""
    if StrategySection not in _alternatives(annotation):
        return annotation
    name = values.get("name", "text_to_video") if isinstance(values, Mapping) else None
    return STRATEGY_SECTIONS.get(str(name), StrategySection)


def _section_of(annotation: Any, loc: Sequence[str | int]) -> type[Section] | None:
    """The section that an annotation means; of several, the one whose `type` stands last in `loc`."""
    kinds = list(_classes(annotation))
    tagged = {
        tag: kind
        for kind in kinds
        if (info := kind.model_fields.get("type"))
        for tag in typing.get_args(info.annotation)
    }
    return next((tagged[part] for part in reversed(loc) if part in tagged), kinds[0] if kinds else None)


def _nearest_key(name: str, section: type[Section] | None) -> str:
    """What an unknown key may have meant: a key of its section, or the same key elsewhere, or all there are."""
    known = list(section.model_fields) if section is not None else []
    if section is not None and issubclass(section, StrategySection):
        having = [kind for kind, other in STRATEGY_SECTIONS.items() if name in other.model_fields]
        if having:
            return f"it belongs to the strategies {', '.join(having)}" if having[1:] else f"it belongs to {having[0]}"
    if near := difflib.get_close_matches(name, known, n=1, cutoff=_NEAR):
        return f"did you mean {near[0]}?"
    elsewhere = {row.key: row.name for row in reversed(fields())} | {
        name: name for name in TrainingConfig.model_fields
    }
    if near := difflib.get_close_matches(name, elsewhere, n=1, cutoff=0.8):
        return f"did you mean {elsewhere[near[0]]}?"
    return f"there are {', '.join(known)}"
