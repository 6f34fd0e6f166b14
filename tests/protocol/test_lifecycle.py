"""The command's state machine, without a clock."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.protocol.lifecycle import DEFAULT_IDLE_TIMEOUT_S, DEFAULT_TTL_S, Cause, CommandLifecycle, Order


def running(**options: float) -> CommandLifecycle:
    life = CommandLifecycle(100.0, **options)  # type: ignore[arg-type]
    life.attach()
    return life


def test_timeout_terminates_then_kills_then_gives_up() -> None:
    life = running(timeout_s=5, term_grace_s=2, kill_grace_s=10)
    assert life.deadline == 105
    assert life.tick(104.9) is None
    assert life.tick(105) is Order.TERMINATE
    assert (life.cause, life.deadline) == (Cause.TIMEOUT, 107)
    life.leader_exited = True
    assert not life.may_report
    assert life.tick(107) is Order.KILL
    assert life.deadline == 117
    assert life.tick(117) is Order.GIVE_UP
    assert life.may_report
    assert life.deadline == math.inf


def test_a_terminated_tree_that_goes_is_not_killed() -> None:
    life = running(timeout_s=5)
    assert life.tick(105) is Order.TERMINATE
    life.leader_exited = life.tree_empty = True
    assert life.may_report
    assert life.tick(200) is None


def test_zero_means_no_timeout_and_the_default_idle_time() -> None:
    life = running(timeout_s=0, idle_timeout_s=0, ttl_s=0)
    assert life.deadline == math.inf
    assert life.detach(200.0) is None
    assert life.deadline == 200 + DEFAULT_IDLE_TIMEOUT_S
    life.leader_exited = True
    life.finish(300.0)
    assert life.deadline == 300 + DEFAULT_TTL_S
    assert life.tick(900) is Order.FORGET


def test_idle_counts_from_the_last_detach_and_only_then() -> None:
    life = running(timeout_s=0, idle_timeout_s=10)
    life.attach()
    assert life.detach(150) is None
    assert life.deadline == math.inf
    life.detach(160)
    assert life.deadline == 170
    life.attach()
    assert life.deadline == math.inf
    life.detach(165)
    assert life.tick(175) is Order.KILL
    assert life.cause is Cause.IDLE


def test_kill_on_disconnect_kills_what_runs_and_nothing_else() -> None:
    life = running(kill_on_disconnect=True)
    life.attach()
    assert life.detach(101) is None
    assert life.detach(102) is Order.KILL
    assert life.cause is Cause.DISCONNECT
    finished = running(kill_on_disconnect=True)
    finished.leader_exited = True
    assert finished.detach(101) is None


def test_a_kill_after_the_end_takes_what_was_left_and_changes_no_cause() -> None:
    life = running()
    life.leader_exited = True
    assert life.may_report
    life.finish(101)
    assert life.kill(102) is Order.KILL
    assert life.kill(102) is None
    assert life.cause is None


def test_for_ever_is_for_ever() -> None:
    life = running(timeout_s=0, idle_timeout_s=-1, ttl_s=-1)
    life.detach(101)
    assert life.deadline == math.inf
    life.leader_exited = True
    life.finish(102)
    assert life.deadline == math.inf
    assert life.tick(10**9) is None


@given(
    st.floats(-1, 20),
    st.floats(-1, 20),
    st.lists(st.sampled_from(["attach", "detach", "kill", "leader", "tree", "tick"]), max_size=30),
)
def test_whatever_happens_a_due_deadline_is_answered(timeout: float, idle: float, events: list[str]) -> None:
    """No order of events leaves a deadline in the past that a tick does not move: the actor would spin."""
    life = CommandLifecycle(0.0, timeout, idle)
    now = 0.0
    for event in events:
        now += 1.5
        if event == "attach":
            life.attach()
        elif event == "detach" and life.attached:
            life.detach(now)
        elif event == "kill":
            life.kill(now)
        elif event == "leader":
            life.leader_exited = True
        elif event == "tree":
            life.tree_empty = True
        for _ in range(5):
            if life.tick(now) is None:
                break
        else:
            pytest.fail("a deadline stays due")
        assert life.deadline > now
