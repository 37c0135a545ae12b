"""Keep fields of two models equal through events, declared as a field map.

One side is the *hub* (an item), the other has any number of *spokes* (pieces that name
the item's id). Each edit of a synced field gets a stamp: when, whether by the field's
owner, in which row. Events carry the stamps of both sides' rows, and a receiver decides
field by field:

- values are equal: nothing is written, so nothing is sent back;
- the event's stamp is later: its value and its stamp are taken over;
- the event's stamp is earlier: the value here stays. If the sender may not know that
  value, the edit here is stamped anew, and its event tells it.

So the last edit wins wherever the events meet on their way, the owner's among edits of
one microsecond, and a value that was taken over is no edit of its own: it keeps the
stamp that it came with. Stamps never go backwards in a row, even if clocks do.

A blank is an edit like any other where the field is ``blankable``. Elsewhere only the
owner's side may blank it, and a linked record of the other side keeps what it had. A
blank at the moment of linking says nothing.
"""
