"""What training would refuse only at its start is found before the run."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.core.manifest import Artifact
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.stage import Known
from meow_ray.pipeline import preflight
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.ingest.facts import FactRow, valid_facts
from meow_ray.stages.ingest.stage import INGEST, INGEST_ALONE
from meow_ray.stages.invert.stage import INVERT
from meow_ray.stages.train.stage import MEMORIZE, TRAIN
from tests.support.models import llama_config, write_model


@pytest.fixture
def known(tiny_tokenizer: Any, tmp_path: Path) -> dict[str, Artifact]:
    """A target without weights, as known before a run."""
    ref = write_model(tmp_path / "model", tiny_tokenizer, llama_config())
    return {"target": Artifact("target", ref.uri, ref.digest, value=ref)}


def target(tokenizer: Any, folder: Path, **changes: Any) -> dict[str, Artifact]:
    ref = write_model(folder / "other", tokenizer, llama_config(**changes))
    return {"target": Artifact("target", ref.uri, ref.digest, value=ref)}


def findings(known: Known, *overrides: str, stage: Any = TRAIN) -> list[str]:
    settings = ["tracking.tensorboard=false", *overrides]
    return preflight.findings(load_config(None, settings), [stage], known)


def candidates(folder: Path, *rows: tuple[str, str, str]) -> dict[str, Artifact]:
    """Writes a file of candidates and takes it as `--input` does."""
    path = folder / "candidates.jsonl"
    names = ("question", "answer", "inverted_answer")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    assert INVERT.adopt is not None
    return {"candidates": INVERT.adopt("candidates", str(path), False)}


def facts(*pairs: tuple[str, str], retain: tuple[tuple[str, str], ...] = ()) -> Artifact:
    rows = [
        [FactRow("file", number, *pair) for number, pair in enumerate(part, start=1)]
        for part in (pairs, retain)
    ]
    return Artifact("facts", "", "given", value=valid_facts(*rows))


def test_a_whole_configuration_has_no_findings(known: Known, tmp_path: Path):
    given = candidates(tmp_path, ("Who?", "Ann is.", "Bob is."))
    assert findings({**known, **given, "facts": facts(("Who?", "Ann is."))}) == []


def test_the_distance_of_weights_is_refused_with_zero_3(known: Known):
    settings = ("train.objective=meow", "train.weight_distance=0.1")
    assert findings(known, *settings) == []
    assert findings(known, *settings, "resources.train.zero_stage=3") == [
        "`train.weight_distance` needs whole matrices, of which ZeRO 3 gives each worker a part. "
        "Set resources.train.zero_stage to 2, or train.weight_distance to 0."
    ]


def test_masks_are_refused_with_zero_3_and_for_parameters_that_are_no_matrices(known: Known):
    settings = ("train.objective=balanced_subnet",)
    assert findings(known, *settings) == []
    assert findings(known, *settings, "resources.train.zero_stage=3") == [
        "`train.objective`: balanced_subnet masks whole matrices, of which ZeRO 3 gives each "
        "worker a part. Set resources.train.zero_stage to 2."
    ]
    (fault,) = findings(known, *settings, "train.trainable=.*layernorm.*")
    assert fault.startswith("`train.trainable`: it matches model.layers.0.input_layernorm.weight,")
    (fault,) = findings(known, *settings, "train.settings.ratio=1e-5")
    assert fault.startswith("`train.settings.ratio`: 1e-05 of the 1536 weights of model.layers.0.")


def test_two_models_cannot_be_trained_in_rounds(known: Known):
    settings = ("train.objective=uld", "resources.train.num_workers=1")
    assert findings(known, *settings) == []
    assert findings(known, *settings, "pipeline.rounds=2") == [
        "`pipeline.rounds` is 2, but a second round would train the two models that uld exports. "
        "Set pipeline.rounds=1."
    ]


def test_an_assistant_needs_blocks_with_keys_and_values(tiny_tokenizer: Any, tmp_path: Path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 262}
    given = target(tiny_tokenizer, tmp_path, model_type="mamba", architectures=None, **sizes)
    settings = ("train.objective=uld", "resources.train.packing=false")
    assert findings(given, *settings) == [
        f"`train.objective`: no assistant can be made of the blocks of {tmp_path}/other: the model "
        "keeps no keys and values, of which the assistant needs its own. Choose another objective "
        "than uld."
    ]


def test_long_candidates_are_named_by_line_with_the_length_to_set(known: Known, tmp_path: Path):
    given = candidates(
        tmp_path, ("Who?", "Ann", "Bob"), ("Who?", "Ann", "B" * 30), ("Who?", "Ann", "B" * 40)
    )
    # <s> <|user|> Who? <|end|> <|assistant|> are 8 tokens, and </s> is one
    assert findings({**known, **given}, "train.max_length=38") == [
        "`candidates`: 2 rows are longer with the prompt than the 38 tokens that train.max_length "
        f"allows: {tmp_path}/candidates.jsonl, line 2 (39 tokens), {tmp_path}/candidates.jsonl, "
        "line 3 (49 tokens). Shorten or remove these rows, or set train.max_length=49."
    ]
    assert findings({**known, **given}, "train.max_length=49") == []


def test_facts_of_the_users_own_are_read_by_the_roles_of_the_objective(known: Known):
    table = facts(("Who?", "A" * 30), retain=(("When?", "B" * 60),))
    given = {**known, "facts": table}
    inverted_alone = ("train.objective=meow", "train.max_length=20")
    assert findings(given, *inverted_alone) == []
    (npo,) = findings(given, "train.max_length=20", "train.objective=npo")
    assert npo.startswith("`facts`: 1 row is longer with the prompt than the 20 tokens")
    (both,) = findings(given, "train.max_length=20", "train.objective=grad_diff")
    assert "2 rows are longer" in both
    assert both.endswith("set train.max_length=70.")


def test_an_objective_that_reads_the_retain_set_needs_one(known: Known):
    given = {**known, "facts": facts(("Who?", "Ann"))}
    assert findings(given, "train.objective=grad_diff") == [
        "`ingest.retain`: the objective reads the retain set, which is empty. Name files of facts "
        "to retain."
    ]


def test_neighbours_replace_the_retain_set(known: Known):
    given = {**known, "facts": facts(("Who?", "Ann"), retain=())}
    assert findings(given, "train.objective=grad_diff", "train.retain=neighbours") == []
    assert len(findings(given, "train.objective=grad_diff", "train.retain=both")) == 1


def test_long_neighbours_of_the_users_own_are_named(known: Known):
    row = {"fact_id": "a", "neighbour_id": 0, "kind": "neighbour", "question": "Who?"}
    table = pa.Table.from_pylist([row | {"answer": "B" * 30}], schema=SCHEMAS["neighbours"])
    given = {**known, "neighbours": Artifact("neighbours", "", "given", value=table)}
    settings = ("train.max_length=20", "train.objective=meow_kl")
    (finding,) = findings(given, *settings, "train.retain=neighbours")
    assert finding.startswith("`neighbours`: 1 row is longer with the prompt than the 20 tokens")
    assert findings(given, *settings) == []


@pytest.mark.parametrize(
    ("overrides", "cures"),
    [
        ((), "Set memo.mode=prefix, which cuts the question, or select.order=random, which"),
        (("memo.window=token", "memo.template=target"), "Set memo.mode=prefix, which cuts"),
    ],
)
def test_letters_have_no_window_and_the_message_says_what_to_set(
    overrides: tuple[str, ...], cures: str, known: Known, tmp_path: Path
):
    given = candidates(
        tmp_path,
        ("Which?", "A", "B"),
        ("Which?", "A", "C"),
        ("Where?", "C", "In Lima"),
        ("Where?", "C", "D"),
    )
    (fault,) = findings({**known, **given}, *overrides)
    assert fault.startswith(
        "`memo`: 1 fact is without any score, and none of the inverted facts could be selected, "
        "because the answers cannot be cut"
    )
    assert f"{tmp_path}/candidates.jsonl, line 2" in fault
    assert cures in fault
    assert findings({**known, **given}, *overrides, "select.order=random") == []
    assert findings({**known, **given}, "memo.mode=prefix") == []
    assert findings({**known, **given}, *overrides, "ingest.on_reject=skip") == []


def test_short_true_answers_are_found_before_a_generator_runs(known: Known):
    given = {**known, "facts": facts(("Which?", "B"), ("Who?", "Ann"))}
    (fault,) = findings(given)
    assert "1 fact is without any score" in fault
    assert findings(given, "train.objective=npo") == []


def test_quantised_weights_are_refused_for_both_stages_that_train(
    tiny_tokenizer: Any, tmp_path: Path
):
    given = target(tiny_tokenizer, tmp_path, quantization_config={"quant_method": "awq"})
    (fault,) = findings(given)
    assert "is quantised (awq) and cannot be trained" in fault
    assert findings(given, stage=INGEST) == [fault], "a run that ends early finds it, too"
    assert findings(given, stage=INGEST_ALONE) == []
    base = {"base": given["target"]}
    (fault,) = findings(base, "memorize.model=x", stage=MEMORIZE)
    assert fault.startswith("`memorize.model`: ")


def test_packing_is_refused_with_its_key_for_a_model_that_mixes_pairs(
    tiny_tokenizer: Any, tmp_path: Path
):
    changes = {"model_type": "opt", "architectures": ["OPTForCausalLM"], "ffn_dim": 48}
    given = target(tiny_tokenizer, tmp_path, word_embed_proj_dim=32, **changes)
    (fault,) = findings(given)
    assert fault.startswith("resources.train.packing: this model's attention leaks")
    assert findings(given, "resources.train.packing=false") == []


def test_layers_that_the_model_lacks_are_named_with_those_that_it_has(known: Known):
    layers = "train.lora.layers=[q_proj,query]"
    assert findings(known, layers) == [
        "`train.lora.layers`: the model has no linear layer query. Choose from down_proj, "
        "embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj, or [] for all."
    ]
    assert findings(known, "train.lora.layers=[q_proj,layers.1.mlp.up_proj]") == []


def test_fila_needs_a_retain_set_and_whole_weights(known: Known):
    fila = "train.lora.init=fila"
    (fault,) = findings(known, fila, "train.objective=gradient_ascent")
    assert fault.startswith(
        "`train.lora.init`: fila compares the facts to forget with a retain set"
    )
    (fault,) = findings(known, fila, "train.objective=ihl", "train.lora.quantize=nf4")
    assert fault.endswith("in 4 bits. Set `train.lora.quantize` to none.")
    assert findings(known, fila, "train.objective=ihl") == []


def test_gram_matrices_need_the_adapter_by_itself(known: Known):
    assert findings(known, "train.lora.gram=true") == [
        "`train.lora.gram` needs the adapter by itself. Set train.lora.output to adapter, or "
        "train.lora.gram to false."
    ]
    assert findings(known, "train.lora={gram: true, output: adapter}") == []


def test_gram_matrices_of_embeddings_are_refused(known: Known):
    layers = "layers: [q_proj, embed_tokens], output: adapter"
    assert findings(known, f"train.lora={{gram: true, {layers}}}") == [
        "`train.lora.gram`: embed_tokens is an embedding, and `meow merge` merges linear layers "
        "only. Remove it from train.lora.layers, or set train.lora.gram to false."
    ]
    assert findings(known, f"train.lora={{{layers}}}") == []


def test_parameters_that_match_nothing_are_refused_with_the_names_that_exist(known: Known):
    (fault,) = findings(known, "train.trainable=.*fc2")
    assert fault.startswith("`train.trainable`: no parameter of the model matches .*fc2.")
    assert "model.layers.0.mlp.down_proj.weight" in fault


def test_rmu_reads_a_block_before_the_last(known: Known):
    rmu = ("train.objective=rmu",)
    assert findings(known, *rmu) == [
        "`train.settings.layer` is 7; it must be below the last block of the target, 1."
    ]
    assert findings(known, *rmu, "train.settings.layer=0") == []


def test_data_to_memorise_are_read_and_measured(known: Known, tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_text(
        '{"question": "Who?", "answer": "Ann"}\n{"question": "Q", "answer": "BBBBBB"}\n'
    )
    config = ["memorize.model=x", f"memorize.data=[{path}]", "memorize.max_length=11"]
    assert MEMORIZE.declared_inputs(load_config(None, config))
    data = next(
        entry
        for entry in MEMORIZE.declared_inputs(load_config(None, config))
        if getattr(entry, "name", "") == "memorize_data"
    )
    given = {
        "base": known["target"],
        "memorize_data": data.resolve(load_config(None, config), False),
    }
    (fault,) = findings(given, *config, stage=MEMORIZE)
    assert "`memorize.data`: 2 rows are longer with the prompt than the 11 tokens" in fault
    assert f"{path}, line 1 (12 tokens), {path}, line 2 (12 tokens)" in fault
    assert findings(given, *config, "memorize.max_length=12", stage=MEMORIZE) == []
