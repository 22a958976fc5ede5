"""Training gives the same result with any workers, ZeRO stage and packing, and after a resume."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from meow_ray.config import Lora, Train, TrainResources
from meow_ray.core.schema import SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.stages.train import zero
from meow_ray.stages.train.presets import PRESETS
from tests.support.training import Run, Workers, job, reference_of

SPEC = Train(objective="meow", epochs=3, batch_size=4, learning_rate=1e-3, num_batch=None)
STEPS_PER_EPOCH = 3
TOLERANCE = 1e-4
"""Relative tolerance of the loss at each step in float32."""


def facts() -> pa.Table:
    rows = []
    for i in range(5):
        answer = "In " + "the town of " * (i % 3) + f"Qwerty {i}."
        rows.append(("forget", f"f{i}", f"Where does person {i} live?", answer))
        rows.append(("retain", f"r{i}", f"What is {i}?", f"It is number {i}."))
    names = ("split", "fact_id", "question", "answer")
    return pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], schema=SCHEMAS["facts"]
    )


def selected() -> pa.Table:
    forget = [row for row in facts().to_pylist() if row["split"] == "forget"]
    rows = [
        row
        | {
            "candidate_id": rank,
            "rank": rank,
            "answer": "In a far place. " * (rank + 1),
            "memo": 0.5,
        }
        for row in forget
        for rank in range(2)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["selected"])


@dataclass(frozen=True)
class Setup:
    """Choices that must not change the result of a training run."""

    workers: int
    zero_stage: int
    packing: bool
    resumed: bool

    def __str__(self) -> str:
        return (
            f"{self.workers}w-zero{self.zero_stage}"
            + "-packed" * self.packing
            + "-resumed" * self.resumed
        )


SETUPS = [
    Setup(*choices) for choices in product((1, 2, 4), (1, 2, 3), (True, False), (True, False))
]
PAIRWISE = {
    Setup(1, 1, True, False), Setup(1, 2, False, True), Setup(1, 3, True, True),
    Setup(2, 1, False, True), Setup(2, 2, True, False), Setup(2, 3, False, False),
    Setup(4, 1, True, True), Setup(4, 2, True, True), Setup(4, 3, False, True),
    Setup(4, 2, False, False),
}  # fmt: skip
"""These contain each combination of two choices; tests of the others are slow."""


def resources(setup: Setup, **settings: Any) -> TrainResources:
    return TrainResources(
        zero_stage=setup.zero_stage, packing=setup.packing, micro_batch_size=1, **settings
    )


def losses(history: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in history]


class Curves:
    """Histories of runs on the tiny model; runs with as many workers share a process group."""

    def __init__(self, folder: Path, model: Path, slow: bool) -> None:
        self.folder = folder
        self.model = model
        self.groups: dict[int, Workers] = {}
        self.setups = [setup for setup in SETUPS if slow or setup in PAIRWISE]
        self.histories: dict[Setup, list[dict[str, Any]]] = {}

    def job(self, setup: Setup, spec: Train = SPEC, **settings: Any) -> Any:
        tables = facts(), selected()
        return job(self.folder, self.model, *tables, spec, resources(setup, **settings))

    def train(self, runs: list[Run], workers: int) -> list[list[dict[str, Any]]]:
        if workers not in self.groups:
            self.groups[workers] = Workers(workers)
        return self.groups[workers].train(runs)

    def of(self, setup: Setup) -> list[dict[str, Any]]:
        """Returns the history of a setup; trains all setups with as many workers at once."""
        if setup not in self.histories:
            same_workers = [other for other in self.setups if other.workers == setup.workers]
            runs_by_setup = {other: self._runs(other) for other in same_workers}
            runs = [run for group in runs_by_setup.values() for run in group]
            trained = iter(self.train(runs, setup.workers))
            for other, group in runs_by_setup.items():
                self.histories[other] = [next(trained) for _ in group][-1]
        return self.histories[setup]

    def _runs(self, setup: Setup) -> list[Run]:
        checkpoints = self.folder / str(setup)
        if not setup.resumed:
            return [Run(self.job(setup), checkpoints)]
        stopped = Run(self.job(setup), checkpoints, stop_at=STEPS_PER_EPOCH)
        return [stopped, self.resumed(setup, checkpoints)]

    def resumed(self, setup: Setup, checkpoints: Path, spec: Train = SPEC) -> Run:
        """Returns a run that resumes from the checkpoint after the first epoch."""
        resume = checkpoints / str(STEPS_PER_EPOCH)
        return Run(self.job(setup, spec), self.folder / "again", resume=resume)


@pytest.fixture(scope="module")
def curves(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Curves]:
    slow = request.config.getoption("-m") != "not slow"
    curves = Curves(tmp_path_factory.mktemp("curves"), tiny_model, slow)
    yield curves
    for group in curves.groups.values():
        group.close()


@pytest.fixture(scope="module")
def plain(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of a plain PyTorch loop over the same batches, pair by pair, without DeepSpeed."""
    return plain_losses(tiny_model, tmp_path_factory.mktemp("plain"))


def plain_losses(model_folder: Path, folder: Path) -> list[float]:
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    data = job(folder, model_folder, None, selected(), SPEC, TrainResources()).load()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=SPEC.learning_rate, weight_decay=SPEC.weight_decay
    )
    scheduler = get_linear_schedule_with_warmup(
        optimizer, round(data.num_steps * SPEC.warmup_ratio), data.num_steps + 1
    )
    loss_per_step = []
    for step in range(data.num_steps):
        pairs = [item["inverted"] for item in data.batch(step)]
        tokens = sum(pair.num_labels for pair in pairs)
        total = 0.0
        for pair in pairs:
            logits = model(torch.tensor([pair.input_ids])).logits[0, :-1]
            labels = torch.tensor(pair.labels[1:])
            loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") / tokens
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SPEC.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        loss_per_step.append(total)
    return loss_per_step


@pytest.mark.parametrize(
    "setup",
    [
        setup if setup in PAIRWISE else pytest.param(setup, marks=pytest.mark.slow)
        for setup in SETUPS
    ],
    ids=str,
)
def test_the_loss_does_not_depend_on_the_setup(setup: Setup, curves: Curves, plain: list[float]):
    assert losses(curves.of(setup)) == pytest.approx(plain, rel=TOLERANCE)


def test_the_weights_do_not_depend_on_the_setup(curves: Curves):
    setups = (Setup(2, 2, True, False), Setup(2, 3, False, False))
    runs = [Run(curves.job(setup), curves.folder / "weights") for setup in setups]
    curves.train(runs, 2)
    first, second = (load_file(Path(run.job.out, "model.safetensors")) for run in runs)
    before = load_file(curves.model / "model.safetensors")
    assert first.keys() == second.keys() == before.keys()
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], rtol=1e-3, atol=1e-5)
    assert any(not torch.equal(weight, before[name]) for name, weight in first.items())


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_a_checkpoint_resumes_on_another_number_of_workers(
    zero_stage: int, before: int, after: int, curves: Curves, plain: list[float]
):
    setup = Setup(before, zero_stage, True, False)
    checkpoints = curves.folder / f"stopped{zero_stage}-{before}"
    curves.train([Run(curves.job(setup), checkpoints, stop_at=STEPS_PER_EPOCH)], before)
    history = curves.train([curves.resumed(setup, checkpoints)], after)[0]
    assert losses(history) == pytest.approx(plain, rel=TOLERANCE)


def test_lora_with_dropout_resumes_on_the_same_curve(curves: Curves):
    setup = Setup(2, 2, True, False)
    spec = SPEC.model_copy(update={"lora": Lora(rank=4, dropout=0.2)})
    checkpoints = curves.folder / "lora-stopped"
    uninterrupted = Run(curves.job(setup, spec), checkpoints)
    stopped = Run(curves.job(setup, spec), checkpoints, stop_at=STEPS_PER_EPOCH)
    expected, _ = curves.train([uninterrupted, stopped], 2)
    resumed = curves.resumed(setup, checkpoints, spec)
    history = curves.train([resumed], 2)[0]
    assert losses(history) == pytest.approx(losses(expected), rel=1e-6)


def test_a_model_that_mixes_packed_pairs_is_refused(curves: Curves):
    from transformers import OPTConfig, OPTForCausalLM

    from meow_ray.stages.train.forward import check_packing
    from meow_ray.stages.train.zero import Model

    tokenizer = refs.load_tokenizer(refs.pin(str(curves.model), None, "model"))
    data = curves.job(SETUPS[0]).load()
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = OPTConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, word_embed_proj_dim=32, **sizes
    )
    torch.manual_seed(0)
    network = OPTForCausalLM(config)
    engine = type("Engine", (), {"module": network, "device": "cpu"})()
    with pytest.raises(MeowError, match=r"resources\.train\.packing=false"):
        check_packing(Model(engine, None, 0, keeps_logits=True, half=False), data)


@pytest.fixture(scope="module")
def variants(curves: Curves) -> dict[str, tuple[Any, list[dict[str, Any]]]]:
    """Runs with other settings, all by one group of two workers: the job and history of each."""
    zero2 = Setup(2, 2, True, False)
    zero1, zero3 = replace(zero2, zero_stage=1), replace(zero2, zero_stage=3)
    lora = Lora(rank=4)
    adapter = Lora(rank=4, output="adapter")

    def spec(**settings: Any) -> Train:
        return SPEC.model_copy(update=settings)

    def kl(setup: Setup, **settings: Any) -> Any:
        return curves.job(setup, spec(objective="meow_kl", epochs=1, **settings))

    jobs = {
        "kl": kl(zero2),
        "kl3": kl(zero3),
        "kl_lora": kl(zero2, lora=lora),
        "kl_budget": kl(zero2, utility_budget=0.001),
        "kl_half": kl(zero2, train_dtype="bfloat16"),
        "kl_half3": kl(zero3, train_dtype="bfloat16"),
        "half1": curves.job(zero1, spec(train_dtype="bfloat16")),
        "half3": curves.job(zero3, spec(train_dtype="bfloat16")),
        "checkpointing3": curves.job(zero3, gradient_checkpointing=True),
        "checkpointing": curves.job(zero2, gradient_checkpointing=True),
        "offload2": curves.job(zero2, offload="cpu"),
        "offload3": curves.job(zero3, offload="cpu"),
        "lora": curves.job(zero2, spec(lora=lora)),
        "lora3": curves.job(zero3, spec(lora=lora)),
        "adapter": curves.job(zero2, spec(lora=adapter)),
        "frozen": curves.job(zero2, spec(trainable=r".*\.layers\.1\.mlp\..*")),
    }
    runs = [Run(variant, curves.folder / name) for name, variant in jobs.items()]
    histories = curves.train(runs, 2)
    return dict(zip(jobs, zip(jobs.values(), histories, strict=True), strict=True))


def test_compilation_does_not_wait_for_the_lock_of_a_killed_process():
    from torch.utils.cpp_extension import _get_build_directory

    abandoned = Path(_get_build_directory("deepspeed_shm_comm", verbose=False), "lock")
    abandoned.touch()
    zero.compile_kernels()
    assert not abandoned.exists()


@pytest.mark.parametrize("name", ["checkpointing", "checkpointing3", "offload2", "offload3"])
def test_saving_memory_does_not_change_the_loss(name: str, variants: Any, plain: list[float]):
    assert losses(variants[name][1]) == pytest.approx(plain, rel=TOLERANCE)


@pytest.mark.parametrize("name", ["half1", "half3"])
def test_the_loss_in_bfloat16_is_close(name: str, variants: Any, plain: list[float]):
    assert losses(variants[name][1]) == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("name", ["kl", "kl3", "kl_lora", "kl_half", "kl_half3"])
def test_the_frozen_copy_is_the_model_before_training(name: str, variants: Any):
    terms = [record["terms"]["kl"] for record in variants[name][1]]
    assert terms[0] == pytest.approx(0, abs=1e-6)
    assert terms[-1] > 1e-6


def test_lora_has_the_same_losses_on_any_zero_stage(variants: Any):
    zero2, zero3 = (losses(variants[name][1]) for name in ("lora", "lora3"))
    assert zero2 == pytest.approx(zero3, rel=TOLERANCE)
    assert zero2[-1] < zero2[0]


def test_a_merged_adapter_is_a_whole_model_and_equals_the_adapter(variants: Any, tiny_model: Path):
    from meow_ray.models.folders import shapes

    merged = Path(variants["lora"][0].out)
    assert shapes(merged) == shapes(tiny_model)
    adapter = Path(variants["adapter"][0].out)
    files = {path.name for path in adapter.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    loaded = refs.pin(str(adapter), None, "target.model").folder
    first, second = (load_file(folder / "model.safetensors") for folder in (merged, loaded))
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name])
    before = load_file(tiny_model / "model.safetensors")
    trained = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first[trained], before[trained])


def test_weights_that_are_not_trainable_do_not_change(variants: Any, tiny_model: Path):
    after = load_file(Path(variants["frozen"][0].out, "model.safetensors"))
    before = load_file(tiny_model / "model.safetensors")
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if ".layers.1.mlp." in name}


@pytest.fixture(scope="module")
def methods(curves: Curves) -> dict[str, list[list[dict[str, Any]]]]:
    """Histories of each objective: by one worker with packing, and by two with padding."""
    histories: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in PRESETS}
    for workers in (1, 2):
        setup = Setup(workers, 2, workers == 1, False)
        runs = []
        for name in PRESETS:
            objective_job = curves.job(setup, _objective_spec(name))
            reference_of(objective_job)
            runs.append(Run(objective_job, curves.folder / name))
        for name, history in zip(PRESETS, curves.train(runs, workers), strict=True):
            histories[name].append(history)
    return histories


def _objective_spec(name: str) -> Train:
    spec = SPEC.model_copy(update={"objective": name, "epochs": 1, "learning_rate": 1e-4})
    if PRESETS[name].until == "never_seen":
        rest = spec.model_dump(exclude={"epochs"}, exclude_unset=True)
        return Train(**rest | {"max_steps": 6})
    if name != "rmu":
        return spec
    return spec.model_copy(update={"settings": {"layer": 0}, "trainable": ".*"})


@pytest.mark.parametrize("name", PRESETS)
def test_the_terms_of_an_objective_do_not_depend_on_workers_and_packing(name: str, methods: Any):
    packed, padded = methods[name]
    for first, second in zip(packed, padded, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=TOLERANCE, abs=1e-6)
        assert first.get("never_seen") == pytest.approx(second.get("never_seen"))
        assert first.get("terms", {}).keys() == second.get("terms", {}).keys()
    if PRESETS[name].weight_distance:
        assert packed[0]["terms"]["distance"] == 0
        assert packed[-1]["terms"]["distance"] > 0
    elif PRESETS[name].retain_weight:
        assert set(packed[0]["terms"]) == {"objective", "retain"}
    if PRESETS[name].kl_weight:
        # before the first step the model is the reference
        assert packed[0]["terms"]["kl"] == pytest.approx(0, abs=1e-6)
        assert packed[-1]["terms"]["kl"] > 0


@pytest.mark.parametrize(("term", "budget"), [("kl", 0.001), ("retain", 0.3)])
def test_a_weight_rises_by_5_times_what_its_term_exceeds_the_budget(
    term: str, budget: float, variants: Any, methods: Any
):
    history = variants["kl_budget"][1] if term == "kl" else methods["pdu"][0]
    assert history[0][f"{term}_weight"] == (0.1 if term == "kl" else 50.0)
    for before, after in pairwise(history):
        weight = before[f"{term}_weight"]
        expected = weight + 5 * (before["terms"][term] / weight - budget)
        assert after[f"{term}_weight"] == pytest.approx(max(0.1, expected))
