"""Rows whose numbers tell the order in which they were committed, and what receivers did."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class Account(models.Model):
    """Its number counts its own committed changes: each writer holds the row when it adds one."""

    number = models.BigIntegerField(default=0)
    note = models.TextField(default="")

    objects: ClassVar[models.Manager[Account]] = models.Manager()

    def __str__(self) -> str:
        return f"account {self.pk}"


class Entry(models.Model):
    """Many rows share an account's key; their order is that of their commits."""

    # Without a constraint, which would lock the account and so hide what capture has to lock.
    account = models.ForeignKey(Account, models.DO_NOTHING, db_constraint=False)
    note = models.TextField(default="")

    objects: ClassVar[models.Manager[Entry]] = models.Manager()

    def __str__(self) -> str:
        return f"entry {self.pk}"


class Effect(models.Model):
    """What a receiver did, written in its transaction; ids are drawn in the order of effects."""

    receiver = models.CharField(max_length=100)
    kind = models.CharField(max_length=20)
    key = models.CharField(max_length=100)
    #: Of an account's change its number, of an entry its id.
    number = models.BigIntegerField()
    event_id = models.UUIDField()

    objects: ClassVar[models.Manager[Effect]] = models.Manager()

    def __str__(self) -> str:
        return f"{self.receiver} {self.kind}/{self.key} {self.number}"


class Till(models.Model):
    """Rows that receivers lock in different orders."""

    total = models.BigIntegerField(default=0)

    objects: ClassVar[models.Manager[Till]] = models.Manager()

    def __str__(self) -> str:
        return f"till {self.pk}"
