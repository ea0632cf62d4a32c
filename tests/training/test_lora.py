"""Laws of adapters: they begin as nothing, they alone are trained, merged they say the same, and PEFT reads them."""

import filecmp
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import families as small
import jax
import numpy as np
import pytest
import safetensors.numpy
from test_reinforce import MESHES, MODEL, PROMPTS, close, left, make_batch, spelling, world  # noqa: F401
from test_reinforce import config as reinforced
from test_reward_model import TOY, toy_pairs

from experiments import programs
from rlaif_jax import axes
from rlaif_jax.config import Mistake
from rlaif_jax.models import hf, lora, stored, transformer
from rlaif_jax.models.hf import LM
from rlaif_jax.training import reinforce, reward_model, sft
from rlaif_jax.training import state as training
from rlaif_jax.training.state import Optimizer

# One key-value head, biases, norms around, and the two kinds of fused tensors.
CASES = ['llama_biased', 'gemma2', 'pythia', 'phi3']
TOKEN_BT, VALID_BT = small.tokens()
CFG = lora.Config(rank=2, alpha=6.0)


def everywhere(model):
    """Adapters of every matrix that the model has."""
    there = tuple(target for target, matrix in lora.MATRICES.items() if matrix in model.names)
    return lora.Config(rank=3, alpha=5.0, targets=there)


def moved(params, seed=0):
    """Adapters as training might leave them: nothing is zero."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(0.1 * rng.standard_normal(x.shape), np.float32) for name, x in params.items()}


@pytest.fixture(scope='module')
def base(tmp_path_factory, micro_tokenizer):
    """`base(case)`: a small model of a family, from a directory of its own."""

    def make(case):
        known, folder = small.golden(case), tmp_path_factory.mktemp('base') / case
        small.write(folder, known['config'], known['shapes'])
        cfg = hf.read_config(folder)
        return LM(cfg, stored.read_params(folder, cfg, axes.make_mesh()), micro_tokenizer, str(folder))

    return make


def logits(lm):
    return np.asarray(hf.logits(lm, TOKEN_BT, VALID_BT))[VALID_BT]


def adapted(lm, cfg, adapters):
    return replace(lm, config=lora.adapted(cfg, lm.config), params=lm.params | adapters)


# the model


@pytest.mark.parametrize('case', CASES)
def test_adapters_begin_as_nothing_and_merged_they_say_the_same(base, tmp_path, case):
    lm = base(case)
    cfg, plain = everywhere(lm.config), logits(lm)
    adapters = lora.init(cfg, lm.config, jax.random.key(0))
    assert {axes.letters(name).count('X') for name in adapters} == {1} and len(adapters) == 2 * len(cfg.targets)
    assert all(0.3 < np.std(x) * math.sqrt(x[0, ..., 0].size) < 3 for n, x in adapters.items() if n.endswith('X'))
    np.testing.assert_array_equal(logits(adapted(lm, cfg, adapters)), plain)

    changed = adapted(lm, cfg, moved(adapters))
    unmerged = logits(changed)
    assert np.abs(unmerged - plain).max() > 0.1
    merged = replace(lm, params=lora.merge(changed.config, changed.params))
    assert set(merged.params) == set(lm.params)
    np.testing.assert_allclose(logits(merged), unmerged, rtol=0, atol=1e-5 * np.abs(unmerged).max())
    hf.save(changed, tmp_path / 'out')
    assert hf.read_config(tmp_path / 'out') == lm.config
    jax.tree.map(
        np.testing.assert_array_equal, stored.read_params(tmp_path / 'out', lm.config, axes.make_mesh()), merged.params
    )


def test_a_target_that_is_not_there_is_named():
    model = transformer.Config(vocab=8, layers=1, width=8, heads=2, kv_heads=1, head_dim=4, ffn=8, gated=False)
    with pytest.raises(Mistake, match=r'lora\.targets: .* gate .* query, .*down$'):
        lora.adapted(lora.Config(rank=1, targets=('gate',)), model)
    assert lora.adapted(lora.Config(targets=('gate',)), model) == model  # rank 0: no adapters
    for wrong in ({'rank': -1}, {'alpha': 0.0}, {'targets': ()}, {'targets': ('up', 'up')}):
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f'^{name} .*{re.escape(str(value))}'):
            lora.Config(**wrong)


# PEFT


@pytest.fixture(scope='module')
def peft():
    torch = pytest.importorskip('torch', reason='torch is not installed: nothing to read adapters with')
    found = pytest.importorskip('peft', reason='peft is not installed: nothing to read adapters with')
    torch.set_num_threads(1)
    return found


@pytest.mark.filterwarnings('ignore')  # of other people's code
@pytest.mark.parametrize('targets', ['all', 'some'])
@pytest.mark.parametrize('case', CASES)
def test_peft_reads_the_adapter_on_top_of_the_base(peft, base, tmp_path, case, targets):
    import torch
    from transformers import AutoModelForCausalLM

    lm = base(case)
    cfg = everywhere(lm.config) if targets == 'all' else replace(CFG, targets=('value', 'query'))
    changed = adapted(lm, cfg, moved(lora.init(cfg, lm.config, jax.random.key(0))))
    hf.save(changed, tmp_path / 'out')
    config = json.loads((tmp_path / 'out/adapter/adapter_config.json').read_text(encoding='utf-8'))
    assert config['base_model_name_or_path'] == lm.name
    theirs = AutoModelForCausalLM.from_pretrained(lm.name, attn_implementation='eager')
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / 'out/adapter').eval()
    stored = set(safetensors.numpy.load_file(tmp_path / 'out/adapter/adapter_model.safetensors'))
    assert stored == set(peft.get_peft_model_state_dict(theirs))  # nothing is left over, nothing is missing
    with torch.no_grad():
        found = theirs(torch.tensor(TOKEN_BT), attention_mask=torch.tensor(VALID_BT.astype(int))).logits.numpy()
    ours = logits(changed)
    np.testing.assert_allclose(found[VALID_BT], ours, rtol=0, atol=2e-5 * np.abs(ours).max())


@pytest.mark.filterwarnings('ignore')  # of other people's code
def test_peft_reads_the_adapter_of_a_reward_model_with_its_head(peft, base, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    lm = base('llama_biased')
    cfg = everywhere(lm.config)
    changed = adapted(lm, cfg, moved(lora.init(cfg, lm.config, jax.random.key(0))))
    score_D = np.linspace(-1, 1, lm.config.width, dtype=np.float32)
    hf.save(replace(changed, params=changed.params | {'score_D': score_D}), tmp_path / 'out')
    read = AutoModelForSequenceClassification.from_pretrained
    theirs = peft.PeftModel.from_pretrained(read(lm.name, num_labels=1), tmp_path / 'out/adapter').eval()
    with torch.no_grad():
        scores = [model(torch.tensor(TOKEN_BT[:1])).logits.numpy() for model in (theirs, read(tmp_path / 'out').eval())]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-4)


# training


def only_adapters(params, head=()):
    """The names of what is trained; everything else is not there."""
    names = {name.rpartition('/')[2] for name in leaves_by_path(params)}
    return names == {name for name in names if '_lora_' in name} | set(head) and any('_lora_' in name for name in names)


def leaves_by_path(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def floats(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


HEAD = ('head_D', 'head_bias')
ADAPTED = {'lora': CFG, 'policy_optimizer': Optimizer(name='adamw', learning_rate=1e-2)}


@pytest.mark.parametrize('mesh', ['', pytest.param('data 2, fsdp 2, tensor 2', marks=pytest.mark.slow)])
def test_a_step_of_reinforce_moves_adapters_only(mesh, capfd):
    """And the heads; policy, value network and reference stand on one copy of the parameters, which stays as it was."""
    here, batch = world(mesh, **ADAPTED), make_batch(left())
    state, before = here.state(head=0.1), jax.device_get(here.sft)
    assert only_adapters(state['policy']['params']) and only_adapters(state['value']['params'], HEAD)
    for name in ('policy', 'value'):
        assert floats(state[name]['optimizer']) == pytest.approx(2 * floats(state[name]['params']), abs=3)
    begun = jax.device_get(state)
    for _ in range(2):  # as `out` is zero, `in` has no gradient at the first step
        state, metrics = here.update(state, batch)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(here.sft), before)
    for name in ('policy', 'value'):
        after, start = leaves_by_path(state[name]['params']), leaves_by_path(begun[name]['params'])
        assert all((np.asarray(after[path]) != start[path]).all() for path in start), name
    assert float(metrics['skipped/policy']) == 0 and float(metrics['objective/kl']) != 0
    where = axes.shardings(state, here.mesh)
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or pytest.fail(str(s)), state, where)
    if mesh:
        one = world(**ADAPTED)
        alone = one.state(head=0.1)
        for _ in range(2):
            alone, _ = one.update(alone, batch)
        close(jax.device_get(state), jax.device_get(alone), 1e-5)
        for name, x in lora.merge(MODEL, here.sft | state['policy']['params']).items():
            np.testing.assert_allclose(x, lora.merge(MODEL, one.sft | alone['policy']['params'])[name], atol=1e-5)
        assert set(MESHES[mesh].values()) == {2} and 'full rematerialization' not in capfd.readouterr().err


def test_reinforce_goes_on_bit_for_bit(spelling, tmp_path, monkeypatch):  # noqa: F811
    steps = world(**ADAPTED).steps  # before they are handed out: it makes them
    monkeypatch.setattr(reinforce, 'make_steps', lambda cfg, lm, mesh: steps)
    cfg = reinforced(eval_every=2, eval_prompts=3, save_every=2, **ADAPTED, steps=4)

    def power_cut(step):
        if step == 3:
            raise KeyboardInterrupt
        return PROMPTS

    def run(folder, prompts_at=lambda step: PROMPTS):
        scorer = lambda prompts, texts, ended_B: np.array([text.count('c') - 1.0 for text in texts])  # noqa: E731
        return reinforce.run(cfg, tmp_path / folder, spelling, prompts_at, scorer, PROMPTS[:3], axes.make_mesh())

    trained = run('a')
    with pytest.raises(KeyboardInterrupt):
        run('b', power_cut)
    run('b')
    for file in ('model.safetensors', 'adapter/adapter_model.safetensors'):
        assert filecmp.cmp(tmp_path / 'a/export' / file, tmp_path / 'b/export' / file, shallow=False)
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / 'a/export').params, trained.params)
    changed = {name for name, x in spelling.params.items() if not np.array_equal(x, trained.params[name])}
    assert changed == {'query_LDNH', 'key_LDKH', 'value_LDKH', 'out_LNHD'}


@pytest.fixture
def batch_at(tiny_labeler):
    tokenizer = tiny_labeler.tokenizer

    def batch_at(step):
        rng = np.random.default_rng(step)
        rows = [list(rng.integers(8, 40, 5)) for _ in range(8)]
        return sft.example_batch([row[:2] for row in rows], [row[2:] for row in rows], 5, tokenizer.pad)

    return batch_at


def test_sft_trains_adapters_only_and_goes_on_bit_for_bit(tiny_labeler, batch_at, tmp_path):
    lm = replace(tiny_labeler, params={name: jax.numpy.asarray(x) for name, x in tiny_labeler.params.items()})
    before = {name: np.array(x) for name, x in lm.params.items()}
    optimizer = Optimizer(name='adamw', learning_rate=1e-2)
    cfg = sft.Config(steps=4, batch=8, lora=CFG, optimizer=optimizer, save_every=2)

    def power_cut(step):
        if step == 3:
            raise KeyboardInterrupt
        return batch_at(step)

    trained = sft.run(cfg, tmp_path / 'a', lm, batch_at, axes.make_mesh())
    with pytest.raises(KeyboardInterrupt):
        sft.run(cfg, tmp_path / 'b', lm, power_cut, axes.make_mesh())
    assert [path.name for path in (tmp_path / 'b/checkpoints').glob('[0-9]*')] == ['2']
    sft.run(
        replace(cfg, log_every=1, save_every=3), tmp_path / 'b', lm, batch_at, axes.make_mesh()
    )  # which only observe
    for file in ('model.safetensors', 'adapter/adapter_model.safetensors', 'adapter/adapter_config.json'):
        assert filecmp.cmp(tmp_path / 'a/export' / file, tmp_path / 'b/export' / file, shallow=False)

    for name, x in before.items():
        np.testing.assert_array_equal(lm.params[name], x)
        same = np.array_equal(trained.params[name], x)
        assert same != (name in ('query_LDNH', 'key_LDKH', 'value_LDKH', 'out_LNHD')), name
    jax.tree.map(np.testing.assert_array_equal, hf.load(tmp_path / 'a/export').params, trained.params)
    kept = sum(file.stat().st_size for file in Path(tmp_path / 'a/checkpoints/4').rglob('*') if file.is_file())
    assert kept < 4 * floats(before) / 2  # no base in it


def test_a_reward_model_trains_adapters_and_its_head(tiny_labeler, tmp_path):
    cfg = replace(TOY, lora=CFG, steps=2, eval_every=2)
    begun = reward_model.from_lm(tiny_labeler)
    init, _ = reward_model.make_step(cfg, begun.config, axes.make_mesh())
    assert only_adapters(jax.eval_shape(init, begun.params)['params'], HEAD)
    trained = reward_model.run(cfg, tmp_path, tiny_labeler, toy_pairs(32, 0, 0.9), toy_pairs(10, 1), axes.make_mesh())
    for name, x in begun.params['trunk'].items():
        changed = name in ('query_LDNH', 'key_LDKH', 'value_LDKH', 'out_LNHD')
        assert changed != np.array_equal(trained.params['trunk'][name], x), name
    assert (trained.params['head']['head_D'] != 0).all()
    config = json.loads((tmp_path / 'export/adapter/adapter_config.json').read_text(encoding='utf-8'))
    assert config['task_type'] == 'SEQ_CLS'


def test_two_dicts_as_one():
    base, mine = {'a': 1, 'trunk': {'b': 2, 'c': 3}}, {'trunk': {'c': 4, 'd': 5}, 'head': {'e': 6}}
    assert training.whole(base, mine) == {'a': 1, 'trunk': {'b': 2, 'c': 4, 'd': 5}, 'head': {'e': 6}}
    assert base == {'a': 1, 'trunk': {'b': 2, 'c': 3}} and training.whole(base, base) == base


def test_the_plan_counts_one_copy_and_the_optimizer_of_adapters():
    model = transformer.Config(vocab=1000, layers=2, width=256, heads=4, kv_heads=2, head_dim=64, ffn=512)
    adamw = Optimizer(name='adamw')
    rl = reinforced(policy_optimizer=adamw, value_optimizer=adamw)
    roles = ('policy', 'value', 'reference', 'reward model')

    def memory(cfg):
        stage = programs.Line('reinforce', Path(), cfg.steps, dict.fromkeys(roles, 'm'), cfg, length=9)
        return programs.memory(stage, dict.fromkeys(roles, model)) / programs.WORD

    n = programs.count(model)
    few = floats(jax.eval_shape(lambda: lora.init(CFG, model, jax.random.key(0))))
    assert few < n / 50
    # Four copies, two gradients, twice two moments; two copies, and adapters, gradients and moments of two networks.
    saved = 4 * n + 2 * n + 4 * n - (2 * n + 2 * (few + few + 2 * few))
    assert memory(rl) - memory(replace(rl, lora=CFG)) == saved


@pytest.mark.parametrize('more, mesh', [({'parts': 2}, {}), ({'remat': True}, {}), ({}, {'data': 2, 'fsdp': 2})])
def test_what_saves_memory_or_spreads_it_lets_a_run_go_on(more, mesh, tiny_labeler, batch_at, tmp_path):
    """With other parts, recomputation or devices the next update is the same, but for the order in which sums are taken."""
    lm = replace(tiny_labeler, params={name: jax.numpy.asarray(x) for name, x in tiny_labeler.params.items()})
    cfg = sft.Config(steps=3, batch=8, optimizer=Optimizer(name='adamw', learning_rate=1e-2), save_every=2)

    def power_cut(step):
        if step == 2:
            raise KeyboardInterrupt
        return batch_at(step)

    whole = sft.run(cfg, tmp_path / 'a', lm, batch_at, axes.make_mesh())
    with pytest.raises(KeyboardInterrupt):
        sft.run(cfg, tmp_path / 'b', lm, power_cut, axes.make_mesh())
    other = axes.make_mesh(mesh)
    gone_on = sft.run(
        replace(cfg, **more), tmp_path / 'b', replace(lm, params=axes.place(lm.params, other)), batch_at, other
    )
    for name, x in whole.params.items():
        np.testing.assert_allclose(gone_on.params[name], x, atol=1e-5, err_msg=name)
