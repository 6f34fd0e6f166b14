"""Input arrives once and in order, however connections break and whatever was acknowledged."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sandboxrt.client.transport.input import InputLog
from sandboxrt.protocol.backoff import reattach_delay, request_delay, retry_after, start_delay

PIECES = st.text(alphabet="aä世😀\n", min_size=1, max_size=8)
STEPS = st.lists(
    st.one_of(
        PIECES.map(lambda text: ("add", text)),
        st.just(("send", "")),
        st.just(("acknowledge", "")),
        st.just(("lose", "")),
    ),
    max_size=60,
)


@given(STEPS, st.booleans())
@settings(deadline=None)
def test_numbered_input_arrives_once(steps: list[tuple[str, str]], answers_are_lost: bool) -> None:
    log, given_text, taken = InputLog(), "", b""

    def send() -> None:
        nonlocal taken
        if (piece := log.take()) is not None:
            data, offset = piece
            assert offset is not None and offset <= len(taken), "a gap"
            taken += data.encode()[len(taken) - offset :]

    log.resume(0)
    for step, text in steps:
        match step:
            case "add":
                log.add(text)
                given_text += text
            case "send":
                send()
            case "acknowledge":
                log.acknowledge(len(taken))
            case _:
                if not answers_are_lost:
                    log.acknowledge(len(taken))
                log.resume(len(taken))
        assert given_text.encode().startswith(taken)
    log.close()
    while log.pending and not log.take_close():
        send()
    assert taken == given_text.encode()
    assert log.close_sent
    log.acknowledge(len(taken))
    assert not log.full and log.sent == log.given == len(taken)


@given(st.lists(PIECES, max_size=20))
def test_plain_input_is_forgotten_once_sent(pieces: list[str]) -> None:
    log = InputLog()
    log.resume(None)
    sent = ""
    for piece in pieces:
        log.add(piece)
        taken = log.take()
        assert taken is not None and taken[1] is None
        sent += taken[0]
    assert sent == "".join(pieces)
    assert log.take() is None and not log.full


@given(st.text(max_size=300_000))
@settings(max_examples=20, deadline=None)
def test_pieces_make_up_the_whole(text: str) -> None:
    assert "".join(InputLog.split(text)) == text


@given(
    st.integers(0, 50), st.floats(0, 1), st.sampled_from([None, 429, 502, 503, 504]), st.text(max_size=8) | st.none()
)
def test_delays_are_bounded(number: int, jitter: float, status: int | None, after: str | None) -> None:
    assert 0 <= request_delay(number, jitter, status, after) <= 301
    assert 0.5 <= reattach_delay(number) <= 8
    assert 0 < start_delay(number, jitter) <= 8
    asked = retry_after(after)
    assert asked is None or 0 <= asked <= 300


def test_the_delays_of_the_protocol() -> None:
    assert [reattach_delay(n) for n in range(1, 7)] == [0.5, 1, 2, 4, 8, 8]
    assert [request_delay(n, 0.5, 503) for n in range(5)] == [1.5, 2.5, 4.5, 8.5, 10]
    assert [request_delay(n, 0, 429, "3") for n in range(3)] == [3, 6, 12]
    assert request_delay(0, 0, 429, None) == request_delay(0, 0, 429, "Wed, 21 Oct 2015 07:28:00 GMT") == 1
    assert (retry_after("-5"), retry_after("nan"), retry_after("1e9")) == (0, None, 300)
