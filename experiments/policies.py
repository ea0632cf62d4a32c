"""Policies: from references, or from feedback by reinforcement learning; against each other and where they started."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments import arms, comparison, plan, stages
from experiments.plan import Stage
from experiments.scales import Data, Dtype, Evaluation, Mesh, Scale, of_task
from experiments.stages import Sampled, Supervised
from rlaif_jax import axes, log
from rlaif_jax.config import MOST, SAME, check_within
from rlaif_jax.data import loader
from rlaif_jax.folder import finished, link, shared
from rlaif_jax.labeling import direct, preference
from rlaif_jax.models import hf
from rlaif_jax.training import reinforce, reward_model, sft


def policies(scale: Scale, task: str, seed: int, *names: str) -> Policies:
    """Those of some arms at a scale."""
    return Policies(
        rating=replace(scale.rating, task=task) if 'ratings' in {arms.ARMS[name][0] for name in names} else None,
        human_share=0.5 if 'both' in {arms.ARMS[name][0] for name in names} else None,
        reinforce=replace(of_task(scale, 'reinforce', task), seed=seed),
        evaluation=replace(scale.evaluation, seed=seed),
        **arms.fields(scale, task, seed, names),
    )


@dataclass(frozen=True)
class Policies:
    """SFT → feedback → (reward model →) REINFORCE, for each arm and variant → every policy against the others."""

    task: str  # summarization, helpful or harmless
    arms: tuple[str, ...]  # what is compared with SFT and each other, by the paper’s names
    policy: str  # the model that is trained: a packaged one, a folder or a name on the hub
    labeler: str  # of RLAIF; '' where no arm asks it
    same_size_labeler: str  # of d-RLAIF and same-size RLAIF; '' where no arm asks it
    data: Data
    sft: sft.Config | None  # None: RL starts from the policy as it is
    label: preference.Config | None  # None where no arm learns from a labeler's preferences
    rating: direct.Config | None  # None where no arm learns from ratings
    reward_model: reward_model.Config | None  # None where no arm has one
    reward_model_from_base: bool  # where it learns from people's votes
    human_share: float | None  # of the pairs, where it learns from votes and labels; None where no arm does
    reinforce: reinforce.Config
    evaluation: Evaluation
    variants: tuple[str, ...] = ()  # bindings, such as 'reinforce.beta=0.0', each tried on every arm
    mesh: Mesh = field(default=Mesh(), metadata=SAME)
    dtype: Dtype = 'float32'  # of the matrix products; what is trained stays float32

    def __post_init__(self) -> None:
        arms.check(self)
        lengths = self.reinforce.max_prompt, self.reinforce.max_new_tokens
        if self.reward_model and (self.reward_model.max_prompt, self.reward_model.max_response) != lengths:
            raise ValueError(
                f'reward_model.max_prompt and .max_response are {self.reward_model.max_prompt} and '
                f'{self.reward_model.max_response}; reinforce.max_prompt and .max_new_tokens are {lengths[0]} and '
                f'{lengths[1]}: a reward model must see what the policy writes'
            )

    def stages(self, folder: Path) -> list[Stage]:
        found: dict[Path, Stage] = {}
        for _, cfg, arm in arms.each(self):
            needed = ['RLHF', arm] if arms.ARMS[arm][0] == 'both' and arms.counts(cfg, arm)[1] else [arm]
            for stage in [stage for name in needed for stage in arms.optimised(cfg, name).stages(shared(folder))]:
                found.setdefault(stage.folder, stage)
        length = self.reinforce.max_prompt + self.reinforce.max_new_tokens
        return [*found.values(), comparison.stage(self.evaluation, folder, {'policy': self.policy}, length)]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh, root, cfg = axes.make_mesh(asdict(self.mesh)), shared(folder), self.evaluation
        # Simulated, the judge shows how training goes; a model is not kept in memory for that.
        judge = None if comparison.models(cfg) else stages.make_judge(cfg, self.task, None, mesh)
        made = {name: arms.optimised(changed, arm) for name, changed, arm in arms.each(self)}
        runs = {name: one.folder(root) for name, one in made.items()}
        for name, run in runs.items():
            link(run, folder if len(runs) == 1 else folder / 'policies' / name)
        for name, changed, arm in arms.each(self):
            made[name].run(root, mesh, judge, self.sampled(changed, arm, root, mesh))
        start = partial(arms.start(self).run, root, mesh, frozen=True)
        prompts = stages.test_prompts(self.data, self.task, cfg.prompts, start(), self.reinforce.max_prompt)
        load = {name: partial(one.run, root, mesh) for name, one in made.items()} | {'SFT': start}  # one at a time
        most = self.reinforce.max_new_tokens
        texts = {
            name: stages.respond(policy(), prompts, most, cfg.temperature, cfg.seed, cfg.batch, mesh, name)
            for name, policy in load.items()
        }
        result = comparison.report(self, folder, prompts, texts, runs)
        found = {name: (finished(run) or {}).get('over_optimised') for name, run in runs.items()}
        for name, told in (over := {name: told for name, told in found.items() if told}).items():
            log.say(f'{loader.note(self.data.source)} {name}: {told}'.lstrip())
        if told := plan.circular(self.stages(folder)):
            log.say(told)
            result['circular'] = told
        return result | ({'over_optimised': over} if over else {})

    def sampled(self, cfg: Policies, arm: str, root: Path, mesh: axes.Mesh) -> Sampled | None:
        """The pairs that RLHF and SFT write for the arm that learns from both people and a labeler."""
        if arms.ARMS[arm][0] != 'both':
            return None
        human, (_, count) = arms.optimised(cfg, 'RLHF'), arms.counts(cfg, arm)
        return lambda: stages.sampled_pairs(human, root, count, mesh)


@dataclass(frozen=True)
class SFT:
    """References → SFT policy, then the policy against the references."""

    policy: str  # the model that is trained: a packaged one, a folder or a name on the hub
    data: Data
    max_prompt: int  # tokens; longer prompts are shortened
    max_new_tokens: int  # of a response, the end token among them
    sft: sft.Config
    evaluation: Evaluation
    mesh: Mesh = field(metadata=SAME)
    dtype: Dtype  # of the matrix products; what is trained stays float32
    task = 'summarization'

    def __post_init__(self) -> None:
        check_within(self, 1, MOST, 'max_prompt', 'max_new_tokens')

    def start(self) -> Supervised:
        return Supervised(
            policy=self.policy,
            fingerprint=hf.fingerprint(self.policy),
            task=self.task,
            source=self.data.source,
            train=self.data.train,
            max_prompt=self.max_prompt,
            max_new_tokens=self.max_new_tokens,
            sft=self.sft,
            dtype=self.dtype,
        )

    def stages(self, folder: Path) -> list[Stage]:
        evaluation = comparison.stage(
            self.evaluation, folder, {'policy': self.policy}, self.max_prompt + self.max_new_tokens
        )
        return [*self.start().stages(shared(folder)), evaluation]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh, cfg = axes.make_mesh(asdict(self.mesh)), self.evaluation
        link(self.start().folder(shared(folder)), folder)
        policy = self.start().run(shared(folder), mesh, frozen=True)
        prompts = stages.test_prompts(self.data, self.task, cfg.prompts, policy, self.max_prompt)
        ours = stages.respond(policy, prompts, self.max_new_tokens, cfg.temperature, cfg.seed, cfg.batch, mesh, 'SFT')
        samples = [
            {'step': self.sft.steps, 'prompt': prompt.text, 'response': response, 'reference': prompt.reference}
            for prompt, response in zip(prompts[:16], ours)
        ]
        log.write_whole(folder / 'samples.jsonl', ''.join(log.to_json(row) + '\n' for row in samples))
        texts = {'SFT': ours, 'reference': [prompt.reference for prompt in prompts]}
        return comparison.report(self, folder, prompts, texts, {})
