"""Every test sees eight CPU devices, promotes no ranks by accident, and finds the project from any folder."""

import os
import sys
from pathlib import Path

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # tests compile more than they compute
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
os.environ.pop('COLUMNS', None)  # of whoever runs the tests: tables are as wide as without a terminal
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

SHARED = (
    ROOT.parent / 'shared' / 'data'
)  # real files that no one on this project wrote; tests that read them skip without


pytest.register_assert_rewrite('chain')  # which asserts for tests of several hosts


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker('nightly') and 'RLAIF_NIGHTLY' not in os.environ:
            item.add_marker(pytest.mark.skip(reason='takes long: .ci/nightly runs it'))


@pytest.fixture(autouse=True)
def no_rank_promotion():
    """A (B,) array added to a (B, T) one is a mistake until proven otherwise."""
    with jax.numpy_rank_promotion('raise'):
        yield


@pytest.fixture(scope='module')
def programs(tmp_path_factory):
    """Programs compiled by one run of the launcher serve the next, in this process and in others; nothing is left in the
    user's home.
    """
    from jax.experimental.compilation_cache import compilation_cache

    from launch.run import start_jax

    names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
    before = {name: getattr(jax.config, name) for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        compilation_cache.reset_cache()
        start_jax()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope='session')
def shared():
    """The folder of real test data beside the project."""
    if not SHARED.exists():
        pytest.skip('no ../shared/data beside the project')
    return SHARED


@pytest.fixture(scope='session')
def saved_state():
    """`saved_state(folder, step)`: what lies in a run's checkpoint, as numpy has it, whoever wrote it."""
    import orbax.checkpoint as ocp

    def read(folder, step):
        path, checkpointer = folder.resolve() / 'checkpoints' / str(step), ocp.PyTreeCheckpointer()
        leaves = checkpointer.metadata(path).item_metadata.tree
        return checkpointer.restore(path, restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), leaves))

    return read


@pytest.fixture(scope='session')
def random_params():
    """`random_params(cfg, seed)`: parameters of a model in which nothing is special, norms and biases included. Compiles
    nothing, so that a test pays only for what it tests.
    """
    from rlaif_jax.models import transformer

    def make(cfg, seed=0):
        shapes = jax.eval_shape(lambda: transformer.init(cfg, jax.random.key(0)))
        rng = np.random.default_rng(seed)
        scale = lambda name: 0.1 if 'norm' in name else 0.3  # noqa: E731
        return {
            name: jax.numpy.asarray(('norm' in name) + scale(name) * rng.standard_normal(leaf.shape), 'float32')
            for name, leaf in sorted(shapes.items())
        }

    return make


@pytest.fixture(scope='session')
def micro_tokenizer():
    """The micro world's tokenizer, as `load` would read it."""
    from rlaif_jax.micro import tokenizer
    from rlaif_jax.text import Tokenizer

    hf = tokenizer.build()
    return Tokenizer(hf, (hf.eos_token_id,))


@pytest.fixture(scope='session')
def models(tmp_path_factory, micro_tokenizer, random_params):
    """A folder with a `policy` and a `labeler`: models of the micro world's language and random weights, as directories."""
    from rlaif_jax.models import hf
    from rlaif_jax.models.transformer import Config

    folder = tmp_path_factory.mktemp('models')
    cfg = Config(vocab=1152, layers=1, width=16, heads=2, kv_heads=2, head_dim=8, ffn=32, max_length=512)
    for seed, name in enumerate(('policy', 'labeler')):
        hf.save(hf.LM(cfg, random_params(cfg, seed), micro_tokenizer, name), folder / name)
    return folder


@pytest.fixture(scope='session')
def tiny_labeler(random_params, micro_tokenizer):
    """A model that likes to write numbers; which ones depends on what it has read."""
    from rlaif_jax.models.hf import LM
    from rlaif_jax.models.transformer import Config

    cfg = Config(vocab=1152, layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn=16, max_length=512, tied=False)
    params = {name: np.array(x) for name, x in random_params(cfg, seed=2).items()}
    params['embed_VD'][:, 0] = 3.0  # a constant that no layer touches; numbers are drawn to it
    params['out_LNHD'][..., 0] = params['down_LFD'][..., 0] = 0.0
    numbers = np.array(micro_tokenizer.encode([f'{space}{n}' for n in range(1, 11) for space in ('', ' ')]))
    params['unembed_DV'][0, numbers] += 4.0
    return LM(cfg, params, micro_tokenizer, 'tiny')
