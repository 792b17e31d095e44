"""Sessions and conversations over random layouts, with slow and late streams: offline = live."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from counterpoint.data.speech.monologue import PAD_ID
from counterpoint.data.speech.words import ByteWords
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.engine import Engine
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Ended, Frame, NoIdError
from counterpoint.runtime.sessions import Sessions
from counterpoint.runtime.talk import Conversation, Talker
from counterpoint.streams import schedule
from counterpoint.streams.clock import available_at
from counterpoint.streams.spec import UNSET_ID, Layout, Role, Stream
from tests.runtime.any_layout import AnyLayout
from tests.runtime.talking import LEVELS, LevelCodec
from tests.streams.layouts import layouts

VOCAB = 6
NUM_TICKS = 9
GREEDY = FrameSampling(text=Sampling(temperature=0.0), audio=Sampling(temperature=0.0))


def random_content(layout: Layout, num_ticks: int) -> dict[str, Tensor]:
    content = {}
    for stream in layout.streams:
        shape = (1, num_ticks // stream.period_ticks, *stream.element_shape)
        content[stream.name] = (
            torch.randint(VOCAB, shape) if stream.is_discrete else torch.randn(shape)
        )
    return content


def heard_in(layout: Layout, content: dict[str, Tensor], tick: int) -> dict[str, Tensor]:
    """What ends in a tick of what is heard, by the rule."""
    heard = {}
    for stream in layout.heard:
        for step in range(content[stream.name].shape[1]):
            if available_at(layout, stream.name, step).tick - stream.delay_ticks == tick:
                heard[stream.name] = content[stream.name][0, step]
    return heard


def live(
    layout: Layout, content: dict[str, Tensor], num_prompt: int, pauses: list[bool]
) -> dict[int, Frame]:
    """What a session says by tick, beside another that hears the same and never pauses."""
    sessions = Sessions(AnyLayout(layout), 2)
    prompt = {
        name: values[:, : num_prompt // layout[name].period_ticks]
        for name, values in content.items()
    }
    for row in (0, 1):
        sessions.start(row, GREEDY, prompt=prompt if num_prompt else None)
    opening = sessions[1].opening
    said = [] if opening is None else [opening]
    done = [num_prompt, num_prompt]
    while done[1] < NUM_TICKS:
        rows = [0] if pauses[sum(done) % len(pauses)] else [0, 1]
        rows = [row for row in rows if done[row] < NUM_TICKS] or [1]
        frames = sessions.step({row: heard_in(layout, content, done[row]) for row in rows})
        said += [frames[1]] if 1 in frames else []
        for row in rows:
            done[row] += 1
    return dict(enumerate(said, schedule.first_said_tick(layout, num_prompt)))


def with_said(
    layout: Layout, content: dict[str, Tensor], said: dict[int, Frame], num_prompt: int
) -> dict[str, Tensor]:
    """The content in which the session's frames stand, behind its prompt."""
    num_ticks = min(max(said) + 1, NUM_TICKS)
    told = dict(content)
    for stream in layout.predicted:
        values = content[stream.name].clone()
        for step in range(num_ticks // stream.period_ticks):
            tick = available_at(layout, stream.name, step).tick - stream.delay_ticks
            if tick in said:
                ids = said[tick][stream.name]
                values[0, step] = ids if stream.has_codebooks else ids[0]
            elif tick >= num_prompt:  # nothing was read before it
                values[0, step] = UNSET_ID
        told[stream.name] = values
    return {name: v[:, : num_ticks // layout[name].period_ticks] for name, v in told.items()}


@settings(max_examples=30, deadline=None)
@given(
    layout=layouts(vocab_size=VOCAB),
    num_prompt=st.integers(0, 6),
    pauses=st.lists(st.booleans(), min_size=1, max_size=4).filter(lambda own: not all(own)),
)
def test_sessions_say_what_whole_rows_score_highest(
    layout: Layout, num_prompt: int, pauses: list[bool]
) -> None:
    content = random_content(layout, NUM_TICKS)
    shortest = {
        name: v[:, : num_prompt // layout[name].period_ticks] for name, v in content.items()
    }
    num_prompt = schedule.count_ticks(layout, shortest)
    assume(num_prompt or layout.heard or schedule.lead_ticks(layout))
    said = live(layout, content, num_prompt, pauses)
    for tick, frame in said.items():
        ends = {s.name for s in layout.predicted if (tick + 1) % s.period_ticks == 0}
        assert set(frame) == ends
    told = with_said(layout, content, said, num_prompt)
    system = AnyLayout(layout)
    batch = system.lay_out(told, min(said))
    for name, scores in system(batch).items():
        targets = batch.targets[name]
        real = schedule.trained(layout[name], targets)
        chosen = scores.gather(-1, targets.clamp(min=0, max=VOCAB - 1)[..., None])[..., 0]
        assert (chosen[real] >= scores.amax(-1)[real] - 1e-4).all()


def duplex(audio_ticks: int, text_ticks: int, delay: int, *, has_lead: bool = True) -> Talker:
    """A talker whose sound and text have steps of so many ticks, 25 frames of sound a second."""
    initial_id = LEVELS if has_lead else None
    text = Stream(
        name="text", role=Role.TEXT, vocab_size=256, predicted=True, padding_id=PAD_ID,
        period_ticks=text_ticks,
    )  # fmt: skip
    agent = Stream(
        name="agent", role=Role.SPOKEN, vocab_size=LEVELS, has_codebooks=True, predicted=True,
        period_ticks=audio_ticks, delay_ticks=delay, initial_id=initial_id,
    )  # fmt: skip
    user = replace(agent, name="user", role=Role.HEARD, predicted=False, delay_ticks=0)
    layout = Layout(streams=(text, agent, user), tick_hz=25.0 * audio_ticks)
    return Talker(system=AnyLayout(layout), codec=LevelCodec(), tokenizer=ByteWords())


@pytest.mark.parametrize("has_lead", [True, False])
@pytest.mark.parametrize(("audio_ticks", "text_ticks"), [(2, 1), (1, 2), (4, 2), (2, 4)])
@pytest.mark.parametrize("delay", [0, 3])
def test_a_frame_of_sound_begins_with_the_tick_that_completes_it(
    audio_ticks: int, text_ticks: int, delay: int, has_lead: bool
) -> None:
    talker = duplex(audio_ticks, text_ticks, delay, has_lead=has_lead)
    audio = torch.randint(LEVELS, (12,)).repeat_interleave(8) / (LEVELS - 1)
    tick_samples = 8 // audio_ticks
    sessions = Sessions(talker.system, 1)
    opening = sessions.start(0, GREEDY).opening
    frames = [] if opening is None else [(0, opening)]
    codes = talker.codec.encode(audio[None])[0]
    for tick in range(len(audio) // tick_samples):
        frame, ends = divmod(tick + 1, audio_ticks)
        heard = {} if ends else {"user": codes[frame - 1]}
        frames += [(tick + 1, said) for said in sessions.step({0: heard}).values()]
    expected = torch.zeros(len(audio) + 16)
    texts = []
    for tick, said in frames:
        if "agent" in said:
            start = tick * tick_samples
            expected[start : start + 8] = said["agent"][0] / (LEVELS - 1)
        texts += said.get("text", torch.zeros(0)).tolist()
    conversation = Conversation(talker, GREEDY)
    sound = torch.cat([conversation.hear(piece) for piece in audio.split([1, 6, 30, 2, 57])])
    assert torch.equal(sound, expected[: len(audio)])
    assert conversation.text_ids == texts
    # The step of sound that covers the first tick begins to sound so much later than that tick.
    first = next(tick for tick, said in frames if "agent" in said)
    step = 0 if has_lead or audio_ticks > 1 or delay else 1
    late = first - audio_ticks * step
    assert conversation.delay_s == pytest.approx(late / (25.0 * audio_ticks))


def test_what_is_not_due_is_refused() -> None:
    talker = duplex(2, 1, 0)
    sessions = Sessions(talker.system, 1)
    sessions.start(0, GREEDY)
    with pytest.raises(
        ValueError, match="'user' with the last of the 2 ticks .* tick 0 is not the last"
    ):
        sessions.step({0: {"user": [1]}})
    sessions.step()
    with pytest.raises(ValueError, match="must hear all of user: got no user"):
        sessions.step()
    with pytest.raises(ValueError, match="'agent' with the last of the 2 ticks"):
        sessions.step({0: {"user": [1], "agent": [1]}})
    sessions.step({0: {"user": [1]}})
    sessions.step({0: {"agent": [4]}})  # forces the step that ends with the next tick
    assert sessions.step({0: {"user": [1]}})[0].keys() == {"text"}


def test_a_prompt_of_a_conversation_is_whole_steps() -> None:
    talker = duplex(2, 1, 0)
    prompt = {
        "text": torch.tensor([[1, 2, 3]]),
        "agent": torch.tensor([[[1]]]),
        "user": torch.tensor([[[1]]]),
    }
    with pytest.raises(ValueError, match="whole steps of 'agent', of 2 ticks each: got 3"):
        Conversation(talker, GREEDY, prompt=prompt)
    assert Sessions(talker.system, 1).start(0, GREEDY, prompt=prompt).num_ticks == 3


def test_who_hears_nothing_must_begin_with_something() -> None:
    said = [Stream(name=n, role=Role.SPOKEN, vocab_size=VOCAB, predicted=True) for n in "ab"]
    sessions = Sessions(AnyLayout(Layout(streams=tuple(said))), 1)
    sessions.start(0, GREEDY)
    with pytest.raises(ValueError, match="initial frame or a prompt.* `initial_id` of one of a, b"):
        sessions.step([0])


def test_a_codec_fits_the_steps_of_sound() -> None:
    talker = duplex(2, 1, 0)
    streams = {stream.name: stream for stream in talker.system.layout.streams}
    user = replace(streams["user"], period_ticks=1)
    layout = Layout(streams=(streams["text"], streams["agent"], user), tick_hz=50.0)
    with pytest.raises(ValueError, match=r"model's 25\.0 and 50\.0 frames a second: it has 25\.0"):
        replace(talker, system=AnyLayout(layout))
    layout = replace(talker.system.layout, tick_hz=75.0)
    thirds = tuple(s if s.name == "text" else replace(s, period_ticks=3) for s in layout.streams)
    with pytest.raises(ValueError, match="whole number of samples for each of the model's 3 ticks"):
        replace(talker, system=AnyLayout(Layout(streams=thirds, tick_hz=75.0)))


def test_scores_that_allow_no_id_end_their_own_session_alone() -> None:
    """The frames of the others are kept, and they go on as if nothing had happened."""
    layout = duplex(2, 1, 0).system.layout
    system = AnyLayout(layout)
    engine, alone = Engine(system, 2), Engine(system, 1)
    ill, well = engine.admit(GREEDY), engine.admit(GREEDY)
    other = alone.admit(GREEDY)
    said, expected = [], []
    system.tables["user"][0, 3] = torch.nan  # whoever hears this id knows nothing any more
    for tick in range(6):
        is_due = tick % 2 == 1
        heard = {well: {"user": [1]} if is_due else {}}
        expected.append(alone.step({other: heard[well]})[other])
        if tick < 3:
            heard[ill] = {"user": [3 if tick == 1 else 1]} if is_due else {}
        if tick == 1:
            with pytest.raises(NoIdError, match=f"for session {ill} all are minus") as caught:
                engine.step(heard)
            assert caught.value.ended == [ill]
            said.append(caught.value.frames[well])
            assert engine[ill].ended == Ended.NO_ID
            engine.reset(ill)
        else:
            said.append(engine.step(heard)[well])
    for found, frame in zip(said, expected, strict=True):
        assert {n: ids.tolist() for n, ids in found.items()} == {
            n: ids.tolist() for n, ids in frame.items()
        }
