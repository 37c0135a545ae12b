"""``event_catalog``: which events there are, who sends and who receives them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser

from folio_events.brokers import get_broker
from folio_events.management.command import EventsCommand
from folio_events.management.database_option import add_database
from folio_events.monitoring.catalog import Catalogue, CatalogueTopic, catalogue, edges

_LEGEND = """
Behind a topic: its owners, and what is missing of it in this project.
  from  a model whose writes are its events
  to    a receiver that takes them, or a group of another project
  seen  an event type, with its first and last time in a sample of the outbox"""


class Command(EventsCommand):
    help = "Show which topics there are, who owns them, who sends and who receives."

    def add_arguments(self, parser: CommandParser) -> None:
        form = parser.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="the result as JSON")
        form.add_argument("--dot", action="store_true", help="a graph for Graphviz")
        form.add_argument("--mermaid", action="store_true", help="a graph for Markdown pages")
        parser.add_argument(
            "--broker",
            action="store_true",
            help="ask the broker too: for its topics, and for groups of other projects",
        )
        parser.add_argument(
            "--declared",
            action="store_true",
            help="what the code declares alone; asks neither database nor broker",
        )
        add_database(parser)

    def handle(self, *_args: Any, **options: Any) -> None:
        seen = catalogue(
            observe=not options["declared"],
            broker=get_broker() if options["broker"] else None,
            using=options["database"],
        )
        if options["json"]:
            self.stdout.write(json.dumps(_as_values(seen), default=str))
        elif options["dot"]:
            self.stdout.write("\n".join(_dot(edges(seen))))
        elif options["mermaid"]:
            self.stdout.write("\n".join(_mermaid(edges(seen))))
        else:
            for topic in seen.topics:
                self.stdout.write("\n".join(self._lines(topic)) + "\n")
            self.stdout.write(_LEGEND)

    def _lines(self, topic: CatalogueTopic) -> Iterator[str]:
        owners = f"  ({', '.join(topic.owners)})" if topic.owners else ""
        gap = f"  {self.style.WARNING(topic.gap)}" if topic.gap else ""
        yield f"{self.style.MIGRATE_HEADING(topic.name)}{owners}{gap}"
        for sender in topic.senders:
            yield f"  from  {sender.model}: dialect {sender.dialect}, captured by {sender.capture}"
        for one in topic.subscribers:
            types = ", ".join(one.types) if one.types is not None else "all"
            group = f"group {one.group}, " if one.group else ""
            yield f"  to    {one.name}: {group}types {types}, mode {one.mode}"
        here = {one.group for one in topic.subscribers}
        for group in topic.groups:
            if group not in here:
                yield f"  to    group {group}, of which no receiver is here"
        for kind in topic.seen:
            yield f"  seen  {kind.type}, {kind.first_at:%Y-%m-%d %H:%M} to {kind.last_at:%Y-%m-%d %H:%M}"
        if topic.on_broker is False:
            yield "  not on the broker"


def _as_values(seen: Catalogue) -> dict[str, Any]:
    return {
        "sampled": seen.sampled,
        "topics": [
            {**asdict(topic), "owners": topic.owners, "gap": topic.gap} for topic in seen.topics
        ],
    }


def _dot(arrows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    yield "digraph events {"
    yield "  rankdir=LR;"
    for start, end, label in arrows:
        said = f" [label={json.dumps(label)}]" if label else ""
        yield f"  {json.dumps(start)} -> {json.dumps(end)}{said};"
    yield "}"


def _mermaid(arrows: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    yield "flowchart LR"
    nodes: dict[str, str] = {}
    lines = []
    for start, end, label in arrows:
        first, second = (nodes.setdefault(name, f"n{len(nodes)}") for name in (start, end))
        said = f"|{_quoted(label)}|" if label else ""
        lines.append(f"  {first} -->{said} {second}")
    for name, node in nodes.items():
        yield f"  {node}[{_quoted(name)}]"
    yield from lines


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "#quot;") + '"'
