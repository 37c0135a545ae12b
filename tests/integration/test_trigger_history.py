"""Property: whatever the doors, the events of a table are the history of its rows."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, transaction
from django.db.models import F, Value
from django.db.models.functions import Concat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from folio_events.models import OutboxMessage

pytestmark = [pytest.mark.postgres, pytest.mark.django_db]
#: A door to the table: the model, the row it is to meet, and a title.
Door = Callable[[Any, uuid.UUID, str], object]


def execute(sql: str, *parameters: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, [str(parameter) for parameter in parameters])


def save(model: Any, pk: uuid.UUID, title: str) -> None:
    row = model.objects.filter(pk=pk).first() or model(pk=pk)
    row.title = title
    row.save()


def copy(model: Any, pk: uuid.UUID, title: str) -> None:
    if not model.objects.filter(pk=pk).exists():
        sql = f"COPY {model._meta.db_table} (id, title) FROM STDIN"
        with connection.cursor() as cursor, cursor.copy(sql) as rows:
            rows.write_row((pk, title))


def bulk_update(model: Any, pk: uuid.UUID, title: str) -> None:
    rows = list(model.objects.all())
    for row in rows:
        row.title = title
    model.objects.bulk_update(rows, ["title"])


IN_BOTH_FORMS: dict[str, Door] = {
    "save": save,
    "update_or_create": lambda model, pk, title: model.objects.update_or_create(
        pk=pk, defaults={"title": title}
    ),
    "bulk_create": lambda model, pk, title: model.objects.bulk_create(
        [model(pk=pk, title=title), model(title=title)], ignore_conflicts=True
    ),
    "upsert": lambda model, pk, title: model.objects.bulk_create(
        [model(pk=pk, title=title)],
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=["title"],
    ),
    "bulk_update": bulk_update,
    "update": lambda model, _pk, title: model.objects.update(title=title),
    "expression": lambda model, pk, title: model.objects.filter(pk=pk).update(
        title=Concat(F("title"), Value(title))
    ),
    "delete": lambda model, pk, _title: model(pk=pk).delete(),
    "delete rows": lambda model, _pk, title: model.objects.filter(title=title).delete(),
}
BY_TRIGGER_ALONE: dict[str, Door] = {
    "raw insert": lambda model, pk, title: execute(
        f"INSERT INTO {model._meta.db_table} VALUES (%s, %s) ON CONFLICT DO NOTHING", pk, title
    ),
    "raw update": lambda model, _pk, title: execute(
        f"UPDATE {model._meta.db_table} SET title = %s || right(title, 3)", title
    ),
    "raw delete": lambda model, pk, _title: execute(
        f"DELETE FROM {model._meta.db_table} WHERE id = %s", pk
    ),
    "_raw_delete": lambda model, _pk, _title: model.objects.all()._raw_delete("default"),
    "copy": copy,
}
FORMS = {
    "Signal": IN_BOTH_FORMS,
    "Trigger": IN_BOTH_FORMS | BY_TRIGGER_ALONE,
}


def rows(model: Any) -> dict[str, str]:
    return {str(pk): title for pk, title in model.objects.values_list("pk", "title")}


def replay(history: dict[str, str], after: int) -> int:
    """Apply the events after an id to what is known of the rows; returns the last id."""
    for message in OutboxMessage.objects.filter(id__gt=after).order_by("id"):
        data = json.loads(bytes(message.payload or b""))["data"]
        old, new = data["old"], data["new"]
        assert old != new
        pk = (old or new)["id"]
        assert history.get(pk) == (old and old["title"])
        history.pop(pk, None)
        if new is not None:
            history[pk] = new["title"]
        after = message.pk
    return after


@pytest.mark.parametrize("form", FORMS)
def test_the_events_are_the_history_of_the_rows(form: str):
    """Each old is the new before it, and the last event of each key is what the row holds."""
    model = apps.get_model("triggerapp", f"{form}Part")
    step = st.tuples(
        st.sampled_from(sorted(FORMS[form])),
        st.integers(1, 3),
        st.sampled_from(["a", "b", 'ü"\\']),
        # Undone by a savepoint, or not.
        st.sampled_from([False, False, False, True]),
    )

    @settings(
        max_examples=40,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(step, min_size=1, max_size=15))
    def holds(steps: list[tuple[str, int, str, bool]]) -> None:
        with transaction.atomic():
            history: dict[str, str] = {}
            last = 0
            for door, number, title, undone in steps:
                point = str(connection.savepoint())
                FORMS[form][door](model, uuid.UUID(int=number), title)
                if undone:
                    connection.savepoint_rollback(point)
                last = replay(history, last)
                assert history == rows(model)
            transaction.set_rollback(True)

    holds()
