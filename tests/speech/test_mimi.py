"""Mimi against the two packages that know it, and its streams against itself."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from counterpoint.formats.mimi import mimi_weights, open_mimi
from counterpoint.speech.codec import Codec
from counterpoint.speech.mimi import Mimi

transformers = pytest.importorskip("transformers")

WINDOW, CODEBOOKS, RATIOS = 9, 4, (3, 2)
FRAME = 12  # samples: 3 * 2 and the last halving
TOLERANCE = 1e-4  # of waveforms about 1: float32 rounding through some 20 layers, in other orders


def randomised(model: Any) -> Any:
    """Weights at which every part matters; fresh codebooks are all zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            kind = name.rsplit(".", 1)[-1]
            if kind in ("embed_sum", "embedding_sum"):
                value.normal_(generator=generator)
            elif kind in ("cluster_usage", "scale") or "norm" in name:
                value.uniform_(0.5, 1.5, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def reference() -> Any:
    """MimiModel of `transformers`, small: attention over 9 steps, that is 4.5 frames."""
    config = transformers.MimiConfig(
        hidden_size=128, num_filters=4, num_residual_layers=1, upsampling_ratios=list(RATIOS),
        codebook_size=32, codebook_dim=16, vector_quantization_hidden_dimension=16,
        num_quantizers=CODEBOOKS, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=64, intermediate_size=96, sliding_window=WINDOW,
        upsample_groups=128,
    )  # fmt: skip
    torch.manual_seed(0)
    return randomised(transformers.MimiModel(config))


@pytest.fixture(scope="module")
def mimi(reference: Any) -> Mimi:
    return Mimi(mimi_weights(reference.state_dict()), CODEBOOKS, window=WINDOW)


def talk(num_rows: int, num_frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_frames * FRAME, generator=generator)


def test_mimi_is_a_codec(mimi: Mimi) -> None:
    assert isinstance(mimi, Codec)
    assert (mimi.frame_samples, mimi.frame_rate_hz) == (FRAME, 2000)
    assert mimi.codebook_sizes == (32,) * CODEBOOKS


def test_size_and_rates_are_those_that_were_published() -> None:
    """318 tensors with 96,151,393 values, 80 ms frames; shapes only, without values."""
    with torch.device("meta"):
        tensors = transformers.MimiModel(transformers.MimiConfig()).state_dict()
    weights = mimi_weights(tensors)
    assert len(weights) == 318
    assert sum(tensor.numel() for tensor in weights.values()) == 96_151_393
    mimi = Mimi(weights)
    assert (mimi.sample_rate, mimi.frame_samples, mimi.frame_rate_hz) == (24000, 1920, 12.5)
    assert mimi.codebook_sizes == (2048,) * 8
    assert len(Mimi(weights, 32).codebook_sizes) == 32


def test_ids_are_those_of_transformers(mimi: Mimi, reference: Any) -> None:
    audio = talk(2, 40)
    expected = reference.encode(audio[:, None]).audio_codes.transpose(1, 2)
    assert torch.equal(mimi.encode(audio), expected)
    assert all(len(expected[..., k].unique()) > 8 for k in range(CODEBOOKS))


def test_samples_are_those_of_transformers(mimi: Mimi, reference: Any) -> None:
    codes = torch.randint(0, 32, (2, 40, CODEBOOKS))
    expected = reference.decode(codes.transpose(1, 2)).audio_values[:, 0]
    found = mimi.decode(codes)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_fewer_codebooks_are_the_first_ones(mimi: Mimi, reference: Any) -> None:
    audio, codes = talk(1, 20), mimi.encode(talk(1, 20))
    for number in (1, 2, 3):
        fewer = Mimi(mimi_weights(reference.state_dict()), number, window=WINDOW)
        assert torch.equal(fewer.encode(audio), codes[..., :number])
        expected = reference.decode(codes[..., :number].transpose(1, 2)).audio_values[:, 0]
        found = fewer.decode(codes[..., :number])
        assert (found - expected).abs().max() < TOLERANCE * expected.abs().max()
    for number in (0, CODEBOOKS + 1):
        with pytest.raises(ValueError, match=f"must be 1 to 4: got {number}"):
            Mimi(mimi_weights(reference.state_dict()), number)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 4 * FRAME), min_size=1, max_size=15), st.integers(0, 99))
def test_streaming_ids_are_the_offline_ids(mimi: Mimi, sizes: list[int], seed: int) -> None:
    audio = talk(2, 30, seed)[:, :-5]
    offline = mimi.encode(audio)
    assert offline.shape == (2, 30, CODEBOOKS)
    encoder = mimi.encoder(3)
    encoder.push({1: talk(1, 3)[0]})
    encoder.reset(1)
    streamed = []
    rest = audio
    for size in [*sizes, audio.shape[1]]:
        piece, rest = rest[:, :size], rest[:, size:]
        heard = encoder.push({2: piece[1], 1: piece[0]})
        streamed.append(torch.stack((heard[1], heard[2])))
    streamed.append(torch.stack((encoder.finish(1), encoder.finish(2))))
    assert torch.equal(torch.cat(streamed, 1), offline)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=15), st.integers(0, 99))
def test_streaming_samples_are_the_offline_samples(mimi: Mimi, sizes: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 32, (2, 30, CODEBOOKS), generator=generator)
    offline = mimi.decode(codes)
    decoder = mimi.decoder(2)
    streamed, rest = [], codes
    for size in [*sizes, 30]:
        piece, rest = rest[:, :size], rest[:, size:]
        samples = decoder.push({0: piece[0], 1: piece[1]})
        streamed.append(torch.stack((samples[0], samples[1])))
    found = torch.cat(streamed, 1)
    assert found.shape == offline.shape == (2, 30 * FRAME)
    assert (found - offline).abs().max() < TOLERANCE * offline.abs().max()


def test_rows_of_any_age_go_side_by_side(mimi: Mimi) -> None:
    """One row pauses, one starts over, one joins late; each is what it would be alone."""
    codes = torch.randint(0, 32, (3, 24, CODEBOOKS))
    alone = mimi.decode(codes)
    decoder = mimi.decoder(3)
    heard: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    fed = [0, 0, 0]
    for tick in range(60):
        rows = [row for row in range(3) if tick % (row + 1) == 0 and tick >= 7 * row]
        if tick == 9:
            decoder.reset(1)
            heard[1], fed[1] = [], 0
        rows = [row for row in rows if fed[row] < 24]
        for row, samples in decoder.push({row: codes[row, fed[row] :][:1] for row in rows}).items():
            heard[row].append(samples)
            fed[row] += 1
    assert fed[0] == fed[1] == 24
    for row, pieces in heard.items():
        found = torch.cat(pieces)
        assert (found - alone[row, : len(found)]).abs().max() < TOLERANCE * alone.abs().max()


def test_no_frame_depends_on_later_samples(mimi: Mimi) -> None:
    audio = talk(1, 20)
    changed = audio.clone()
    changed[:, 11 * FRAME :] += 1
    before, after = mimi.encode(audio), mimi.encode(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.equal(before[:, 11], after[:, 11])


def kyutai_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The small model of the `moshi` package."""
    pytest.importorskip("moshi")
    monkeypatch.setenv("NO_TORCH_COMPILE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compression, modules, quantization = (
            import_module(f"moshi.{name}")
            for name in ("models.compression", "modules", "quantization")
        )
        seanet: dict[str, Any] = {
            "channels": 1, "dimension": 128, "causal": True, "n_filters": 4, "compress": 2,
            "n_residual_layers": 1, "activation": "ELU", "kernel_size": 7, "last_kernel_size": 3,
            "residual_kernel_size": 3, "norm": "none", "pad_mode": "constant", "true_skip": True,
            "ratios": list(RATIOS), "disable_norm_outer_blocks": 0,
        }  # fmt: skip
        transformer: dict[str, Any] = {
            "d_model": 128, "num_heads": 2, "num_layers": 2, "causal": True, "layer_scale": 0.01,
            "context": WINDOW, "conv_layout": True, "max_period": 10000, "gating": "none",
            "norm": "layer_norm", "positional_embedding": "rope", "dim_feedforward": 96,
            "input_dimension": 128, "output_dimensions": [128],
        }  # fmt: skip
        return compression.MimiModel(
            modules.SEANetEncoder(**seanet),
            modules.SEANetDecoder(**seanet),
            quantization.SplitResidualVectorQuantizer(
                dimension=16, n_q=CODEBOOKS, bins=32, input_dimension=128, output_dimension=128
            ),
            frame_rate=24000 / FRAME,
            encoder_frame_rate=24000 / FRAME * 2,
            sample_rate=24000,
            channels=1,
            causal=True,
            resample_method="conv",
            encoder_transformer=modules.transformer.ProjectedTransformer(**transformer),
            decoder_transformer=modules.transformer.ProjectedTransformer(**transformer),
        )


def old_spelling(name: str) -> str:
    """As in the file that Kyutai published."""
    name = name.replace("in_projs.0.weight", "in_proj_weight")
    return name.replace("out_projs.0.weight", "out_proj.weight")


def test_kyutais_names_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(kyutai_model(monkeypatch))
    tensors = model.state_dict()
    mimi = Mimi(mimi_weights(tensors), CODEBOOKS, window=WINDOW)
    old = mimi_weights({old_spelling(name): tensor for name, tensor in tensors.items()})
    published = Mimi(old, CODEBOOKS, window=WINDOW)
    assert published.name == mimi.name
    audio, codes = talk(2, 30), torch.randint(0, 32, (2, 30, CODEBOOKS))
    expected = model.encode(audio[:, None]).transpose(1, 2)
    assert torch.equal(mimi.encode(audio), expected)
    waves = model.decode(codes.transpose(1, 2))[:, 0]
    assert (mimi.decode(codes) - waves).abs().max() < TOLERANCE * waves.abs().max()
    # Only while the window fills: then its ring drops the key that a frame's first step needs.
    with model.streaming(2):
        pieces = [model.encode(piece[:, None]) for piece in audio[:, : 4 * FRAME].split(FRAME, 1)]
        assert torch.equal(torch.cat(pieces, 2), expected[:, :4].transpose(1, 2))
        pieces = [model.decode(piece.transpose(1, 2)) for piece in codes[:, :4].split(1, 1)]
    found = mimi.decode(codes[:, :4])
    assert (found - torch.cat(pieces, 2)[:, 0]).abs().max() < TOLERANCE * waves.abs().max()


def test_files_are_read_in_every_spelling(reference: Any, mimi: Mimi, tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items()}

    def before(name: str) -> str:  # as in the file on the hub
        for part in ("encoder.encoder", "decoder.decoder"):
            name = name.replace(f"{part}_seanet.", f"{part.split('.')[0]}.")
            name = name.replace(f"{part}_transformer.", f"{part.split('.')[0]}_transformer.")
        name = name.replace("encoder.downsample.", "downsample.")
        return name.replace("decoder.upsample.", "upsample.")

    old = {before(name): tensor for name, tensor in tensors.items()}
    assert old.keys() != tensors.keys()
    for number, spelling in enumerate((tensors, old)):
        save_file(spelling, tmp_path / f"{number}.safetensors")
        loaded = open_mimi(tmp_path / f"{number}.safetensors", CODEBOOKS)
        assert loaded.name == Mimi(mimi_weights(tensors), CODEBOOKS).name != mimi.name


def test_names_tell_codecs_apart(reference: Any, mimi: Mimi) -> None:
    tensors = reference.state_dict()
    assert Mimi(mimi_weights(tensors), 2).name != mimi.name
    other = {name: tensor + 1e-3 for name, tensor in tensors.items()}
    assert Mimi(mimi_weights(other), CODEBOOKS).name != mimi.name


def test_wrong_files_are_named(reference: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(ValueError, match="must be an existing file"):
        open_mimi(path)
    path.write_text("nothing")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        open_mimi(path)
    save_file({"transformer.layers.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="must be those of Mimi"):
        open_mimi(path)
    more = {**reference.state_dict(), "lora.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="'lora.weight' is not among them"):
        mimi_weights(more)
    for lost in (
        "decoder.upsample.conv.weight",
        "encoder.encoder_transformer.layers.1.self_attn.k_proj.weight",
        "decoder.decoder_seanet.layers.5.conv.weight",
        "encoder.encoder_seanet.layers.4.block.3.conv.bias",
        "quantizer.acoustic_residual_vector_quantizer.layers.1.codebook.cluster_usage",
    ):
        some = {k: v.clone() for k, v in reference.state_dict().items() if k != lost}
        save_file(some, path)
        with pytest.raises(ValueError, match="is missing"):
            open_mimi(path)
