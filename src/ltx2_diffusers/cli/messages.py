"""Messages of pipelines in the words of the command line."""

import os
import re

from .options import OPTIONS
from .values import Options, flag, flags, parts_of

# Quoted text, which stays, or a word, with the marks that a name in code has: backticks or a value.
_WORD = re.compile(
    r"""(?<![\w=\[])(?:'[^']*'|"[^"]*")"""
    r"""|(?<![/\w])`?(?P<name>\w+)(?:=["']?(?P<value>[\w.]+(?:-\w+)*|{})["']?)?`?(?![/\w]|\.\w)"""
)
# An object among arguments, whose own arguments are options too; no option gives its bins.
_NO_OPTION = re.compile(r"(?: or `\w+`)? of `guidance_options`")
_OBJECT = re.compile(r"\w+=[A-Z]\w+\(([^()]*)\)")


def in_options(message: str, given: Options) -> str:
    """A message of a pipeline in which the options that a user types stand for Python's names of arguments.

    A name is told from prose by its marks, an underscore in it, or "must" behind it. Of several options with that name,
    the given ones are meant. A message without names begins with the option whose value it quotes.
    """
    for option in OPTIONS.values():
        if option.value is None:
            message = message.replace(f"`{option.argument}` is {option.gives}", f"{flag(option.name)} is given")

    def typed(word: re.Match[str]) -> str:
        if word[0] != word["name"] or "_" in word[0] or message.startswith(" must ", word.end()):
            return _typed(word["name"], word["value"], given) or word[0]
        return word[0]

    message = _OBJECT.sub(r"\1", _NO_OPTION.sub("", message))
    message = _WORD.sub(typed, message)
    quoted = [name for name, value in given.items() if any(_quotes(message, str(part)) for part in parts_of(value))]
    return message if "--" in message or not quoted else f"{flag(quoted[0])}: {message}"


def _quotes(message: str, value: str) -> bool:
    """Whether a message quotes a value, or a file of this name by its whole path."""
    return repr(value) in message or repr(os.path.abspath(value)) in message


def _typed(name: str, value: str | None, given: Options) -> str | None:
    """What a user types for a name in Python, and a value of it; `None` if there is no such option."""
    options = [option for option in OPTIONS.values() if name in option.names]
    if not options:
        return None
    if switch := next((o for o in options if o.value is None and value == str(o.gives)), None):
        return flag(switch.name)
    part = f"the {name} of " if name in options[0].parts else ""
    text = flags([o.name for o in options if o.name in given] or [o.name for o in options])
    return f"{part}{text}" if value is None else f"{part}{text} {value}"
