"""What a session has missed, in memory: where its group stands when it attaches, and whether a read follows the last
one.
"""

from __future__ import annotations

from eventbus.ids import (
    ENTRY_ZERO,
    EntryId,
    entry_order,
)
from eventbus.store import (
    Attach,
    AttachMode,
    Fence,
    GapReason,
    Start,
    StoreGap,
)
from eventbus.testing.memory_state import ZERO, UserState
from eventbus.testing.memory_stream import Group, MemoryStream, Order, entry_id

__all__ = ["place_group", "verify_read"]


def place_group(user: UserState, request: Attach, *, same_epoch: bool) -> StoreGap | None:
    """Make the session's group, or look whether it still stands where the client believes.

    What was told to an earlier connection is told again, unless the client has handled what was sent behind it.

    Args:
        user: its state; the stream is made when there is none.
        request: the attach.
        same_epoch: the client knows no epoch, or the one that holds now.

    Returns:
        What is lost, None when nothing is.
    """
    session = request.fence.session
    existed, stream = user.group(session) is not None, user.opened_stream()
    if not existed and session not in user.known:
        user.noted.pop(session, None)
    gap = _place_group(user, request, same_epoch=same_epoch)
    noted = user.noted.get(session, [])
    unheard = [(old, upto) for old, upto in noted if not _has_heard(stream.groups[session], request.cursor, upto)]
    if request.mode is AttachMode.OPEN:
        user.noted[session] = unheard
    if not existed and gap is not None and gap.reason is GapReason.TRIMMED:
        user.note_gap(session, gap, stream)
    if not unheard or (gap is not None and gap.reason is not GapReason.TRIMMED):
        return gap
    gaps = [old for old, _ in unheard] + ([gap] if gap is not None else [])
    counts = [one.count for one in gaps if one.count is not None]
    return StoreGap(
        reason=GapReason.TRIMMED,
        after=gaps[0].after,
        before=gaps[-1].before,
        count=sum(counts) if len(counts) == len(gaps) else None,
    )


def _has_heard(group: Group, cursor: EntryId | None, upto: Order) -> bool:
    """Whether a client has handled what was sent behind a gap."""
    if cursor is not None and entry_order(cursor) != ZERO:
        return entry_order(cursor) >= upto
    return group.position >= upto and not any(order <= upto for order in group.pending)


def _place_group(user: UserState, request: Attach, *, same_epoch: bool) -> StoreGap | None:
    """The part of `place_group` that looks at the stream as it is now.

    A `trimmed` gap leaves the group as it is: should this connection die before its client has heard of it, the next
    one is told again. The first read settles it.
    """
    session = request.fence.session
    existed = user.group(session) is not None
    stream = user.opened_stream()
    cursor = entry_order(request.cursor or ENTRY_ZERO)
    absent = cursor != ZERO and cursor not in stream
    # A new group has read nothing, so nobody can say how many of the trimmed entries lay behind the cursor.
    uncounted = absent and stream.trimmed > 0 and cursor < min(stream.last, stream.first or stream.last)
    if not existed:
        begin = _start(user, stream, request, same_epoch=same_epoch)
        stream.create_group(session, begin, counted=not uncounted or begin == stream.last)
    group = stream.groups[session]
    if not same_epoch:
        if group.position > stream.last:
            stream.move_group(group, ZERO)
        return StoreGap(reason=GapReason.RESET, after=request.cursor, before=_first(stream))
    diverged = absent and stream.first is not None and stream.first < cursor
    if group.position > stream.last or (absent and cursor > stream.last) or diverged:
        return _rollback(stream, group, cursor if absent else group.position, request.cursor)
    if _has_unread_trimmed(stream, group):
        told = _told(user, request.fence)
        user.told[session] = request.fence.connection, stream.trimmed
        user.hole = max(user.hole or ZERO, stream.first or stream.last)
        return _trimmed_gap(stream, group, told, request.cursor if uncounted else None)
    if uncounted and not existed:
        return StoreGap(reason=GapReason.TRIMMED, after=request.cursor, before=_first(stream))
    return None


def _has_unread_trimmed(stream: MemoryStream, group: Group) -> bool:
    """Whether entries were trimmed before the group read them (D15)."""
    if group.entries_read is not None:
        return stream.trimmed > group.entries_read
    return stream.trimmed > 0 and group.position < min(stream.last, stream.first or stream.last)


def _told(user: UserState, fence: Fence) -> int:
    """Of how many trimmed entries this connection was told when it attached."""
    connection, count = user.told.get(fence.session, (fence.connection, 0))
    return count if connection == fence.connection else 0


def _trimmed_gap(stream: MemoryStream, group: Group, told: int, cursor: EntryId | None = None) -> StoreGap | None:
    """The gap of entries trimmed before the group read them, without what was told before; None when all was told."""
    if stream.trimmed <= told:
        return None
    counted = group.entries_read is not None or told > 0
    return StoreGap(
        reason=GapReason.TRIMMED,
        after=entry_id(group.position) if group.position != ZERO else cursor,
        before=_first(stream),
        count=stream.trimmed - max(group.entries_read or 0, told) if counted else None,
    )


def verify_read(
    user: UserState, stream: MemoryStream, group: Group, fence: Fence, verify: EntryId | None
) -> StoreGap | None:
    """Look whether the next read follows the last one without a hole (D7).

    Args:
        user: whose stream it is.
        stream: the stream.
        group: the session's group.
        fence: the session and who reads.
        verify: the last id that was read when the last read was a full one.
    """
    absent = verify is not None and entry_order(verify) not in stream
    if not absent and user.hole is None:
        return None
    if _has_unread_trimmed(stream, group):
        gap = _trimmed_gap(stream, group, _told(user, fence))
        if (whole := _trimmed_gap(stream, group, 0)) is not None:
            user.note_gap(fence.session, whole, stream)
        # Announced once: from here on the group counts as having read what is gone.
        group.entries_read = stream.trimmed
        user.told.pop(fence.session, None)
        if gap is not None:
            return gap
    if verify is None or not absent:
        return None
    # Read and trimmed since: nothing is lost (D15), unless the stream went back behind it.
    if entry_order(verify) > stream.last or (stream.first is not None and stream.first < entry_order(verify)):
        return _rollback(stream, group, entry_order(verify), verify)
    return None


def _start(user: UserState, stream: MemoryStream, request: Attach, *, same_epoch: bool) -> Order:
    """Where a group that has to be made begins."""
    if request.mode is AttachMode.REATTACH or request.fence.session in user.known or not same_epoch:
        # The session was there and its group is not: never at the end (D10), the client drops what it has seen.
        return ZERO
    if request.start is Start.NEW:
        return stream.last
    return entry_order(request.cursor or ENTRY_ZERO) if request.start is Start.CURSOR else ZERO


def _rollback(stream: MemoryStream, group: Group, upto: Order, seen: EntryId | None) -> StoreGap:
    """The stream lost its newest entries: the group goes back to the newest surviving id at or below `upto` (D4)."""
    surviving = stream.at_or_below(upto) or ZERO
    stream.move_group(group, min(group.position, surviving))
    following = stream.after(surviving, 1)
    return StoreGap(
        reason=GapReason.ROLLBACK,
        after=entry_id(surviving) if surviving != ZERO else seen,
        before=entry_id(following[0]) if following else None,
    )


def _first(stream: MemoryStream) -> EntryId | None:
    return entry_id(stream.first) if stream.first is not None else None
