"""One variable's value, by any of its names."""

from __future__ import annotations

from collections.abc import Mapping

import environ

from folio_events.environment.variables import VARIABLES
from folio_events.exceptions import ConfigurationError

_OTHERS = {variable.name: variable.others for variable in VARIABLES}


class Values:
    """What an environment says; a blank value is as if unset."""

    def __init__(self, env: environ.Env) -> None:
        self._env = env

    @property
    def names(self) -> list[str]:
        """Which variables there are, the environment's prefix taken off."""
        given: Mapping[str, str] = self._env.ENVIRON
        return [name.removeprefix(self._env.prefix) for name in given]

    def found(self, name: str, *others: str) -> tuple[str, str]:
        """The name under which a variable is set, and its value; its own name and "" if it is not."""
        for one in (name, *_OTHERS.get(name, others)):
            text = str(self._env.str(one, default="")).strip()
            if text:
                return one, text
        return name, ""

    def text(self, name: str) -> str:
        return self.found(name)[1]

    def verbatim(self, name: str) -> str:
        """The value as it stands: a password may begin with "$", which django-environ follows."""
        for one in (name, *_OTHERS.get(name, ())):
            text = str(self._env.ENVIRON.get(f"{self._env.prefix}{one}", ""))
            if text:
                return text
        return ""

    def number(self, name: str, *others: str, low: int = 1, high: int | None = None) -> int | None:
        """A whole number within bounds; None if the variable is not set.

        Raises:
            ConfigurationError: It is something else.
        """
        said, text = self.found(name, *others)
        if not text:
            return None
        value = int(text) if text.isascii() and text.isdecimal() else low - 1
        if value < low or (high is not None and value > high):
            wanted = f"above {low - 1}" if high is None else f"from {low} to {high}"
            raise ConfigurationError(f"{said} must be a whole number {wanted}, not {text!r}.")
        return value

    def choice(self, name: str, *choices: str) -> str:
        """One of some words, however it is capitalised; "" if the variable is not set.

        Raises:
            ConfigurationError: It is none of them.
        """
        said, text = self.found(name)
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        if text:
            raise ConfigurationError(f"{said} must be one of {', '.join(choices)}, not {text!r}.")
        return ""
