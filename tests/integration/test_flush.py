"""What ends each test with real commits leaves nothing behind, as Django's own flush."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db import connection

from folio_events.models import OutboxMessage
from tests.testapp.models import Book

pytestmark = pytest.mark.django_db(transaction=True)

FILLED = {"django_content_type", "auth_permission"}


def flush() -> None:
    """As Django calls it after a test."""
    call_command("flush", verbosity=0, interactive=False, reset_sequences=False)


def tables_with_rows() -> set[str]:
    tables = connection.introspection.django_table_names(only_existing=True, include_views=False)
    with connection.cursor() as cursor:
        found = set()
        for table in tables:
            cursor.execute(f"SELECT EXISTS (SELECT 1 FROM {connection.ops.quote_name(table)})")
            if cursor.fetchone()[0]:
                found.add(table)
        return found


def test_every_table_is_empty_but_those_that_django_fills() -> None:
    """Rows, their events, and rows that refer to others are gone."""
    flush()
    Book.objects.create(title="Dune")
    group = Group.objects.create(name="staff")
    group.permissions.add(Permission.objects.all()[0])
    User.objects.create_user("ann").groups.add(group)
    assert OutboxMessage.objects.exists()

    flush()

    assert tables_with_rows() == FILLED


@pytest.mark.parametrize("done", ["added", "deleted", "renamed"])
def test_permissions_are_what_the_models_say(done: str) -> None:
    """Whatever a test did to them."""
    flush()
    before = set(Permission.objects.values_list("content_type__model", "codename", "name"))
    if done == "added":
        kind = ContentType.objects.get_for_model(Book)
        Permission.objects.create(codename="read_aloud", name="May read", content_type=kind)
    elif done == "deleted":
        Permission.objects.filter(content_type__model="book").delete()
    else:
        Permission.objects.filter(codename="view_book").update(name="May look")

    flush()

    assert set(Permission.objects.values_list("content_type__model", "codename", "name")) == before
