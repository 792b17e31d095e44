"""Kyutai's own tiny model and its recorded scores, where the sources of the `moshi` package are.

The wheel has no fixture; the source archive of 0.2.13 and the repository have it, in `tests/assets`
beside the package: install from there, or put it first in PYTHONPATH. The model has layer norms, a
temporal MLP without gates and sinusoidal positions, so that no `Moshi` can be built from it: its
scores test how checkpoints are read and written, its masks the delays.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from counterpoint.formats.moshi.config import ReferenceConfig
from counterpoint.formats.moshi.weights import read_checkpoint, write_checkpoint
from counterpoint.systems.moshi import Moshi
from tests.systems.tiny_moshi import codebooks, config
from tests.systems.tiny_moshi_weights import save

with pytest.MonkeyPatch.context() as _patch:
    _patch.setenv("NO_TORCH_COMPILE", "1")  # read when the package is imported
    loaders = pytest.importorskip("moshi.models.loaders")

ASSETS = Path(loaders.__file__).parents[2] / "tests" / "assets"
pytestmark = pytest.mark.skipif(
    not (ASSETS / "test_lm_model.safetensors").is_file(),
    reason="the installed `moshi` package comes without its tests/assets",
)
KEYS = {
    **{"delays": [0, 1, 2, 4], "n_q": 3, "dep_q": 3, "card": 32, "text_card": 48, "context": 4},
    **{"dim": 16, "num_layers": 2, "num_heads": 1, "hidden_scale": 1},
    **{"depformer_dim": 16, "depformer_num_heads": 1, "depformer_gating": "silu"},
    **{"depformer_multi_linear": True, "depformer_weights_per_step": True},
    **{"depformer_weights_per_step_schedule": [0, 1, 1], "depformer_low_rank_embeddings": 8},
}


def recorded(name: str) -> dict[str, Tensor]:
    return load_file(ASSETS / f"test_lm_{name}.safetensors")


@torch.no_grad()
def test_fixture_read_and_written_gives_its_recorded_scores(tmp_path: Path) -> None:
    settings = save(tmp_path / "settings", {}, KEYS) / "config.json"
    weights, codes, expected = (
        ASSETS / "test_lm_model.safetensors",
        *map(recorded, ("codes", "out")),
    )
    read = read_checkpoint(weights, dtype=torch.float32, config_path=settings)
    write_checkpoint(read.state, read.config, tmp_path / "written")
    file, keys = tmp_path / "written" / "model.safetensors", read.config.to_json()
    model = loaders.get_moshi_lm(file, keys, device="cpu", dtype=torch.float32)
    out, ids = model(codes["codes"]), codes["codes"]
    for kind, own in (("", ids[:, 1:]), ("text_", ids[:, :1])):
        mask, target = expected[f"{kind}mask"], own[expected[f"{kind}mask"]]
        found, logits = getattr(out, f"{kind}logits")[mask], expected[f"{kind}logits"][mask]
        assert torch.equal(getattr(out, f"{kind}mask"), mask)
        torch.testing.assert_close(found, logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
        loss, wanted = F.cross_entropy(found, target), F.cross_entropy(logits, target)
        assert abs(loss - wanted) <= 1e-6 * wanted


def test_delays_leave_the_recorded_targets() -> None:
    given = ReferenceConfig.from_json(KEYS).streams
    shape = config(
        codebooks(given.delays[1:]), 3, text_vocab_size=given.text_card,
        audio_vocab_size=given.card,
    )  # fmt: skip
    ids, masks = recorded("codes")["codes"], recorded("out")
    model, num_ticks = Moshi(shape), ids.shape[2]
    content = {f"codebook_{k}": ids[:, 1 + k, :, None] for k in range(3)}
    targets = model.lay_out({"text": ids[:, 0], **content}).targets
    assert torch.equal(targets["text"] >= 0, masks["text_mask"][:, 0])
    for k, late in enumerate(given.delays[1:]):
        found, mask = targets[f"codebook_{k}"][:, late:, 0], masks["mask"][:, k]
        assert torch.equal(found, ids[:, 1 + k, : num_ticks - late])
        assert torch.equal(found >= 0, mask[:, : num_ticks - late])
        assert not mask[:, num_ticks - late :].any()
