"""How good is it: agreement with people, policy against policy, harmlessness, and the intervals round all of these.

`agreement`, `position_bias`, `win_rate`, `length_adjusted_win_rate` and `harmless_rate` take arrays of votes and return
intervals; the modules of this package hold what goes round them.
"""

from types import ModuleType

import numpy as np

from rlaif_jax.evaluation import win_rate
from rlaif_jax.evaluation.alignment import agreement, position_bias
from rlaif_jax.evaluation.harmless import harmless_rate
from rlaif_jax.evaluation.length import length_adjusted_win_rate
from rlaif_jax.evaluation.statistics import Interval

__all__ = ['agreement', 'harmless_rate', 'length_adjusted_win_rate', 'position_bias', 'win_rate']


class _WinRate(ModuleType):
    """`evaluation.win_rate` is a function and the module it stands in. A name has one meaning whatever was imported
    before, so it is both: the module, which can be called.
    """

    def __call__(self, win_B: np.ndarray, confidence: float = 0.95, *, resamples: int = 1000) -> Interval:
        return self.win_rate(win_B, confidence, resamples=resamples)


win_rate.__class__ = _WinRate
