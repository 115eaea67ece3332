"""Items of a Realtime conversation: additions, truncations and deletions until the engine has confirmed them."""

from __future__ import annotations

import pytest

from contract.controls import Controls, ForgetControl, Part, TruncateControl
from frontend.realtime.events import RealtimeError
from tests.realtime.talk import (
    HALF_A_SECOND,
    TICK_OF_AUDIO,
    Talk,
    answer_done,
    answer_started,
    error,
    interrupted,
    spoken_turn,
    typed,
)


def forget(turn: int, part: Part = Part.USER) -> Controls:
    return Controls(forget=ForgetControl(turn, part))


def names(controls: list[Controls]) -> list[str]:
    return [name for each in controls for name in vars(each) if getattr(each, name)]


def test_item_deleted_before_its_confirmation_is_removed_from_the_engine(talk: Talk):
    talk.send("conversation.item.create", item=typed("first"))
    talk.send("conversation.item.create", item=typed("second"))
    talk.send("conversation.item.delete", item_id="first")
    assert names(talk.controls()) == ["items", "items"]
    talk.report("committed", turn=1)
    talk.report("committed", turn=2)
    assert talk.controls() == [forget(1)]


def test_dropped_turn_of_speech_is_not_taken_for_a_pending_item(talk: Talk):
    talk.send("conversation.item.create", item=typed("first"))
    talk.tick([error("turn_too_long")])
    talk.report("committed", turn=2)
    talk.send("conversation.item.delete", item_id="first")
    assert talk.controls()[-1] == forget(2)


def test_refused_item_is_not_taken_for_the_next_one(talk: Talk):
    for name in ("first", "second"):
        talk.send("conversation.item.create", item=typed(name))
    talk.tick([error("turn_too_long", what="item")])
    talk.report("committed", turn=2)
    talk.controls()
    talk.send("conversation.item.delete", item_id="first")
    talk.send("conversation.item.delete", item_id="second")
    assert talk.controls() == [forget(2)]


def test_item_id_may_not_be_the_place_before_the_first_item(talk: Talk):
    with pytest.raises(RealtimeError, match="place before the first"):
        talk.send("conversation.item.create", item=typed("root"))


def test_item_of_audio_overtakes_typed_item_that_waits_for_the_end_of_an_answer(talk: Talk):
    spoken = {"type": "message", "role": "user", "id": "spoken"}
    talk.send("conversation.item.create", item=typed("typed"))
    content = [{"type": "input_audio", "audio": HALF_A_SECOND}]
    talk.send("conversation.item.create", item={**spoken, "content": content})
    talk.tick([spoken_turn(1)], commit=True, turn={"create_response": False})
    talk.report("committed", turn=2)
    assert "input_audio_buffer.committed" not in talk.kinds()
    assert len(talk.controls()) > 1
    talk.send("conversation.item.delete", item_id="typed")
    talk.send("conversation.item.delete", item_id="spoken")
    assert talk.controls() == [forget(2), forget(1)]


def test_item_of_audio_restores_the_detection_of_turns(talk: Talk):
    content = [{"type": "input_audio", "audio": HALF_A_SECOND}, {"type": "input_text", "text": "Hello."}]
    talk.send("conversation.item.create", item={"type": "message", "role": "user", "content": content})
    first, last, restoring = talk.controls()
    assert first == Controls(turn={"detection": "manual", "create_response": False}, listen=True, message="Hello.")
    assert last == Controls(commit=True)
    assert restoring == Controls(turn={"detection": "server_vad", "create_response": True})


def test_item_deleted_during_its_answer_leaves_the_history_after_the_answer(talk: Talk):
    talk.tick([spoken_turn(1), answer_started(1)])
    (committed,) = talk.of_kind("input_audio_buffer.committed")
    talk.send("conversation.item.delete", item_id=committed["item_id"])
    assert talk.controls() == [forget(1)]
    talk.tick([error("nothing_to_forget", turn=1, part="user")])
    assert talk.controls() == []
    talk.tick([answer_done(1, spoken_ms=320)], TICK_OF_AUDIO)
    talk.tick([], TICK_OF_AUDIO)
    assert talk.kinds()[-1] == "response.done"
    assert talk.controls() == [forget(1)]
    talk.tick([error("nothing_to_forget", turn=1, part="user")])
    assert talk.controls() == [], "once"


def test_item_deleted_while_it_is_spoken_is_deleted_after_its_response(talk: Talk):
    talk.send("response.create")
    talk.tick([answer_started(1), {"type": "text", "text": "Yes."}])
    (added,) = talk.of_kind("response.output_item.added")
    item_id = added["item"]["id"]
    talk.send("conversation.item.delete", item_id=item_id)
    with pytest.raises(RealtimeError, match="expected an item that is not being deleted"):
        talk.send("conversation.item.delete", item_id=item_id)
    assert "conversation.item.deleted" not in talk.kinds()
    talk.tick([interrupted(1, heard_text="Y")])
    assert talk.kinds()[-2:] == ["response.done", "conversation.item.deleted"]
    assert talk.controls()[-1].forget == ForgetControl(1, Part.ANSWER)


def test_evicted_item_is_deleted_without_the_engine(talk: Talk):
    talk.send("conversation.item.create", item=typed("first"))
    talk.report("committed", turn=1)
    talk.report("turns_dropped", turn=1, count=1, left=0)
    talk.controls()
    talk.send("conversation.item.delete", item_id="first")
    assert talk.kinds()[-1] == "conversation.item.deleted"
    assert talk.controls() == []


def spoken_answer(talk: Talk, turn: int) -> str:
    """Return the id of the item of an answer that has ended."""
    talk.send("conversation.item.create", item=typed(f"question {turn}"))
    talk.send("response.create")
    talk.controls()
    events = [{"type": "committed", "turn": 1}, answer_started(turn), {"type": "text", "text": "Yes."}]
    talk.tick([*events, answer_done(turn, text="Yes.")])
    return str(talk.of_kind("response.output_item.done")[-1]["item"]["id"])


def transcript(talk: Talk, item_id: str) -> str:
    talk.send("conversation.item.retrieve", item_id=item_id)
    return str(talk.received[-1]["item"]["content"][0]["transcript"])


def test_truncation_of_any_answer_is_confirmed_when_the_engine_has_done_it(talk: Talk):
    first, second = spoken_answer(talk, 1), spoken_answer(talk, 2)
    for item_id in (first, second):
        talk.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
    assert talk.controls() == [Controls(truncate=TruncateControl(turn, 100)) for turn in (1, 2)]
    assert "conversation.item.truncated" not in talk.kinds()
    talk.report("truncated", turn=1, heard_text="Y")
    assert talk.received[-1]["item_id"] == first
    assert transcript(talk, first) == "Y"
    talk.tick([error("nothing_to_truncate", turn=2)])
    assert talk.received[-1]["item_id"] == second
    assert transcript(talk, second) == "Yes."


def test_item_that_a_client_has_written_cannot_be_truncated(talk: Talk):
    content = [{"type": "output_text", "text": "Hello."}]
    item = {"type": "message", "role": "assistant", "id": "written", "content": content}
    talk.send("conversation.item.create", item=item)
    talk.report("committed", turn=1)
    with pytest.raises(RealtimeError, match="expected an item that the assistant has spoken"):
        talk.send("conversation.item.truncate", item_id="written", content_index=0, audio_end_ms=100)
