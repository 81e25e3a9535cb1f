"""The mutants: a guarding line, what it becomes, and the test that must then fail."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One guard taken out.

    Attributes:
        requirement: the row of the requirements that the guard serves.
        name: what the mutant does wrong.
        file: where the guard stands, from the root of the checkout.
        guard: its exact text, which must be there once.
        replacement: what it becomes.
        test: the test that must fail then, as pytest names it.
    """

    requirement: str
    name: str
    file: str
    guard: str
    replacement: str
    test: str


_NODES = "tests/fault/test_nodes.py::"
_NETWORK = "tests/fault/test_network.py::"
_SERVER = "tests/fault/test_server.py::"
_CLIENTS = "tests/fault/test_clients.py::"
_SWEEP = "tests/fault/test_sweep.py::"
_ISOLATION = "tests/fault/test_isolation.py::"
_CONTRACT = "tests/contract/"
_SECURITY = "tests/integration/test_security.py::"
_LEASES = "tests/unit/test_run_leases.py::"

MUTANTS = (
    # --- R1: delivered until acked, expired or dead-lettered; nothing ends silently ---------------------------------
    Mutant(
        requirement="R1",
        name="an ack is dropped on its way to the store",
        file="gateway/delivery/kept_acks.py",
        guard="            acks.ids.extend(said.ids)\n            acks.facts.extend(facts_of(said.payloads))\n",
        replacement="            pass\n",
        test=_CLIENTS + "test_acking_twice_is_no_error_and_releases_nothing_else",
    ),
    Mutant(
        requirement="R1",
        name="a dead letter is written although the entry was acked",
        file="eventbus/store/lua/dead_letter.lua",
        guard="if redis.call('XACK', stream, session, id) == 0 then",
        replacement="if redis.call('XACK', stream, session, id) == 9 then",
        test=_CONTRACT + "test_delivery.py::test_entry_that_was_acked_is_not_dead_lettered",
    ),
    Mutant(
        requirement="R1",
        name="an entry that a stranger wrote is acked without a word",
        file="eventbus/window.py",
        guard="            effects.append(self._give_up(entry, item.poison))",
        replacement="            pass",
        test=_SWEEP + "test_what_a_stranger_wrote_into_a_stream_is_never_sent_and_ends_as_a_dead_letter",
    ),
    Mutant(
        requirement="R1",
        name="an event for any session is released for the one that acked it alone",
        file="eventbus/store/lua/shared/others.lua",
        guard="  if name ~= session and group['pending'] > 0 then",
        replacement="  if false then",
        test=_CONTRACT + "test_any.py::test_first_ack_releases_a_shared_entry_for_every_session_that_has_it_in_flight",
    ),
    Mutant(
        requirement="R1",
        name="a session that reads later is given what another has received",
        file="eventbus/store/lua/read.lua",
        guard="read and is_any_released and",
        replacement="false and",
        test=_CONTRACT + "test_any.py::test_a_released_entry_is_told_to_those_who_read_it_later",
    ),
    # --- R2: killed, frozen, cut, restarted: nothing lost -----------------------------------------------------------
    Mutant(
        requirement="R2",
        name="a read is not fenced",
        file="eventbus/store/lua/read.lua",
        guard="  if holder ~= connection then",
        replacement="  if false then",
        test=_NODES + "test_a_thawed_nodes_late_reads_take_nothing_from_the_session_that_was_taken_over",
    ),
    Mutant(
        requirement="R2",
        name="what another primary gives is taken before the session was attached there",
        file="gateway/delivery/reader.py",
        guard="answer.state is ReadState.NO_GROUP or answer.primary != session.primary:",
        replacement="answer.state is ReadState.NO_GROUP:",
        test="tests/unit/test_reader_primaries.py::test_rollback_is_announced_before_what_the_new_primary_gives",
    ),
    Mutant(
        requirement="R2",
        name="a Sentinel that has not heard of a failover leads back to the old primary",
        file="eventbus/store/succession.py",
        guard="where.is_late(epoch, loop.time()):",
        replacement="where.is_late(epoch + 9, loop.time()):",
        test="tests/unit/test_link_routing.py::test_sentinel_that_has_not_heard_of_a_failover_leads_nobody_back",
    ),
    Mutant(
        requirement="R2",
        name="a connection to a frozen server is waited for although the primary is elsewhere",
        file="eventbus/store/links.py",
        guard="            self._only.connect_anew()",
        replacement="            pass",
        test="tests/unit/test_link_changes.py::"
        "test_connection_to_a_server_that_stands_still_is_given_up_when_the_primary_is_elsewhere",
    ),
    Mutant(
        requirement="R2",
        name="a slot that was elsewhere between two looks is taken for one that never left",
        file="eventbus/store/links.py",
        guard="            link.rename()",
        replacement="            pass",
        test="tests/unit/test_link_changes.py::test_primary_that_took_back_a_slot_between_two_looks_is_another",
    ),
    Mutant(
        requirement="R2",
        name="a bus closes without asking the next primary what it has",
        file="eventbus/publishing/publisher.py",
        guard=" or self._kept.unasked()):",
        replacement="):",
        test="tests/unit/test_publisher_moves.py::"
        "test_publisher_that_closes_while_its_primary_is_away_waits_for_the_next_one",
    ),
    Mutant(
        requirement="R2",
        name="what was sent and not acked is not looked for after a failover",
        file="gateway/sessions/session.py",
        guard="self.opening.attach_again(self.delivery.furthest)",
        replacement="self.opening.attach_again(self.delivery.cursor)",
        test="tests/unit/test_reader_primaries.py::test_rollback_of_what_was_sent_and_not_acked_is_announced_too",
    ),
    Mutant(
        requirement="R2",
        name="users of all primaries share one line of calls",
        file="eventbus/publishing/lines.py",
        guard="        lane = 0 if self._lane_of is None else self._lane_of(line.user)",
        replacement="        lane = 0",
        test="tests/unit/test_lanes.py::test_publishes_of_others_go_on_while_a_lane_stands_still",
    ),
    Mutant(
        requirement="R2",
        name="the node's name is the fencing token, so that it is used again",
        file="eventbus/store/lua/shared/live.lua",
        guard="  return holder == connection and node or nil",
        replacement="  return holder and node or nil",
        test=_CONTRACT + "test_fencing.py::test_displaced_connection_changes_nothing",
    ),
    Mutant(
        requirement="R2",
        name="a re-attach takes the session from whoever has it",
        file="eventbus/store/lua/attach.lua",
        guard="if mode == 'reattach' and holder and holder ~= connection then",
        replacement="if false then",
        test=_CONTRACT + "test_attach.py::test_reattach_never_replaces_another_connection",
    ),
    Mutant(
        requirement="R2",
        name="a session whose live field has aged out is closed for good",
        file="gateway/sessions/session.py",
        guard='        self.reattach("disowned")',
        replacement="        self.lost()",
        test=_SWEEP + "test_a_session_whose_live_field_is_gone_attaches_again_at_its_next_read",
    ),
    Mutant(
        requirement="R2",
        name="a read whose reply was lost is forgotten",
        file="eventbus/delivery.py",
        guard="        self._dirty = self._reattach_wanted = True\n        return []",
        replacement="        self._dirty = True\n        return []",
        test=_NETWORK + "test_a_reply_of_the_server_that_never_comes_loses_nothing[read]",
    ),
    Mutant(
        requirement="R2",
        name="the sweep does not compare what is pending",
        file="gateway/sessions/session.py",
        guard='            self.reattach("sweep")',
        replacement="            pass",
        test=_SWEEP + "test_entries_that_are_pending_and_that_nobody_holds_are_found_within_a_heartbeat",
    ),
    Mutant(
        requirement="R2",
        name="the sweep does not look for what is unread",
        file="gateway/sessions/session.py",
        guard="        elif beat.unread:",
        replacement="        elif False:",
        test=_SWEEP + "test_an_event_whose_wake_up_was_lost_arrives_within_a_heartbeat",
    ),
    Mutant(
        requirement="R2",
        name="a wake-up leaves no mark",
        file="eventbus/delivery.py",
        guard="    def _woken(self, event: moves.Woken, now_ms: int) -> list[Effect]:\n        self._dirty = True",
        replacement="    def _woken(self, event: moves.Woken, now_ms: int) -> list[Effect]:\n        pass",
        test=_CLIENTS + "test_acking_twice_is_no_error_and_releases_nothing_else",
    ),
    Mutant(
        requirement="R2",
        name="acks that the store did not answer are not kept",
        file="gateway/delivery/kept_acks.py",
        guard="        kept.ids[:0] = request.entries\n        kept.facts[:0] = request.facts\n",
        replacement="        pass\n",
        test="tests/integration/test_acks_kept.py::test_an_ack_that_the_store_did_not_take_is_repeated_until_it_does",
    ),
    Mutant(
        requirement="R2",
        name="the pending entries are not read when a session comes back",
        file="eventbus/delivery.py",
        guard="            if not event.pending:",
        replacement="            if True:",
        test=_NODES + "test_a_killed_node_loses_nothing_and_its_sessions_resume_on_another",
    ),
    Mutant(
        requirement="R2",
        name="what a rolled-back server lost is not sent again",
        file="eventbus/publishing/kept.py",
        guard="        while event is not None and (event.primary == self.home or event.refused):",
        replacement="        while event is not None:",
        test="tests/unit/test_bus.py::test_events_lost_in_a_failover_are_stored_again_in_their_order_before_new_ones",
    ),
    Mutant(
        requirement="R2",
        name="that a user is elsewhere now is no reason to look after what is kept",
        file="eventbus/publishing/publisher.py",
        guard="        nothing = [result for result in results if isinstance(result, StoreUnavailable | StoreMoved)]",
        replacement="        nothing = [result for result in results if isinstance(result, StoreUnavailable)]",
        test="tests/unit/test_bus.py::test_a_user_who_is_elsewhere_now_has_the_kept_events_there_before_a_new_one",
    ),
    Mutant(
        requirement="R2",
        name="what a server that was replaced has answered late is left with it",
        file="eventbus/publishing/kept.py",
        guard="            moved = of_user.move(now) or primary != now",
        replacement="            moved = False",
        test="tests/unit/test_publisher_moves.py"
        "::test_answer_that_comes_after_a_failover_has_its_event_sent_to_the_new_primary",
    ),
    Mutant(
        requirement="R2",
        name="a server that was demoted and promoted again is the same primary",
        file="eventbus/store/answers.py",
        guard='("run_id", "master_replid")',
        replacement='("run_id",)',
        test="tests/unit/test_link_changes.py::test_server_that_was_demoted_and_promoted_again_is_another_primary",
    ),
    Mutant(
        requirement="R6",
        name="a new event goes to a server that is not connected yet, and what is kept behind it",
        file="eventbus/publishing/kept.py",
        guard="                asked = (kept for kept in of_user if not kept.refused)",
        replacement="                asked = iter(())",
        test="tests/unit/test_link_kept.py"
        "::test_user_whose_server_is_not_connected_is_checked_though_the_one_before_answers_for_others",
    ),
    # --- R3: attempts, waits, dead letters --------------------------------------------------------------------------
    Mutant(
        requirement="R3",
        name="the delivery count is not raised",
        file="eventbus/window.py",
        guard="            entry.attempts += 1",
        replacement="            pass",
        test=_CLIENTS + "test_an_event_that_is_never_acked_is_tried_with_growing_waits_and_then_a_dead_letter",
    ),
    Mutant(
        requirement="R3",
        name="the waits do not grow",
        file="eventbus/redelivery.py",
        guard="first_ms << min(number - 1, 40)",
        replacement="first_ms",
        test=_CLIENTS + "test_an_event_that_is_never_acked_is_tried_with_growing_waits_and_then_a_dead_letter",
    ),
    Mutant(
        requirement="R3",
        name="the count in the store does not outlive the node",
        file="eventbus/store/lua/redeliver.lua",
        guard="'RETRYCOUNT', ARGV[i + 1], 'JUSTID'",
        replacement="'RETRYCOUNT', 1, 'JUSTID'",
        test=_CONTRACT + "test_delivery.py::test_count_of_redeliveries_outlives_its_node",
    ),
    Mutant(
        requirement="R3",
        name="a reconnect counts as an attempt",
        file="eventbus/store/lua/pending.lua",
        guard="local page = {",
        replacement=(
            "redis.call('XREADGROUP', 'GROUP', session, 'c', 'COUNT', count, 'STREAMS', stream, '0')\nlocal page = {"
        ),
        test=_CLIENTS + "test_quick_reconnects_kill_no_event",
    ),
    Mutant(
        requirement="R3",
        name="nobody is told of a dead letter",
        file="eventbus/window.py",
        guard="            return [moves.Dropped((event.id,), moves.DropReason.DEAD_LETTERED)]",
        replacement="            return []",
        test=_CLIENTS + "test_an_event_that_is_never_acked_is_tried_with_growing_waits_and_then_a_dead_letter",
    ),
    # --- R4: one idempotency key, in order --------------------------------------------------------------------------
    Mutant(
        requirement="R4",
        name="a repeated event id is stored again",
        file="eventbus/store/lua/shared/storing.lua",
        guard="if known then",
        replacement="if false then",
        test=_NETWORK + "test_a_publish_whose_reply_never_came_is_stored_once_and_in_its_place",
    ),
    Mutant(
        requirement="R4",
        name="a retry goes to the end of its line",
        file="eventbus/publishing/lines.py",
        guard="            self.queue.appendleft(item)",
        replacement="            self.queue.append(item)",
        test="tests/unit/test_bus.py::test_a_retry_keeps_its_place",
    ),
    Mutant(
        requirement="R4",
        name="the waits between tries do not grow",
        file="eventbus/publishing/retries.py",
        guard="wait_exponential(multiplier=base, max=longest) + wait_random",
        replacement="wait_exponential(multiplier=base, max=base) + wait_random",
        test="tests/unit/test_bus.py::test_the_waits_between_tries_grow_are_jittered_and_have_a_limit",
    ),
    # --- R5: the circuit breaker ------------------------------------------------------------------------------------
    Mutant(
        requirement="R5",
        name="the breaker never opens",
        file="eventbus/breaker.py",
        guard="            if self.failures < self._limit:",
        replacement="            if True:",
        test="tests/unit/test_breaker.py::test_failures_in_a_row_open_it_and_one_less_does_not",
    ),
    Mutant(
        requirement="R5",
        name="the breaker never probes",
        file="eventbus/breaker.py",
        guard="        if self.state is BreakerState.OPEN and now_ms >= self.next_probe_ms:",
        replacement="        if False:",
        test="tests/unit/test_breaker.py::test_nothing_passes_before_the_probe_is_due_and_one_probe_at_a_time_then",
    ),
    # --- R6: order, and redeliveries marked -------------------------------------------------------------------------
    Mutant(
        requirement="R6",
        name="what comes again after a reconnect is not marked",
        file="eventbus/delivery.py",
        guard="        return item.attempts + 1",
        replacement="        return item.attempts",
        test=_NODES + "test_a_killed_node_loses_nothing_and_its_sessions_resume_on_another",
    ),
    Mutant(
        requirement="R6",
        name="a redelivery is not marked",
        file="eventbus/window.py",
        guard="            entry.delivery += 1",
        replacement="            pass",
        test=_CLIENTS + "test_a_nacked_event_comes_again_marked_and_after_the_wait_that_was_asked_for",
    ),
    # --- R7: resume, and gaps announced -----------------------------------------------------------------------------
    Mutant(
        requirement="R7",
        name="a gap is not announced",
        file="gateway/sessions/effects.py",
        guard="session.send(wire.Gap(",
        replacement="str(wire.Gap(",
        test=_CLIENTS + "test_what_the_cap_took_from_a_session_that_was_away_is_announced_with_its_range",
    ),
    Mutant(
        requirement="R7",
        name="an unknown epoch is no reset",
        file="eventbus/store/lua/attach.lua",
        guard="local same_epoch = client_epoch == '' or client_epoch == epoch",
        replacement="local same_epoch = true",
        test=_SERVER + "test_data_that_is_gone_is_announced_to_every_session_and_delivery_goes_on",
    ),
    Mutant(
        requirement="R7",
        name="a cursor that was acked and trimmed is a gap",
        file="eventbus/store/lua/attach.lua",
        guard="elseif uncounted and not existed then",
        replacement="elseif uncounted then",
        test=_CONTRACT + "test_gaps.py::test_cursor_that_was_acked_and_trimmed_is_no_gap",
    ),
    Mutant(
        requirement="R7",
        name="a gap is forgotten when it was read over, whether its client has heard of it or not",
        file="eventbus/store/lua/attach.lua",
        guard="    heard = not below(cursor, gap.upto)",
        replacement="    heard = true",
        test=_CONTRACT
        + "test_gaps.py::test_gap_is_told_again_when_the_socket_died_before_the_client_handled_what_came_behind_it",
    ),
    # --- R8: the clients' libraries ---------------------------------------------------------------------------------
    Mutant(
        requirement="R8",
        name="the Python client hands an event over twice",
        file="eventbus/client/inbox.py",
        guard="        if event.id in self._seen:",
        replacement="        if False:",
        test="tests/unit/test_subscriber.py::test_an_event_stored_twice_by_a_failover_is_handed_over_once",
    ),
    Mutant(
        requirement="R8",
        name="the Python client ends with words that are no Unicode",
        file="eventbus/client/link.py",
        guard='reason[:most].encode(errors="replace").decode()',
        replacement="reason[:most]",
        test="tests/unit/test_subscriber.py::test_an_error_whose_words_are_no_unicode_nacks_and_ends_nothing",
    ),
    Mutant(
        requirement="R11",
        name="the Python client forgets a confirmation that the store could not take",
        file="eventbus/client/link.py",
        guard="            self._due.setdefault(_Duty.CONFIRM, now_ms + AGAIN_MS)",
        replacement="            pass",
        test="tests/unit/test_subscriber_confirms.py"
        "::test_what_the_store_could_not_take_is_said_again_on_the_same_connection",
    ),
    Mutant(
        requirement="R20",
        name="the Python client sends a command again that nodes have forgotten",
        file="eventbus/client/sends.py",
        guard=" if now_ms - first.get(ref, now_ms) < REPEAT_MS)",
        replacement=")",
        test="tests/unit/test_command_sends.py"
        "::test_a_command_is_not_sent_again_when_a_node_may_have_forgotten_its_ref",
    ),
    Mutant(
        requirement="R8",
        name="the Python client acks before the handler",
        file="eventbus/subscriber.py",
        guard="                self._in_hand = turn\n",
        replacement="                self._in_hand = turn\n                self._ack(turn)\n",
        test="tests/unit/test_subscriber.py::test_a_handler_is_acked_after_it_has_returned",
    ),
    # --- R9: slow clients -------------------------------------------------------------------------------------------
    Mutant(
        requirement="R9",
        name="the window is ignored",
        file="eventbus/window.py",
        guard="        return max(0, min(free, 2 * window - held, 4 * window - len(self._unstored), self._read_max))",
        replacement="        return self._read_max",
        test=_NODES + "test_a_thawed_nodes_late_reads_take_nothing_from_the_session_that_was_taken_over",
    ),
    # --- R10: drain -------------------------------------------------------------------------------------------------
    Mutant(
        requirement="R10",
        name="a drain does not wait for acks",
        file="gateway/drain.py",
        guard="    await _settle(node, min(GRACE_MS, node.drain_ms // 4))",
        replacement="    await asyncio.sleep(0)",
        test=_NODES + "test_draining_every_node_in_turn_loses_nothing_and_repeats_nothing",
    ),
    Mutant(
        requirement="R10",
        name="a drain sends all clients away in one moment",
        file="gateway/drain.py",
        guard="    return 50 + spread_ms * index // max(1, count)",
        replacement="    return 50",
        test=_NODES + "test_draining_every_node_in_turn_loses_nothing_and_repeats_nothing",
    ),
    # --- R22, R23: nobody gets another's ----------------------------------------------------------------------------
    Mutant(
        requirement="R22",
        name="an event in the wrong stream is sent",
        file="gateway/transport/payload.py",
        guard="    if head.user != user:",
        replacement="    if False:",
        test=_SWEEP + "test_what_a_stranger_wrote_into_a_stream_is_never_sent_and_ends_as_a_dead_letter",
    ),
    Mutant(
        requirement="R22",
        name="another user's token refreshes a session",
        file="gateway/sessions/opening.py",
        guard="    if identity.user != fence.user:",
        replacement="    if False:",
        test=_ISOLATION + "test_a_session_can_not_be_refreshed_into_another_users",
    ),
    Mutant(
        requirement="R22",
        name="the signature is not verified",
        file="gateway/access/auth.py",
        guard="            if key.verifies(signed, signature):",
        replacement="            if True:",
        test=_ISOLATION + "test_nobody_gets_in_as_another_by_a_forged_token_or_by_asking_over_http",
    ),
    Mutant(
        requirement="R22",
        name="a pinned token opens any session",
        file="gateway/sessions/opening.py",
        guard="        if identity.session is not None and hello.session not in (None, identity.session):",
        replacement="        if False:",
        test=_ISOLATION + "test_a_pinned_token_opens_its_own_session_alone",
    ),
    Mutant(
        requirement="R22",
        name="the user id and the event id run together in the idempotency key",
        file="eventbus/store/keys.py",
        guard=r'blake2b(f"{user}\0{event}".encode()',
        replacement='blake2b(f"{user}:{event}".encode()',
        test=_CONTRACT + "test_append.py::test_user_and_event_id_are_never_confused",
    ),
    Mutant(
        requirement="R23",
        name="an expired token is accepted",
        file="gateway/access/auth.py",
        guard="        if expires_ms <= now_ms:",
        replacement="        if False:",
        test=_ISOLATION + "test_nobody_gets_in_as_another_by_a_forged_token_or_by_asking_over_http",
    ),
    Mutant(
        requirement="R23",
        name="the tokens of a key that was taken away are remembered",
        file="gateway/access/auth.py",
        guard="            self._cache.clear()",
        replacement="            pass",
        test="tests/unit/test_rotation.py::test_a_secret_that_changes_in_its_file_counts_from_the_next_look_on",
    ),
    Mutant(
        requirement="R23",
        name="a ticket outlives the key of its token",
        file="gateway/hosting.py",
        guard="        self.authenticator.check_key(identity)",
        replacement="        pass",
        test=_SECURITY + "test_keys_are_rotated_while_nodes_run_and_a_key_that_goes_takes_its_connections_with_it",
    ),
    Mutant(
        requirement="R23",
        name="a user publishes on each node what one allows",
        file="gateway/web/quotas.py",
        guard="        if wait_ms:",
        replacement="        if False:",
        test=_SECURITY + "test_a_user_publishes_on_all_nodes_together_no_more_than_the_tier_allows",
    ),
    Mutant(
        requirement="R23",
        name="bodies have no bound together",
        file="gateway/web/quotas.py",
        guard="        if self._bodies_bytes + more_bytes > self._limits.max_bodies_bytes:",
        replacement="        if False:",
        test=_SECURITY + "test_bodies_that_are_held_open_leave_the_node_within_its_bound",
    ),
    Mutant(
        requirement="R23",
        name="slow requests take every place",
        file="gateway/transport/listener.py",
        guard="            next(iter(self.heads)).drop()",
        replacement="            pass",
        test="tests/unit/test_listener_places.py::test_who_has_waited_longest_for_a_request_makes_room_for_the_next",
    ),
    # --- R16: a run owes its events, whatever becomes of its process -------------------------------------------------
    Mutant(
        requirement="R16",
        name="an event of a run is stored although one before it is missing",
        file="eventbus/store/lua/append_run.lua",
        guard="if seq <= last or (seq ~= last + 1 and ARGV[19] ~= 'anew') then",
        replacement="if false then",
        test=_CONTRACT + "test_running.py::test_step_that_does_not_follow_the_last_one_is_refused_and_changes_nothing",
    ),
    Mutant(
        requirement="R16",
        name="whoever has lost a run goes on with it",
        file="eventbus/store/lua/append_run.lua",
        guard="if holder ~= '' and not same then",
        replacement="if false then",
        test=_CONTRACT + "test_running.py::test_step_of_another_owner_is_refused",
    ),
    Mutant(
        requirement="R16",
        name="a lease is renewed once",
        file="eventbus/runs/leases.py",
        guard="        self._arm(self.lease_ms // (PER_LEASE_IN_DOUBT if doubts else PER_LEASE))",
        replacement="        pass",
        test=_LEASES + "test_the_lease_of_a_run_that_says_nothing_is_renewed_as_long_as_its_process_lives",
    ),
    Mutant(
        requirement="R16",
        name="the open calls of a killed run are left open",
        file="eventbus/runs/closing.py",
        guard="seq=seq_of(record), open=open_calls(record))",
        replacement="seq=seq_of(record))",
        test="tests/fault/test_runs.py::test_runs_whose_agent_was_killed_are_closed_as_failed_within_their_lease",
    ),
    Mutant(
        requirement="R16",
        name="a run is closed by whoever comes, claimed or not",
        file="eventbus/store/lua/claim_run.lua",
        guard="(holder ~= ARGV[3] and holder ~= ARGV[4])",
        replacement="false",
        test=_CONTRACT + "test_running.py::test_run_is_claimed_by_one_and_its_old_owner_is_refused",
    ),
    Mutant(
        requirement="R16",
        name="what the store lost of a run does not come again",
        file="eventbus/publishing/settling.py",
        guard="            self._kept.lose(line.user, step.run, error.last, step.seq)",
        replacement="            pass",
        test=_LEASES + "test_events_of_a_run_come_again_when_the_store_lost_everything",
    ),
    Mutant(
        requirement="R16",
        name="a run that ends leaves its calls open",
        file="eventbus/run.py",
        guard="for call_id, tool in state.open.items()]\n    # A result",
        replacement="for call_id, tool in ()]\n    # A result",
        test="tests/unit/test_runs.py::test_what_is_still_open_at_the_end_ends_with_the_run",
    ),
)

REQUIRED = frozenset(("R1", "R2", "R3", "R4", "R5", "R6", "R7", "R8", "R9", "R10", "R16", "R22"))
"""Rows that must have a mutant."""
