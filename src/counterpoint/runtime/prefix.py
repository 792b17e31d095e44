"""Prefixes: beginnings of prompts that are read once for all sessions that begin with them."""

import torch

from counterpoint.errors import UserError
from counterpoint.runtime.given import check_prompt
from counterpoint.streams import schedule
from counterpoint.streams.spec import Ticks
from counterpoint.systems.contract import Prefix, System


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
