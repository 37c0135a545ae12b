"""Writes docs/reference/environment.md from the tables of ``folio_events.environment.variables``.

``python docs/environment_page.py`` after a variable was added or changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "environment.md"
sys.path.insert(0, str(ROOT))

from folio_events.environment.variables import (  # noqa: E402 - also without the package installed
    CLIENT_PROPERTIES,
    DI_SINGLE,
    DI_SUFFIX,
    IGNORED,
    TOPIC_VARIABLES,
    VARIABLES,
    ClientProperty,
)

HEAD = """# Environment variables

`settings_from_env(env)` builds `FOLIO_EVENTS` from the variables that FOLIO's modules read, so
that an operator's environment for a FOLIO module works unchanged. `env` is an `environ.Env` of
django-environ. What to set, in order: [operate in FOLIO](../howto/operate-in-folio.md).

```python
# mysite/settings.py, at the end
import environ

from folio_events import settings_from_env

FOLIO_EVENTS = {**settings_from_env(environ.Env()), "GROUP": "mysite"}
```

A blank variable counts as one that is not set. A value that cannot be raises
`ConfigurationError` when the settings are read; it names the variable, the value unless that is
a password, and how to mend it. `manage.py check` warns of names that differ by a letter or two
from one that is read, and of key stores without TLS (W040). `GROUP` and `TENANCY` have no
variable: they belong to the module, not to its deployment.

This page is written by `docs/environment_page.py` from `folio_events/environment/variables.py`.
"""

READ = """
## Variables that are read

Where one has other names, the first that is set counts.

| variable | becomes | not set, here | not set, in FOLIO | meaning | refused |
|---|---|---|---|---|---|
"""

TOPICS = """
## Variables for certain topics

They become entries of the setting `TOPICS`; a topic without one is made as `NUMBER_OF_PARTITIONS`
and the broker say. All take whole numbers above 0. They count when a topic is created:
existing ones stay as they are.

| variable | topics | option | not set, in FOLIO |
|---|---|---|---|
"""

DATA_IMPORT = f"""| `{{DI_EVENT}}{DI_SUFFIX}`, such as `DI_COMPLETED{DI_SUFFIX}` | the data-import event of that name | `PARTITIONS`, `NAMESPACE` `Default` | 1 |

`{DI_SINGLE}` has one partition, as upstream: `{DI_SINGLE}{DI_SUFFIX}` other than 1 is refused.
"""

UNREAD = """
## Variables that mean nothing here

| variable | why |
|---|---|
"""

CLIENTS = """
## The clients beside FOLIO's

What FOLIO's Kafka wrapper gives its Java clients, and what stands for it here. Those with a
variable are taken from the environment under the wrapper's own name, or Spring's.

| Java's property | FOLIO | here | value here | why, and by which variables |
|---|---|---|---|---|
"""


def render() -> str:
    """The page as it has to be."""
    page = HEAD + READ
    for variable in VARIABLES:
        names = ", ".join(f"`{name}`" for name in (variable.name, *variable.others))
        page += _row(
            names,
            variable.becomes,
            variable.unset,
            variable.unset_in_folio,
            variable.meaning,
            variable.refused,
        )
    page += TOPICS
    for of_topics in TOPIC_VARIABLES:
        page += _row(
            f"`{of_topics.name}`",
            ", ".join(f"`{topic}`" for topic in of_topics.topics),
            f"`{of_topics.option}`" + (", in ms" if of_topics.option == "RETENTION" else ""),
            str(of_topics.unset_in_folio),
        )
    page += DATA_IMPORT + UNREAD
    for ignored in IGNORED:
        page += _row(f"`{ignored.name}`", ignored.why)
    page += CLIENTS
    for given in CLIENT_PROPERTIES:
        page += _row(
            f"{given.role}: `{given.java}`",
            given.folio,
            f"`{given.option}`" if given.option else "",
            given.ours,
            _why(given),
        )
    return page


def _why(given: ClientProperty) -> str:
    names = ", ".join(f"`{name}`" for name in given.names) if given.taken else ""
    return " ".join(filter(None, [given.why, f"Set by {names}." if names else ""]))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n".replace("|  |", "| |").replace("|  |", "| |")


if __name__ == "__main__":
    PAGE.write_text(render())
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
