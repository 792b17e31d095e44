"""The checker of annotations that the tests run under (see `--jaxtyping-packages`)."""

from beartype import BeartypeConf, beartype

# An int may stand where a float is asked for, as in mypy.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
