"""Are tools called before the user stops, and is the world right in the end?

Requests are heard by the embedded engines, and calls are found by a `SchemaCaller` (no language
model). Recorded orders are of real people; generated ones, half of them with a self-correction, and
turns of dialogues (Schema-Guided Dialogue) are spoken by a synthesiser. Arms differ in when calls
are thought about, and in whether the counter's first call of every order fails. Times are those of
the processor (see `cascade_live.py`). Constant policies and oracles are scored beside them.

    python benchmarks/cascade_tools.py --sets generated recorded dialogues --items 20 \
        --recordings DATA/speech --dialogues DATA/sgd-mini/dev.jsonl --out results.json
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from counterpoint.data.tasks.spoken_tools import (
    MadeCall,
    ToolOutcome,
    ToolRequest,
    dialogue_requests,
    dialogue_tools,
    generated_requests,
    recorded_requests,
    score_requests,
    tool_policies,
)
from counterpoint.data.tasks.tool_world import Faults, OrderWorld
from counterpoint.data.tools import Tool
from counterpoint.digests import json_digest
from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules, Engines
from counterpoint.runtime.cascade.ear import EAR_HZ, Recognise
from counterpoint.runtime.cascade.embedded import PiperMouth
from counterpoint.runtime.cascade.lanes import TimedLane
from counterpoint.runtime.cascade.schema_caller import SchemaCaller
from counterpoint.runtime.cascade.thinking import Answerer, ClauseTrigger, FixedChunks
from counterpoint.speech.audio import read_audio
from counterpoint.speech.detector import SpeechDetector
from counterpoint.speech.partials import PartialTranscriber
from counterpoint.speech.voices import Synthesizer, Voice

SETS = ("generated", "recorded", "dialogues")

Tools = tuple[Tool, ...]

ARMS: dict[str, tuple[CascadeRules, Faults]] = {
    "clauses": (CascadeRules(trigger=ClauseTrigger(most_s=1.5)), Faults()),
    "chunks of 4 s": (CascadeRules(trigger=FixedChunks(chunk_s=4.0)), Faults()),
    "call after listening": (CascadeRules(early_calls=False), Faults()),
    "clauses, first calls fail": (
        CascadeRules(trigger=ClauseTrigger(most_s=1.5)),
        Faults(failures=1, late_failure=True),
    ),
}


def no_model(messages: object, most_tokens: int) -> Any:
    """Stand where a language model is not needed."""
    return iter(("Sorry, I did not find an order.",))


def hear(
    audio: Tensor, rules: CascadeRules, tools: Tools, recognise: Recognise, mouth: PiperMouth
) -> tuple[ToolOutcome, str]:
    """Let a conversation hear a request; return what came of it and what was heard."""
    engines = Engines(
        detect=SpeechDetector(),
        recognise=recognise,
        answer=Answerer(no_model),
        speak=mouth,
        think=SchemaCaller(tools),
    )
    lanes = partial(TimedLane, time.process_time)
    cascade = Cascade(engines, tools=tools, rules=rules, lanes=lanes)
    cascade.hear(torch.cat([torch.zeros(EAR_HZ // 2), audio, torch.zeros(4 * EAR_HZ)]))
    timeline = cascade.timeline()
    cancelled = {event.payload["call"] for event in timeline.where(kind="cancel")}
    calls = [event for event in timeline.where(kind="call") if event.payload.get("ok")]
    made = tuple(
        MadeCall(name, arguments, event.end_s)
        for event in calls
        for name, arguments in [json.loads(event.text)]
    )
    in_force = tuple(
        (one.name, one.arguments)
        for one, event in zip(made, calls, strict=True)
        if event.payload["call"] not in cancelled
    )
    turns = timeline.where(kind="turn")
    stop_s = max((turn.end_s for turn in turns), default=0.0)
    return ToolOutcome(made, in_force, stop_s), " ".join(turn.text for turn in turns)


def ordered(
    audio: Tensor, rules: CascadeRules, faults: Faults, recognise: Recognise, mouth: PiperMouth
) -> tuple[ToolOutcome, str]:
    """Let a conversation hear an order; what is in force is what the counter holds in the end."""
    world = OrderWorld(faults)
    tools = world.tools()
    outcome, heard = hear(audio, rules, tools, recognise, mouth)
    in_force = tuple((tools[0].name, one) for one in world.in_force)
    return outcome._replace(in_force=in_force), heard


def sound(request: ToolRequest, speaker: Synthesizer) -> Tensor:
    """Return the sound of a request."""
    if request.recording is not None:
        return read_audio(request.recording, EAR_HZ, 1)[0]
    return speaker.speak(request.text, Voice(formant=1.15), EAR_HZ).audio


def chosen(requests: list[ToolRequest], number: int) -> list[ToolRequest]:
    """Return some requests, by the digest of their names."""
    return sorted(requests, key=lambda one: json_digest(one.name))[:number]


def requests_of(name: str, options: argparse.Namespace) -> list[ToolRequest]:
    """Return the requests of a set."""
    if name == "generated":
        return generated_requests(1_000_000, options.items)
    folder = options.recordings if name == "recorded" else options.dialogues
    if folder is None:
        raise SystemExit(
            f"`--{'recordings' if name == 'recorded' else 'dialogues'}` must be given."
        )
    read = recorded_requests if name == "recorded" else dialogue_requests
    return chosen(read(folder), options.items)


def main() -> None:
    """Measure, and print and store the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=["generated"], choices=SETS)
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=[*ARMS])
    parser.add_argument("--recordings", type=Path, default=None)
    parser.add_argument("--dialogues", type=Path, default=None)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    sets = {name: requests_of(name, options) for name in options.sets}
    recognise, mouth, speaker = PartialTranscriber(), PiperMouth(), Synthesizer()
    found: dict[str, Any] = {"items": options.items, "scores": {}, "heard": {}}
    for name, requests in sets.items():
        scores = {
            policy: score_requests(requests, [act(one) for one in requests])
            for policy, act in tool_policies(requests).items()
        }
        tools = dialogue_tools(requests)
        for arm in options.arms:
            rules, faults = ARMS[arm]
            pairs = [
                hear(sound(one, speaker), rules, tools, recognise, mouth)
                if name == "dialogues"
                else ordered(sound(one, speaker), rules, faults, recognise, mouth)
                for one in requests
            ]
            scores[arm] = score_requests(requests, [outcome for outcome, _ in pairs])
            found["heard"][name] = [text for _, text in pairs]
            print(name, arm, scores[arm], flush=True)
            found["scores"][name] = scores
            if options.out is not None:
                options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
