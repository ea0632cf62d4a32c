"""Every test sees eight CPU devices, promotes no ranks by accident, and finds the project from any folder."""

import os
import sys
from pathlib import Path

os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import pytest  # noqa: E402

SHARED = (
    ROOT.parent / 'shared' / 'data'
)  # real files that no one on this project wrote; tests that read them skip without


@pytest.fixture(autouse=True)
def no_rank_promotion():
    """A (B,) array added to a (B, T) one is a mistake until proven otherwise."""
    with jax.numpy_rank_promotion('raise'):
        yield


@pytest.fixture
def shared():
    """The folder of real test data beside the project."""
    if not SHARED.exists():
        pytest.skip('no ../shared/data beside the project')
    return SHARED
