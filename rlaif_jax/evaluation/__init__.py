"""How good is it: agreement with people, policy against policy, harmlessness, and the intervals round all of these.

`agreement`, `position_bias`, `win_rate`, `length_adjusted_win_rate` and `harmless_rate` take arrays of votes and return
intervals; the modules of this package hold what goes round them.
"""

from rlaif_jax.evaluation.alignment import agreement, position_bias
from rlaif_jax.evaluation.harmless import harmless_rate
from rlaif_jax.evaluation.length import length_adjusted_win_rate
from rlaif_jax.evaluation.versus import win_rate

__all__ = ['agreement', 'harmless_rate', 'length_adjusted_win_rate', 'position_bias', 'win_rate']
