"""What operators did, in Django's admin log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeAlias

from django.apps import apps
from django.contrib.auth.base_user import AbstractBaseUser
from django.db.models import Model

logger = logging.getLogger("folio_events.audit")

#: The user who acts; None for a command or a program.
Actor: TypeAlias = AbstractBaseUser | None


def log_action(rows: Sequence[Model], what: str, *, by: Actor) -> None:
    """Write who did what to which rows, to Django's log and to the admin log.

    Args:
        rows: Of one model.
        what: Past tense, with the reason if there is one.
        by: Without a user only the logger hears of it.
    """
    if not rows:
        return
    logger.info(
        "%s %s by %s: %s",
        len(rows),
        rows[0]._meta.verbose_name_plural,
        "a program" if by is None else f"user {by.pk}",
        what,
    )
    if by is None or not apps.is_installed("django.contrib.admin"):
        return
    from django.contrib.admin.models import CHANGE, LogEntry

    LogEntry.objects.log_actions(
        user_id=by.pk, queryset=rows, action_flag=CHANGE, change_message=what
    )


def log_erasure(what: str, *, by: Actor) -> None:
    """Write who erased what and why; the rows themselves can no longer be named.

    Args:
        what: Without the data that was erased.
        by: Without a user only the logger hears of it.
    """
    logger.warning("erased by %s: %s", "a program" if by is None else f"user {by.pk}", what)
    if by is None or not apps.is_installed("django.contrib.admin"):
        return
    from django.contrib.admin.models import DELETION, LogEntry

    LogEntry.objects.create(
        user_id=by.pk, action_flag=DELETION, object_repr=what[:200], change_message=what
    )
