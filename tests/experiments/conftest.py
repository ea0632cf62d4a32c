"""What tests of experiments share."""

import pytest

from rlaif_jax.labeling import preference
from rlaif_jax.models import hf


@pytest.fixture
def calls(monkeypatch):
    """Every pair that a labeler is asked about."""
    asked, make = [], preference.make_labeler

    def counting(*arguments, **more):
        labeler = make(*arguments, **more)
        return lambda pairs: asked.extend(pairs) or labeler(pairs)

    monkeypatch.setattr(preference, 'make_labeler', counting)
    return asked


@pytest.fixture(scope='module')
def labeler(tmp_path_factory, tiny_labeler):
    folder = tmp_path_factory.mktemp('labeler')
    hf.save(tiny_labeler, folder)
    return folder
