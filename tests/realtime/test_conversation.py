"""The protocol without a socket and without an engine: what a client says, and what is asked of the engine."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from config import Settings
from frontend.audio.formats import AudioDecoder
from frontend.realtime.events import RealtimeError, parse, weight
from tests.realtime.talk import MANUAL, USAGE, Silent, Talk, spoken_turn, typed

DETECTED = {"type": "realtime", "audio": {"input": {"turn_detection": {"type": "server_vad"}}}}
HALF_A_SECOND = base64.b64encode(bytes(24_000)).decode()


def test_an_item_that_is_deleted_before_the_engine_has_it_is_forgotten_there(talk: Talk):
    talk.say("conversation.item.create", item=typed("first"))
    talk.say("conversation.item.create", item=typed("second"))
    talk.say("conversation.item.delete", item_id="first")
    assert [set(asked) for asked in talk.asked()] == [{"items"}, {"items"}]
    talk.engine(type="committed", turn=1)
    talk.engine(type="committed", turn=2)
    assert [json.loads(asked["forget"]) for asked in talk.asked()] == [{"turn": 1, "part": "user"}]


def test_a_turn_of_speech_that_is_too_long_is_not_the_item_that_waits(talk: Talk):
    talk.say("conversation.item.create", item=typed("first"))
    talk.engine(type="error", code="turn_too_long", message="the user's turn is dropped")
    talk.engine(type="committed", turn=2)
    talk.say("conversation.item.delete", item_id="first")
    assert json.loads(talk.asked()[-1]["forget"])["turn"] == 2


@pytest.mark.parametrize("frame", ['{"type": "session.update", "event_id": "\\ud800"}', '{"type": "x", "y": NaN}'])
def test_what_could_not_be_said_back_is_no_event(frame):
    with pytest.raises(RealtimeError) as refused:
        parse(frame)
    assert refused.value.code == "invalid_json"


@pytest.mark.parametrize(
    "metadata", [{"a": 1}, {"a": "x" * 513}, {"a" * 65: "x"}, {str(n): "" for n in range(17)}, "x", []]
)
def test_metadata_are_a_few_texts(talk: Talk, metadata):
    with pytest.raises(RealtimeError, match="expected an object of at most 16 texts"):
        talk.say("response.create", response={"metadata": metadata})


def test_a_calls_sound_comes_in_its_track_in_the_tracks_own_format(call: Talk):
    with pytest.raises(RealtimeError, match="in its track"):
        call.say("input_audio_buffer.append", audio=HALF_A_SECOND)
    g711 = {"format": {"type": "audio/pcmu"}}
    call.say("session.update", session={"type": "realtime", "audio": {"input": g711, "output": g711}})
    audio = call.told[-1]["session"]["audio"]
    assert audio["input"]["format"] == audio["output"]["format"] == {"type": "audio/pcm", "rate": 24_000}
    call.say("response.create", response={"audio": {"output": g711}})
    assert call.told[-1]["response"]["audio"]["output"]["format"]["type"] == "audio/pcm"


def test_clearing_a_loudspeaker_that_is_silent_is_answered_too(call: Talk):
    with pytest.raises(RealtimeError, match="no response has been played") as refused:
        call.say("output_audio_buffer.clear")
    assert refused.value.code == "output_audio_buffer_empty"
    call.say("response.create")
    call.say("output_audio_buffer.clear")
    response = call.told[0]["response"]
    assert call.told[-1] == {"type": "output_audio_buffer.cleared", "response_id": response["id"]}


def test_the_place_before_the_first_item_is_no_items_name(talk: Talk):
    with pytest.raises(RealtimeError, match="place before the first"):
        talk.say("conversation.item.create", item=typed("root"))


def test_sound_that_nobody_commits_is_bounded(talk: Talk):
    """A minute: events beyond it are refused; a track's oldest sound is dropped, since it never ends."""
    talk.say("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": None}}})
    second = base64.b64encode(bytes(48_000)).decode()
    for _ in range(60):
        talk.say("input_audio_buffer.append", audio=second)
    with pytest.raises(RealtimeError) as refused:
        talk.say("input_audio_buffer.append", audio=second)
    assert refused.value.code == "input_audio_buffer_full"
    talk.loop.run_until_complete(talk.conversation.hear(b"\1" * 32_000))
    assert talk.conversation.clock.held_ms == 60_000
    talk.say("input_audio_buffer.clear")
    talk.say("input_audio_buffer.append", audio=second)


@pytest.mark.parametrize("deep", ['{"x":' * 700 + "1" + "}" * 700, "[" * 700 + "]" * 700])
def test_what_is_nested_without_end_is_no_event(deep: str):
    with pytest.raises(RealtimeError, match="nested more than 20 deep") as refused:
        parse('{"type": "session.update", "session": {"x": ' + deep + "}}")
    assert refused.value.code == "invalid_json"
    assert len(refused.value.message) < 500


def test_a_response_that_the_users_speech_has_begun_already_is_no_error(talk: Talk):
    """It was asked for while they spoke; the turn's own answer came first, and is this response."""
    talk.say("conversation.item.create", item=typed("first"))
    talk.say("response.create")
    talk.engine(type="answer_started", at_ms=0, turn=1)
    talk.engine(type="error", code="answer_active", message="respond came while an answer is being given")
    assert talk.kinds().count("response.created") == 1
    assert "error" not in talk.kinds()


def test_a_turn_begins_where_the_one_before_ended_at_the_earliest(talk: Talk):
    """With its prefix of 300 ms it would reach into that one, after a pause that is shorter than this."""
    for _ in range(6):
        talk.say("input_audio_buffer.append", audio=HALF_A_SECOND)
    for _ in range(9):
        talk.loop.run_until_complete(talk.conversation.clock.next())
    for kind, at_ms in (("started", 500), ("stopped", 1500), ("started", 1600), ("stopped", 2000), ("started", 2600)):
        talk.engine(type=f"speech_{kind}", at_ms=at_ms)
    times = [
        value for event in talk.told for name, value in event.items() if name in ("audio_start_ms", "audio_end_ms")
    ]
    delay_ms = 10  # of the resampler
    assert times == [ms - delay_ms for ms in (200, 1500, 1500, 2000, 2300)]


def test_a_commit_that_finds_nothing_is_refused_by_its_name(talk: Talk):
    talk.say("input_audio_buffer.append", audio=HALF_A_SECOND)
    talk.say("input_audio_buffer.commit", event_id="mine")
    talk.tick([{"type": "error", "code": "nothing_to_commit", "message": "nothing"}], commit=True)
    assert (talk.told[-1]["error"]["code"], talk.told[-1]["error"]["event_id"]) == (
        "input_audio_buffer_commit_empty",
        "mine",
    )


def test_of_two_responses_that_wait_for_a_commit_the_second_is_refused(talk: Talk):
    talk.say("session.update", session=MANUAL)
    talk.say("input_audio_buffer.append", audio=HALF_A_SECOND)
    talk.say("input_audio_buffer.commit")
    talk.say("response.create", response={"metadata": {"name": "first"}})
    with pytest.raises(RealtimeError) as refused:
        talk.say("response.create", response={"metadata": {"name": "second"}})
    assert refused.value.code == "conversation_already_has_active_response"
    talk.tick([spoken_turn(1)], listen=True, commit=True, create_response=False)
    (created,) = [event for event in talk.told if event["type"] == "response.created"]
    assert created["response"]["metadata"] == {"name": "first"}


def test_whether_a_turn_is_answered_is_as_the_engine_had_it(talk: Talk):
    """Detection is back before the commit is confirmed: nobody answers that turn."""
    talk.say("session.update", session=MANUAL)
    talk.say("input_audio_buffer.append", audio=HALF_A_SECOND)
    talk.tick([], create_response=False)
    talk.say("input_audio_buffer.commit")
    talk.say("session.update", session=DETECTED)
    talk.tick([spoken_turn(1)], listen=True, commit=True)
    assert "response.created" not in talk.kinds()
    talk.tick([], turn=json.dumps({"create_response": True}))
    talk.tick([spoken_turn(2)])
    assert "response.created" in talk.kinds()


def test_a_response_that_never_began_can_be_cancelled(talk: Talk):
    talk.say("response.create")
    talk.say("response.cancel")
    talk.say("response.cancel")
    assert [set(asked) for asked in talk.asked()] == [{"respond"}, {"cancel"}], "a second one could meet the next"
    talk.engine(type="error", code="nothing_to_cancel", message="nothing")
    assert talk.told[-1]["response"]["status"] == "cancelled"


def test_an_item_of_sound_overtakes_a_typed_one_that_waits_for_the_end_of_an_answer(talk: Talk):
    sound = {"type": "message", "role": "user", "id": "spoken"}
    talk.say("conversation.item.create", item=typed("typed"))
    talk.say("conversation.item.create", item={**sound, "content": [{"type": "input_audio", "audio": HALF_A_SECOND}]})
    talk.tick([spoken_turn(1)], commit=True, create_response=False)
    talk.engine(type="committed", turn=2)
    assert "input_audio_buffer.committed" not in talk.kinds()
    assert len(talk.asked()) > 1
    talk.say("conversation.item.delete", item_id="typed")
    talk.say("conversation.item.delete", item_id="spoken")
    assert [json.loads(asked["forget"])["turn"] for asked in talk.asked()] == [2, 1]


def test_a_response_ends_before_the_next_begins(talk: Talk):
    """Its last sound comes with the tick in which the next answer starts."""
    tick = bytes(2 * 7680)
    done = {"type": "answer_done", "turn": 1, "spoken_ms": 320, "text": "", "reason": "end", **USAGE}
    talk.say("response.create")
    talk.tick([{"type": "answer_started", "turn": 1}, done], tick)
    talk.tick([spoken_turn(2), {"type": "answer_started", "turn": 2}], tick)
    ladder = [kind for kind in talk.kinds() if kind in ("response.created", "response.done")]
    assert ladder == ["response.created", "response.done", "response.created"]


def test_a_commit_asks_for_no_response_where_turns_are_detected(talk: Talk):
    """As the protocol has it: the response is the client's to ask for, and has its metadata."""
    talk.tick([{"type": "speech_started", "at_ms": 0}])
    talk.say("input_audio_buffer.append", audio=HALF_A_SECOND)
    talk.say("input_audio_buffer.commit")
    talk.say("response.create", response={"metadata": {"name": "mine"}})
    *_, committing, after = talk.asked()
    assert committing == {"turn": json.dumps({"create_response": False}), "commit": True}
    assert json.loads(after["turn"])["create_response"] is True
    talk.tick([spoken_turn(1)], **committing)
    assert [event["response"]["metadata"] for event in talk.told if event["type"] == "response.created"] == [
        {"name": "mine"}
    ]
    assert talk.asked() == [{"respond": True}]


def test_what_is_cleared_while_the_user_speaks_is_forgotten_by_the_engine(talk: Talk):
    talk.say("input_audio_buffer.clear")
    assert talk.asked() == []
    talk.tick([{"type": "speech_started", "at_ms": 0}])
    talk.say("input_audio_buffer.clear")
    assert [json.loads(asked["turn"])["detection"] for asked in talk.asked()] == ["manual", "server_vad"]


@pytest.mark.parametrize("event", ["response.cancel", "output_audio_buffer.clear"])
def test_a_response_that_waits_for_its_commit_can_be_cancelled(talk: Talk, event: str):
    if event == "output_audio_buffer.clear":
        talk.conversation._player = Silent()
    talk.say("session.update", session=MANUAL)
    talk.loop.run_until_complete(talk.conversation.hear(bytes(16_000)))
    talk.say("input_audio_buffer.commit")
    talk.say("response.create", response={"metadata": {"name": "mine"}})
    talk.say(event)
    created, done = talk.told[-2:]
    assert (created["type"], done["type"]) == ("response.created", "response.done")
    assert created["response"]["id"] == done["response"]["id"]
    assert done["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
    assert done["response"]["metadata"] == {"name": "mine"}
    assert done["response"]["usage"]["total_tokens"] == 0, "clients read it without a look"
    talk.asked()
    talk.tick([spoken_turn(1)], listen=True, commit=True, create_response=False)
    assert talk.kinds().count("response.created") == 1
    assert talk.asked() == []


def test_what_is_deleted_while_it_is_answered_leaves_when_the_answer_is_done(talk: Talk):
    talk.tick([spoken_turn(1), {"type": "answer_started", "turn": 1}])
    item_id = next(event["item_id"] for event in talk.told if event["type"] == "input_audio_buffer.committed")
    talk.say("conversation.item.delete", item_id=item_id)
    (asked,) = talk.asked()
    talk.engine(type="error", code="nothing_to_forget", message="it is being answered", turn=1, part="user")
    assert talk.asked() == []
    done = {"type": "answer_done", "turn": 1, "spoken_ms": 320, "text": "", "reason": "end", **USAGE}
    talk.tick([done], bytes(2 * 7680))
    talk.tick([], bytes(2 * 7680))
    assert talk.kinds()[-1] == "response.done"
    assert talk.asked() == [asked]
    talk.engine(type="error", code="nothing_to_forget", message="it is not there", turn=1, part="user")
    assert talk.asked() == [], "once"


def test_an_answer_may_be_of_any_length_again(talk: Talk):
    talk.say("session.update", session={"type": "realtime", "max_output_tokens": 50})
    assert talk.conversation.session.turn_options()["answer_tokens"] == 50
    talk.say("session.update", session={"type": "realtime", "max_output_tokens": "inf"})
    assert talk.conversation.session.turn_options()["answer_tokens"] == Settings.load(environ={}).turn.answer_tokens


def test_blank_instructions_are_none(talk: Talk):
    talk.say("response.create", response={"instructions": " "})
    talk.say("session.update", session={"type": "realtime", "instructions": "\n"})
    assert talk.asked() == [{"respond": True}]


@pytest.mark.parametrize("strange", [["pcm16"], {"type": ["audio/pcm"]}, {"type": {}}])
def test_a_format_that_is_no_name_is_an_error(talk: Talk, strange: object):
    with pytest.raises(RealtimeError, match="expected one of audio/pcm"):
        talk.say("session.update", session={"type": "realtime", "audio": {"input": {"format": strange}}})


def test_turns_that_wait_are_bounded(talk: Talk):
    sound = {"type": "input_audio", "audio": base64.b64encode(bytes(48_000 * 40)).decode()}
    item = {"type": "message", "role": "user", "content": [sound]}
    talk.say("conversation.item.create", item=item)
    talk.say("conversation.item.create", item=item)
    with pytest.raises(RealtimeError, match="80640 ms of committed sound wait") as refused:
        talk.say("conversation.item.create", item=item)
    assert refused.value.code == "input_audio_buffer_full"


@pytest.mark.parametrize(
    ("event", "characters"),
    [
        ({"type": "session.update", "session": {"instructions": "x" * 3000}}, 3000),
        ({"type": "session.update", "session": {"tools": ["x" * 3000]}}, 150),
        ({"type": "conversation.item.create", "item": {"content": [{"text": "x" * 90}, {"audio": "A" * 9000}, 7]}}, 90),
        ({"type": "conversation.item.create", "item": 7}, 0),
        ({"type": "response.create", "response": {"instructions": ["x" * 20]}}, 0),
    ],
)
def test_text_is_what_the_model_reads(event: dict, characters: int):
    frame = json.dumps(event)
    assert characters <= weight(parse(frame), len(frame)) <= characters + 10


def test_a_response_that_waits_and_is_cancelled_is_told_of_after_the_one_before(talk: Talk):
    """One response at a time: the first is cancelled, a second asked for, and cancelled too."""
    talk.say("response.create")
    talk.engine(type="answer_started", turn=1)
    talk.say("response.cancel")
    talk.say("response.create", response={"metadata": {"name": "second"}})
    talk.say("response.cancel")
    assert talk.kinds().count("response.created") == 1
    talk.tick([{"type": "interrupted", "turn": 1, "by": "cancel", "heard_ms": 0, "heard_text": "", **USAGE}])
    ladder = [kind for kind in talk.kinds() if kind in ("response.created", "response.done")]
    assert ladder == ["response.created", "response.done"] * 2
    assert talk.told[-1]["response"]["metadata"] == {"name": "second"}
    assert [set(asked) for asked in talk.asked()] == [{"respond"}, {"cancel"}]


def spoken_answer(talk: Talk, turn: int) -> str:
    """The id of an answer's item, which is done."""
    talk.say("conversation.item.create", item=typed(f"question {turn}"))
    talk.say("response.create")
    talk.asked()
    events = [
        {"type": "committed", "turn": 1},
        {"type": "answer_started", "turn": turn},
        {"type": "text", "text": "Yes."},
    ]
    talk.tick([*events, {"type": "answer_done", "turn": turn, "spoken_ms": 0, "reason": "end", **USAGE}])
    return next(event["item"]["id"] for event in reversed(talk.told) if event["type"] == "response.output_item.done")


def transcript(talk: Talk, item_id: str) -> str:
    talk.say("conversation.item.retrieve", item_id=item_id)
    return talk.told[-1]["item"]["content"][0]["transcript"]


def test_a_truncation_is_told_of_when_it_is_done_and_of_whichever_answer(talk: Talk):
    first, second = spoken_answer(talk, 1), spoken_answer(talk, 2)
    for item_id in (first, second):
        talk.say("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
    talk.asked()
    assert "conversation.item.truncated" not in talk.kinds()
    talk.engine(type="truncated", turn=1, heard_text="Y")
    assert talk.told[-1]["item_id"] == first
    assert transcript(talk, first) == "Y"
    talk.engine(type="error", code="nothing_to_truncate", message="it has left the context", turn=2)
    assert talk.told[-1]["item_id"] == second
    assert transcript(talk, second) == "Yes."


def test_what_a_client_has_written_cannot_be_truncated(talk: Talk):
    content = [{"type": "output_text", "text": "Hello."}]
    item = {"type": "message", "role": "assistant", "id": "written", "content": content}
    talk.say("conversation.item.create", item=item)
    talk.engine(type="committed", turn=1)
    with pytest.raises(RealtimeError, match="only what the assistant has spoken can be truncated"):
        talk.say("conversation.item.truncate", item_id="written", content_index=0, audio_end_ms=100)


def test_an_item_that_is_deleted_while_it_is_spoken_is_deleted_after_its_ladder(talk: Talk):
    talk.say("response.create")
    talk.tick([{"type": "answer_started", "turn": 1}, {"type": "text", "text": "Yes."}])
    item_id = next(event["item"]["id"] for event in talk.told if event["type"] == "response.output_item.added")
    talk.say("conversation.item.delete", item_id=item_id)
    with pytest.raises(RealtimeError, match="is deleted already"):
        talk.say("conversation.item.delete", item_id=item_id)
    assert "conversation.item.deleted" not in talk.kinds()
    talk.engine(type="interrupted", turn=1, by="cancel", heard_text="Y", **USAGE)
    assert talk.kinds()[-2:] == ["response.done", "conversation.item.deleted"]
    assert json.loads(talk.asked()[-1]["forget"]) == {"turn": 1, "part": "answer"}


@pytest.mark.parametrize("ends", ["input_audio_buffer.clear", "input_audio_buffer.commit"])
def test_half_a_sample_ends_with_its_buffer(talk: Talk, ends: str):
    talk.say("session.update", session=MANUAL)
    samples = np.arange(9600, dtype=np.int16)
    talk.say("input_audio_buffer.append", audio=base64.b64encode(samples.tobytes() + b"\1").decode())
    talk.say(ends)
    talk.asked()
    talk.say("input_audio_buffer.append", audio=base64.b64encode(samples.tobytes()).decode())
    talk.say("input_audio_buffer.commit")
    ticks = [talk.loop.run_until_complete(talk.conversation.clock.next()) for _ in range(2)]
    microphone = AudioDecoder("audio/pcm")
    expected = microphone.feed(base64.b64encode(samples.tobytes()).decode()) + microphone.end()
    assert len(expected) == 2 * (6400 + 160), "a filter's delay and all of the sound"
    assert b"".join(tick.pcm for tick in ticks)[: len(expected)] == expected


@pytest.mark.parametrize("is_quick", [False, True])
def test_what_is_being_said_when_detection_ends_is_part_of_the_commit(talk: Talk, is_quick: bool):
    """Whether the engine knows of it by then or not, and no tick of silence comes in between."""
    talk.say("input_audio_buffer.append", audio=HALF_A_SECOND)
    assert talk.asked() == []
    talk.engine(type="speech_started", at_ms=100)
    talk.say("session.update", session=MANUAL)
    talk.say("input_audio_buffer.append", audio=HALF_A_SECOND)
    tick = talk.loop.run_until_complete(talk.conversation.clock.next())
    assert json.loads(tick.asked["turn"])["detection"] == "manual"
    assert tick.spoken.length == len(tick.pcm), "all of it is sound"
    if not is_quick:
        talk.tick([{"type": "speech_stopped", "at_ms": 400}], **tick.asked)
        assert talk.asked() == [], "the rest waits for its commit"
    talk.say("input_audio_buffer.commit")
    assert not any("listen" in asked for asked in talk.asked())
    talk.tick([], **tick.asked)
    talk.say("input_audio_buffer.append", audio=HALF_A_SECOND)
    talk.say("input_audio_buffer.commit")
    assert any("listen" in asked for asked in talk.asked())


def test_a_response_may_have_its_own_length_form_and_sound(talk: Talk):
    sound = {"format": {"type": "audio/pcmu"}}
    response = {"output_modalities": ["text"], "max_output_tokens": 5, "audio": {"output": sound}, "conversation": None}
    talk.say("response.create", response=response)
    about = talk.told[-1]["response"]
    assert (about["output_modalities"], about["max_output_tokens"]) == (["text"], 5)
    assert about["audio"]["output"]["format"]["type"] == "audio/pcmu"
    first, second = talk.asked()
    assert first["respond"] is True
    assert json.loads(first["turn"]) == {"speech": False, "answer_tokens": 5}
    assert json.loads(second["turn"])["speech"] is True


@pytest.mark.parametrize("response", [{"input": []}, {"conversation": "other"}, {"max_output_tokens": 0}, {"audio": 1}])
def test_what_a_response_cannot_have_is_refused(talk: Talk, response: dict):
    with pytest.raises(RealtimeError):
        talk.say("response.create", response=response)


def test_after_a_response_that_was_cancelled_while_it_waited_another_may_wait(talk: Talk):
    talk.say("response.create")
    talk.engine(type="answer_started", turn=1)
    talk.say("response.cancel")
    for name in "bc":
        talk.say("response.create", response={"metadata": {"name": name}})
        if name == "b":
            talk.say("response.cancel")
    talk.engine(type="interrupted", turn=1, by="cancel", heard_text="", **USAGE)
    done = [event["response"]["status"] for event in talk.told if event["type"] == "response.done"]
    assert done == ["cancelled", "cancelled"]
    assert talk.told[-1]["type"] == "response.created"
    assert talk.told[-1]["response"]["metadata"] == {"name": "c"}
