"""Moments as arguments of commands."""

from __future__ import annotations

import argparse
from datetime import datetime

from django.utils import timezone
from django.utils.dateparse import parse_datetime

#: How moments are written, for the help of options.
FORM = "ISO 8601, such as 2026-01-31T09:00+01:00"


def moment(text: str) -> datetime:
    """Read an ISO 8601 date or time; without a zone it is in the current one.

    Raises:
        argparse.ArgumentTypeError: It is neither.
    """
    try:
        found = parse_datetime(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no moment: {error}") from error
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no moment: write it in {FORM}.")
    return timezone.make_aware(found) if timezone.is_naive(found) else found
