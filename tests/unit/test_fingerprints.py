"""Fingerprints: what is the same in failures of one cause, and what tells causes apart."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

import pytest

from folio_events.fingerprints import fingerprint, place, without_varying


def failure(function: Callable[[], object], *, receiver: str = "one") -> str:
    """The fingerprint of what a function raises."""
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever it is
        text = "".join(traceback.format_exception(error))
        return fingerprint(receiver, type(error).__qualname__, str(error), text)
    pytest.fail("it raised nothing")


def title_of(event: dict[str, str]) -> str:
    return event["title"]


def barcode_of(event: dict[str, str]) -> str:
    return event["barcode"]


def parse(text: str) -> int:
    return int(text)


def test_the_same_fault_with_other_data_is_one_cause() -> None:
    """What was parsed differs, the place and the rest of the words do not."""
    assert failure(lambda: parse("a17")) == failure(lambda: parse("b2"))


def test_receiver_class_place_and_words_tell_causes_apart() -> None:
    """Each of them makes another fingerprint."""

    def said(error: Exception) -> Callable[[], object]:
        def function() -> object:
            raise error

        return function

    found = [
        failure(lambda: title_of({})),
        failure(lambda: title_of({}), receiver="two"),
        failure(lambda: barcode_of({})),
        failure(said(ValueError("the shelf is locked"))),
        failure(said(ValueError("the shelf is full"))),
        failure(said(TypeError("the shelf is full"))),
    ]
    assert len(set(found)) == len(found)
    assert {len(each) for each in found} == {16}


def test_nothing_that_failed_has_none() -> None:
    """A delivery that waits without an attempt belongs to no group of failures."""
    assert fingerprint("one", "", "", "") == ""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            "Item 3fa85f64-5717-4562-b3fc-2c963f66afa6 is gone",
            "Item 00000000-0000-0000-0000-00000000000a is gone",
        ),
        ("no loan 17 of 'ann'", "no loan 4 of 'bob'"),
        ('Key (barcode)=(A-1) of "jane"', 'Key (barcode)=(77) of "joe b"'),
        ("late since 2026-01-31T09:00:00+01:00", "late since 2026-02-01 10:00:00.5Z"),
        ("mail to ann@example.org", "mail to b.c+d@example.com"),
        ("<Loan object at 0x7f00aa12>", "<Loan object at 0x7f11bb99>"),
        ("digest 9f86d081884c7d65", "digest 60303ae22b998861"),
        ("a  b", "a\n\tb"),
    ],
)
def test_what_varies_is_left_out(first: str, second: str) -> None:
    """Ids, numbers, quoted values, times, addresses, digests and blanks."""
    assert without_varying(first) == without_varying(second)


def test_names_of_constraints_are_kept() -> None:
    """PostgreSQL quotes them, and they are what is wrong."""
    text = 'duplicate key violates unique constraint "library_book_barcode_key"'
    assert without_varying(text) == text
    assert without_varying("the defaced facade") == "the defaced facade"


TRACEBACK = """Traceback (most recent call last):
  File "/srv/app/library/cause.py", line 3, in cause
    raise KeyError(1)
KeyError: 1

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/folio_events/running.py", line 60, in run
    function(event)
  File "/srv/releases/41/library/receivers.py", line 12, in announce
    Book.objects.get(pk=event.key)
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/venv/lib/python3.11/site-packages/django/db/models/query.py", line 637, in get
    raise self.model.DoesNotExist(
library.models.DoesNotExist: none
"""


def test_the_place_is_the_innermost_in_the_project() -> None:
    """Libraries below it and the cause before it do not count, nor do folder and line number."""
    found = place(TRACEBACK)
    assert found == "library/receivers.py:announce:Book.objects.get(pk=event.key)"
    assert place(TRACEBACK.replace("line 12", "line 99").replace("/41/", "/42/")) == found


def test_without_code_of_the_project_the_innermost_place_counts() -> None:
    """Such as for a message that is no event."""
    text = TRACEBACK.replace("/srv/releases/41/library", "/lib/python3.11/library")
    assert place(text) == "models/query.py:get:raise self.model.DoesNotExist("
    assert place("") == place("no traceback at all") == ""
    assert place('  File "/srv/a/b.py", line 1, in f\n  File "/srv/a/c.py", line 2, in g\n') == (
        "a/c.py:g:"
    )


@pytest.mark.parametrize("part", ["'", '"', "a", "f0", "1-", "=(", 'File "', "@", "\n"])
def test_no_text_takes_long(part: str) -> None:
    """An error may say anything: patterns must not go astray in it."""
    began = time.process_time()
    fingerprint("one", "Error", part * 100_000, part * 25_000)
    fingerprint("one", "Error", "", 'File "' + part * 25_000)
    assert time.process_time() - began < 1
