"""How long does one frame of one live session take beside the `moshi` package?

The same random weights, the same heard frames, both sampling as published (text 0.7 / 25, audio
0.8 / 250), in one process, frame by frame in turn; one thread. Bar: 0.8 times the package's median,
in the same number format, both without compilation. Ours also with int8 weights, and compiled on
demand (`counterpoint.runtime.compiled`); both also in bfloat16.

    PYTHONPATH=. NO_TORCH_COMPILE=1 OMP_NUM_THREADS=1 python benchmarks/bench_moshi_step.py \
        --sizes tiny small --out benchmarks/results/moshi_step.json
"""

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from record import finish, quantile
from torch import Tensor

from counterpoint.blocks.depth import DepthConfig
from counterpoint.blocks.quantized import store_int8
from counterpoint.blocks.transformer import TowerConfig
from counterpoint.runtime.compiled import compile_ticks
from counterpoint.runtime.engine import Engine
from counterpoint.runtime.given import Codes
from counterpoint.systems.moshi import Moshi, MoshiConfig, two_speakers

AIM_RATIO = 0.8
MOST_RATIO = 1.0

Step = Callable[[Tensor], float]
"""Hears the user's codes of a frame, (K,), and returns its seconds."""


def config_of(size: str) -> MoshiConfig:
    """Shapes with the published number of codebooks and ids."""
    width, layers, hidden, depth_width, depth_layers = {
        "tiny": (128, 4, 352, 64, 2),
        "small": (512, 8, 1408, 256, 4),
    }[size]
    return MoshiConfig(
        temporal=TowerConfig(
            width=width,
            num_layers=layers,
            num_heads=width // 64,
            mlp_hidden=hidden,
            window=750,
            norm_epsilon=1e-8,
        ),
        depth=DepthConfig(
            width=depth_width,
            num_layers=depth_layers,
            num_heads=depth_width // 64,
            mlp_hidden=depth_width * 11 // 4,
            norm_epsilon=1e-8,
        ),
        audio=two_speakers(7),
        num_predicted=8,
    )


def random_model(size: str) -> Moshi:
    """Random weights, in the heads too."""
    torch.manual_seed(0)
    model = Moshi(config_of(size)).eval()
    with torch.no_grad():
        for head in (model.head, model.depth.head):
            head.weight.normal_(std=head.weight.shape[1] ** -0.5)
    return model


def frame_of(codes: Tensor) -> dict[str, Codes]:
    """What the user says in a frame, by stream."""
    return {"user_semantic": codes[:1], "user_acoustic": codes[1:]}


def ours(model: Moshi, num_rows: int = 1, pinned_frames: int = 0) -> Step:
    """Steps of as many sessions as there are rows."""
    engine = Engine(model, num_rows, pinned_frames=pinned_frames)
    sessions = [engine.admit() for _ in range(num_rows)]

    def step(codes: Tensor) -> float:
        begin = time.perf_counter()
        engine.step({session: frame_of(codes) for session in sessions})
        return time.perf_counter() - begin

    return step


def reference(model: Moshi, dtype: torch.dtype = torch.float32) -> Any:
    """The package's loop with the same weights; keep it within ``streaming(1)``."""
    from tests.systems.reference_moshi import generator, reference_of

    return generator(reference_of(model).to(dtype))


def theirs(loop: Any) -> Step:
    """Steps of the package's one session."""

    def step(codes: Tensor) -> float:
        begin = time.perf_counter()
        loop.step(codes[None, :, None])
        return time.perf_counter() - begin

    return step


def in_turn(steps: dict[str, Step], num_frames: int) -> dict[str, list[float]]:
    """Seconds of every frame of every arm, the arms in turn; the first quarter is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    frames = torch.randint(0, 2048, (num_frames, 8), generator=torch.Generator().manual_seed(1))
    for codes in frames:
        for name, step in steps.items():
            seconds[name].append(step(codes))
    return {name: values[num_frames // 4 :] for name, values in seconds.items()}


def measure(size: str, num_frames: int, compiled: bool) -> dict[str, Any]:
    """Milliseconds of each arm, and its median as a share of the package's in float32."""
    model = random_model(size)
    half, stored = copy.deepcopy(model).bfloat16(), copy.deepcopy(model)
    store_int8(stored)
    with (
        (loop := reference(model)).streaming(1),
        (half_loop := reference(model, torch.bfloat16)).streaming(1),
    ):
        steps = {
            "package": theirs(loop),
            "ours": ours(model),
            "package_bfloat16": theirs(half_loop),
            "ours_bfloat16": ours(half),
            "ours_int8": ours(stored),
        }
        if compiled:
            fast = copy.deepcopy(model)
            compile_ticks(fast)
            steps["ours_compiled"] = ours(fast)
        seconds = in_turn(steps, num_frames)
    median = {name: quantile(values, 0.5) for name, values in seconds.items()}
    rows: dict[str, Any] = {
        name: {
            **{f"p{p}_ms": round(quantile(values, p / 100) * 1e3, 3) for p in (50, 95, 99)},
            "ratio_to_package": round(median[name] / median["package"], 3),
        }
        for name, values in seconds.items()
    }
    rows["ours_bfloat16"]["ratio_to_package_bfloat16"] = round(
        median["ours_bfloat16"] / median["package_bfloat16"], 3
    )
    return rows | {"parameters": sum(weight.numel() for weight in model.parameters())}


def main() -> None:
    """Measure, print a table, and end with one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--compiled", action="store_true", help="takes minutes of compilation")
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for size in args.sizes:
        results[size] = measure(size, args.frames, args.compiled)
        for name, values in results[size].items():
            print(f"{size:8} {name:18}", values, flush=True)
    aims = {"aim_ratio": AIM_RATIO, "most_ratio": MOST_RATIO}
    finish("moshi_step", {**aims, "frames": args.frames, "results": results}, args.out)


if __name__ == "__main__":
    main()
