"""Rules about the source itself: nothing is written twice, recipes are short, documented defaults are the real ones."""

import ast
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest

import ltx2_diffusers
from ltx2_diffusers import conditioning, guidance, sampling

SOURCE = Path(ltx2_diffusers.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
REPEATED_LINES = 6
CALL_BODY_LINES = 60
ROOMS = (ltx2_diffusers, conditioning, guidance, sampling)
# Names may stand in two lists, and some are constants.
PUBLIC = list(dict.fromkeys(v for room in ROOMS for v in (getattr(room, n) for n in room.__all__) if callable(v)))
# "default 19", "Default `"auto"`" and "`0` (default)".
LITERAL = r"`?(\"[^\"`]*\"|-?\d[\d_]*(?:\.\d+)?(?:e-?\d+)?|True|False|\([\d, ]+\))`?"
DEFAULT = re.compile(rf"\b[Dd]efaults? (?:is |to )?{LITERAL}(?=[\s.,;:)]|$)|{LITERAL} \(default\)")


def definitions(tree: ast.AST) -> list[ast.AST]:
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function below its docstring."""
    statements = function.body[1 if ast.get_docstring(function) else 0 :]
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Lines that hold code, with their numbers: no docstrings, signatures, imports, comments or blank lines."""
    text = path.read_text()
    tree = ast.parse(text)
    left_out = set()
    for node in ast.walk(tree):
        text_alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if text_alone or isinstance(node, (ast.Import, ast.ImportFrom)):
            left_out.update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.FunctionDef):
            left_out.update(range(node.lineno, node.body[0].lineno))
    lines = enumerate((line.strip() for line in text.splitlines()), start=1)
    return [(number, line) for number, line in lines if number not in left_out and line and not line.startswith("#")]


def test_no_six_lines_stand_twice():
    places = defaultdict(list)
    for path in FILES:
        lines = code_lines(path)
        for start in range(len(lines) - REPEATED_LINES + 1):
            block = lines[start : start + REPEATED_LINES]
            places["\n".join(line for _, line in block)].append(f"{path.relative_to(SOURCE)}:{block[0][0]}")
    assert {block: where for block, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("path", sorted((SOURCE / "pipelines").glob("*.py")), ids=lambda path: path.stem)
def test_the_body_of_a_call_can_be_read_at_a_glance(path):
    tree = ast.parse(path.read_text())
    calls = [node for node in definitions(tree) if node.name == "__call__"]
    assert all(body_lines(call) <= CALL_BODY_LINES for call in calls)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert text.count("\n") <= (600 if path.parent.name == "models" else 300)
    functions = [node for node in definitions(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if body_lines(f) > CALL_BODY_LINES] == []


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
