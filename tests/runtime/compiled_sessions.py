"""Compiled sessions beside the same ones that are not, for a process of their own."""

import torch
from torch._dynamo.utils import counters

from counterpoint.runtime.choices import FrameSampling
from counterpoint.runtime.compiled import compile_ticks
from counterpoint.runtime.engine import Engine
from counterpoint.runtime.sampler import Sampling
from counterpoint.runtime.session import Frame
from tests.systems.tiny_moshi import build, random_codes

NUM_FRAMES = 15  # several windows
SAMPLINGS = [
    FrameSampling(text=Sampling(temperature=0), audio=Sampling(temperature=0)),
    FrameSampling(text=Sampling(seed=3), audio=Sampling(seed=3, top_k=4)),
]


def main() -> None:
    """Two sessions, one of them sampled and with a prompt; one pauses."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = build("agent_only")
    codes, prompt = random_codes(model, 2, NUM_FRAMES), random_codes(model, 1, 4)
    runs: list[list[Frame]] = []
    for compiled in (False, True):
        if compiled:
            compile_ticks(model)
        engine = Engine(model, 2)
        sessions = [engine.admit(SAMPLINGS[0]), engine.admit(SAMPLINGS[1], prompt=prompt)]
        runs.append([])
        for frame in range(NUM_FRAMES):
            given = {
                session: {name: ids[row, frame] for name, ids in codes.items() if "user" in name}
                for row, session in enumerate(sessions)
                if row == 0 or frame % 4
            }
            runs[-1] += engine.step(given).values()
    for ours, theirs in zip(*runs, strict=True):
        assert all(torch.equal(ids, theirs[name]) for name, ids in ours.items())
    assert len(runs[0]) > NUM_FRAMES
    assert not counters["graph_break"], counters["graph_break"]
    # Reading two rows with and without a pause; writing one row after a prompt, two rows likewise.
    assert 2 <= counters["stats"]["unique_graphs"] <= 6, counters["stats"]


if __name__ == "__main__":
    main()
