"""Mistakes in configurations: each is named with file, line, key and value, all at once."""

from pathlib import Path

import pytest

from meow_ray.config.files import RENAMED, load_config, nearest_key, valid_keys
from meow_ray.errors import MeowError
from tests.support.configs import refusal, write_config

# --- unknown and renamed keys -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key", "near"),
    [
        ("select:\n  topk: 2\n", 2, "select.topk", "select.top_k"),
        ("memo:\n  stride: 5\n  max_tokens: 9\n", 3, "memo.max_tokens", "memo.max_new_tokens"),
        ("train:\n  batchsize: 2\n", 2, "train.batchsize", "train.batch_size"),
        ("# a top-level key\ntop_k: 2\n", 2, "top_k", "select.top_k"),
        (
            "resources:\n  memo:\n    actors: 2\n",
            3,
            "resources.memo.actors",
            "resources.memo.num_actors",
        ),
        ("ingest:\n  stride: 2\n", 2, "ingest.stride", "memo.stride"),
        ("selct:\n  top_k: 2\n", 1, "selct", "select"),
        ("\nresource: {}\n", 2, "resource", "resources"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_key(
    tmp_path: Path, text: str, line: int, key: str, near: str
):
    path = write_config(tmp_path, text)
    assert f"{path}, line {line}: unknown key `{key}`. Did you mean `{near}`?" in refusal(path)


def test_an_unknown_key_like_no_other_gets_no_suggestion(tmp_path: Path):
    assert nearest_key("zzzzzz") is None
    message = refusal(write_config(tmp_path, "zzzzzz: 1\n"))
    assert message.endswith("unknown key `zzzzzz`.")


def test_a_renamed_key_in_a_file_is_refused_with_its_line_and_new_name(tmp_path: Path):
    path = write_config(tmp_path, "evaluate:\n  sample: 3\n  reference: some/model\n")
    assert refusal(path) == (
        "Configuration:\n"
        f"  {path}, line 3: `evaluate.reference` has a new name. Use `evaluate.retain_model`."
    )


@pytest.mark.parametrize(
    "override", ["evaluate.reference=some/model", "evaluate={reference: some/model}"]
)
def test_a_renamed_key_in_an_override_is_refused_with_its_new_name(tmp_path: Path, override: str):
    path = write_config(tmp_path, "evaluate:\n  sample: 3\n")
    expected = (
        "Configuration:\n"
        "  override: `evaluate.reference` has a new name. Use `evaluate.retain_model`."
    )
    assert refusal(path, override) == expected
    assert refusal(None, override) == expected


def test_new_names_are_valid_and_old_names_are_not():
    assert set(RENAMED.values()) <= set(valid_keys())
    assert not set(RENAMED) & set(valid_keys())


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "key", "value", "reason"),
    [
        ("select:\n  top_k: many\n", 2, "select.top_k", "'many'", "valid integer"),
        ("select:\n  top_k: 0\n", 2, "select.top_k", "0", "greater than 0"),
        ("select:\n  top_k: 2.5\n", 2, "select.top_k", "2.5", "valid integer"),
        (
            "select:\n  order: upwards\n",
            2,
            "select.order",
            "'upwards'",
            "'largest', 'smallest' or 'random'",
        ),
        ("train:\n  epochs: 3\n  warmup_ratio: 1\n", 3, "train.warmup_ratio", "1", "less than 1"),
        ("invert:\n  top_p: 1.5\n", 2, "invert.top_p", "1.5", "less than or equal to 1"),
        ("train:\n  learning_rate: .nan\n", 2, "train.learning_rate", "nan", ""),
        ("train:\n  learning_rate: .inf\n", 2, "train.learning_rate", "inf", "finite"),
        ("\nselect: 3\n", 2, "select", "3", "dictionary"),
        ("target:\n  template: chatt\n", 2, "target.template", "'chatt'", "chat, tofu, raw or a"),
        ("resources:\n  train:\n    num_workers: 0\n", 3, "resources.train.num_workers", "0", ""),
        (
            "resources:\n  memo:\n    gpus_per_actor: -1\n",
            3,
            "resources.memo.gpus_per_actor",
            "-1",
            "",
        ),
        (
            "resources:\n  memo:\n    num_actors: 0\n",
            3,
            "resources.memo.num_actors",
            "0",
            "greater than 0",
        ),
        ("memo:\n  window: word\n", 2, "memo.window", "'word'", "'character' or 'token'"),
        ("memo:\n  max_new_tokens: answer\n", 2, "memo.max_new_tokens", "'answer'", "'label'"),
        ("memo:\n  max_new_tokens: 0\n", 2, "memo.max_new_tokens", "0", "greater than 0"),
        (
            "memo:\n  comparators: [ma, mae]\n",
            2,
            "memo.comparators.1",
            "'mae'",
            "'ma', 'el', 'em', 'es' or 'pz'",
        ),
    ],
)
def test_an_invalid_value_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, key: str, value: str, reason: str
):
    path = write_config(tmp_path, text)
    message = refusal(path)
    assert f"{path}, line {line}: `{key}` = {value}: " in message
    assert reason in message
    assert message.count("\n") == 1, "one mistake is one line"


@pytest.mark.parametrize(
    ("override", "key", "reason"),
    [
        (
            "resources.memo.num_actors=[3,1]",
            "resources.memo",
            "num_actors is [min, max], but min is larger than max",
        ),
        ("memo={mode: prefix, template: target}", "memo", "Set memo.template=raw"),
    ],
)
def test_values_that_contradict_each_other_are_refused(
    tmp_path: Path, override: str, key: str, reason: str
):
    for path in (None, write_config(tmp_path, "resources: {train: {num_workers: 2}}\n")):
        message = refusal(path, override)
        assert f"override: `{key}` = …: " in message
        assert reason in message
        assert message.count("\n") == 1


@pytest.mark.parametrize("value", ["[0,2]", "[1,2,3]", "[1]"])
def test_the_bounds_of_the_number_of_actors_are_two_numbers_from_1(value: str):
    message = refusal(None, f"resources.memo.num_actors={value}")
    assert "override: `resources.memo.num_actors" in message
    assert "tuple[" not in message, "the message names the key that the user wrote"


@pytest.mark.parametrize(
    ("override", "names", "message"),
    [
        ("invert.skip_rules=[loops]", {"rules": ("loop", "meta")}, "no rule 'loops'.* loop, meta"),
        ("train.objective=npq", {"objectives": ("npo", "dpo")}, "no objective 'npq'.* npo, dpo"),
    ],
)
def test_names_of_other_modules_are_checked_if_they_are_listed(
    override: str, names: dict[str, tuple[str, ...]], message: str
):
    load_config(None, [override])
    with pytest.raises(MeowError, match=message):
        load_config(None, [override], names=names)


@pytest.mark.parametrize("suite", ["text", "tofu", "membership", "lm_eval", "forget_prefix10"])
def test_a_reserved_name_of_a_set_is_refused(tmp_path: Path, suite: str):
    path = write_config(tmp_path, f"evaluate:\n  sets: {{{suite}: a.jsonl}}\n")
    assert f"the set name '{suite}' is reserved; choose another name" in refusal(path)


def test_min_k_pp_needs_an_engine_that_returns_distributions(tmp_path: Path):
    path = write_config(tmp_path, "evaluate: {membership: [min_k_pp]}\n")
    message = f"{path}: evaluate.membership: min_k_pp needs the whole distribution of each token. "
    assert message in refusal(path)
    assert "Set target.engine=transformers or remove min_k_pp." in refusal(path)
    config = load_config(path, ["target.engine=transformers"])
    assert config.evaluate.membership == ("min_k_pp",)


def test_all_mistakes_are_named_at_once(tmp_path: Path):
    text = "select:\n  top_k: 0\n  ordr: random\ntrain:\n  epochs: -1\n"
    path = write_config(tmp_path, text)
    message = refusal(path, "memo.stride=x")
    assert f"{path}, line 2: `select.top_k` = 0" in message
    assert f"{path}, line 3: unknown key `select.ordr`. Did you mean `select.order`?" in message
    assert f"{path}, line 5: `train.epochs` = -1" in message
    assert "override: `memo.stride` = 'x'" in message


# --- overrides ----------------------------------------------------------------------------------

MAPPINGS = (
    "memorize.data",
    "ingest.forget",
    "ingest.retain",
    "evaluate.sets",
    "train.settings",
    "target.template_variables",
    "invert.template_variables",
    "audit.judge.template_variables",
)
SCALARS = [key for key in valid_keys() if key not in MAPPINGS]


@pytest.mark.parametrize("key", SCALARS)
def test_an_invalid_override_is_named_by_its_key_and_as_an_override(tmp_path: Path, key: str):
    message = refusal(write_config(tmp_path, "select: {top_k: 2}\n"), f"{key}={{a: 1}}")
    assert message.splitlines()[1].startswith(f"  override: `{key}` = ")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("select={topk: 1}", "select.topk"),
        ("ingest.forget={pth: x}", "ingest.forget.pth"),
        ("memorize.data=[{pth: x}]", "memorize.data.0.pth"),
    ],
)
def test_a_mistake_inside_an_override_does_not_name_the_file(
    tmp_path: Path, override: str, key: str
):
    text = "select:\n  top_k: 2\ningest: {forget: a.jsonl}\nmemorize: {data: [b.jsonl]}\n"
    message = refusal(write_config(tmp_path, text), override)
    assert f"override: unknown key `{key}`" in message


@pytest.mark.parametrize("override", ["select.top_k", "nonsense", ""])
def test_an_override_without_a_value_is_refused(override: str):
    message = refusal(None, override)
    assert message == f"Override {override!r}: no value. Write it as section.key=value."


def test_an_override_that_is_not_yaml_does_not_name_the_file(tmp_path: Path):
    path = write_config(tmp_path, "select: {top_k: 2}\n")
    message = refusal(path, "select.top_k=[1")
    assert "select.top_k=[1" in message
    assert str(path) not in message


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("select:\n  top_k: [1,\n", 3),
        ("select:\n\ttop_k: 1\n", 2),
        ("memo: {}\nselect: a: b\n", 2),
        ("select:\n  top_k: 2\n  top_k: 3\n", 3),
    ],
)
def test_invalid_yaml_is_named_with_its_line(tmp_path: Path, text: str, line: int):
    path = write_config(tmp_path, text)
    assert f"{path}, line {line}: not valid YAML" in refusal(path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("- select\n", "a list"), ("just a text\n", "a single value"), ("42\n", "a single value")],
    ids=["list", "text", "number"],
)
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str, kind: str):
    path = write_config(tmp_path, text)
    expected = f"{path}: a configuration is a mapping of sections, but this file has {kind}. "
    assert refusal(path).startswith(expected)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path):
    path = write_config(tmp_path, b"select:\n  top_k: \xff\n")
    assert f"{path}: the configuration is not UTF-8 text" in refusal(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    path = tmp_path / "nowhere.yaml"
    assert refusal(path).startswith(f"{path}: cannot read the configuration (No such file")


@pytest.mark.parametrize(
    "value", ["${package:no_such_package}", "${no_such_key}", "${oc.env:MEOW_NOT_SET}", "${"]
)
def test_a_reference_that_cannot_be_resolved_is_refused_with_its_key(tmp_path: Path, value: str):
    path = write_config(tmp_path, f"storage:\n  root: '{value}'\n")
    message = refusal(path)
    assert message.startswith(f"{path}: `storage.root`: ")
    assert "\n" not in message
