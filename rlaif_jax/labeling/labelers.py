"""Who is asked, by name: a model that is loaded here, or one that a server has, by its address (`served`)."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from rlaif_jax import log
from rlaif_jax.config import Mistake, Passing
from rlaif_jax.labeling import served
from rlaif_jax.labeling.scoring import Model
from rlaif_jax.labeling.served import Address, Served, is_address
from rlaif_jax.models import hf
from rlaif_jax.models.presets import downloads, resolve
from rlaif_jax.text import Tokenizer


def load(name: str | Path, *, dtype: str = 'float32', mesh: Mesh | None = None) -> Model:
    """The model to ask, frozen where it is loaded here. Raises `Mistake` as `hf.load` and `served.served` do."""
    return Served(str(name)) if is_address(name) else hf.load(name, dtype=dtype, mesh=mesh, frozen=True)


def check(address: str) -> None:
    """Raises what `load` would raise for a server. Where nothing may be fetched, as for a plan, one that cannot be reached
    is told of instead: it may not have been started yet. One process of several may ask alone.
    """
    try:
        Served(address, alone=True)
    except Passing as passing:
        if downloads():
            raise
        log.say(str(passing))


def check_length(lm: Model, length: int) -> None:
    """Raises `Mistake` where a server takes less than prompts of `length` tokens: its labels, which are kept by the model's
    name, would be of other prompts than those of a server that takes more.
    """
    if isinstance(lm, Served) and lm.most <= length:
        raise Mistake(
            f'{lm.name}: takes {lm.most} tokens, answer included, and prompts may have {length}; set '
            f'label.max_length={lm.most - 1}, or serve it with more'
        )


def products(name: str | Path, dtype: str) -> str:
    """The type of its matrix products, where they are made here; elsewhere nobody knows."""
    return '' if is_address(name) else dtype


def tokenizer(name: str | Path) -> Tokenizer | served.Words:
    """What makes tokens of its prompts; nothing of a model is read for it."""
    return Address.parse(str(name)).read_tokenizer() if is_address(name) else Tokenizer.load(resolve(name))


def has_template(name: str | Path) -> bool:
    """Whether it is asked in a chat template, here or where it is served."""
    found = tokenizer(name)
    return isinstance(found, served.Words) or found.turn is not None


def fingerprint(name: str | Path) -> str:
    """Ten hex digits for who a name stands for: by its weights here, by its name at a server, which shows no more."""
    return Address.parse(str(name)).fingerprint() if is_address(name) else hf.fingerprint(name)


def title(name: str | Path) -> str:
    """What it is called in tables."""
    return Path(Address.parse(str(name)).model if is_address(name) else name).name
