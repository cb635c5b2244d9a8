"""Rules about the source itself: what a reader can find, nothing twice, documented defaults are the real ones."""

import ast
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest

import ltx2_diffusers.training.components
from ltx2_diffusers import conditioning, guidance, sampling, training
from ltx2_diffusers.pipelines.base import LTX2PipelineBase

SOURCE = Path(ltx2_diffusers.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]
RECIPES = sorted(path for room in ("pipelines/recipes", "families") for path in (SOURCE / room).rglob("*.py"))
REPEATED_LINES = 6
FUNCTION_LINES = 60
MODULES_IN_A_FOLDER = 15
# One file per network, one per file format.
LARGE_FOLDERS = ("models", "checkpoints")
OWN_BASES = 3
CODE_LINES = 43_850
IMPORT_SHARE = 0.08
ROOMS = (ltx2_diffusers, conditioning, guidance, sampling, training, training.components)
# Names may stand in two lists, and some are constants.
PUBLIC = list(dict.fromkeys(v for room in ROOMS for v in (getattr(room, n) for n in room.__all__) if callable(v)))
CALLS = [value for value in PUBLIC if inspect.isclass(value) and issubclass(value, LTX2PipelineBase)]
# "default 19", "Default `"auto"`" and "`0` (default)".
LITERAL = r"`?(\"[^\"`]*\"|-?\d[\d_]*(?:\.\d+)?(?:e-?\d+)?|True|False|\([\d, ]+\))`?"
DEFAULT = re.compile(rf"\b[Dd]efaults? (?:is |to )?{LITERAL}(?=[\s.,;:)]|$)|{LITERAL} \(default\)")


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function below its docstring."""
    statements = function.body[1 if ast.get_docstring(function) else 0 :]
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0


def lines_of(tree: ast.AST, *kinds: type) -> set[int]:
    return {
        line for node in ast.walk(tree) if isinstance(node, kinds) for line in range(node.lineno, node.end_lineno + 1)
    }


def code_lines(path: Path) -> tuple[list[tuple[int, str]], set[int]]:
    """Lines that hold code, with their numbers: no docstrings, comments or blank lines; and which of them are imports."""
    tree = ast.parse(path.read_text())
    docs = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)]
    left_out = set().union(*(range(node.lineno, node.end_lineno + 1) for node in docs))
    lines = enumerate((line.strip() for line in path.read_text().splitlines()), start=1)
    code = [(number, line) for number, line in lines if number not in left_out and line and not line.startswith("#")]
    return code, lines_of(tree, ast.Import, ast.ImportFrom) & {number for number, _ in code}


def test_no_six_lines_stand_twice():
    """Signatures included."""
    places = defaultdict(list)
    for path, name in zip(FILES, NAMES):
        code, imports = code_lines(path)
        lines = [(number, line) for number, line in code if number not in imports]
        for start in range(len(lines) - REPEATED_LINES + 1):
            block = lines[start : start + REPEATED_LINES]
            places["\n".join(line for _, line in block)].append(f"{name}:{block[0][0]}")
    assert {block: where for block, where in places.items() if len(where) > 1} == {}


def test_the_package_stays_small():
    assert sum(len(code_lines(path)[0]) for path in FILES) <= CODE_LINES


def test_pipelines_are_not_made_of_imports():
    counted = [code_lines(path) for path in FILES if path.is_relative_to(SOURCE / "pipelines")]
    assert sum(len(imports) for _, imports in counted) <= IMPORT_SHARE * sum(len(code) for code, _ in counted)


def test_a_folder_holds_no_more_than_a_reader_can_look_over():
    folders = defaultdict(list)
    for path in FILES:
        folders[path.parent].append(path.stem)
    crowded = {folder: names for folder, names in folders.items() if len(names) - 1 > MODULES_IN_A_FOLDER}
    assert {folder.name for folder in crowded} <= set(LARGE_FOLDERS)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_functions_can_be_read_at_a_glance(path):
    assert [function.name for function in functions(path) if body_lines(function) > FUNCTION_LINES] == []


def test_recipes_are_recipes():
    """A call says in a few lines, each a call with a name, what is made of its arguments; it loops over nothing."""
    calls = {f"{p}:{f.lineno}": f for p in RECIPES for f in functions(p) if f.name == "__call__"}
    assert len(calls) == len(CALLS)
    loops = (ast.For, ast.While, ast.Try, ast.With)
    assert {name: body_lines(call) for name, call in calls.items() if body_lines(call) > 25} == {}
    assert [name for name, call in calls.items() if lines_of(call, *loops)] == []


@pytest.mark.parametrize("pipeline", CALLS, ids=lambda value: value.__name__)
def test_every_argument_of_a_call_is_described_once(pipeline):
    text, names = inspect.getdoc(pipeline.__call__), list(inspect.signature(pipeline.__call__).parameters)[1:]
    entries = re.findall(r"^    (\w+(?:, \w+)*): ", text.partition("Args:\n")[2], flags=re.MULTILINE)
    described = [name for entry in entries for name in entry.split(", ") if name in names]
    assert sorted(described) == sorted(names)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_no_names_are_handed_on_as_strings(path):
    called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert "locals" not in [name.id for name in called if isinstance(name, ast.Name)]


@pytest.mark.parametrize("value", [v for v in PUBLIC if inspect.isclass(v)], ids=lambda value: value.__name__)
def test_a_class_has_few_bases_of_our_own(value):
    own = [kind for kind in value.__mro__ if kind.__module__.startswith("ltx2_diffusers")]
    assert {kind: kind.__bases__ for kind in own if sum(base in own for base in kind.__bases__) > OWN_BASES} == {}


def documented(value) -> list[tuple[object, str]]:
    """Callables of a public object together with the docstring that describes their arguments."""
    if not inspect.isclass(value):
        return [(value, value.__doc__ or "")]
    own = [(value.__init__, value.__doc__ or "")]
    methods = [member for name, member in vars(value).items() if inspect.isfunction(member) and name != "__init__"]
    return own + [(method, method.__doc__ or "") for method in methods]


@pytest.mark.parametrize("value", PUBLIC, ids=lambda value: value.__name__)
def test_documented_defaults_are_the_real_ones(value):
    wrong = []
    for function, text in documented(value):
        entries = re.split(r"\n\s+(?=`?\w+`?(?:, `?\w+`?)*(?: \([^\n]*\))?: )", inspect.cleandoc(text))
        parameters = inspect.signature(function).parameters
        for entry in entries[1:]:
            names, found = entry.partition(":")[0], DEFAULT.search(entry)
            name = names.partition("(")[0].strip(" `")
            # Some defaults depend on another argument or on the checkpoint; those are None in the signature.
            real = parameters[name].default if name in parameters else None
            if found is None or real is None or real is inspect.Parameter.empty:
                continue
            said = ast.literal_eval(found[1] or found[2])
            if said != real:
                wrong.append(f"{function.__qualname__}: {name} is {real!r}, documented {said!r}")
    assert wrong == []
