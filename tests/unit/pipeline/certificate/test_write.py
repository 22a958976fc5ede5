"""`meow certify`: what a certificate holds, and that the same artifacts give the same bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import form, places
from meow_ray.pipeline.certificate.verify import verify
from tests.support.audited import (
    JUDGED,
    NUM_FACTS,
    PHRASE,
    REMEMBERED,
    Audited,
    certified,
    files,
    pairs,
)


def test_the_schema_is_one():
    Draft202012Validator.check_schema(form.schema())
    assert form.schema()["properties"]["version"]["const"] == places.VERSION


def test_the_same_artifacts_give_the_same_bytes(tmp_path: Path):
    run = Audited(tmp_path)
    run.write_keys()
    key = str(tmp_path / "key.pem")
    run.certify(key=key)
    before = files(tmp_path / "root")
    run.certify(key=key)
    assert files(tmp_path / "root") == before


def test_certificates_of_one_run_in_two_roots_differ_by_salt_time_and_folders_alone(
    tmp_path: Path,
):
    for name in ("root", "second"):
        Audited(tmp_path, root=name).certify()
    one, other = (places.read(str(certified(tmp_path / name))) for name in ("root", "second"))
    for content in (one, other):
        content.pop("page")
        content["request"].pop("id")
        for entry in content["verdicts"]["facts"]:
            entry.pop("fact")
        content["verdicts"]["facts"].sort(key=str)
        for record in content["lineage"]["artifacts"]:
            for name in ("started", "manifest"):
                record.pop(name)
            for file in record["files"]:
                file["path"] = file["path"].split("/")[-1]
    assert one == other


def test_no_phrase_of_a_fact_and_no_id_is_in_the_certificate_or_on_its_page(root: Path):
    facts = storage.read_table([str(path) for path in (root / "facts").rglob("*.parquet")])
    written = files(certified(root).parent)
    assert {"certificate.json", "certificate.html", "salt"} <= set(written)
    for content in written.values():
        for text in (PHRASE, PHRASE.split()[0], *facts["fact_id"].to_pylist()):
            assert text.encode() not in content


def test_the_certificate_holds_the_verdicts_and_their_origin(root: Path):
    content = places.read(str(certified(root)))
    assert content["request"]["num_facts"] == content["request"]["num_audited"] == NUM_FACTS
    assert {
        (row["tier"], row["verdict"]): row["facts"] for row in content["verdicts"]["counts"]
    } == {
        ("black box", "remembered"): REMEMBERED,
        ("black box", "forgotten"): NUM_FACTS - REMEMBERED,
        ("static weights", "remembered"): REMEMBERED,
        ("static weights", "forgotten"): NUM_FACTS - REMEMBERED,
    }
    assert [(m["model"], m["origin"]) for m in content["models"]] == [
        ("before", "outside"),
        ("after", "this run"),
    ]
    assert [entry["artifact"] for entry in content["lineage"]["artifacts"]] == [
        "facts",
        "twins",
        "model",
        "metrics",
        "audit",
    ]
    assert [entry["name"] for entry in content["lineage"]["outside"]] == ["data", "target"]
    assert content["method"] == {"objective": "meow", "rounds": 1}


def test_derived_models_are_named_by_their_weights_and_by_what_they_come_from(root: Path):
    nf4, pruned = places.read(str(certified(root)))["derived_models"]
    assert (nf4["attack"], nf4["variant"], nf4["reason"], nf4["made"]) == (
        "quantise",
        "nf4",
        "no_gpu",
        [],
    )
    assert (pruned["attack"], pruned["variant"]) == ("prune", "30 %")
    # the tuned model and the original one, each asked about all facts and all twins
    assert [(made["model"], made["rows"]) for made in pruned["made"]] == [
        ("after", 2 * NUM_FACTS),
        ("before", 2 * NUM_FACTS),
    ]
    assert len({made["weights"] for made in pruned["made"]}) == 2


def test_missing_scores_are_counted_by_reason(root: Path):
    content = places.read(str(certified(root)))
    reasons = {
        (entry["attack"], entry["missing"], *entry["reasons"].items())
        for entry in content["audit"]["budgets"]
    }
    assert reasons == {
        ("direct", 0),
        ("prefix", 0),
        ("prune", 0),
        ("quantise", NUM_FACTS, ("no_gpu", NUM_FACTS)),
    }
    assert all(entry["weights"] is None for entry in content["models"])


def test_what_was_not_tested_is_said_with_its_reason(root: Path):
    said = {
        entry["what"]: entry["why"] for entry in places.read(str(certified(root)))["not_tested"]
    }
    assert said["attack relearn"] == "the audit has no row of it"
    assert said["attack quantise nf4"] == "no_gpu: the attack needs a GPU"
    assert said["a model that never saw the facts"] == "none was given; twins are the control"
    assert "attack direct" not in said


def test_an_attack_that_is_off_and_metrics_that_are_missing_are_named(tmp_path: Path):
    run = Audited(tmp_path)
    parts = run.parts("audit.attacks=[direct,prefix,prune]")
    chosen = [step for step in parts[0].stages if step.name not in ("evaluate", "report")]
    parts[0].pipeline.run(chosen, on_event=str)
    uri = run.certify_as_is("audit.attacks=[direct,prefix,prune]")
    said = {entry["what"]: entry["why"] for entry in places.read(uri)["not_tested"]}
    assert said["attack relearn"] == "it is not in audit.attacks"
    assert said["utility before and after"] == "the stage evaluate has not run"
    verify(uri)


def test_the_judge_of_replies_is_named_with_its_missing_verdicts(root: Path, tmp_path: Path):
    assert "judge" not in places.read(str(certified(root)))["audit"]
    uri = Audited(tmp_path).certify("audit.judge.model=owner/judge")
    assert places.read(uri)["audit"]["judge"] == JUDGED
    assert "3 of 144 replies" in certified(tmp_path / "root").with_suffix(".html").read_text()
    verify(uri)


def test_show_text_shows_questions_and_answers(tmp_path: Path):
    uri = Audited(tmp_path).certify("report.show_text=true")
    content = places.read(uri)
    shown = {(entry["question"], entry["answer"]) for entry in content["verdicts"]["facts"]}
    assert shown == set(pairs())
    assert PHRASE in Path(uri).with_name(places.PAGE_FILE).read_text()
    verify(uri)


def test_a_run_without_audit_is_refused(tmp_path: Path):
    with pytest.raises(MeowError) as refused:
        Audited(tmp_path).certify_as_is()
    assert str(refused.value) == (
        "meow certify: the audit does not exist yet (stage audit: waits for facts, twins, model). "
        "Run `meow audit` with this configuration first."
    )


@pytest.mark.parametrize("name", ["key.pub", "facts.jsonl"])
def test_a_file_that_is_no_private_key_is_refused(tmp_path: Path, name: str):
    run = Audited(tmp_path)
    run.write_keys()
    run.run()
    with pytest.raises(MeowError, match="not an unencrypted Ed25519 private key in PEM"):
        run.certify_as_is(key=str(tmp_path / name))
    assert not (tmp_path / "root" / places.FOLDER).exists()


def test_a_certificate_of_another_model_is_no_previous_one(original: Path, tmp_path: Path):
    previous = str(certified(original / "second"))
    with pytest.raises(MeowError, match="this certificate is about another model than the target"):
        Audited(tmp_path).certify(previous=previous)


def test_a_given_previous_certificate_is_taken(original: Path, tmp_path: Path):
    model = next((original / "root" / "model").glob("*/*/config.json")).parent
    run = Audited(tmp_path, target=str(model))
    assert places.read(run.certify())["earlier"] == []
    first = certified(original / "root")
    uri = run.certify(previous=str(first))
    link = {"certificate": places.digest(places.read(str(first)))}
    assert places.read(uri)["earlier"][0].items() >= link.items()
    verify(uri)
    assert run.certify() == uri
    assert len(places.read(uri)["earlier"]) == 1


def test_a_run_on_the_model_of_the_same_root_follows_it(tmp_path: Path):
    first = Audited(tmp_path).certify()
    model = next((tmp_path / "root" / "model").glob("*/*/config.json")).parent
    second = Audited(tmp_path, target=str(model)).certify()
    assert second != first
    assert len(places.read(second)["earlier"]) == 1
    verify(first)
    verify(second)


def test_a_certificate_in_an_object_store_verifies(s3: Callable[[str], str], tmp_path: Path):
    uri = Audited(tmp_path, root=s3("certified")).certify()
    assert uri.partition("?")[0].endswith("/certificate.json")
    assert verify(uri).num_files == 15
