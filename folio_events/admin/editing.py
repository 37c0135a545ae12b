"""The page on which the message of a delivery is edited, and what it shows of the change."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import router
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from folio_events.admin.event_page import hidden_members
from folio_events.admin.readable import (
    comparison_block,
    hex_dump,
    indented,
    moment,
    visible,
)
from folio_events.admin.settling import SettlingAdmin, actor
from folio_events.exceptions import DecodingError, InvalidStateError
from folio_events.masking import is_json, without_private, without_secrets, without_tokens
from folio_events.message import Headers
from folio_events.models import Delivery
from folio_events.operations import editing
from folio_events.operations.editing import Content
from folio_events.schemas import Comparison
from folio_events.topics import parse_wire_topic

#: Characters of a payload that can be edited in a page, and lines of one that are compared.
MAX_EDITED, MAX_COMPARED = 500_000, 5000
_FORMS = [
    ("text", gettext_lazy("text")),
    ("hex", gettext_lazy("hexadecimal digits")),
    ("none", gettext_lazy("none")),
]


def headers_text(headers: Headers) -> str:
    """Headers as JSON, a pair a line; what is no text as ``{"hex": "..."}``."""
    lines = ",\n".join(
        json.dumps([name, _header_value(value)], ensure_ascii=False) for name, value in headers
    )
    return f"[\n{lines}\n]" if headers else "[]"


def _header_value(value: bytes | None) -> object:
    form, text = editing.as_text(value)
    return {"text": text, "hex": {"hex": text}, "none": None}[form]


def read_headers(text: str, current: Headers) -> Headers:
    """The inverse of ``headers_text()``; masked values stand for those that are there.

    Raises:
        ValueError: It is no list of pairs.
    """
    there = list(zip(without_secrets(current), current, strict=True))
    found: Headers = []
    for pair in json.loads(text):
        match pair:
            case [str(name), None]:
                value = None
            case [str(name), str(said)]:
                value = said.replace("\r\n", "\n").encode()
            case [str(name), {"hex": str(digits)}]:
                value = bytes.fromhex(digits)
            case _:
                raise ValueError(f"{pair!r} is no pair of name and value.")
        same = next((at for at, (masked, _r) in enumerate(there) if masked == (name, value)), None)
        found.append((name, value) if same is None else there.pop(same)[1])
    return found


class EditForm(forms.Form):
    """A message to be changed, and why.

    Args:
        current: The message as it is.
        names: Members of the payload that the user may not see.
    """

    version = forms.CharField(widget=forms.HiddenInput)
    key_form = forms.ChoiceField(choices=_FORMS, label=gettext_lazy("Key is"))
    key = forms.CharField(
        required=False, strip=False, widget=forms.Textarea(attrs={"rows": 1, "cols": 80})
    )
    headers = forms.CharField(widget=forms.Textarea)
    payload_form = forms.ChoiceField(choices=_FORMS, label=gettext_lazy("Payload is"))
    payload = forms.CharField(
        required=False, strip=False, widget=forms.Textarea(attrs={"rows": 24, "cols": 120})
    )
    reason = forms.CharField(
        max_length=1000,
        widget=forms.Textarea(attrs={"rows": 2, "cols": 80}),
        help_text=gettext_lazy("Kept in the admin's log."),
    )

    def __init__(self, *args: Any, current: Content, names: frozenset[str], **options: Any) -> None:
        super().__init__(*args, **options)
        self.current, self.names = current, names
        self.payload_at_first = editing.as_text(current.payload)
        form, text = self.payload_at_first
        #: Why the payload cannot be edited here; "" if it can.
        self.locked = ""
        # Of what cannot be read, nobody can say where the private fields end.
        unreadable = current.payload is not None and not is_json(current.payload)
        if (names and unreadable) or (
            form == "text" and without_tokens(without_private(text, names)) != text
        ):
            self.locked = _("It holds private fields or a token, which this page does not show.")
        elif len(text) > MAX_EDITED:
            self.locked = _("It is too large for a page.")
        if self.locked:
            del self.fields["payload"], self.fields["payload_form"]
        elif current.payload is not None and not unreadable:
            self.payload_at_first = form, indented(text)
        lines = {
            "key": 1,
            "headers": len(current.headers) + 2,
            "payload": self.payload_at_first[1].count("\n") + 2,
        }
        for name in lines.keys() & self.fields.keys():
            self.fields[name].widget.attrs |= {
                "rows": min(lines[name], 30),
                "class": "folio-events-edit",
                "spellcheck": "false",
            }

    def at_first(self, version: str) -> dict[str, str]:
        """What the form shows of the message as it is."""
        key_form, key = editing.as_text(self.current.key)
        payload_form, payload = self.payload_at_first
        return {
            "version": version,
            "key_form": key_form,
            "key": key,
            "headers": headers_text(without_secrets(self.current.headers)),
            "payload_form": payload_form,
            "payload": payload,
        }

    def clean_headers(self) -> Headers:
        try:
            return read_headers(self.cleaned_data["headers"], self.current.headers)
        except (ValueError, TypeError, RecursionError) as error:
            raise forms.ValidationError(
                _('Write a JSON list of pairs, such as [["name", "value"]]: %s') % error
            ) from error

    def clean(self) -> None:
        for name in ("key", "payload"):
            if name not in self.cleaned_data or f"{name}_form" not in self.cleaned_data:
                continue
            form, text = self.cleaned_data[f"{name}_form"], self.cleaned_data[name]
            text = text.replace("\r\n", "\n")
            # The page indents it, which alone is no change.
            if name == "payload" and (form, text) == self.payload_at_first:
                self.cleaned_data[name] = self.current.payload
                continue
            try:
                self.cleaned_data[name] = editing.from_text(form, text)
            except ValueError as error:
                self.add_error(name, str(error))

    def content(self) -> Content:
        said = self.cleaned_data
        payload = self.current.payload if self.locked else said["payload"]
        return Content(key=said["key"], headers=said["headers"], payload=payload)


class EditingAdmin(SettlingAdmin):
    """Deliveries whose message may be edited."""

    change_form_template = "folio_events/admin/delivery.html"

    def get_urls(self) -> list[Any]:
        view = self.admin_site.admin_view(self.edit_view)
        return [
            path("<int:pk>/edit/", view, name="folio_events_delivery_edit"),
            *super().get_urls(),
        ]

    def has_edit_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "edit")

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        extra = {"may_edit": self.has_edit_permission(request), "open_states": self.open_states}
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **extra})

    def edit_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Ask for the new message; save it, save it and retry, or restore the original."""
        if not (self.has_edit_permission(request) and self.has_view_permission(request)):
            raise PermissionDenied
        using = router.db_for_write(self.model)
        row = Delivery.objects.using(using).filter(pk=pk).first()
        if row is None:
            raise Http404
        names = hidden_members(request, parse_wire_topic(row.topic).topic)
        current = editing.content_of(row)
        if request.method != "POST":
            form = EditForm(current=current, names=frozenset(names))
            form.initial = form.at_first(editing.version_of(row))
            now = _comparison(editing.compare(row, hidden=names))
            return self._edit_page(request, row, form, now)
        form = EditForm(request.POST, current=current, names=frozenset(names))
        may_retry = self.may(request, "retry")
        if "compare" in request.POST:
            return self._edit_page(request, row, form, self._compared(form, row))
        if "restore" in request.POST:
            done = self._restore(request, form, row, using)
        else:
            done = self._edit(
                request, form, row, using, retry=may_retry and "retry" in request.POST
            )
        if not done:
            return self._edit_page(request, row, form)
        return HttpResponseRedirect(self.link(Delivery, "change", pk))

    def _edit(
        self, request: HttpRequest, form: EditForm, row: Delivery, using: str, *, retry: bool
    ) -> bool:
        if not form.is_valid():
            return False
        try:
            parts = editing.edit(
                row.pk,
                form.content(),
                reason=form.cleaned_data["reason"],
                seen=form.cleaned_data["version"],
                retry=retry,
                by=actor(request),
                using=using,
            )
        except DecodingError as error:
            form.add_error(
                None if form.locked else "payload", _("Not saved, this is no event: %s.") % error
            )
        except InvalidStateError as error:
            form.add_error(None, str(error))
        else:
            said = _("Changed: %s.") % ", ".join(parts) if parts else _("Nothing was changed.")
            if retry:
                said += " " + _("It runs at the next retry pass.")
            self.message_user(request, said, messages.SUCCESS)
            return True
        return False

    def _compared(self, form: EditForm, row: Delivery) -> SafeString | None:
        """What the form's message would differ in; None where it could not be saved."""
        form.fields["reason"].required = False
        if not form.is_valid():
            return None
        try:
            editing.check(row, form.content())
        except DecodingError as error:
            form.add_error(None if form.locked else "payload", _("This is no event: %s.") % error)
        except InvalidStateError as error:
            form.add_error(None, str(error))
        else:
            return _comparison(editing.compare(row, form.content(), hidden=form.names))
        return None

    def _restore(self, request: HttpRequest, form: EditForm, row: Delivery, using: str) -> bool:
        form.is_valid()
        reason = form.cleaned_data.get("reason", "")
        if not reason:
            return False
        try:
            editing.restore(row.pk, reason=reason, by=actor(request), using=using)
        except InvalidStateError as error:
            form.add_error(None, str(error))
            return False
        self.message_user(request, _("It has its original message again."), messages.SUCCESS)
        return True

    def _edit_page(
        self,
        request: HttpRequest,
        row: Delivery,
        form: EditForm,
        comparison: SafeString | None = None,
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": _("Edit the message of delivery %s") % row.pk,
            "opts": self.opts,
            "media": self.media + form.media,
            "form": form,
            "row": row,
            "back": self.link(Delivery, "change", row.pk),
            "is_open": row.state in Delivery.OPEN,
            "may_retry": self.may(request, "retry"),
            "comparison": comparison,
        }
        return TemplateResponse(request, "folio_events/admin/edit_delivery.html", context)

    @admin.display(description=gettext_lazy("edited"))
    def edited(self, row: Delivery) -> SafeString | None:
        return moment(row.edited_at)

    @admin.display(description=gettext_lazy("differences"))
    def comparison(self, row: Any) -> SafeString | None:
        """The payload against what its receiver expects."""
        # The page asks whether there is such a field, and then for it.
        if not hasattr(row, "comparison"):
            row.comparison = _comparison(editing.compare(row, hidden=row.hidden_members))
        found: SafeString | None = row.comparison
        return found

    @admin.display(description=gettext_lazy("changes to the original"))
    def changes(self, row: Any) -> SafeString | None:
        """The message that runs against the one that was read, as lines with + and -."""
        if row.edited_at is None:
            return None
        names = row.hidden_members
        old, new = (
            list(_lines(content, names))
            for content in (editing.original_of(row), editing.content_of(row))
        )
        if max(len(old), len(new)) > MAX_COMPARED:
            return format_html("<p>{}</p>", _("Too many lines to compare."))
        return difference(old, new)


def _comparison(found: Comparison | None) -> SafeString | None:
    return None if found is None else comparison_block(found)


def difference(old: list[str], new: list[str]) -> SafeString:
    """Lines that came and went, with some around them."""
    tones = {"+": "added", "-": "removed", "@": "place"}
    lines = list(difflib.unified_diff(old, new, lineterm="", n=3))[2:]
    return format_html(
        '<pre class="folio-events-text folio-events-diff" tabindex="0">{}</pre>',
        format_html_join(
            "",
            '<span class="folio-events-{}">{}</span>',
            ((tones.get(line[:1], "same"), visible(line)) for line in lines),
        ),
    )


def _lines(content: Content, names: Any) -> Iterator[str]:
    form, key = editing.as_text(content.key)
    yield f"key ({form}): {key}"
    for name, value in without_secrets(content.headers):
        yield f"header {json.dumps([name, _header_value(value)], ensure_ascii=False)}"
    if content.payload is None:
        return
    form, text = editing.as_text(content.payload)
    if form == "text":
        shown = without_private(text, names)
        yield from (indented(shown) if is_json(content.payload) else shown).split("\n")
    else:
        yield from hex_dump(content.payload).split("\n")
