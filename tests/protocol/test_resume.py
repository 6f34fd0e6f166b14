from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandboxrt.protocol.resume import (
    Receipts,
    ReplayLog,
    Resume,
    Resumed,
    ResumeError,
    receipt_from_text,
    receipt_to_text,
)

LIMIT = 64
EVERY = 16
MESSAGE = 24


class Stream(RuleBasedStateMachine):
    """One direction: a sender that follows the rules, a receiver, and connections that lose what they carry."""

    def __init__(self) -> None:
        super().__init__()
        self.log = ReplayLog(LIMIT)
        self.receipts = Receipts(EVERY)
        self.written = b""
        self.read = b""
        self.under_way: list[bytes] = []
        self.acknowledgements: list[int] = []

    @precondition(lambda self: not self.log.full)
    @rule(piece=st.binary(max_size=40))
    def write(self, piece: bytes) -> None:
        self.log.add(piece)
        self.written += piece

    @precondition(lambda self: self.log.pending)
    @rule()
    def send(self) -> None:
        message = self.log.take(MESSAGE)
        assert message
        self.under_way.append(message)

    @precondition(lambda self: self.under_way)
    @rule()
    def arrive(self) -> None:
        message = self.under_way.pop(0)
        self.read += message
        self.receipts.count(len(message))
        if self.receipts.due:
            self.acknowledgements.append(self.receipts.tell())

    @precondition(lambda self: self.acknowledgements)
    @rule()
    def acknowledge(self) -> None:
        self.log.acknowledge(self.acknowledgements.pop(0))

    @rule(arrived=st.integers(0, 3))
    def cut(self, arrived: int) -> None:
        """The connection breaks: some messages were there already, the rest and all acknowledgements are lost."""
        for message in self.under_way[:arrived]:
            self.read += message
            self.receipts.count(len(message))
        self.under_way.clear()
        self.acknowledgements.clear()
        self.log.resume(self.receipts.tell())

    @invariant()
    def nothing_is_lost_or_repeated(self) -> None:
        assert self.written.startswith(self.read)
        assert self.receipts.received == len(self.read)

    @invariant()
    def what_is_kept_is_bounded(self) -> None:
        assert sum(map(len, self.log._pieces)) < LIMIT + 40

    def teardown(self) -> None:
        for _ in range(2):
            while self.log.pending:
                self.send()
            while self.under_way:
                self.arrive()
            self.cut(0)
        assert self.read == self.written
        assert not self.log.pending and not self.log.full


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def test_a_place_within_a_piece_is_gone_on_from() -> None:
    log = ReplayLog()
    log.add(b"abcdef")
    assert log.take(100) == b"abcdef"
    log.resume(4)
    assert log.take(100) == b"ef"


@given(st.integers(0, 40))
def test_what_was_never_sent_cannot_be_acknowledged(received: int) -> None:
    log = ReplayLog()
    log.add(b"x" * 10)
    log.add(b"y" * 10)
    assert log.take(10) == b"x" * 10
    if received <= 10:
        log.acknowledge(received)
    else:
        with pytest.raises(ResumeError, match=f"has {received} bytes"):
            log.acknowledge(received)


def test_a_peer_that_lost_what_it_had_is_told() -> None:
    log = ReplayLog()
    log.add(b"x" * 10)
    log.take(10)
    log.acknowledge(10)
    with pytest.raises(ResumeError, match="byte 5 on, and has acknowledged 10"):
        log.resume(5)


@given(st.integers(0, 2**60))
def test_a_receipt_survives_its_text(received: int) -> None:
    assert receipt_from_text(receipt_to_text(received)) == received


@given(
    st.one_of(st.text(), st.sampled_from(['{"received":-1}', '{"received":01}', '{"received":1.0}', '{"received":1}x']))
)
def test_other_text_is_no_receipt(text: str) -> None:
    with pytest.raises(ResumeError, match="acknowledges nothing"):
        receipt_from_text(text)


@given(st.integers(0, 2**128 - 1), st.integers(0, 2**60), st.booleans())
def test_headers_survive_their_text(number: int, received: int, known: bool) -> None:
    asked, answered = Resume(f"{number:032x}", received), Resumed(known, received)
    assert Resume.decode(asked.encode()) == asked
    assert Resumed.decode(answered.encode()) == answered


@given(
    st.one_of(
        st.text(), st.sampled_from(["x" * 32 + " 0", "0" * 32 + " -1", "0" * 32, "resumed", "resumed -1", "old 1"])
    )
)
def test_other_headers_are_refused(text: str) -> None:
    for decode in (Resume.decode, Resumed.decode):
        with pytest.raises(ResumeError):
            decode(text)
