"""A writer: changes books without end, in transactions of all kinds, until it is killed.

Each committed change of a book adds one to its ``copies``; one that is rolled back sets it to a
negative number. So the books themselves say what was committed, and in which order.
"""

from __future__ import annotations

import contextlib
import random
import sys
import threading

import django
from django.db import transaction


class _RollBackError(Exception):
    pass


def main(seed: str) -> None:
    django.setup()
    from tests.testapp.models import Book

    rng = random.Random(seed)
    pause = threading.Event()
    books = list(Book.objects.order_by("pk").values_list("pk", flat=True))

    def change(pk: int, *, in_vain: bool) -> None:
        book = Book.objects.select_for_update().get(pk=pk)
        book.copies = -book.copies if in_vain else book.copies + 1
        book.save()
        if in_vain:
            raise _RollBackError

    def transact() -> None:
        with transaction.atomic():
            # In ascending order, or writers would deadlock.
            for pk in sorted(rng.sample(books, rng.randint(1, 3))):
                if rng.random() < 0.1:
                    with contextlib.suppress(_RollBackError), transaction.atomic():
                        change(pk, in_vain=True)
                change(pk, in_vain=False)
            if rng.random() < 0.1:
                pause.wait(0.1)
            if rng.random() < 0.1:
                change(books[-1], in_vain=True)

    while True:
        with contextlib.suppress(_RollBackError):
            transact()


if __name__ == "__main__":
    main(sys.argv[1])
