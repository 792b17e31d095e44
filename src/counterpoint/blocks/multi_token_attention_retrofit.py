"""Give a trained model with plain attention the parameters of Multi-Token Attention.

Source: arXiv:2504.00927 v2, appendix I, which goes on training such models.
"""

from torch import nn

from counterpoint.blocks.attention import AttentionConfig
from counterpoint.blocks.multi_token_attention import MultiTokenAttention, MultiTokenConfig
from counterpoint.blocks.transformer import Tower
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
    own = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, MultiTokenAttention)
        for parameter in module.added
    }
    added = {name: weight for name, weight in model.state_dict().items() if name in own}
    try:
        model.load_state_dict({**plain.state_dict(), **added})
    except RuntimeError as error:
        raise UserError(
            "Apart from the mixers of its towers, the new model must have the config of the plain "
            f"one: {str(error).splitlines()[-1].strip()}"
        ) from error


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
    own_heads = new.num_kv_heads or tower.config.num_heads
    old_heads = old.num_kv_heads or plain.config.num_heads
    for where, ours, theirs in (
        ("num_heads", tower.config.num_heads, plain.config.num_heads),
        ("num_kv_heads", own_heads, old_heads),
        ("window", tower.config.window, plain.config.window),
        ("rope", new.rope, old.rope),
    ):
        if ours != theirs:
            raise UserError(
                f"A retrofit keeps the heads and the window of a tower: `{where}` of {name!r} must "
                f"be {theirs}, as in the old model, got {ours}."
            )
    if new.head_norm != "none":
        raise UserError(
            "Normalised heads would change the outputs of the old model: `head_norm` must be "
            f"'none', got {new.head_norm!r}."
        )
