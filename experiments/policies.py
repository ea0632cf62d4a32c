"""Policies: from references, or from feedback by reinforcement learning; against each other and where they started."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments import arms, judging, plan
from experiments.arms import Learner
from experiments.label import Asking
from experiments.programs import Line
from experiments.report import over_optimised, report
from experiments.scales import Data, Dtype, Evaluation, Mesh, Scale, of_task
from experiments.stages import ByModel
from rlaif_jax import axes, log
from rlaif_jax.config import MOST, SAME, check_within
from rlaif_jax.data import loader
from rlaif_jax.data.records import Pair
from rlaif_jax.evaluation.versus import Judge
from rlaif_jax.folder import link, shared
from rlaif_jax.labeling import direct, preference
from rlaif_jax.models.hf import LM
from rlaif_jax.training import reinforce, reward_model, sft


def policies(scale: Scale, task: str, seed: int, *names: str) -> Policies:
    """Those of some arms at a scale."""
    return Policies(
        rating=replace(scale.rating, task=task) if 'rating' in arms.needed(names) else None,
        human_share=0.5 if 'human_share' in arms.needed(names) else None,
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
        lengths = self.lengths()
        if self.reward_model and (self.reward_model.max_prompt, self.reward_model.max_response) != lengths:
            raise ValueError(
                f'reward_model.max_prompt and .max_response are {self.reward_model.max_prompt} and '
                f'{self.reward_model.max_response}; reinforce.max_prompt and .max_new_tokens are {lengths[0]} and '
                f'{lengths[1]}: a reward model must see what the policy writes'
            )

    def lengths(self) -> tuple[int, int]:
        return self.reinforce.max_prompt, self.reinforce.max_new_tokens

    def learners(self) -> list[Learner]:
        """Everything that is compared."""
        return [arms.learner(cfg, name, arm) for name, cfg, arm in arms.each(self)]

    def askings(self) -> list[Asking]:
        """What labelers can be asked ahead."""
        policies = (one.policy for one in self.learners())
        return arms.askings(policy.rewarded for policy in policies if isinstance(policy, ByModel))

    def lines(self, folder: Path) -> list[Line]:
        found: dict[Path, Line] = {}
        for one in self.learners():
            for policy in filter(None, (one.writer, one.policy)):
                for line in policy.lines(shared(folder)):
                    found.setdefault(line.folder, line)
        return [*found.values(), judging.line(self.evaluation, folder, {'policy': self.policy}, sum(self.lengths()))]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh, root, cfg = axes.make_mesh(asdict(self.mesh)), shared(folder), self.evaluation
        source, (most_prompt, most) = loader.find(self.data.source), self.lengths()
        # Simulated, the judge shows how training goes; a model is not kept in memory for that.
        judge = judging.make_judge(cfg, self.task, None, mesh, source.world) if cfg.simulated else None
        learners = {one.name: one for one in self.learners()}
        runs = {name: one.policy.folder(root) for name, one in learners.items()}
        for name, run in runs.items():
            link(run, folder if len(runs) == 1 else folder / 'policies' / name)
        # Each makes its policy or, where it is there, loads it: one at a time.
        load = {name: partial(made, one, root, mesh, judge) for name, one in learners.items()}
        for make in load.values():
            make()
        load['SFT'] = partial(arms.start(self).run, root, mesh, frozen=True)
        prompts = judging.test_prompts(self.data, self.task, cfg.prompts, load['SFT'](), most_prompt)
        texts = {
            name: judging.respond(policy(), prompts, most, cfg.temperature, cfg.seed, cfg.batch, mesh, name)
            for name, policy in load.items()
        }
        result = report(self, folder, source, prompts, texts, runs)
        over = {name: told for name, run in runs.items() if (told := over_optimised(log.read_metrics(run)))}
        for name, told in over.items():
            log.say(f'{source.note} {name}: {told}'.lstrip())
        if told := plan.circular(self.lines(folder)):
            log.say(told)
            result['circular'] = told
        return result | ({'over_optimised': over} if over else {})


def made(one: Learner, root: Path, mesh: axes.Mesh, judge: Judge | None) -> LM:
    """The policy of a learner, made now or by an earlier run, and the pairs that its labeler is asked about."""

    def write() -> list[Pair]:
        writer, policy, count = one.writer, one.writer.run(root, mesh, judging.rates), one.policy.rewarded.ai.pairs
        return judging.sampled_pairs(writer, policy, writer.start.run(root, mesh, frozen=True), count, mesh)

    return one.policy.run(root, mesh, judging.rates, judge, write if one.writer else None)


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

    def lengths(self) -> tuple[int, int]:
        return self.max_prompt, self.max_new_tokens

    def lines(self, folder: Path) -> list[Line]:
        evaluation = judging.line(self.evaluation, folder, {'policy': self.policy}, sum(self.lengths()))
        return [*arms.start(self).lines(shared(folder)), evaluation]

    def run(self, folder: Path) -> dict[str, Any]:
        mesh, cfg = axes.make_mesh(asdict(self.mesh)), self.evaluation
        link(arms.start(self).folder(shared(folder)), folder)
        policy = arms.start(self).run(shared(folder), mesh, frozen=True)
        prompts = judging.test_prompts(self.data, self.task, cfg.prompts, policy, self.max_prompt)
        ours = judging.respond(policy, prompts, self.max_new_tokens, cfg.temperature, cfg.seed, cfg.batch, mesh, 'SFT')
        samples = [
            {'step': self.sft.steps, 'prompt': prompt.text, 'response': response, 'reference': prompt.reference}
            for prompt, response in zip(prompts[:16], ours)
        ]
        log.write_whole(folder / 'samples.jsonl', ''.join(log.to_json(row) + '\n' for row in samples))
        texts = {'SFT': ours, 'reference': [prompt.reference for prompt in prompts]}
        return report(self, folder, loader.find(self.data.source), prompts, texts, {})
