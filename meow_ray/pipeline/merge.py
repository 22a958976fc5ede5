"""`meow merge`: one model from the adapters of several requests, and whether each is forgotten."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from meow_ray.config import Config, Source, Target
from meow_ray.core import manifest, storage
from meow_ray.core.manifest import MAIN, Artifact
from meow_ray.core.tables import TableSource
from meow_ray.distributed import progress, shared_root
from meow_ray.errors import MeowError
from meow_ray.models.folders import ADAPTER, BASE
from meow_ray.models.refs import ModelRef
from meow_ray.pipeline import derived
from meow_ray.pipeline.certificate import places
from meow_ray.stages import inputs
from meow_ray.stages.ingest.facts import read_sources, valid_facts
from meow_ray.stages.train import merge, requests
from meow_ray.stages.train.gram import GRAM_FILE
from meow_ray.stages.train.merge import Adapter, Recipe
from meow_ray.stages.train.requests import Knowledge, Questions, Replies

MERGE_FILE = "merge.json"
"""What was merged and what the models know, next to the weights of the merged model."""
PURGED = "text purged, not evaluated"
NO_FACTS = "no facts found, not evaluated"
"""Why a request was not evaluated."""
_VERSION = 1
"""Raised whenever the same adapters give another model, or the file has another form."""


@dataclass(frozen=True)
class Request:
    """One of the merged requests, and what models know of its facts."""

    name: str
    """The name of its run."""
    model: str
    """The digest of its adapter."""
    chain: list[dict[str, Any]]
    """What it forgot, and when; see the chain in the manifest of `model`."""
    facts: int
    """The number of facts that models were asked about."""
    note: str
    """Why no model was asked; empty otherwise."""
    models: dict[str, Knowledge]
    """What the models `target`, `tuned` (the request's own) and `merged` know; empty if not asked.
    """

    @property
    def is_remembered_again(self) -> bool:
        """Whether the facts look never seen to the request's own model and not to the merged one.

        False if it cannot be told.
        """
        if not self.models:
            return False
        tuned, merged = self.models["tuned"], self.models["merged"]
        return tuned.looks_never_seen is True and merged.looks_never_seen is False


@dataclass(frozen=True)
class Merged:
    """A merged model."""

    uri: str
    layers: int
    """The number of layers that the adapters change."""
    requests: list[Request]


@dataclass(frozen=True)
class _Run:
    """A finished run whose model is an adapter."""

    name: str
    root: str
    """URI of the storage root."""
    model: Artifact
    base: ModelRef
    """The target."""

    @property
    def adapter(self) -> Adapter:
        return Adapter(self.name, self.model.uri, self.model.digest)

    @property
    def spec(self) -> Mapping[str, Any]:
        """The settings of the stage `train`."""
        assert self.model.manifest is not None
        spec: Mapping[str, Any] = self.model.manifest.ingredients["spec"]
        return spec


def merge_runs(
    runs: Sequence[tuple[str, str]],
    config: Config,
    recipe: Recipe,
    out: str,
    facts: Mapping[str, str],
) -> Merged:
    """Writes the merged model of several runs, and measures what models know of each request.

    Args:
        runs: the name of each run, and its storage root or the folder of its model.
        config: `resources.evaluate`, how the target is loaded, the stop level, and how files of
            facts are read.
        recipe: the method and its settings.
        out: URI of a new folder for the model.
        facts: files of facts by the name of the run, for runs whose text is gone.

    Raises:
        MeowError: the runs cannot be merged, or a file or folder cannot be used.
    """
    found = [_run(name, place) for name, place in runs]
    _check(found, recipe)
    given = _given_facts(facts, found, config)
    uri = storage.absolute(out)
    derived.check_new(uri)
    shared_root.check(uri, "--out")
    derived.connect(config.resources)
    questions, notes = _questions(found, given, config)
    base = replace(found[0].base, trust_remote_code=config.target.trust_remote_code)
    prompt = _prompt(found[0], config)
    _say(f"{recipe.method}, {len(found)} adapters")
    adapters = [run.adapter for run in found]
    try:
        layers = derived.call(config.resources, merge.write, adapters, base, recipe, prompt, uri)
        whole = ModelRef(uri, _digest(found, recipe))
        known = _ask(found, questions, base, whole, config)
        results = [_request(run, notes, known.get(run.name, {}), config) for run in found]
        merged = Merged(uri, layers, results)
        _write(merged, found, recipe, config)
    except BaseException:
        storage.remove(uri)  # the weights alone would not say what they are
        raise
    return merged


def _say(text: str) -> None:
    print(f"  merge: {text}", file=progress.output(), flush=True)


# --- the runs -------------------------------------------------------------------------------------


def _run(name: str, place: str) -> _Run:
    """Returns the run at a storage root, or that of a model's folder.

    Raises:
        MeowError: there is no model of a run, or it is no adapter.
    """
    uri = storage.absolute(place)
    model = manifest.latest(uri, "model") or manifest.load(uri) or manifest.load(places.parent(uri))
    if model is None or model.name != "model":
        raise MeowError(
            f"{name}: there is no finished model of a run at {storage.display(uri)}. Give the "
            "storage root of a run, or a folder of its artifact `model`."
        )
    if ADAPTER not in model.files:
        raise MeowError(
            f"{name}: the model of this run is not an adapter, so its change cannot be merged. "
            "Set train.lora.output to adapter, and run `train` again."
        )
    base = ModelRef(**storage.read_json(storage.join(model.uri, BASE)))
    return _Run(name, root=places.parent(model.uri, levels=3), model=model, base=base)


def _check(runs: Sequence[_Run], recipe: Recipe) -> None:
    """Refuses runs that cannot be merged.

    Raises:
        MeowError: there are fewer than two, two are the same, the targets differ or are gone, or
            `gram` has no Gram matrices.
    """
    if len(runs) < 2:
        raise MeowError("meow merge: give at least two runs.")
    first = runs[0]
    by_digest: dict[str, str] = {}
    for run in runs:
        if run.model.digest in by_digest:
            raise MeowError(
                f"{by_digest[run.model.digest]} and {run.name}: these are one model. Give each run "
                "once."
            )
        by_digest[run.model.digest] = run.name
        if run.base.digest != first.base.digest:
            raise MeowError(
                f"{first.name} and {run.name}: the adapters do not start from the same target "
                f"({first.base.digest} and {run.base.digest}). Merge runs that had the "
                "same target.model and one round each."
            )
        if recipe.method == "gram" and GRAM_FILE not in run.model.files:
            raise MeowError(
                f"{run.name}: the adapter has no Gram matrices ({GRAM_FILE}). Set train.lora.gram "
                "to true and run `train` again, or merge with --method linear or ties."
            )
    if first.base.commit is None and not storage.exists(first.base.uri):
        raise MeowError(
            f"{first.name}: its target is no longer at {storage.display(first.base.uri)}. Put the "
            "model back there."
        )


def _digest(runs: Sequence[_Run], recipe: Recipe) -> str:
    """Returns what identifies the merged model."""
    return storage.json_digest([_VERSION, asdict(recipe), [run.model.digest for run in runs]])


def _prompt(run: _Run, config: Config) -> Target:
    """Returns the section `target` with which a run made prompts."""
    template = {name.partition(".")[2]: run.spec[name] for name in inputs.TEMPLATE}
    return config.target.model_copy(update=template)


# --- the facts ------------------------------------------------------------------------------------


def _given_facts(
    facts: Mapping[str, str], runs: Sequence[_Run], config: Config
) -> dict[str, TableSource]:
    """Reads the files of `--facts`; returns tables by the name of the run.

    Raises:
        MeowError: there is no such run, or a file or one of its rows cannot be read.
    """
    names = [run.name for run in runs]
    tables: dict[str, TableSource] = {}
    for name, path in facts.items():
        if name not in names:
            raise MeowError(
                f"--facts {name}: no run has this name. Choose from {', '.join(names)}."
            )
        source = inputs.pin(Source(path=path))
        tables[name] = valid_facts(read_sources([source], config), where=f"--facts {name}")
    return tables


def _questions(
    runs: Sequence[_Run], given: Mapping[str, TableSource], config: Config
) -> tuple[dict[str, Questions], dict[str, str]]:
    """Returns the questions about the runs whose facts can be read, and why others cannot.

    Both are by the name of the run.
    """
    questions: dict[str, Questions] = {}
    notes: dict[str, str] = {}
    for run in runs:
        stored = _made_from(run, "facts")
        facts = given.get(run.name)
        if facts is None and stored is not None and _has_text(stored):
            facts = stored.source
        if facts is None:
            notes[run.name] = PURGED if stored is not None else NO_FACTS
            continue
        twins = _twins(run, stored)
        questions[run.name] = Questions(
            name=run.name,
            prompt=_prompt(run, config),
            max_length=run.spec["train"]["max_length"],
            facts=facts,
            twins=twins.source if twins is not None and _has_text(twins) else None,
        )
    return questions, notes


def _made_from(run: _Run, name: str) -> Artifact | None:
    """Returns the artifact of a name that a run's model was made from, in any number of steps.

    None if the storage root does not have it.
    """
    remaining = [run.model]
    seen: set[tuple[str, str]] = set()
    while remaining:
        for part in _inputs(remaining.pop()).items():
            found = None if part in seen else _stored(run.root, *part)
            seen.add(part)
            if found is not None and found.name == name:
                return found
            if found is not None:
                remaining.append(found)
    return None


def _twins(run: _Run, facts: Artifact | None) -> Artifact | None:
    """Returns the twins of a run's facts, which training need not have read."""
    twins = _made_from(run, "twins")
    if twins is None and facts is not None:
        digest = facts.digest
        twins = manifest.latest(
            run.root, "twins", lambda artifact: _inputs(artifact).get("facts") == digest
        )
    return twins


def _inputs(artifact: Artifact) -> Mapping[str, str]:
    """Returns the digests of what an artifact was made from, by name."""
    assert artifact.manifest is not None
    digests: Mapping[str, str] = artifact.manifest.ingredients.get("inputs", {})
    return digests


def _stored(root: str, name: str, digest: str) -> Artifact | None:
    return manifest.latest(root, name, lambda artifact: artifact.digest == digest)


def _has_text(artifact: Artifact) -> bool:
    """Tells whether the table of an artifact is there; a purge keeps the manifest alone."""
    return storage.exists(storage.join(artifact.uri, MAIN))


# --- the evaluation -------------------------------------------------------------------------------


def _ask(
    runs: Sequence[_Run],
    questions: Mapping[str, Questions],
    base: ModelRef,
    merged: ModelRef,
    config: Config,
) -> dict[str, dict[str, Replies]]:
    """Returns what the models say, by the name of the run and that of the model."""
    known: dict[str, dict[str, Replies]] = {name: {} for name in questions}
    if not questions:
        return known

    def ask(model: ModelRef, label: str, asked: Sequence[Questions]) -> None:
        spec = inputs.engine_spec(model, config.target, config.resources.evaluate)
        engine = replace(spec, engine="transformers")
        replies = derived.call(config.resources, requests.ask, engine, asked)
        for request, reply in zip(asked, replies, strict=True):
            known[request.name][label] = reply

    _say("asking the target")
    ask(base, "target", list(questions.values()))
    facts_only = {name: request.without_twins() for name, request in questions.items()}
    for run in runs:
        if run.name in facts_only:
            _say(f"asking the model of {run.name}")
            ask(inputs.model_ref(run.model), "tuned", [facts_only[run.name]])
    _say("asking the merged model")
    ask(merged, "merged", list(facts_only.values()))
    return known


def _request(
    run: _Run, notes: Mapping[str, str], replies: Mapping[str, Replies], config: Config
) -> Request:
    """Returns what models know of the facts of a run, by what they replied."""
    assert run.model.manifest is not None
    stop_level = derived.stop_level(config)
    return Request(
        name=run.name,
        model=run.model.digest,
        chain=run.model.manifest.summary.get("chain", []),
        facts=len(replies["target"].facts) if replies else 0,
        note=notes.get(run.name, ""),
        models={
            label: requests.knowledge(reply, replies["target"], stop_level)
            for label, reply in replies.items()
        },
    )


def _write(merged: Merged, runs: Sequence[_Run], recipe: Recipe, config: Config) -> None:
    """Writes what was merged, and what the models know, next to the weights."""
    content = {
        "version": _VERSION,
        "target": runs[0].base.digest,
        **asdict(recipe),
        "layers": merged.layers,
        "stop_level": derived.stop_level(config),
        "requests": [asdict(request) for request in merged.requests],
    }
    storage.write_json(storage.join(merged.uri, MERGE_FILE), content)
