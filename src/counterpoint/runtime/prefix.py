"""Prompts as rows read them, and prefixes: their beginnings, read once for all sessions."""

import torch
from jaxtyping import Float
from torch import Tensor

from counterpoint.errors import UserError
from counterpoint.runtime.given import check_prompt
from counterpoint.runtime.session import Streaming
from counterpoint.streams import schedule
from counterpoint.streams.spec import UNSET_ID, Ticks
from counterpoint.systems.contract import Prefix, State, System, map_state, state_tensors


@torch.no_grad()
def read_prefix(system: System, codes: Ticks) -> Prefix:
    """Read the beginning of prompts, such as a voice, once for many sessions of this model.

    Args:
        system: The model.
        codes: Its content, as a prompt of `Sessions.start`.

    Raises:
        UserError: The codes do not fit the model.
    """
    columns, num_ticks = check_prompt(system.layout, codes, system.device)
    num_columns = schedule.next_column(system.layout, num_ticks)
    columns = {name: ids[:, :num_columns] for name, ids in columns.items()}
    hidden, state = system.read(columns, system.initial_state(1))
    return system.prefix(columns, num_ticks, hidden, state)


def check_prefix(prefix: Prefix, columns: Ticks, num_prompt: int) -> None:
    """Refuse a prefix if the columns of a prompt do not begin with it.

    Raises:
        UserError: They begin differently.
    """
    read = {name: ids[:, : prefix.num_columns] for name, ids in columns.items()}
    if not all(torch.equal(ids, read[name]) for name, ids in prefix.columns.items()):
        raise UserError(
            f"A prompt must begin with its prefix of {prefix.num_ticks} frames: its {num_prompt} "
            "frames do not. Give both in one prompt, or no prefix."
        )


def behind(codes: Ticks, prompt: Ticks | None) -> Ticks:
    """Return a prompt that begins with other codes, such as those of a voice.

    Raises:
        UserError: The prompt has other streams.
    """
    if prompt is None:
        return codes
    if set(prompt) != set(codes):
        raise UserError(
            f"A prompt after a voice must have all streams ({', '.join(codes)}): got "
            f"{', '.join(prompt) or 'none'}."
        )
    return {name: torch.cat((ids, prompt[name].to(ids.device)), 1) for name, ids in codes.items()}


def unset(prompt: Ticks | None) -> Ticks | None:
    """Return a prompt of the same length in which every element is unset."""
    return prompt and {
        name: torch.full_like(elements, 0 if elements.is_floating_point() else UNSET_ID)
        for name, elements in prompt.items()
    }


def read_prompt(
    system: Streaming,
    state: State,
    row: int,
    columns: Ticks,
    num_prompt: int,
    prefix: Prefix | None,
) -> Float[Tensor, "1 D"] | None:
    """Let a row that forgets all else read the initial frame and a prompt.

    Args:
        system: The model.
        state: State of all rows; that of the row is overwritten.
        row: Number of the row.
        columns: Columns of the prompt, from `check_prompt`.
        num_prompt: Number of ticks of the prompt.
        prefix: The beginning of the prompt, if it has been read already.

    Returns:
        Hidden state from which the first column after the prompt is written; ``None`` if there was
        nothing to read.
    """
    mine = map_state(lambda tensor: tensor[row : row + 1], state)
    for tensor in state_tensors(mine):
        tensor.zero_()
    num_read = 0
    hidden = None
    if prefix is not None:
        num_read = prefix.num_columns
        hidden = prefix.hidden
        for tensor, kept in zip(state_tensors(mine), state_tensors(prefix.state), strict=True):
            tensor[tuple(slice(0, size) for size in kept.shape)] = kept
    num_columns = schedule.next_column(system.layout, num_prompt)
    if num_read < num_columns:
        rest = {name: elements[:, num_read:num_columns] for name, elements in columns.items()}
        all_hidden, read = system.read(rest, mine)
        system.wait()
        hidden = all_hidden[:, -1]
        for tensor, new in zip(state_tensors(mine), state_tensors(read), strict=True):
            if tensor.data_ptr() != new.data_ptr():  # caches have been written in place
                tensor.copy_(new)
    return hidden
