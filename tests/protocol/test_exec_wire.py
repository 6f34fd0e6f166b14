"""The frames of command sessions as JSON text: what goes in comes out, and nothing that comes can break anything."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandboxrt.protocol.exec import (
    ClientFrame,
    CloseStdin,
    ErrorFrame,
    Execute,
    Exit,
    Input,
    InputAck,
    Kill,
    Output,
    Reconnect,
    Resize,
    ServerFrame,
    Signal,
    Started,
)
from sandboxrt.protocol.exec_wire import (
    WireError,
    decode_client,
    decode_server,
    encode_client,
    encode_server,
    parse_execute,
)
from sandboxrt.protocol.output import MAX_READ_BYTES

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
offsets = st.integers(0, 2**63 - 1)
seconds = st.one_of(st.integers(-1, 10**6), st.floats(0.001, 10**6))
cells = st.integers(1, 65535)

executes = st.builds(
    Execute,
    command=texts,
    command_id=st.none() | words,
    timeout_s=seconds,
    idle_timeout_s=seconds,
    ttl_s=seconds,
    kill_on_disconnect=st.booleans(),
    close_stdin=st.booleans(),
    shell=st.none() | words,
    env=st.dictionaries(texts, texts, max_size=3),
    cwd=st.none() | words,
    user=st.none() | words,
    input_id=st.none() | words,
) | st.builds(Execute, command=texts, pty=st.just(True), columns=cells, rows=cells, input_id=words, reuse=st.booleans())
client_frames: st.SearchStrategy[ClientFrame] = st.one_of(
    executes,
    st.builds(Reconnect, words, offsets, offsets, st.none() | words),
    st.builds(Reconnect, words, offsets, offsets, words, st.booleans()),
    st.builds(Input, texts, st.none() | offsets),
    st.builds(Signal, st.integers(1, 64)),
    st.builds(Resize, cells, cells),
    st.just(CloseStdin()),
    st.just(Kill()),
)
server_frames: st.SearchStrategy[ServerFrame] = st.one_of(
    st.builds(Started, texts, st.integers(0, 2**31), st.none() | offsets),
    st.builds(Output, st.sampled_from(["stdout", "stderr"]), texts, offsets),
    st.builds(InputAck, offsets),
    st.builds(Exit, st.integers(0, 255), st.booleans(), st.none() | texts, st.none() | st.floats(0.001, 10**6)),
    st.builds(ErrorFrame, words, words, st.none() | st.sampled_from(["stdout", "stderr"]), st.none() | offsets),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([*"\ud800\udfff", "\0", "/bin/bash"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
field_names = st.sampled_from(
    "command command_id timeout_seconds shell idle_timeout_seconds kill_on_disconnect ttl_seconds env cwd pty "
    "run_config close_stdin ext stdout_offset stderr_offset data offset signum cols rows pid exit_code oom_killed "
    "reason error error_type stream first_offset reuse_s user work_dir input_id input_offset unknown".split()
)
types = st.sampled_from(
    "execute reconnect input close_stdin kill signal resize started stdout stderr exit error input_ack other".split()
)


@st.composite
def frame_objects(draw: st.DrawFn) -> dict[str, Any]:
    """Objects that look like frames, with anything in the fields, and now and then a good value among them."""
    good = {"command": "true", "command_id": "c", "data": "x", "exit_code": 0, "offset": 0, "signum": 2, "env": {}}
    fields = {name: value for name, value in good.items() if draw(st.booleans())}
    fields.update(draw(st.dictionaries(field_names, json_values, max_size=4)))
    fields["type"] = draw(types | json_values)
    return fields


@given(client_frames)
def test_the_server_understands_what_the_client_says(frame: ClientFrame) -> None:
    expected = frame
    if isinstance(frame, Execute) and frame.shell == "/bin/bash" and frame.input_id is None:
        expected = attrs.evolve(frame, shell=None)
    assert decode_client(encode_client(frame)) == expected


@given(server_frames)
def test_the_client_understands_what_the_server_says(frame: ServerFrame) -> None:
    assert decode_server(encode_server(frame, extended=True)) == frame


@given(server_frames)
def test_a_client_that_did_not_ask_sees_nothing_of_the_extension(frame: ServerFrame) -> None:
    if isinstance(frame, InputAck):
        with pytest.raises(ValueError, match="did not ask"):
            encode_server(frame)
        return
    known = {
        "started": {"type", "command_id", "pid"},
        "stdout": {"type", "data", "offset"},
        "stderr": {"type", "data", "offset"},
        "exit": {"type", "exit_code"},
        "error": {"type", "error", "error_type"},
    }
    fields = json.loads(encode_server(frame))
    assert set(fields) == known[fields["type"]]


@given(st.text() | frame_objects().map(json.dumps))
def test_nothing_that_arrives_breaks_either_side(text: str) -> None:
    for decode in (decode_client, decode_server):
        try:
            frame = decode(text)
        except WireError as error:
            assert encode_server(error.frame).encode()
            assert error.close_code in (1002, 1003, 1007, 1008)
        else:
            assert frame is None or attrs.has(type(frame))


@given(frame_objects())
def test_what_was_understood_can_be_said_again(fields: dict[str, Any]) -> None:
    text = json.dumps(fields)
    try:
        frame = decode_client(text)
    except WireError:
        return
    if frame is not None:
        encoded = encode_client(frame)
        encoded.encode()
        again = decode_client(encoded)
        if isinstance(frame, Execute) and frame.input_id is None:
            frame = attrs.evolve(frame, shell=again.shell if isinstance(again, Execute) else None)
            if not frame.pty:
                frame = attrs.evolve(frame, columns=80, rows=24)
        elif isinstance(frame, Execute) and not frame.pty:
            frame = attrs.evolve(frame, columns=80, rows=24)
        assert again == frame


@pytest.mark.parametrize("decode", [decode_client, decode_server])
@pytest.mark.parametrize(
    "text", ["", "null", "[]", "1", '"x"', "{", "{}", '{"type":null}', '{"type":[]}', "[" * 100_000, "9" * 5000, "NaN"]
)
def test_what_is_no_frame_is_refused_in_words(decode: Any, text: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(text)
    assert caught.value.error_type == "ProtocolError"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "fields",
    [
        {"type": "execute"},
        {"type": "execute", "command": 1},
        {"type": "execute", "command": "x", "timeout_seconds": "60"},
        {"type": "execute", "command": "x", "timeout_seconds": 10**400},
        {"type": "execute", "command": "x", "ttl_seconds": True},
        {"type": "execute", "command": "x", "env": {"A": 1}},
        {"type": "execute", "command": "x", "env": []},
        {"type": "execute", "command": "x", "pty": "yes"},
        {"type": "execute", "command": "x", "command_id": "i" * 257},
        {"type": "execute", "command": "x", "cwd": "/a", "run_config": {"user": "root"}},
        {"type": "execute", "command": "x", "env": {"A": "b"}, "run_config": {}},
        {"type": "execute", "command": "x", "run_config": []},
        {"type": "execute", "command": "\ud800"},
        {"type": "reconnect"},
        {"type": "reconnect", "command_id": ""},
        {"type": "reconnect", "command_id": "c", "stdout_offset": -1},
        {"type": "reconnect", "command_id": "c", "stderr_offset": 1.5},
        {"type": "input", "data": 5},
        {"type": "input", "data": "x", "offset": -1},
        {"type": "signal"},
        {"type": "signal", "signum": 65},
        {"type": "resize", "cols": 0},
        {"type": "resize", "rows": 65536},
    ],
)
def test_values_that_cannot_be_are_refused_by_name(fields: dict[str, Any]) -> None:
    with pytest.raises(WireError) as caught:
        decode_client(json.dumps(fields))
    assert caught.value.error_type == "InvalidRequest"
    names = set(fields) - {"type"} or {"command", "command_id", "signum"}
    assert any(f"'{name}'" in str(caught.value) for name in names)


def test_the_frames_of_official_clients_are_understood() -> None:
    seed = (
        '{"type":"execute","command":"echo hi","timeout_seconds":60,"shell":"/bin/bash","idle_timeout_seconds":300,'
        '"kill_on_disconnect":false,"ttl_seconds":600}'
    )
    assert decode_client(seed) == Execute(command="echo hi")
    newest = (
        '{"type":"execute","command":"id","timeout_seconds":0,"shell":"/bin/sh","idle_timeout_seconds":-1,'
        '"kill_on_disconnect":true,"ttl_seconds":-1,"command_id":"0197","close_stdin":true,'
        '"run_config":{"user":"nobody","work_dir":"/tmp","env_vars":{"A":"1"}}}'
    )
    assert decode_client(newest) == Execute(
        command="id",
        timeout_s=0,
        shell="/bin/sh",
        idle_timeout_s=-1,
        kill_on_disconnect=True,
        ttl_s=-1,
        command_id="0197",
        close_stdin=True,
        user="nobody",
        cwd="/tmp",
        env={"A": "1"},
    )
    assert decode_client('{"type":"reconnect","command_id":"c1","stdout_offset":3,"stderr_offset":0}') == Reconnect(
        "c1", 3, 0
    )
    assert decode_client('{"type":"ssh_agent_data","channel_id":1,"data":"eA=="}') is None
    assert parse_execute({"command": "x", "timeout": 5}, "timeout").timeout_s == 5


def test_missing_keys_of_a_server_get_their_defaults() -> None:
    assert decode_server('{"type":"stdout","data":"x"}') == Output("stdout", "x", 0)
    assert decode_server('{"type":"error"}') == ErrorFrame("Unknown error", "CommandError")
    assert decode_server('{"type":"error","error":null,"error_type":7}') == ErrorFrame("Unknown error", "CommandError")
    assert decode_server('{"type":"started"}') == Started("", 0)
    assert decode_server('{"type":"started","command_id":"c","pid":42,"more":[1]}') == Started("c", 42)
    assert decode_server('{"type":"something new"}') is None
    for nothing_to_invent in ('{"type":"exit"}', '{"type":"stdout"}', '{"type":"stdout","data":"x","offset":-1}'):
        with pytest.raises(WireError):
            decode_server(nothing_to_invent)


def test_halves_of_surrogate_pairs_become_replacement_characters() -> None:
    assert decode_client('{"type":"input","data":"a\\ud83d"}') == Input("a\ufffd")
    assert decode_client('{"type":"input","data":"\\ud83d\\ude00"}') == Input("\U0001f600")
    assert encode_client(Input("\udcff")) == encode_client(Input("\ufffd"))
    assert decode_server('{"type":"stdout","data":"\\udc00"}') == Output("stdout", "\ufffd", 0)


@pytest.mark.parametrize("character", ["\0", "\x1f", '"', "\\", "\x7f", "\u2028", "\U0001f600"])
def test_the_longest_frame_stays_below_the_limit_of_a_message(character: str) -> None:
    data = character * (MAX_READ_BYTES // len(character.encode()))
    text = encode_server(Output("stdout", data, 2**62), extended=True)
    assert len(text.encode()) < 2**20
    assert decode_server(text) == Output("stdout", data, 2**62)
