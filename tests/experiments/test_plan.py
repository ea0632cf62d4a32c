"""Laws of the plan: what a run would do is known before anything is fetched, and every scale fits what it is meant for."""

import json
import re
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import published_files
import pytest
from huggingface_hub import constants

from experiments import experiments, find, plan, programs, topology
from experiments.programs import Line
from experiments.scales import SCALES
from launch import run as launcher
from rlaif_jax.config import Mistake, bind, dump, parse
from rlaif_jax.models import hf
from rlaif_jax.models.presets import PRESETS, UNWANTED, WANTED, Absent, downloading_nothing, sizes_of

MEANT = ('tldr_same_size', 'harmless_rlaif')
OPEN = [name for name in SCALES if name != 'micro']


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine with nothing on it, that reaches nothing; its working folder."""
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    published_files.alone(tmp_path, monkeypatch)
    (home := tmp_path / 'home').mkdir()
    monkeypatch.chdir(home)
    return home


@pytest.mark.parametrize('scale', SCALES)
def test_every_scale_fits_the_devices_it_is_meant_for(scale, bare):
    row = SCALES[scale]
    with downloading_nothing():
        for name in MEANT:
            config = find(name)(row)
            for stage in config.lines(bare / 'runs/run'):
                sizes = plan.sizes_in(stage, row)
                assert None not in sizes.values()
                assert programs.memory(stage, sizes) < 0.95 * row.memory * 2**30, (name, stage.name)


def test_adapters_of_the_smallest_gemma_fit_one_gpu_of_24_gb(bare):
    """As docs/models.md says it: direct RLAIF with a 2B model, the policy's batch a quarter of the paper's."""
    small = 'google/gemma-2-2b-it'
    changes = {
        'mesh.fsdp': 1, 'sft.lora.rank': 16, 'sft.parts': 32, 'reinforce.lora.rank': 16, 'reinforce.batch': 32,
        'reinforce.parts': 32, 'rating.batch': 8, 'evaluation.judge': small, 'evaluation.selector': small,
        'evaluation.batch': 16,
    }  # fmt: skip
    row = SCALES['gemma2']
    with downloading_nothing():
        for stage in bind(find('tldr_direct')(row), changes).lines(bare / 'runs/run'):
            sizes = plan.sizes_in(stage, row)
            assert None not in sizes.values() and programs.memory(stage, sizes) < 0.95 * 24 * 2**30, stage.name


@pytest.mark.parametrize('scale', OPEN)
def test_a_scale_that_keeps_every_layer_does_not_fit(scale, bare):
    """So `remat` is there for a reason."""
    row = SCALES[scale]
    with downloading_nothing():
        (stage,) = (s for s in find('tldr_direct')(row).lines(bare / 'run') if s.name == 'reinforce')
        sizes = plan.sizes_in(stage, row)
    kept = replace(stage, training=replace(stage.training, remat=False))
    update, whole = (programs.programs(one, sizes, programs.alone())[0].need for one in (stage, kept))
    assert whole > 1.5 * update


@pytest.mark.parametrize('scale', OPEN)
def test_known_sizes_are_those_that_a_model_is_called_by(scale):
    """`Qwen3-4B` has 4 billion parameters, within a third."""
    row = SCALES[scale]
    for name in (row.xs, row.labeler, row.s, row.l, row.evaluation.judge):
        digits, unit = re.search(r'-(\d+(?:\.\d+)?)(b|m)\b', name.lower()).groups()
        named = float(digits) * {'b': 1e9, 'm': 1e6}[unit]
        assert programs.count(sizes_of(name)) == pytest.approx(named, rel=1 / 3), name


def test_a_dry_run_fetches_nothing_and_says_what_a_run_would(bare, capsys):
    assert launcher.main(['--experiment=tldr_rlaif', '--scale=smollm2', '--dry_run']) == 0
    printed = capsys.readouterr().out
    for said in (
        'policy: HuggingFaceTB/SmolLM2-135M, 134.52 M',
        'labeler: HuggingFaceTB/SmolLM2-1.7B-Instruct, 1.71 B',
        'GiB',
        'HuggingFaceTB/SmolLM2-135M from ',  # as it is not here
        'tldr: train.jsonl, valid.jsonl, test.jsonl ',
        'https://',
        'tldr_comparisons: ',
        '--manual_dir',
    ):
        assert said in printed, said
    assert not list(bare.iterdir())


def test_sizes_that_nobody_knows_are_said_to_be_unknown(bare, capsys):
    assert launcher.main(['--experiment=tldr_rlaif', 'labeler=someone/model', '--dry_run']) == 0
    printed = capsys.readouterr().out
    assert re.search(r'labels +labeler: someone/model, \? M +4000 +\? ', printed) and 'someone/model from ' in printed


def test_what_a_plan_passes_over_a_run_does_not(bare, capsys):
    with downloading_nothing(), pytest.raises(Absent):
        hf.load('someone/model')
    with pytest.raises(Mistake, match=r'someone/model: .*/hub\b') as raised:
        hf.load('someone/model')
    assert raised.type is Mistake
    assert launcher.main(['--experiment=tldr_rlaif', 'labeler=someone/model']) == 2
    assert capsys.readouterr().err.startswith('error: someone/model: ')
    assert not list(bare.iterdir())


def test_a_run_that_there_is_not_is_no_model_of_the_hub(bare, capsys):
    policies = "policies=['runs/tldr_rlaif-micro-s3','runs/tldr_rlhf-micro-s3']"
    assert launcher.main(['--experiment=compare', policies]) == 2
    told = capsys.readouterr().err.replace('\n', ' ')
    assert re.search('runs/tldr_rlaif-micro-s3: .*--experiment=tldr_rlaif --scale=micro --seed=3', told)
    assert not list(bare.iterdir())


def test_a_plan_counts_what_evaluation_reads_and_writes(tmp_path: Path):
    config = find('tldr_direct')(SCALES['micro'])
    evaluation = config.lines(tmp_path / 'run')[-1]
    (writes,) = evaluation.reads
    assert (writes.does, writes.rows, writes.calls) == ('writes', 128, 1024 / 128)
    assert writes.prompt + writes.tail == config.reinforce.max_prompt + config.reinforce.max_new_tokens
    sizes = plan.sizes_in(evaluation, config)
    one, two = (
        programs.programs(replace(evaluation, reads=(replace(writes, rows=n),)), sizes, programs.alone())[0].working
        for n in (128, 256)
    )
    assert 1.9 * one < two < 2 * one
    judged = bind(config, {'evaluation.judge': 'micro_l'}).lines(tmp_path / 'run')[-1]
    assert [(read.role, read.does, read.branches) for read in judged.reads[1:]] == [('judge', 'answers', 2)]


def test_a_download_that_broke_off_is_to_be_fetched(bare, micro_tokenizer, random_params):
    model = replace(PRESETS['micro_xs'], layers=1, width=8, ffn=8, heads=2, kv_heads=2, head_dim=4)
    snapshot = bare.parent / 'hub/models--someone--model/snapshots/0123456789012345678901234567890123456789'
    hf.save(hf.LM(model, random_params(model), micro_tokenizer, 'm'), snapshot, shard_bytes=10_000)
    (snapshot.parents[1] / 'refs').mkdir()
    (snapshot.parents[1] / 'refs/main').write_text(snapshot.name, encoding='utf-8')
    with downloading_nothing():
        assert hf.check('someone/model').width == 8
        for name in ('config.json', 'tokenizer.json', sorted(snapshot.glob('*.safetensors'))[0].name):
            (snapshot / name).rename(bare / name)
            with pytest.raises(Absent):
                hf.check('someone/model')
            (bare / name).rename(snapshot / name)


@pytest.mark.parametrize(
    'change, says', [('reinforce.max_prompt=4000', '2048'), ("reinforce.lora.targets=('gate',)", 'gate')]
)
def test_what_known_sizes_rule_out_is_said_before_anything_is_fetched(bare, capsys, change, says):
    more = ['reinforce.lora.rank=4'] if 'lora' in change else []
    assert launcher.main(['--experiment=tldr_direct', '--scale=pythia', '--dry_run', change, *more]) == 2
    assert says in capsys.readouterr().err


def test_prompts_alone_are_fetched_where_no_pairs_are_read(bare, capsys):
    assert launcher.main(['--experiment=tldr_direct', '--scale=smollm2', '--dry_run']) == 0
    assert 'tldr_comparisons' not in capsys.readouterr().out


def test_dialogues_have_no_references_and_no_plan_fetches_them(bare, capsys):
    changes = ['data.source=hh_harmless', 'evaluation.judge=micro_l']
    assert launcher.main(['--experiment=tldr_direct', *changes, '--dry_run']) == 2
    assert 'sft=None' in capsys.readouterr().err


def test_every_task_of_a_study_has_its_own_pairs():
    study = find('labeling_techniques')(SCALES['gemma2'])
    assert [study.data_of(task).name for task in study.tasks] == ['tldr', 'hh_helpful', 'hh_harmless']
    assert study.split == 'alignment'
    study = find('labeling_techniques')(SCALES['micro'])
    assert [study.data_of(task).name for task in study.tasks] == ['micro_tldr', 'micro_helpful', 'micro_harmless']
    assert study.split == 'test'


def test_a_repository_s_chat_template_is_fetched_and_other_formats_are_not():
    def fetched(name: str) -> bool:
        return any(map(partial(fnmatch, name), WANTED)) and not any(map(partial(fnmatch, name), UNWANTED))

    named = (
        'config',
        'generation_config',
        'tokenizer',
        'tokenizer_config',
        'special_tokens_map',
        'model.safetensors.index',
    )
    for name in ('model-00001-of-00002.safetensors', 'chat_template.jinja', *[f'{name}.json' for name in named]):
        assert fetched(name), name
    for name in ('consolidated.safetensors', 'onnx/model.safetensors', 'original/params.json', 'pytorch_model.bin'):
        assert not fetched(name), name


@pytest.mark.parametrize(
    'experiment, rows, hope',
    [
        ('reward_model', 30, 'reward_model.batch=16'),  # of which 27 train
        ('tldr_rm_human', 40, 'reward_model.batch=16'),  # of which 4/5 or so are in the training split
        ('tldr_sft', 40, 'sft.batch=16'),
        ('tldr_direct', 22, 'reinforce.batch=16'),
    ],
)
def test_a_file_smaller_than_a_batch_is_said_with_the_size_that_fits(experiment, rows, hope, tmp_path, capsys):
    here, folder = tmp_path / 'pairs.jsonl', tmp_path / 'run'
    texts = {'completion': 'a', 'chosen': 'a', 'rejected': 'b'}
    found = [json.dumps({'prompt': f'POST: number {i}\n\nTL;DR:'} | texts) + '\n' for i in range(rows)]
    here.write_text(''.join(found), encoding='utf-8')
    more = [f'input={here}'] if experiment == 'reward_model' else [f'data.source={here}']
    more += ['sft.batch=8'] if 'reinforce' in hope else []
    more += [] if 'reward_model' in hope else ['evaluation.judge=micro_l']
    assert launcher.main([f'--experiment={experiment}', f'--workdir={folder}', *more]) == 2
    assert hope in capsys.readouterr().err and not folder.exists()


@pytest.mark.parametrize('scale', OPEN)
def test_nobody_judges_what_was_trained_to_please_him(scale, bare):
    """Nor what his likes, of one family, labelled or chose."""
    row = SCALES[scale]
    own, judge = (row.l, row.labeler, row.evaluation.selector), row.evaluation.judge
    assert judge.split('/')[0] not in {name.split('/')[0] for name in own}
    with downloading_nothing():
        for name in ('tldr_table1', 'harmless_rlaif'):
            assert plan.circular(find(name)(row).lines(bare / 'run')) == ''


@pytest.mark.parametrize('name', sorted({*experiments()} - {'paper'}))  # which has the batches of its runs
def test_every_batch_is_a_field_that_the_mesh_has_to_divide(name, tmp_path):
    """Whatever is called a batch, in parts or whole; and of variants, too."""
    cfg = find(name)(SCALES['micro'])
    paths = [path for path in parse(dump(cfg)) if path.endswith('batch')]
    cfg = bind(cfg, {'mesh.data': 3} | dict.fromkeys(paths, 48))
    assert paths
    for path in paths:
        with pytest.raises(Mistake, match=f'^{path}( = 32| / [a-z.]+samples = 8): .* 3; .* (30 or 33|6 or 9)$'):
            plan.check(bind(cfg, {path: 32}), tmp_path / 'run')
    if paths and hasattr(cfg, 'variants'):
        with pytest.raises(Mistake, match=f'^{paths[0]}( = 32| / [a-z.]+samples = 8): '):
            plan.check(replace(cfg, variants=(f'{paths[0]}=48', f'{paths[0]}=32')), tmp_path / 'run')


def test_a_model_that_makes_labels_and_judges_is_named():
    labels = Line('labels', Path('a'), 1, {'labeler': 'someone/big'})
    chosen = Line('reinforce', Path('b'), 1, {'policy': 'someone/small', 'selector': 'someone/big'})
    judged = Line('evaluation', Path('c'), 1, {'policy': 'someone/small', 'judge': 'someone/big'})
    for made in (labels, chosen):
        assert 'someone/big' in plan.circular([made, judged]) and 'evaluation.judge' in plan.circular([made, judged])
        assert plan.circular([made, replace(judged, models={'judge': 'another/big'})]) == ''
    assert plan.circular([labels, replace(judged, models={})]) == ''  # simulated raters


@pytest.mark.parametrize('name', [name for name in experiments() if name.startswith(('tldr', 'rm', 'rl', 'h'))])
def test_every_plan_passes_its_check(name, tmp_path):
    plan.check(find(name)(SCALES['micro']), tmp_path / 'run')


def test_a_model_that_chooses_among_checkpoints_is_looked_for_before_anything_runs(tmp_path):
    cfg = bind(find('tldr_direct')(SCALES['micro']), {'reinforce.candidates': 2, 'evaluation.selector': 'micro_xz'})
    with pytest.raises(Mistake, match='micro_xz: .* micro_xs'):
        plan.check(cfg, tmp_path / 'run')


def test_responses_to_one_prompt_are_one_row_of_a_batch(tmp_path: Path):
    """Rows of prompts are what a mesh divides: a plan refuses what a run would."""
    values = {'reinforce.samples': 4, 'reinforce.baseline': 'leave_one_out', 'reinforce.parts': 2, 'mesh.data': 8}
    config = bind(find('tldr_direct')(SCALES['micro']), values)
    assert config.reinforce.batch == 32
    found = plan.batches(config)
    assert found['reinforce.batch / reinforce.samples / reinforce.parts'] == 4
    with pytest.raises(Mistake, match=r'reinforce\.batch / reinforce\.samples / reinforce\.parts = 4: .* 8'):
        plan.check_devices(config, 8)
    fitted, changes = topology.dividing(config, 8)
    assert changes == {'reinforce.parts': 1} and fitted.reinforce.parts == 1
    sampled, validated, *_ = next(line for line in config.lines(tmp_path) if line.name == 'reinforce').reads
    assert (sampled.rows, sampled.branches, validated.rows, validated.branches) == (8, 4, 32, 1)
