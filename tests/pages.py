"""The pages of the documentation: their code, links and headings."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
_PLACE = re.compile(r"# (?P<path>[\w/.-]+\.py)(?:, (?P<end>at the end)(?:: (?P<when>.+))?)?")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(?P<text>.+)$", re.M)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str

    @property
    def _place(self) -> re.Match[str] | None:
        return _PLACE.fullmatch(self.text.partition("\n")[0])

    @property
    def path(self) -> str | None:
        """The file that the block is, by its first line; None for a fragment."""
        return self._place["path"] if self._place else None

    @property
    def is_addition(self) -> bool:
        """Whether the block goes to the end of its file."""
        return bool(self._place and self._place["end"])

    @property
    def when(self) -> str | None:
        """What the block is for, where not every reader needs it."""
        return self._place["when"] if self._place else None


@dataclass(slots=True)
class Command:
    """A command of a console block and what it prints."""

    line: str
    shown: list[str] = field(default_factory=list)

    @property
    def is_daemon(self) -> bool:
        return self.line.endswith(" &")


@dataclass(frozen=True, slots=True)
class Page:
    """A Markdown file."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """The text without its blocks."""
        return _FENCE.sub("", self.text)

    def blocks(self, *languages: str) -> list[Block]:
        """The fenced blocks in these languages, or all."""
        return _blocks(self.text, languages)

    def sections(self, *languages: str) -> dict[str, list[Block]]:
        """The same under each heading of the second level."""
        _, *parts = re.split(r"^## (.+)\n", self.text, flags=re.M)
        return {
            heading: _blocks(text, languages)
            for heading, text in zip(parts[::2], parts[1::2], strict=True)
        }

    def links(self) -> Iterator[str]:
        """The targets of links to other files and headings of the repository."""
        for match in _LINK.finditer(self.prose):
            if "://" not in match["target"] and not match["target"].startswith("mailto:"):
                yield match["target"]

    def anchors(self) -> set[str]:
        """What links may name behind a ``#``, as GitHub makes it from headings."""
        found: set[str] = set()
        for match in _HEADING.finditer(self.prose):
            slug = re.sub(r"[^\w\- ]", "", match["text"].lower()).replace(" ", "-")
            found.add(slug)
        return found


def _blocks(text: str, languages: Collection[str]) -> list[Block]:
    found = []
    for match in _FENCE.finditer(text):
        indent = match["indent"]
        inside = "".join(
            line.removeprefix(indent) for line in match["text"].splitlines(keepends=True)
        )
        if not languages or match["language"] in languages:
            found.append(Block(match["language"], inside))
    return found


def pages() -> list[Page]:
    """All pages of the repository."""
    return [Page(path) for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])]


def page(name: str) -> Page:
    """One page by its path from the root of the repository."""
    return Page(ROOT / name)


def commands(block: Block) -> list[Command]:
    """The commands of a console block; a line that begins with ``> `` goes on with the last."""
    found: list[Command] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(Command(line.removeprefix("$ ")))
        elif line.startswith("> ") and found and not found[-1].shown:
            found[-1].line += "\n" + line.removeprefix("> ")
        elif line == ">" and found and not found[-1].shown:
            found[-1].line += "\n"
        elif line.strip():
            found[-1].shown.append(line.rstrip())
    return found
