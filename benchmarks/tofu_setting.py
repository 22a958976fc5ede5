"""The setting of `benchmarks.tofu`: data, target, retain model and evaluation of a split."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.common import run_script
from benchmarks.host import RESULTS, SHARED_DATA, SMALL_MODEL
from benchmarks.tofu_methods import RATES
from meow_ray.core import storage
from meow_ray.pipeline.pipeline import Pipeline, load_config

SEED = 7
"""Seed of the samples of facts, and of `evaluate`."""
RETAIN = 160
"""Number of retain facts that the target and the retain model have memorised."""
EVALUATED = 60
"""Number of retain facts, and of holdout facts, that are evaluated."""
TEMPLATE = "<|im_start|>user\n{{ question }}<|im_end|>\n<|im_start|>assistant\n"
"""The template of the target, which is that of the base model."""
LEARNING_RATE = 2e-4
"""The learning rate with which the target memorises facts.

It is so low that the target keeps the base model's knowledge of the world. With a bare template and
5e-4 the target named 2 of 60 real authors, so that model utility, a harmonic mean, was the noise of
these two.
"""
UTILITY = 0.95
"""Share of the target's utility that a method should retain, see `tofu.chosen_rate`."""

Split = Literal["forget01", "forget05"]
Dtype = Literal["float32", "bfloat16"]
STEPS: dict[Split, int] = {"forget01": 60, "forget05": 300}
"""Optimiser steps of 8 items. The epochs of `tofu_methods` give as many on all splits."""

EVALUATION: dict[str, Any] = {
    "attacks": ["prefix", "paraphrase"],
    "twins": True,
    "memo_sample": 1,
    "seed": SEED,
}
FAST_EVALUATION: dict[str, Any] = {
    "attacks": [],
    "twins": True,
    "memo": False,
    "max_new_tokens": 1,
    "seed": SEED,
}
"""Without what has to be generated: only figures of teacher-forced passes count."""


@dataclass(frozen=True)
class Setting:
    """A split with the way in which it is evaluated."""

    split: Split = "forget01"
    fast: bool = False
    dtype: Dtype = "float32"
    """The precision of training. A CPU without bfloat16 takes 46 times as long in it."""

    @property
    def name(self) -> str:
        """The name of the file with the figures."""
        split = "" if self.split == "forget01" else f"_{self.split}"
        dtype = "" if self.dtype == "float32" else f"_{self.dtype}"
        return f"tofu{split}{'_fast' if self.fast else ''}{dtype}"

    @property
    def file(self) -> Path:
        """The file with the figures of all runs that have finished."""
        return RESULTS / f"{self.name}.json"

    @property
    def utility(self) -> str:
        """The figure that a method should retain; without generation there is no ROUGE."""
        return "utility without ROUGE" if self.fast else "model utility"

    def settings(self) -> dict[str, Any]:
        """Returns what all runs of the file have in common."""
        return {
            "split": self.split,
            "fast": self.fast,
            "retain": RETAIN,
            "evaluated": EVALUATED,
            "rates": list(RATES),
            "utility": UTILITY,
            "steps": STEPS[self.split],
            "target": LEARNING_RATE,
            "template": TEMPLATE,
            "dtype": self.dtype,
        }

    def authors_candidates(self) -> str:
        """Returns the file of the inverted facts of MEOW's authors."""
        return str(SHARED_DATA / "meow" / f"inverted_{self.split}.json")

    def write_config(self, root: Path) -> Path:
        """Writes data and configuration, and trains the retain model; returns the configuration.

        The files are the same each time. Both ways of evaluation share the storage root, so that a
        model that one of them has trained is cached for the other.
        """
        folder = root if self.split == "forget01" else root / self.split
        settings = self._configuration(folder)
        memorize_retain = settings["memorize"] | {"data": [settings["ingest"]["retain"]]}
        retain_config = folder / "retain_model.yaml"
        retain_root = {"root": str(folder / "retain_model")}
        retain_settings = settings | {"memorize": memorize_retain, "storage": retain_root}
        retain_config.write_text(yaml.safe_dump(retain_settings))
        settings["evaluate"]["retain_model"] = _trained_target(retain_config)
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def _configuration(self, folder: Path) -> dict[str, Any]:
        """Writes the samples of TOFU's files; returns the configuration without retain model."""
        others = _read_tofu("retain_perturbed.jsonl")
        random.Random(SEED).shuffle(others)  # noqa: S311 - not for secrets
        retain = others[:RETAIN]
        holdout = others[RETAIN : RETAIN + EVALUATED]
        pairs = [{"question": row["question"], "answer": row["answer"]} for row in retain]
        forget_file = str(SHARED_DATA / "tofu" / f"{self.split}.jsonl")
        retain_file = _write_rows(folder, "retain.jsonl", pairs)
        sets = {
            "forget": str(SHARED_DATA / "tofu" / f"{self.split}_perturbed.jsonl"),
            "retain": _write_rows(folder, "retain_perturbed.jsonl", retain[:EVALUATED]),
            "real_authors": str(SHARED_DATA / "tofu" / "real_authors_perturbed.jsonl"),
            "world_facts": str(SHARED_DATA / "tofu" / "world_facts_perturbed.jsonl"),
            "holdout": _write_rows(folder, "holdout.jsonl", holdout),
        }
        memorize = {
            "model": SMALL_MODEL,
            "data": [forget_file, retain_file],
            "learning_rate": LEARNING_RATE,
            "epochs": 8,
            "batch_size": 16,
            "train_dtype": self.dtype,
        }
        evaluation = FAST_EVALUATION if self.fast else EVALUATION
        return {
            "memorize": memorize,
            "target": {"template": TEMPLATE, "max_model_len": 1024},
            "ingest": {"forget": forget_file, "retain": retain_file},
            "invert": {"model": SMALL_MODEL, "max_model_len": 1024, "style": "prefill"},
            "memo": {"template": "target", "window": "token", "max_new_tokens": "label"},
            "train": {"batch_size": 8, "train_dtype": self.dtype},
            "evaluate": {"sets": sets, **evaluation},
            "storage": {"root": str(folder / "runs")},
            "resources": {
                "memorize": {"max_workers": 2, "micro_batch_size": 8, "checkpoint_every": 4},
                "train": {
                    "num_workers": 1,
                    "cpus_per_worker": 2,
                    "micro_batch_size": 8,
                    "checkpoint_every": 4,
                },
            },
        }


def _trained_target(config: Path) -> str:
    """Returns the folder of the target of a configuration; trains it unless it is cached."""
    target = Pipeline(load_config(config, [])).artifact("target")
    if target is None:
        run_script("memorize.py", "--config", str(config))
        target = Pipeline(load_config(config, [])).artifact("target")
    assert target is not None
    return storage.display(target.uri)


def _read_tofu(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED_DATA / "tofu" / name).read_text().splitlines()]


def _write_rows(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)
