"""What messages hold, as the API shows it: secrets, tokens and private fields masked."""

from __future__ import annotations

import base64
from typing import Any

from rest_framework import serializers
from rest_framework.request import Request

from folio_events.api.access import may_see_private
from folio_events.masking import (
    is_json,
    private_members,
    without_private,
    without_secrets,
    without_tokens,
)
from folio_events.message import Headers


class Header(serializers.Serializer[Any]):
    """A header of a message."""

    name = serializers.CharField()
    value = serializers.CharField(
        allow_null=True, help_text="Bytes that are no UTF-8 are escaped as in Python."
    )


class Payload(serializers.Serializer[Any]):
    """The body of a message; null where it has none."""

    size = serializers.IntegerField(help_text="In bytes, as it was sent.")
    text = serializers.CharField(
        allow_null=True, help_text="The body, mostly JSON; null: it is no UTF-8."
    )
    base64 = serializers.CharField(
        allow_null=True, help_text="The body where it is no UTF-8 and may be seen."
    )
    is_masked = serializers.BooleanField(
        help_text="Whether private fields or tokens were replaced, or all of it left out."
    )


class MaskedText(serializers.CharField):
    """Text in which signed tokens are masked."""

    def to_representation(self, value: Any) -> str:
        return without_tokens(str(value))


class Shown(serializers.SerializerMethodField):
    """What a method of the serializer returns, in the shape of another one.

    Args:
        shape: Shows the value; None is shown as null.
        options: Of a field.
    """

    def __init__(self, shape: serializers.BaseSerializer[Any], **options: Any) -> None:
        super().__init__(**options)
        self.shape = shape

    def to_representation(self, value: Any) -> Any:
        found = super().to_representation(value)
        return None if found is None else self.shape.to_representation(found)


def shown_headers(headers: Headers) -> list[dict[str, Any]]:
    """Headers as pairs of text, secrets masked."""
    return [
        {
            "name": name,
            "value": None if value is None else value.decode("utf-8", "backslashreplace"),
        }
        for name, value in without_secrets(headers)
    ]


def shown_payload(
    payload: bytes | memoryview | None, topic: str, request: Request
) -> dict[str, Any] | None:
    """A body as far as the user may see it.

    Args:
        payload: As it was sent.
        topic: Logical topic, whose declarations name what is private. Where that cannot be told
            apart, as in bytes that are no JSON, nothing is shown.
        request: Of the user.
    """
    if payload is None:
        return None
    body = bytes(payload)
    hidden = frozenset() if may_see_private(request) else private_members(topic)
    found: dict[str, Any] = {"size": len(body), "text": None, "base64": None}
    text = _text(body)
    if hidden and not is_json(body):
        return {**found, "is_masked": True}
    if text is None:
        return {**found, "base64": base64.b64encode(body).decode(), "is_masked": False}
    shown = without_tokens(without_private(text, hidden))
    return {**found, "text": shown, "is_masked": shown != text}


def _text(body: bytes) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError:
        return None
