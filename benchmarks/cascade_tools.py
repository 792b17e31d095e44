"""Are tools called before the user stops, and is the world right in the end?

Requests are heard by the embedded engines, and calls are found by a `SchemaCaller` (no language
model). Recorded orders are of real people; generated ones, half of them with a self-correction,
others that rule a drink out or are withdrawn ("ruled out"), turns of dialogues (Schema-Guided
Dialogue) and turns of the function-calling leaderboard, whose mocked APIs are called (`bfcl`), are
spoken by a synthesiser. With `--exact` all words are heard as they are written, 0.32 s each, and no
engine is needed; with `--plain` the recogniser is not told the values of the tools. Arms differ in
when calls are thought about, in whether they are "checked" once more when the whole turn is known
(SHANKS + call-after-listen), and in how often the first calls of everything fail. Times are those
of the processor (see `cascade_live.py`). Constant policies and oracles are scored beside them; of
recordings, an oracle knows when to call only by a file of `order_times.py`.

    python benchmarks/cascade_tools.py --sets generated recorded dialogues bfcl --items 20 \
        --recordings DATA/speech --order-times benchmarks/results/order_times.json \
        --dialogues DATA/sgd-mini/dev.jsonl --out results.json
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from counterpoint.data.tasks.mock_apis import ApiWorld, api_requests, is_state_right
from counterpoint.data.tasks.order_times import read_order_times
from counterpoint.data.tasks.spoken_tools import (
    MadeCall,
    ToolOutcome,
    ToolRequest,
    dialogue_requests,
    dialogue_tools,
    generated_requests,
    has_exactly,
    recorded_requests,
    ruled_out_requests,
    said_values,
    score_requests,
    tool_policies,
)
from counterpoint.data.tasks.tool_world import Faults, OrderWorld, ToolWorld
from counterpoint.data.tools import Tool, spoken_values
from counterpoint.digests import json_digest
from counterpoint.runtime.cascade.cascade import Cascade, CascadeRules, Engines
from counterpoint.runtime.cascade.ear import EAR_HZ
from counterpoint.runtime.cascade.embedded import PiperMouth
from counterpoint.runtime.cascade.lanes import LaneFactory, TimedLane
from counterpoint.runtime.cascade.schema_caller import SchemaCaller
from counterpoint.runtime.cascade.thinking import Answerer, ClauseTrigger, FixedChunks
from counterpoint.speech.audio import read_audio
from counterpoint.speech.detector import SpeechDetector
from counterpoint.speech.partials import PartialTranscriber
from counterpoint.speech.sayable import as_sayable
from counterpoint.speech.voices import Synthesizer, Voice

SETS = ("generated", "ruled out", "recorded", "dialogues", "bfcl")

Tools = tuple[Tool, ...]


class Hearing(NamedTuple):
    """How requests are heard.

    Attributes:
        sound: Returns the sound of a request, with silence around it.
        engines: Engines that hear such sound.
        lanes: Lanes with a clock.
    """

    sound: Callable[[ToolRequest], Tensor]
    engines: Callable[[], Engines]
    lanes: LaneFactory


CLAUSES = CascadeRules(trigger=ClauseTrigger(most_s=1.5))
CHECKED = replace(CLAUSES, checks_calls=True)

ARMS: dict[str, tuple[CascadeRules, Faults]] = {
    "clauses": (CLAUSES, Faults()),
    "chunks of 4 s": (CascadeRules(trigger=FixedChunks(chunk_s=4.0)), Faults()),
    "call after listening": (CascadeRules(early_calls=False), Faults()),
    "clauses, checked": (CHECKED, Faults()),
    "clauses, first calls fail": (CLAUSES, Faults(failures=1, late_failure=True)),
    "clauses, checked, first calls fail": (CHECKED, Faults(failures=1, late_failure=True)),
    "clauses, three calls fail": (CLAUSES, Faults(failures=3)),
    "clauses, checked, three calls fail": (CHECKED, Faults(failures=3)),
}


def no_model(messages: object, most_tokens: int) -> Any:
    """Stand where a language model is not needed."""
    return iter(("Sorry, I did not find an order.",))


class Memory:
    """Does the same work once only; by its clock, it takes as long again as the first time.

    All arms hear the same sound, and mostly give the same answers.
    """

    def __init__(self) -> None:
        self._done: dict[tuple[str, str], tuple[Any, float]] = {}
        self._saved_s = 0.0

    def now_s(self) -> float:
        """Return seconds of the processor, with those that were saved."""
        return time.process_time() + self._saved_s

    def of(self, name: str, work: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a function that does work with a name, on a sound or a text, at most once."""

        def once(asked: Any) -> Any:
            content = asked.encode() if isinstance(asked, str) else asked.numpy().tobytes()
            key = (name, hashlib.sha256(content).hexdigest())
            if key in self._done:
                found, took_s = self._done[key]
                self._saved_s += took_s
                return found
            begun_s = time.process_time()
            found = work(asked)
            self._done[key] = (found, time.process_time() - begun_s)
            return found

        return once


def by_engines(example: str) -> Hearing:
    """Hear with the embedded engines what a person or a synthesiser says.

    Args:
        example: What the recogniser is told that it may hear.
    """
    memory, speaker = Memory(), Synthesizer()
    recognise = memory.of("recognise", PartialTranscriber(example))
    mouth = memory.of("speak", PiperMouth())

    def sound(request: ToolRequest) -> Tensor:
        if request.recording is not None:
            audio = read_audio(request.recording, EAR_HZ, 1)[0]
        else:
            audio = speaker.speak(as_sayable(request.text), Voice(formant=1.15), EAR_HZ).audio
        return torch.cat([torch.zeros(EAR_HZ // 2), audio, torch.zeros(4 * EAR_HZ)])

    def engines() -> Engines:
        return Engines(
            detect=SpeechDetector(), recognise=recognise, answer=Answerer(no_model), speak=mouth
        )

    return Hearing(sound, engines, partial(TimedLane, memory.now_s))


def by_script() -> Hearing:
    """Hear every word as it is written; it takes 0.1 s to recognise some."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.runtime.cascade.scripted import Stage

    stage = Stage()
    return Hearing(
        lambda request: stage.sound(f"{request.text} " + "- " * 12),
        lambda: replace(stage.engines(), answer=Answerer(no_model)),
        lambda: TimedLane(stage.clock),
    )


def hear(
    request: ToolRequest, rules: CascadeRules, tools: Tools, hearing: Hearing
) -> tuple[ToolOutcome, str]:
    """Let a conversation hear a request; return what came of it and what was heard."""
    engines = replace(hearing.engines(), think=SchemaCaller(tools))
    cascade = Cascade(engines, tools=tools, rules=rules, lanes=hearing.lanes)
    cascade.hear(hearing.sound(request))
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


def hear_in(
    world: ToolWorld, request: ToolRequest, rules: CascadeRules, hearing: Hearing
) -> tuple[ToolOutcome, str]:
    """Do the same where calls change a world; what is in force is what that says in the end."""
    outcome, heard = hear(request, rules, world.tools(), hearing)
    return outcome._replace(in_force=world.in_force), heard


def tools_of(name: str, requests: list[ToolRequest]) -> Tools:
    """Return the tools of a set."""
    if name == "dialogues":
        return dialogue_tools(requests)
    if name == "bfcl":
        return ApiWorld(requests[0].start, said_values(requests), Faults()).tools()
    return OrderWorld().tools()


def outcomes(
    name: str, requests: list[ToolRequest], arm: str, hearing: Hearing
) -> list[tuple[ToolOutcome, str]]:
    """Let conversations hear all requests of a set."""
    rules, faults = ARMS[arm]
    if name == "dialogues":
        tools = dialogue_tools(requests)
        return [hear(one, rules, tools, hearing) for one in requests]
    values = said_values(requests)
    return [
        hear_in(
            ApiWorld(one.start, values, faults) if name == "bfcl" else OrderWorld(faults),
            one,
            rules,
            hearing,
        )
        for one in requests
    ]


def chosen(requests: list[ToolRequest], number: int) -> list[ToolRequest]:
    """Return some requests, by the digest of their names."""
    return sorted(requests, key=lambda one: json_digest(one.name))[:number]


def requests_of(name: str, options: argparse.Namespace) -> list[ToolRequest]:
    """Return the requests of a set."""
    if name == "generated":
        return generated_requests(1_000_000, options.items)
    if name == "ruled out":
        return ruled_out_requests(1_000_000, options.items)
    if name == "bfcl":
        return chosen(api_requests(), options.items)
    folder = options.recordings if name == "recorded" else options.dialogues
    if folder is None:
        raise SystemExit(
            f"`--{'recordings' if name == 'recorded' else 'dialogues'}` must be given."
        )
    if name == "dialogues":
        return chosen(dialogue_requests(folder), options.items)
    times = None if options.order_times is None else read_order_times(options.order_times)
    return chosen(recorded_requests(folder, times), options.items)


def as_row(request: ToolRequest, outcome: ToolOutcome, heard: str) -> dict[str, Any]:
    """Return what came of a request as JSON; times in seconds of the conversation."""
    made = [[call.arguments, round(call.at_s, 2)] for call in outcome.made]
    return {
        "name": request.name,
        "heard": heard,
        "wanted": [call.arguments for call in request.calls],
        "made": made,
        "in force": [arguments for _, arguments in outcome.in_force],
        "stop_s": round(outcome.stop_s, 2),
    }


def main() -> None:
    """Measure, and print and store the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", default=["generated"], choices=SETS)
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=[*ARMS])
    parser.add_argument("--recordings", type=Path, default=None)
    parser.add_argument("--order-times", type=Path, default=None)
    parser.add_argument("--dialogues", type=Path, default=None)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--plain", action="store_true", help="tell the recogniser no values")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    sets = {name: requests_of(name, options) for name in options.sets}
    found: dict[str, Any] = {
        "items": options.items,
        "words": "exact" if options.exact else "recognised",
        "recogniser": "told no values" if options.plain else "told the values of the tools",
        "scores": {},
        "rows": {},
    }
    for name, requests in sets.items():
        example = "" if options.plain else spoken_values(tools_of(name, requests))
        hearing = by_script() if options.exact else by_engines(example)
        is_right = is_state_right if name == "bfcl" else has_exactly
        scores = {
            policy: score_requests(requests, [act(one) for one in requests], is_right)
            for policy, act in tool_policies(requests).items()
        }
        for arm in options.arms:
            pairs = outcomes(name, requests, arm, hearing)
            scores[arm] = score_requests(requests, [outcome for outcome, _ in pairs], is_right)
            rows = [as_row(one, *pair) for one, pair in zip(requests, pairs, strict=True)]
            found["rows"].setdefault(name, {})[arm] = rows
            print(name, arm, scores[arm], flush=True)
            found["scores"][name] = scores
            found["processor_s"] = round(time.process_time(), 1)
            if options.out is not None:
                options.out.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
