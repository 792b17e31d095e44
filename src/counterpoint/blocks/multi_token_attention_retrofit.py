"""Give a trained model with plain attention the parameters of Multi-Token Attention.

Source: arXiv:2504.00927 v2, appendix I, which goes on training such models.
"""

from typing import Any

from torch import nn

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.multi_token_attention import MultiTokenAttention, MultiTokenConfig
from counterpoint.blocks.transformer import Tower
from counterpoint.config_json import TYPE_KEY, decode, encode
from counterpoint.errors import UserError


def retrofit(model: nn.Module, plain: nn.Module) -> None:
    """Copy all weights of a model with plain attention into one with Multi-Token Attention.

    The new convolutions and maps are identities, so both models compute the same, up to rounding.

    Args:
        model: A new model whose config differs from that of ``plain`` in the mixers of some towers
            only, for example by ``replace(tower, mixer=MultiTokenConfig(head_norm="none"))``.
        plain: The trained model.

    Raises:
        UserError: A tower has another shape, or the outputs could not stay the same.
    """
    plain_towers = {name: one for name, one in plain.named_modules() if isinstance(one, Tower)}
    for name, tower in model.named_modules():
        if isinstance(tower, Tower):
            _check_tower(name, tower, plain_towers.get(name))
    own = added_names(model)
    added = {name: weight for name, weight in model.state_dict().items() if name in own}
    try:
        model.load_state_dict({**plain.state_dict(), **added})
    except RuntimeError as error:
        raise UserError(
            "Apart from the mixers of its towers, the new model must have the config of the plain "
            f"one: {str(error).splitlines()[-1].strip()}"
        ) from error


def added_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that the mixers of a model have beside plain ones."""
    return tuple(
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, MultiTokenAttention)
        for parameter in module.added
    )


def plain_of(mixer: MultiTokenConfig) -> AttentionConfig:
    """Return the plain attention that a mixer is when it begins.

    Raises:
        UserError: It begins as something else.
    """
    if mixer.head_norm != "none":
        raise UserError(
            "Normalised heads would change the outputs of the old model: `head_norm` must be "
            f"'none', got {mixer.head_norm!r}."
        )
    return AttentionConfig(num_kv_heads=mixer.num_kv_heads, rope=mixer.rope)


def as_begun(found: Any, own: Any) -> Any:
    """Return a config with the plain attention that its mixers are when they begin.

    Args:
        found: Encoded config of a trained model. Mixers are replaced where it has plain attention.
        own: Encoded config of the model that begins with its weights.

    Raises:
        UserError: A mixer begins as something else.
    """
    if isinstance(found, list) and isinstance(own, list) and len(found) == len(own):
        return [as_begun(*pair) for pair in zip(found, own, strict=True)]
    if not isinstance(found, dict) or not isinstance(own, dict):
        return own
    kinds = (found.get(TYPE_KEY), own.get(TYPE_KEY))
    if kinds == (AttentionConfig.__qualname__, MultiTokenConfig.__qualname__):
        return encode(plain_of(decode(MultiTokenConfig, own)))
    return {name: as_begun(found.get(name), value) for name, value in own.items()}


def _check_tower(name: str, tower: Tower, plain: Tower | None) -> None:
    """Check that a tower can go on where a plain one is."""
    new = tower.config.mixer
    if not isinstance(new, MultiTokenConfig):
        return
    old = None if plain is None else plain.config.mixer
    if plain is None or not isinstance(old, AttentionConfig):
        raise UserError(
            f"The tower {name!r} must have plain attention in the old model: got "
            f"{type(old).__name__}."
        )
    begun = plain_of(new)
    own_heads = begun.num_kv_heads or tower.config.num_heads
    old_heads = old.num_kv_heads or plain.config.num_heads
    for where, ours, theirs in (
        ("num_heads", tower.config.num_heads, plain.config.num_heads),
        ("num_kv_heads", own_heads, old_heads),
        ("window", tower.config.window, plain.config.window),
        ("rope", begun.rope, old.rope),
    ):
        if ours != theirs:
            raise UserError(
                f"A retrofit keeps the heads and the window of a tower: `{where}` of {name!r} must "
                f"be {theirs}, as in the old model, got {ours}."
            )
