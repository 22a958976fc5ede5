"""The same result everywhere: one run, however it is cut, packed, stopped and resumed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
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
from meow_ray.stages.train.objectives import PRESETS
from tests.support.training import Run, Workers, job, reference_of

SPEC = Train(epochs=3, batch_size=4, learning_rate=1e-3, num_batch=None)
STEPS_AN_EPOCH = 3
TOLERANCE = 1e-4
"""Relative, of the loss at every step in float32."""


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
class Way:
    """One way to train."""

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


WAYS = [Way(*given) for given in product((1, 2, 4), (1, 2, 3), (True, False), (True, False))]
PAIRWISE = {
    Way(1, 1, True, False), Way(1, 2, False, True), Way(1, 3, True, True),
    Way(2, 1, False, True), Way(2, 2, True, False), Way(2, 3, False, False),
    Way(4, 1, True, True), Way(4, 2, True, True), Way(4, 3, False, True), Way(4, 2, False, False),
}  # fmt: skip
"""Each pair of two choices is among them; the others are slow tests."""


def resources(way: Way, **more: Any) -> TrainResources:
    return TrainResources(
        zero_stage=way.zero_stage, packing=way.packing, micro_batch_size=1, **more
    )


class Curves:
    """Losses of runs on the tiny model; runs with as many workers share a process group."""

    def __init__(self, folder: Path, model: Path, slow: bool) -> None:
        self.folder, self.model = folder, model
        self.groups: dict[int, Workers] = {}
        self.ways = [way for way in WAYS if slow or way in PAIRWISE]
        self.found: dict[Way, list[dict[str, Any]]] = {}

    def job(self, way: Way, spec: Train = SPEC, **more: Any) -> Any:
        return job(self.folder, self.model, facts(), selected(), spec, resources(way, **more))

    def train(self, runs: list[Run], workers: int) -> list[list[dict[str, Any]]]:
        if workers not in self.groups:
            self.groups[workers] = Workers(workers)
        return self.groups[workers].train(runs)

    def of(self, way: Way) -> list[dict[str, Any]]:
        if way not in self.found:
            ways = [w for w in self.ways if w.workers == way.workers]
            runs = [run for w in ways for run in self._runs(w)]
            made = iter(self.train(runs, way.workers))
            for w in ways:
                self.found[w] = [next(made) for _ in self._runs(w)][-1]
        return self.found[way]

    def _runs(self, way: Way) -> list[Run]:
        place = self.folder / str(way)
        if not way.resumed:
            return [Run(self.job(way), place)]
        stopped = Run(self.job(way), place, stop_at=STEPS_AN_EPOCH)
        return [
            stopped,
            Run(self.job(way), self.folder / "again", resume=place / str(STEPS_AN_EPOCH)),
        ]


@pytest.fixture(scope="module")
def curves(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Curves]:
    slow = request.config.getoption("-m") != "not slow"
    found = Curves(tmp_path_factory.mktemp("curves"), tiny_model, slow)
    yield found
    for group in found.groups.values():
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
    losses = []
    for step in range(data.num_steps):
        pairs = [item["inverted"] for item in data.batch(step)]
        tokens = sum(pair.num_labels for pair in pairs)
        total = 0.0
        for pair in pairs:
            logits = model(torch.tensor([pair.input_ids])).logits[0, :-1]
            loss = (
                torch.nn.functional.cross_entropy(
                    logits, torch.tensor(pair.labels[1:]), reduction="sum"
                )
                / tokens
            )
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), SPEC.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


@pytest.mark.parametrize(
    "way",
    [way if way in PAIRWISE else pytest.param(way, marks=pytest.mark.slow) for way in WAYS],
    ids=str,
)
def test_the_loss_does_not_depend_on_the_way(way: Way, curves: Curves, plain: list[float]):
    found = [record["loss"] for record in curves.of(way)]
    assert found == pytest.approx(plain, rel=TOLERANCE)


def test_the_weights_do_not_depend_on_the_way(curves: Curves):
    jobs = [curves.job(way) for way in (Way(2, 2, True, False), Way(2, 3, False, False))]
    curves.train([Run(one, curves.folder / "w") for one in jobs], 2)
    first, second = (load_file(Path(one.out, "model.safetensors")) for one in jobs)
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
    one = Way(before, zero_stage, True, False)
    place = curves.folder / f"stopped{zero_stage}-{before}"
    curves.train([Run(curves.job(one), place, stop_at=STEPS_AN_EPOCH)], before)
    resumed = Run(curves.job(one), curves.folder / "again", resume=place / str(STEPS_AN_EPOCH))
    found = curves.train([resumed], after)[0]
    assert [record["loss"] for record in found] == pytest.approx(plain, rel=TOLERANCE)


def test_lora_with_dropout_resumes_on_the_same_curve(curves: Curves):
    way = Way(2, 2, True, False)
    spec = SPEC.model_copy(update={"lora": Lora(rank=4, dropout=0.2)})
    place = curves.folder / "lora-stopped"
    whole, _ = curves.train(
        [Run(curves.job(way, spec), place), Run(curves.job(way, spec), place, stop_at=3)], 2
    )
    resumed = curves.train(
        [Run(curves.job(way, spec), curves.folder / "again", resume=place / "3")], 2
    )[0]
    assert [record["loss"] for record in resumed] == pytest.approx(
        [record["loss"] for record in whole], rel=1e-6
    )


def test_a_model_that_mixes_packed_pairs_is_refused(curves: Curves):
    from transformers import OPTConfig, OPTForCausalLM

    from meow_ray.stages.train.forward import check_packing
    from meow_ray.stages.train.zero import Model

    tokenizer = refs.load_tokenizer(refs.pin(str(curves.model), None, "model"))
    data = curves.job(WAYS[0]).load()
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
    """Further runs, all by one group of two workers."""
    one = Way(2, 2, True, False)
    three = replace(one, zero_stage=3)
    lora = Lora(rank=4)

    def kl(way: Way, **more: Any) -> Any:
        return curves.job(
            way, SPEC.model_copy(update={"objective": "meow_kl", "epochs": 1, **more})
        )

    half = {"train_dtype": "bfloat16"}
    jobs = {
        "kl": kl(one),
        "kl3": kl(three),
        "kl_lora": kl(one, lora=lora),
        "kl_half": kl(one, **half),
        "kl_half3": kl(three, **half),
        "half1": curves.job(replace(one, zero_stage=1), SPEC.model_copy(update=half)),
        "half3": curves.job(three, SPEC.model_copy(update=half)),
        "checkpointing3": curves.job(three, gradient_checkpointing=True),
        "checkpointing": curves.job(one, gradient_checkpointing=True),
        "offload2": curves.job(one, offload="cpu"),
        "offload3": curves.job(three, offload="cpu"),
        "lora": curves.job(one, SPEC.model_copy(update={"lora": lora})),
        "lora3": curves.job(three, SPEC.model_copy(update={"lora": lora})),
        "adapter": curves.job(
            one, SPEC.model_copy(update={"lora": lora.model_copy(update={"output": "adapter"})})
        ),
        "frozen": curves.job(one, SPEC.model_copy(update={"trainable": r".*\.layers\.1\.mlp\..*"})),
    }
    made = curves.train([Run(one, curves.folder / name) for name, one in jobs.items()], 2)
    return dict(zip(jobs, zip(jobs.values(), made, strict=True), strict=True))


def test_the_lock_that_a_killed_process_has_left_holds_nobody_up():
    from torch.utils.cpp_extension import _get_build_directory

    left = Path(_get_build_directory("deepspeed_shm_comm", verbose=False), "lock")
    left.touch()
    zero.compile_kernels()
    assert not left.exists()


@pytest.mark.parametrize("name", ["checkpointing", "checkpointing3", "offload2", "offload3"])
def test_memory_is_saved_without_another_result(name: str, variants: Any, plain: list[float]):
    assert [record["loss"] for record in variants[name][1]] == pytest.approx(plain, rel=TOLERANCE)


@pytest.mark.parametrize("name", ["half1", "half3"])
def test_bfloat16_learns_about_the_same(name: str, variants: Any, plain: list[float]):
    assert [record["loss"] for record in variants[name][1]] == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("kl", 1e-6), ("kl3", 1e-6), ("kl_lora", 1e-6), ("kl_half", 1e-6), ("kl_half3", 1e-6)],
)
def test_the_frozen_copy_is_the_model_before_training(name: str, tolerance: float, variants: Any):
    terms = [record["terms"]["kl"] for record in variants[name][1]]
    assert terms[0] == pytest.approx(0, abs=tolerance)
    assert terms[-1] > 1e-6


def test_lora_learns_with_the_same_curve_on_any_stage(variants: Any):
    losses, others = (
        [record["loss"] for record in variants[name][1]] for name in ("lora", "lora3")
    )
    assert losses == pytest.approx(others, rel=TOLERANCE)
    assert losses[-1] < losses[0]


def test_a_merged_adapter_is_a_whole_model_and_equals_the_adapter(variants: Any, tiny_model: Path):
    from meow_ray.stages.train.export import shapes

    merged = Path(variants["lora"][0].out)
    assert shapes(merged) == shapes(tiny_model)
    adapter = Path(variants["adapter"][0].out)
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        p.name for p in adapter.iterdir()
    }
    assert not (adapter / "model.safetensors").exists()
    folder = refs.pin(str(adapter), None, "target.model").folder
    first, second = (load_file(place / "model.safetensors") for place in (merged, folder))
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name])
    before, name = load_file(tiny_model / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(first[name], before[name])


def test_weights_that_are_not_trainable_stay(variants: Any, tiny_model: Path):
    after = load_file(Path(variants["frozen"][0].out, "model.safetensors"))
    before = load_file(tiny_model / "model.safetensors")
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if ".layers.1.mlp." in name}


@pytest.fixture(scope="module")
def methods(curves: Curves) -> dict[str, list[list[dict[str, Any]]]]:
    """Each objective by one worker packed, and by two workers padded."""
    jobs: dict[tuple[str, int], Any] = {}
    for name, workers in product(PRESETS, (1, 2)):
        spec = SPEC.model_copy(update={"objective": name, "epochs": 1, "learning_rate": 1e-4})
        settings = {"layer": 0} if name == "rmu" else {}
        spec = spec.model_copy(
            update={"settings": settings, "trainable": ".*" if settings else None}
        )
        one = curves.job(Way(workers, 2, workers == 1, False), spec)
        reference_of(one)
        jobs[name, workers] = one
    found: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in PRESETS}
    for workers in (1, 2):
        made = curves.train(
            [Run(jobs[name, workers], curves.folder / name) for name in PRESETS], workers
        )
        for name, history in zip(PRESETS, made, strict=True):
            found[name].append(history)
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_each_objective_gives_the_same_terms_however_a_batch_is_cut(name: str, methods: Any):
    one, two = methods[name]
    for first, second in zip(one, two, strict=True):
        assert first["loss"] == pytest.approx(second["loss"], rel=TOLERANCE, abs=1e-6)
        assert first.get("terms", {}).keys() == second.get("terms", {}).keys()
    if PRESETS[name].retain_weight:
        assert set(one[0]["terms"]) == {"objective", "retain"}
    if PRESETS[name].kl_weight:
        assert one[0]["terms"]["kl"] == pytest.approx(0, abs=1e-6), (
            "before the first step the model is the reference"
        )
        assert one[-1]["terms"]["kl"] > 0
