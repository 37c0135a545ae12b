"""The setting FOLIO_EVENTS: defaults, changes, unknown keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from folio_events.conf import DATABASE_BROKER, Settings, get_settings
from folio_events.exceptions import ConfigurationError


@pytest.fixture
def no_setting(settings: Any) -> Iterator[None]:
    """FOLIO_EVENTS is not there at all."""
    # Django tells nobody that a setting was deleted.
    del settings.FOLIO_EVENTS
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.mark.usefixtures("no_setting")
def test_a_project_without_the_setting_has_the_defaults() -> None:
    """The database broker serves, and there are no tenants."""
    assert get_settings() == Settings()
    assert get_settings().BROKER == {"BACKEND": DATABASE_BROKER}
    assert get_settings().TENANCY is None


def test_settings_are_read_when_used(settings: Any) -> None:
    """A changed setting is seen at once, and so is its way back."""
    settings.FOLIO_EVENTS = {"RELAY_BATCH_SIZE": 7}
    assert get_settings().RELAY_BATCH_SIZE == 7

    settings.FOLIO_EVENTS = {}
    assert get_settings() == Settings()


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("RELAY_BATCHSIZE", "RELAY_BATCH_SIZE"),
        ("TENANT_COLECTION", "TENANT_COLLECTION"),
        ("BROKERS", "BROKER"),
        ("GROUPS", "GROUP"),
    ],
)
def test_an_unknown_key_is_refused_with_the_key_it_resembles(
    settings: Any, given: str, near: str
) -> None:
    """A slip of the pen is an error that names both."""
    settings.FOLIO_EVENTS = {given: 1}

    with pytest.raises(ConfigurationError, match=f"'{given}'.*Did you mean '{near}'"):
        get_settings()


def test_an_unknown_key_that_resembles_none_is_refused_with_all_keys(settings: Any) -> None:
    """Where nothing is near, the known keys are listed."""
    settings.FOLIO_EVENTS = {"XYZZY": 1}

    with pytest.raises(ConfigurationError, match="'XYZZY'") as caught:
        get_settings()

    assert all(field.name in str(caught.value) for field in fields(Settings))


def test_a_key_that_is_no_text_is_refused(settings: Any) -> None:
    """Also a key that could be no name is named."""
    settings.FOLIO_EVENTS = {5: 1}

    with pytest.raises(ConfigurationError, match="unknown key 5"):
        get_settings()


@pytest.mark.parametrize("given", [None, "ENV=folio", ["ENV"]], ids=["None", "text", "list"])
def test_a_setting_that_is_no_dict_is_refused(settings: Any, given: object) -> None:
    """The error names the type that was found."""
    settings.FOLIO_EVENTS = given

    with pytest.raises(ConfigurationError, match=f"must be a dict, not {type(given).__name__}"):
        get_settings()


def test_settings_cannot_be_changed_in_passing() -> None:
    """Settings are frozen: whoever wants others changes FOLIO_EVENTS."""
    with pytest.raises(AttributeError):
        get_settings().ENV = "other"  # type: ignore[misc]  # what is refused
