"""Reads the specification's pages: their signatures, the outputs they document, and their examples.

Some pages are Markdown, others are the text of a web page without its layout; both are read by the same rules.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parents[3] / "shared" / "spec"
PAGES = sorted(DIRECTORY.glob("0*.txt"))

_CLASS = re.compile(r"^#*\s*`?(?:class )?(?:transformers\.(?:models\.\w+\.\w+\.)?)?"
                    r"((?:TF)?(?:IBert|MegatronBert|MobileBert|Yoso)\w+)`?\s*类?$")
_METHOD = re.compile(r"^(?:#### )?`?([a-z_]+|前向|前进)`?$")
_SIGNATURE = re.compile(r"^(?:<[^>]*>)?\( (.*?) \)(?: (.*))?$")
_RETURNS = re.compile(r"transformers\.(?:[a-z_]+\.)*([A-Z]\w+?)(?:tuple\(|\W|$)")
_FIELD = re.compile(r"^(?:\+   |\s*• )?`?(?!tuple)([a-z_]+)`? ?[（(]")
_FURNITURE = re.compile(r"^$|^```|^<|^\[<")
_TRANSLATED = {"前向": "forward", "前进": "forward"}


@dataclass(frozen=True)
class Signature:
    """A documented signature: the class, "__init__" or the method, parameters with their defaults, and what it gives."""

    page: str
    owner: str
    method: str
    parameters: tuple[tuple[str, Any], ...]
    output: str | None
    fields: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}-{self.owner}.{self.method}"


@dataclass(frozen=True)
class Example:
    """A documented example: where it is, its statements, and what the page prints after a line of them."""

    page: str
    line: int
    owner: str
    source: str
    printed: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        return f"{self.page}-{self.line}-{self.owner}"


REQUIRED = "required"
"""Stands for the default of a parameter that has none."""


def parameters(text: str) -> tuple[tuple[str, Any], ...]:
    """`a b: int = 3 c: X | None = None **kwargs` as pairs of name and default."""
    found: list[tuple[str, Any]] = []
    words = text.split()
    place = 0
    while place < len(words):
        name = words[place]
        place += 1
        if name.endswith(":"):
            while place < len(words) and words[place] != "=" and not words[place].endswith(":"):
                place += 1
        default: Any = REQUIRED
        if place < len(words) and words[place] == "=":
            default = ast.literal_eval(words[place + 1])
            place += 2
        found.append((name.rstrip(":"), default))
    return tuple(found)


def signatures(path: Path) -> Iterator[Signature]:
    """Every signature of a page."""
    lines = path.read_text("utf-8").splitlines()
    owner = ""
    for number, line in enumerate(lines):
        match = _SIGNATURE.match(re.sub(r"^<[^>]*>\(", "(", line))
        if match is None:
            continue
        title = next(earlier for earlier in reversed(lines[:number]) if not _FURNITURE.match(earlier))
        method = _METHOD.match(title)
        if method is None:
            owner = _CLASS.match(title)[1]
        output = _RETURNS.search(match.group(2) or "")
        yield Signature(
            path.name[:3], owner, _TRANSLATED.get(method.group(1), method.group(1)) if method else "__init__",
            parameters(match.group(1)), output.group(1) if output else None, tuple(_fields(lines[number + 1:])))


def _fields(lines: list[str]) -> Iterator[str]:
    returned = False
    for line in lines:
        if line.startswith(("返回", "Returns")) and len(line) < 10:
            returned = True
        elif line.startswith((">>>", "```py", "#", "class ")) or _SIGNATURE.match(line):
            return
        elif returned and (match := _FIELD.match(line)):
            yield match.group(1)


def examples(path: Path) -> Iterator[Example]:
    """Every example of a page, as a program that begins with its imports; printed values are left out."""
    block: list[str] = []
    printed: dict[int, str] = {}
    start, owner, latest = 0, "", ""
    for number, line in enumerate([*path.read_text("utf-8").splitlines(), ">>> import nothing"], 1):
        if (match := _CLASS.match(line)) and not line.endswith("Output"):
            latest = match.group(1)
        if line.startswith((">>> from transformers", ">>> import")) and block and not _all_imports(block):
            yield Example(path.name[:3], start, owner, _program(block), tuple(printed.items()))
            block, printed = [], {}
        if line.startswith((">>>", "... ")):
            start, owner = (start, owner) if block else (number, latest)
            block.append(line)
        elif block and line.strip():
            printed.setdefault(len(block), line)


def _all_imports(block: list[str]) -> bool:
    return all(line.startswith((">>> from", ">>> import")) for line in block)


def _program(block: list[str]) -> str:
    """The statements of an example; where the page lost the indentation under a colon, it is put back."""
    program: list[str] = []
    for line in block:
        code = line[4:]
        if line.startswith("...") and program[-1].rstrip().endswith(":") and not code.startswith(" "):
            code = f"    {code}"
        program.append(code)
    return "\n".join(program) + "\n"
