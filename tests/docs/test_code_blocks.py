"""Everything that the documentation shows: blocks of Python run, commands parse, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, make_checkpoints

FRAMEWORKS = {"torch": re.compile(r"\btorch\b|from bertkit import .*Model|from bertkit import .*For[A-Z]"),
              "tensorflow": re.compile(r"\bbertkit_tf\b|\btensorflow\b|\bkeras\b")}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the checkpoints that the examples load."""
    make_checkpoints(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.filterwarnings(r"ignore:\w+ from ")  # what loading into another class tells
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=_name)
def test_python_runs(page: Path, checkpoints: Path) -> None:
    code = blocks(page, "python")
    for framework, pattern in FRAMEWORKS.items():
        if not find_spec(framework) and any(pattern.search(block.text) for block in code):
            pytest.skip(f"{framework} is not installed")
    names: dict[str, object] = {"__name__": "__main__"}
    for block in code:
        # The line numbers of a failure are those of the page.
        exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)


def _commands() -> list:
    found = []
    for page in PAGES:
        for block in blocks(page, "console", "shell"):
            for line in block.text.replace("\\\n", " ").splitlines():
                command = line.removeprefix("$ ").strip()
                if command.startswith("bertkit "):
                    found.append(pytest.param(command, id=f"{_name(page)}:{command}"))
    return found


@pytest.mark.parametrize("command", _commands())
def test_command_parses(command: str) -> None:
    from bertkit.cli import make_parser

    words = shlex.split(re.split(r"\s[|>]\s", command)[0], comments=True)[1:]
    if words not in (["--version"], ["--help"]):
        make_parser().parse_args(words)


def _anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _links() -> list:
    return [pytest.param(page, target, id=f"{_name(page)}:{target}")
            for page in (*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "docs/examples/README.md")))
            for target in dict.fromkeys(re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")))
            if not target.startswith(("http:", "https:", "mailto:"))]


@pytest.mark.parametrize(("page", "target"), _links())
def test_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    place = (page.parent / path).resolve() if path else page
    assert place.exists(), f"{_name(page)} links to {target}"
    if anchor:
        assert anchor in _anchors(place), f"{place.name} has no heading for #{anchor}; it has {sorted(_anchors(place))}"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if page.name != "index.md" and f"({page.name})" not in index] == []


def test_every_public_name_is_mentioned() -> None:
    import bertkit

    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    words = set(re.findall(r"\w+", text))
    tf_names = {name for name in _tf_names() if name.startswith("TF")}
    assert sorted(({*bertkit.__all__} | tf_names) - words) == []


def _tf_names() -> list[str]:
    import bertkit_tf

    return bertkit_tf.__all__


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_page_names_no_path_of_a_machine(page: Path) -> None:
    found = re.findall(r"(?:\.\./shared|/(?:home|root|tmp|mnt)/)\S*", page.read_text(encoding="utf-8"))
    assert found == []
