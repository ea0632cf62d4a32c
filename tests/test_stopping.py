"""Laws of stopping: a signal is a wish that the innermost loop grants, and a second one an order."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlaif_jax import stopping

COMPUTE = """
import sys
from contextlib import nullcontext
import jax
from rlaif_jax.stopping import stop_on_signal

for_ever = jax.jit(lambda x: jax.lax.while_loop(lambda x: x >= 0, lambda x: (x + 1) % 1000, x)).lower(0).compile()
with stop_on_signal(loop=False), stop_on_signal() if sys.argv[1] == 'loop' else nullcontext():
    print('computing', flush=True)
    jax.block_until_ready(for_ever(0))
"""


@pytest.mark.parametrize(
    'where, number, told',
    [('loop', signal.SIGTERM, b'stopping after this step'), ('program', signal.SIGINT, b'stopping once')],
)
def test_a_signal_is_answered_and_a_second_one_ends_the_program_though_xla_computes(where, number, told):
    root = Path(stopping.__file__).parents[1]
    command = [sys.executable, '-u', '-c', COMPUTE, where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as other:
        assert other.stdout.readline() == b'computing\n'
        time.sleep(0.5)
        other.send_signal(number)
        began = time.monotonic()
        assert other.stdout.readline().startswith(told) and time.monotonic() - began < 5
        other.send_signal(number)
        assert other.wait(20) == 130 and b'stopped at once' in other.stderr.read()


def test_the_innermost_loop_is_asked_and_a_loop_outside_a_program_never_ends_its_process(monkeypatch, capsys):
    monkeypatch.setattr(stopping, 'PATIENCE', 0.05)
    with stopping.stop_on_signal() as outer, stopping.stop_on_signal() as inner:
        signal.raise_signal(signal.SIGINT)
        assert inner.asked and not outer.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().out.count('stopping') == 1
    assert signal.set_wakeup_fd(-1) == -1
