"""Laws of several processes: a chain of stages is what one process makes of it, also stopped, killed and taken up again."""

import re
import shutil
import signal
import time

import pytest
from chain import TWO, alike, command, farthest, metrics, same_bytes, stage
from together import HEARTBEAT, end, printed, start, together


@pytest.fixture(scope='module')
def several(models, tmp_path_factory):
    """A run of two processes of a device each, whose every sum is over two devices."""
    folder = tmp_path_factory.mktemp('several')
    assert together(2, command(models, folder / 'run', *TWO), folder) == [0, 0], printed(folder)
    assert '2 processes' in printed(folder) and 'labels' not in printed(folder, 1)
    return folder / 'run'


@pytest.mark.slow
def test_two_processes_are_one_bit_for_bit(several, models, tmp_path):
    """SFT, labels with rationales, a reward model, REINFORCE, evaluation: no sum is over more than two devices."""
    assert together(1, command(models, tmp_path / 'run', *TWO), tmp_path) == [0], printed(tmp_path)
    alike(tmp_path / 'run', several, 0)
    same_bytes(tmp_path / 'run', several)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(several, models, tmp_path):
    """Bit for bit here, as no sum is over more than two devices."""
    shutil.copytree(several, tmp_path / 'run', symlinks=True)
    sft = stage(tmp_path / 'run', 'sft')
    for finished in (tmp_path / 'run' / 'result.json', sft / 'result.json'):
        finished.unlink()
    for later in ('checkpoints/4', 'export'):
        shutil.rmtree(sft / later)
    assert together(1, command(models, tmp_path / 'run', *TWO), tmp_path) == [0], printed(tmp_path)
    assert re.search('sft: going on .* 2 of 4', printed(tmp_path))
    assert farthest(sft, stage(several, 'sft')) == 0


def soon(look) -> None:
    """Waits until something is there."""
    late = time.monotonic() + 600
    while not look():
        assert time.monotonic() < late
        time.sleep(0.05)


@pytest.mark.slow
def test_who_is_stopped_or_killed_stops_all_and_the_same_command_goes_on(several, models, tmp_path):
    run = command(models, tmp_path / 'run', *TWO)

    def written() -> list[dict[str, float]]:
        found = list((tmp_path / 'run').glob('stages/reinforce-*/metrics.jsonl'))
        return metrics(found[0].parent) if found else []

    both = start(2, run, tmp_path)
    soon(written)  # before the first step, which has to be compiled
    both[1].send_signal(signal.SIGTERM)
    assert end(both) == [130, 130], printed(tmp_path)
    # They agree before a step that they stop behind it: this one, or the next.
    (step,) = re.findall(r'stopped .* ([12]) of 3', printed(tmp_path))
    assert len(written()) == 1 + int(step)

    both = start(2, run, tmp_path)
    soon(lambda: re.search(f'going on .* {step} of 3', printed(tmp_path)))
    both[1].kill()
    began = time.monotonic()
    assert end(both)[0] not in (0, 2) and time.monotonic() - began < 6 * HEARTBEAT
    assert together(2, run, tmp_path) == [0, 0], printed(tmp_path)
    same_bytes(tmp_path / 'run', several)
