"""LSLM: each fusion against sums that are written by hand, its ids, presets and bad shapes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counterpoint.blocks.attention import offline_reach
from counterpoint.blocks.listening import Listener, ListenerConfig
from counterpoint.blocks.rope import rope_tables, rotate
from counterpoint.errors import UserError
from counterpoint.speech.mels import LogMels
from counterpoint.streams.batch import Batch
from counterpoint.streams.spec import UNSET_ID
from counterpoint.systems import lslm, sketch
from counterpoint.systems.lslm import LSLM, LSLMConfig
from tests.systems.contract_models import batch_of, build, random_ticks
from tests.systems.tiny_lslm import CONFIGS, config
from tests.systems.tiny_models import randomised, tower

NUM_TICKS = 8  # all see all of them in the tower's window of 9


def built(name: str) -> LSLM:
    torch.manual_seed(2)
    model = build("lslm", name)
    assert isinstance(model, LSLM)
    return model


def listened(listener: Listener, heard: Tensor) -> Tensor:
    """A plain causal convolution by torch, then the MLP, layer by layer."""
    x = heard @ listener.embed.weight.T + listener.embed.bias
    for layer in listener.layers:
        taps = layer.conv.weight.flip(0).T[:, None]  # (D, 1, taps), oldest first
        padded = F.pad(x.transpose(1, 2), (taps.shape[2] - 1, 0))
        x = x + F.conv1d(padded, taps, groups=x.shape[2]).transpose(1, 2)
        x = x + layer.mlp(layer.norm(x))
    return listener.norm(x)


def spoken_and_read(model: LSLM, ticks: dict[str, Tensor]) -> Tensor:
    """The sum of the embeddings of a tick."""
    tables = [model.first_embedding, model.other_embedding]
    x = model.text_embedding.table(ticks["text"])
    for table, name in zip(tables, ("semantic", "acoustic"), strict=True):
        if table is None:
            continue
        for codebook in range(ticks[name].shape[2]):
            x = x + table.table(ticks[name][..., codebook] + codebook * table.num_ids)
    return x


def attended(model: LSLM, number: int, x: Tensor, heard: Tensor) -> Tensor:
    """Gated attention of one layer to the newest vectors that were heard, query by query."""
    link = model.links[number]
    num_heads, width = link.num_heads, x.shape[2] // link.num_heads
    window = model.config.hearing_window
    y = link.norm(x)
    tick = torch.arange(x.shape[1])[None]
    tables = rope_tables(tick, width)
    plain = link.query(y).unflatten(2, (num_heads, -1)).transpose(1, 2)
    query = rotate(plain, *tables)
    key, value = (
        link.key_value(heard).unflatten(2, (2, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    )
    key = rotate(key, *tables)
    results = []
    for t in range(x.shape[1]):
        seen = slice(max(t + 1 - window, 0), t + 1)
        null = (plain[:, :, t] * link.null[0, :, 0]).sum(-1, keepdim=True)
        scores = (query[:, :, t, None] * key[:, :, seen]).sum(-1)
        weights = torch.softmax(torch.cat((null, scores), -1) / width**0.5, -1)
        mixed = (weights[..., 1:, None] * value[:, :, seen]).sum(2)
        results.append(mixed + weights[..., :1] * link.null[1, :, 0])
    gate = 2 * torch.sigmoid(link.gate(y))
    return link.out((torch.stack(results, 1) * gate[..., None]).flatten(2))


@pytest.mark.parametrize("fusion", CONFIGS)
def test_every_fusion_equals_sums_by_hand(fusion: str) -> None:
    model = built(fusion)
    ticks = random_ticks(model, 2, NUM_TICKS)
    batch = batch_of(model, ticks)
    with torch.no_grad():
        ours = model(batch)["semantic"][:, :, 0]
        heard = listened(model.listener, ticks["heard"])
        reach = offline_reach(batch.document_start, 6, NUM_TICKS)
        x = spoken_and_read(model, ticks)
        side = torch.zeros(()) if model.project is None else model.project(heard)
        if fusion == "early":
            x = x + side
        for number, layer in enumerate(model.tower.layers):
            if fusion == "middle":
                x = x + side
            if fusion == "cross_attention":
                x = x + attended(model, number, x, heard)
            x = layer(x, reach)
        scores = model.head(model.norm(x))
        if model.heard_head is not None:
            scores = scores + (heard @ model.heard_head.weight.T)[..., : scores.shape[2]]
    torch.testing.assert_close(ours, scores, rtol=0, atol=1e-5)


def test_late_fusion_adds_to_the_scores_of_every_codebook() -> None:
    model = built("late")
    ticks = random_ticks(model, 1, NUM_TICKS)
    batch = batch_of(model, ticks)
    with torch.no_grad():
        fused = model(batch)["acoustic"]
        heard = listened(model.listener, ticks["heard"])
        assert model.heard_head is not None
        added = heard @ model.heard_head.weight[7:].T  # 5 codes and 2 ends come first
        model.heard_head.weight.zero_()
        alone = model(batch)["acoustic"]
    added = added.unflatten(2, (2, 7))
    torch.testing.assert_close(fused[..., :4], (alone + added)[..., :4], rtol=0, atol=1e-5)
    assert fused[..., 1, 4:].isneginf().all()  # the third codebook has 4 ids


@pytest.mark.parametrize("fusion", CONFIGS)
@pytest.mark.parametrize("place", [0, 639])
def test_a_sample_that_is_heard_counts_from_the_next_frame_on(fusion: str, place: int) -> None:
    """The sound of frame 3 moves nothing that is said in frames 0 to 3, and moves frame 4."""
    torch.manual_seed(4)
    mels = LogMels(25.0)
    listener = ListenerConfig(heard_width=mels.width, width=8, num_layers=2, mlp_hidden=9, taps=3)
    model = LSLM(replace(CONFIGS[fusion], listener=listener))
    randomised(model)
    sound = 0.1 * torch.randn(1, NUM_TICKS * mels.frame_samples)
    louder = sound.clone()
    louder[0, 3 * mels.frame_samples + place] += 0.9
    ticks = random_ticks(model, 1, NUM_TICKS)
    scores = []
    for heard in (sound, louder):
        batch = model.lay_out(ticks | {"heard": mels.encode(heard)})
        with torch.no_grad():
            scores.append(model(batch)["semantic"][0])
    moved = (scores[0] != scores[1]).flatten(1).any(1)
    assert moved.nonzero()[0] == 4


def test_the_first_codebook_has_two_more_ids() -> None:
    model = built("middle")
    assert model.layout["semantic"].sizes == (7,)
    assert (model.config.end_id, model.config.interrupted_id) == (5, 6)
    assert model.layout["acoustic"].sizes == (7, 4)


@pytest.mark.parametrize(
    ("preset", "fusion", "parameters"),
    [
        (lslm.small, "early", 1_659_968),
        (lslm.small, "middle", 1_659_968),
        (lslm.small, "late", 1_782_848),
        (lslm.small, "cross_attention", 1_850_824),
        (lslm.base, "middle", 3_302_880),
        (lslm.mimi, "middle", 10_114_848),
        (lslm.paper, "middle", 153_358_592),
    ],
)
def test_presets_have_the_sizes_that_they_tell(
    preset: Callable[..., LSLMConfig], fusion: lslm.Fusion, parameters: int
) -> None:
    model = sketch(preset(fusion))
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="`depth` must be given if, and only if"):
        replace(config("middle"), depth=None)
    with pytest.raises(UserError, match="`codebook_sizes` must be"):
        config("middle", ())
    with pytest.raises(UserError, match="`text_padding_id` must be 0 to 5"):
        config("middle", text_padding_id=6)
    with pytest.raises(UserError, match="`hearing_window` must be >= 1"):
        config("middle", hearing_window=0)
    with pytest.raises(UserError, match="listener's `taps` must be >= 1"):
        replace(CONFIGS["middle"].listener, taps=0)


def spelled(model: LSLM, texts: Tensor) -> Batch:
    """Rows whose speech is their text, one id a frame, and then the end; nothing is heard."""
    num_rows, length = texts.shape
    nothing = torch.full((num_rows, length), UNSET_ID)
    end = torch.full((num_rows, 1), model.config.end_id)
    padding = torch.full((num_rows, length + 1), model.config.text_padding_id)
    return model.lay_out(
        {
            "semantic": torch.cat((nothing, texts, end), 1)[..., None],
            "text": torch.cat((texts, padding), 1),
            "heard": torch.zeros(num_rows, 2 * length + 1, 3),
        }
    )


def test_it_learns_to_speak_new_texts() -> None:
    """The text reaches what is said: sequences that were never trained are spelled."""
    torch.manual_seed(0)
    words = torch.tensor([0, 1, 2, 4, 5, 6, 7, 8])  # 3 is padding
    shape = config("middle", (9,), tower=tower(48, 2, 2, 24), text_vocab_size=9)
    model = LSLM(shape).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=6e-3)
    for _ in range(150):
        texts = words[torch.randint(len(words), (32, 5))]
        optimiser.zero_grad()
        model.loss(spelled(model, texts)).total.backward()
        optimiser.step()
    new = spelled(model, words[torch.randint(len(words), (200, 5))])
    with torch.no_grad():
        best = model.eval()(new)["semantic"].argmax(-1)
    targets = new.targets["semantic"]
    trained = targets != UNSET_ID
    right = (best == targets)[trained].float().mean()
    assert right > 0.95  # a model that cannot read has 1 of 8, and the end
