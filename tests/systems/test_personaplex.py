import pytest
import torch

from counterpoint.data.speech.opening import SILENCE, SINE, Fillers, hybrid_prompt, tagged_role
from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.sessions import Sessions
from counterpoint.systems import moshi, sketch
from counterpoint.systems.moshi import Moshi
from counterpoint.systems.personaplex import personaplex_7b
from tests.systems.tiny_models import randomised

FILLERS = Fillers(agent=(1, 2, 3, 4), user=(5, 6, 7, 8))
GREEDY = FrameSampling(text=Sampling(temperature=0.0), audio=Sampling(temperature=0.0))


def test_prompt_is_voice_pause_role_pause() -> None:
    voice = torch.arange(3 * 8).view(3, 8)
    prompt = hybrid_prompt(sketch(personaplex_7b()), [10, 11], voice)
    assert prompt["text"].tolist() == [[3] * 3 + [3] * 6 + [10, 11] + [3] * 6]
    agent = torch.cat((prompt["agent_semantic"], prompt["agent_acoustic"]), 2)[0]
    assert torch.equal(agent[:3], voice)
    assert torch.equal(agent[3:], torch.tensor(SILENCE).expand(14, -1))
    user = torch.cat((prompt["user_semantic"], prompt["user_acoustic"]), 2)[0]
    assert torch.equal(user, torch.tensor(SINE).expand(17, -1))


def test_without_voice_and_role_only_the_pauses_are_left() -> None:
    assert hybrid_prompt(sketch(personaplex_7b()), [])["text"].shape == (1, 12)


@pytest.mark.parametrize(
    ("role", "tagged"),
    [
        (" You are wise. ", "<system> You are wise. <system>"),
        ("<system> You are wise. <system>", "<system> You are wise. <system>"),
        ("<system> You are wise.", "<system> You are wise. <system>"),
        ("You are wise. <system>", "<system> You are wise. <system>"),
        (" <system>You are wise.<system> ", "<system>You are wise.<system>"),
        ("<system>", "<system>"),
        ("  ", ""),
    ],
)
def test_roles_are_tagged_once(role: str, tagged: str) -> None:
    assert tagged_role(role) == tagged


def test_a_session_goes_on_behind_its_prompt() -> None:
    """The first text that is said is what an offline pass over the prompt predicts."""
    torch.manual_seed(0)
    both = randomised(Moshi(moshi.tiny()))
    assert isinstance(both, Moshi)
    model, texts = both.trimmed(4), set()
    voice = torch.randint(0, 64, (5, 4))
    for role in ([20, 21, 22], [23, 24, 25, 26]):
        prompt = hybrid_prompt(model, role, voice, FILLERS)
        num_frames = prompt["text"].shape[1]
        sessions = Sessions(model, 2)
        sessions.start(1, GREEDY, prompt=prompt)
        said = sessions.step({1: {"user_semantic": [1], "user_acoustic": [2, 3, 4]}})[1]
        longer = {name: torch.cat((ids, ids[:, :1]), 1) for name, ids in prompt.items()}
        with torch.no_grad():
            logits = model(model.lay_out(longer))["text"]
        assert said["text"].tolist() == [int(logits[0, num_frames].argmax())]
        texts.add(tuple(logits[0, num_frames].tolist()))
    assert len(texts) == 2


def test_prompts_that_do_not_fit_are_refused() -> None:
    config = moshi.tiny()
    with pytest.raises(ValueError, match="window of 64 frames: got 92. Shorten .*80 ids"):
        hybrid_prompt(sketch(config), [5] * 80, fillers=FILLERS)
    with pytest.raises(ValueError, match="has 4 codebooks in this model: got 8 codes"):
        hybrid_prompt(sketch(config), [5])
