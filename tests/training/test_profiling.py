"""A profile holds the steps that were asked for, opens, and changes nothing."""

import contextlib
import gzip
import io
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.config import Mistake
from rlaif_jax.training import loop, profiling
from rlaif_jax.training.state import SKIPPED


@jax.jit
def step(state):
    return {'x': jnp.sin(state['x'] + 1)}


def train(folder, steps=6, stop_at=None):
    told = {'save_every': 100, 'title': 'toy'}
    with loop.opened('toy', folder, steps, {'x': jnp.zeros(4)}, **told) as training:
        for i, _ in training.steps_left(lambda i: i):
            training.state = step(training.state)
            training.tell(i, {'loss': training.state['x'].sum(), SKIPPED: jnp.int32(0)}, lambda shown: '')
            if i == stop_at:
                raise KeyboardInterrupt
        return np.asarray(training.state['x'])


def apart(function, *arguments):
    """What a function gives in a process of its own. JAX's profiler ends a process that has loaded libtpu, as one has that
    has compiled plans, by a segmentation fault.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as pool:
        return pool.submit(function, *arguments).result()


def watch(tmp_path):
    """A run whose steps 2 to 4 are traced: what it ends with, and what it says."""
    with contextlib.redirect_stdout(io.StringIO()) as said, profiling.profile('2:4', tmp_path / 'profile'):
        trained = train(tmp_path / 'watched' / 'toy-1')
    return trained, said.getvalue()


def stop_early(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), profiling.profile('1:5', tmp_path / 'profile'):
        train(tmp_path / 'toy-1', stop_at=2)
    train(tmp_path / 'toy-2')  # of which nothing is traced any more


def traced(folder):
    """The steps in a trace, as Perfetto is given it."""
    (file,) = folder.rglob('perfetto_trace.json.gz')
    events = json.loads(gzip.decompress(file.read_bytes()))['traceEvents']
    assert list(folder.rglob('*.xplane.pb')), 'nothing for xprof'
    return sorted(int(event['args']['step_num']) for event in events if 'step_num' in event.get('args', {}))


def test_a_trace_holds_the_steps_that_were_asked_for_and_changes_no_number(tmp_path):
    plain = train(tmp_path / 'plain' / 'toy-1')
    watched, said = apart(watch, tmp_path)
    assert np.array_equal(plain, watched)
    assert traced(tmp_path / 'profile' / 'toy-1') == [2, 3, 4]
    said = said.replace('\n', '')
    assert str(tmp_path / 'profile' / 'toy-1') in said and 'perfetto' in said and 'xprof' in said
    files = [sorted(path.name for path in (tmp_path / name / 'toy-1').iterdir()) for name in ('plain', 'watched')]
    assert files[0] == files[1]


def test_what_was_traced_before_a_stop_is_there(tmp_path):
    apart(stop_early, tmp_path)
    assert traced(tmp_path / 'profile' / 'toy-1') == [1, 2]
    assert not (tmp_path / 'profile' / 'toy-2').exists()


def test_steps_that_no_stage_has_are_told(tmp_path, capsys):
    with profiling.profile('9', tmp_path / 'profile'):
        train(tmp_path / 'toy-1')
    assert '--profile=9:9' in capsys.readouterr().out and not (tmp_path / 'profile').exists()


@pytest.mark.parametrize('text', ['', 'a:b', '4:2', '-1:2', '1:2:3', '1.5'])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(Mistake, match='--profile=20:22'):
        profiling.read_steps(text)
    assert profiling.read_steps('20:22') == (20, 22) and profiling.read_steps('7') == (7, 7)
