"""What a daemon's garbage collector need not look at."""

from __future__ import annotations

import gc


def freeze_heap() -> None:
    """Have the collector pass over what the process has loaded by now.

    A batch makes thousands of objects, which sets it off again and again; each time it would
    walk all of Django, and delay what is in hand. For processes of our own: what is frozen and then dropped stays.
    """
    gc.collect()
    gc.freeze()
