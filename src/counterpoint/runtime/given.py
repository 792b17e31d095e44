"""Input of sessions: ids of a frame, and prompts, checked before anything changes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.streams import schedule
from counterpoint.streams.spec import Layout, Stream, Ticks

Codes = Tensor | Sequence[int] | int
"""One tick of a stream: an id of text, one id for each codebook, or floats (width,)."""


class Given(NamedTuple):
    """What a row is given in one tick.

    Attributes:
        ids: Ids of discrete streams, one for each codebook.
        floats: Vectors of continuous streams.
    """

    ids: Mapping[str, list[int]]
    floats: Mapping[str, Float[Tensor, " D"]]


def check_mapping(given: object, what: str) -> None:
    """Refuse anything that is not a mapping by stream name.

    Raises:
        UserError: It is something else.
    """
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise UserError(f"{what} must be given by stream, as a dict: got {type(given).__name__}.")


def check_tensors(given: object, what: str) -> None:
    """Refuse anything that is not a mapping of tensors by stream name.

    Raises:
        UserError: It is something else.
    """
    check_mapping(given, what)
    assert isinstance(given, Mapping)
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{what} must be tensors: {name!r} is a {type(value).__name__}.")


def parse_frame(layout: Layout, row: int, num_ticks: int, codes: Mapping[str, Codes]) -> Given:
    """Check and convert what a row is given for a step after ``num_ticks`` ticks.

    ``row`` is named in errors.

    Raises:
        UserError: A heard stream is missing, a stream is unknown or has no element in this tick, or
            a value does not fit.
    """
    check_mapping(codes, f"What row {row} hears")
    streams = (*layout.predicted, *layout.heard)
    due = {s.name for s in streams if schedule.ends_step(s, schedule.given_tick(s, num_ticks))}
    needed = {stream.name for stream in layout.heard} & due
    known = {stream.name for stream in streams}
    if missing := sorted(needed - set(codes)):
        raise UserError(
            f"Row {row} must hear all of {', '.join(sorted(needed))}: got no "
            f"{', '.join(missing)}. Leave the row out to pause it."
        )
    if unknown := sorted(set(codes) - known):
        raise UserError(
            f"Streams must be of the layout ({', '.join(sorted(known))}): got "
            f"{', '.join(unknown)} for row {row}."
        )
    for name in sorted(set(codes) - due):
        tick = schedule.given_tick(layout[name], num_ticks)
        raise UserError(
            f"Row {row} must be given {name!r} with the last of the {layout[name].period_ticks} "
            f"ticks of a step: tick {tick} is not the last one. Leave the stream out here."
        )
    ids = {}
    floats = {}
    for name, given in codes.items():
        stream = layout[name]
        if stream.is_discrete:
            ids[name] = _parse_ids(name, given, stream.sizes)
        else:
            floats[name] = _parse_floats(stream, given)
    return Given(ids, floats)


def check_prompt(layout: Layout, prompt: Ticks | None, device: torch.device) -> tuple[Ticks, int]:
    """Return the columns of a prompt after the initial frame, and its number of ticks.

    The columns include the late ones, in which delayed streams finish.

    Raises:
        UserError: The prompt does not fit the layout.
    """
    given = [*layout.predicted, *layout.heard]
    if prompt is None:
        prompt = {s.name: _nothing(s) for s in given}
    for name, elements in prompt.items():
        if name in [s.name for s in given if s.is_discrete] and not holds_whole_numbers(elements):
            raise UserError(
                f"Ids of a prompt must be whole numbers: got {elements.dtype} for {name}."
            )
    first = given[0].name
    if first in prompt and (
        prompt[first].ndim != 2 + given[0].has_codebooks or len(prompt[first]) != 1
    ):
        raise UserError(
            f"A prompt must be one row, with {first} of shape (1, P): got {first} "
            f"{tuple(prompt[first].shape)}."
        )
    asked = Layout(streams=tuple(given), tick_hz=layout.tick_hz)
    columns = {name: ids.to(device) for name, ids in schedule.columns(asked, prompt).items()}
    return columns, schedule.count_ticks(asked, prompt)


def check_begun(layout: Layout, row: int) -> None:
    """Refuse a step of a row that has read nothing and hears nothing.

    Raises:
        UserError: Always; the message says what is missing.
    """
    if len(layout.predicted) == 1:
        raise UserError(
            f"Row {row} must be fed at least one id before it is sampled: got none. "
            "Feed a prompt, or the start id of the tokeniser."
        )
    raise UserError(
        f"Row {row} must begin with an initial frame or a prompt, because it hears nothing: give "
        "`start` a prompt, or declare the `initial_id` of one of "
        f"{', '.join(stream.name for stream in layout.predicted)}."
    )


def check_limits(
    layout: Layout, end_id: int | None, max_sampled: int | None, *, is_text: bool
) -> None:
    """Refuse limits that a session cannot have.

    Raises:
        UserError: A limit is below 1, or the model does not write one id a tick.
    """
    if max_sampled is not None and max_sampled < 1:
        raise UserError(f"`max_sampled` must be >= 1, got {max_sampled}.")
    if not is_text and (end_id is not None or max_sampled is not None):
        raise UserError(
            "`end_id` and `max_sampled` are for models that write one id a tick: this one "
            f"writes {', '.join(stream.name for stream in layout.predicted)}. Stop it instead."
        )


def _nothing(stream: Stream) -> Tensor:
    """Return no ticks of a stream, as an empty tensor."""
    dtype = torch.long if stream.is_discrete else torch.float32
    return torch.zeros(1, 0, *stream.element_shape, dtype=dtype)


def _parse_ids(name: str, codes: Codes, sizes: Sequence[int]) -> list[int]:
    """Return the ids of one tick of a stream whose codebooks have ``sizes`` ids, or refuse them."""
    ids: list[int]
    try:
        given = torch.as_tensor(codes)
        ids = given.reshape(-1).tolist()
        fits = holds_whole_numbers(given)
    except (TypeError, ValueError, RuntimeError):  # the codes are not numbers
        ids = []
        fits = False
    fits = fits and len(ids) == len(sizes)
    if not fits or any(not 0 <= found < size for found, size in zip(ids, sizes, strict=True)):
        last = [size - 1 for size in sizes]
        raise UserError(
            f"A frame of {name!r} must have {len(sizes)} ids from 0 to "
            f"{last[0] if len(set(last)) == 1 else last}: got {ids or codes}."
        )
    return ids


def _parse_floats(stream: Stream, given: Codes) -> Float[Tensor, " D"]:
    try:
        values = torch.as_tensor(given, dtype=torch.float32).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        values = torch.empty(0)
    if len(values) != stream.width or not values.isfinite().all():
        raise UserError(
            f"A tick of {stream.name!r} must be {stream.width} finite numbers: got {len(values)}."
        )
    return values


def holds_whole_numbers(ids: Tensor) -> bool:
    """Return whether a tensor may hold ids; booleans may not."""
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def check_ids(stream: Stream, row: int, ids: Sequence[int]) -> None:
    """Refuse ids that a stream does not have.

    Raises:
        UserError: An id is outside the vocabulary.
    """
    vocab_size = stream.vocab_size or 0
    for found in ids:
        if not 0 <= found < vocab_size:
            raise UserError(
                f"Ids must be 0 to {vocab_size - 1}: got {found} for row {row}. "
                "Use the tokeniser that the model was trained with."
            )
