"""The caches of a machine that has used a dataset or a model of the hub, laid out by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset

CARD = "---\nconfigs:\n{configs}---\n# Facts\n"


def write_repository(
    hub_cache: Path, name: str, commit: str, files: Mapping[str, bytes], kind: str = "datasets"
) -> Path:
    """Writes files of a repository as huggingface_hub does; `commit` becomes its main branch."""
    repository = hub_cache / f"{kind}--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for file, content in files.items():
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_bytes(content)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def card(**subsets: str) -> bytes:
    """Returns the README of a dataset, which names the file of each subset."""
    configs = "".join(
        f"- config_name: {name}\n  data_files: {file}\n" for name, file in subsets.items()
    )
    return CARD.format(configs=configs).encode()


def write_prepared(
    datasets_cache: Path, name: str, subset: str, commit: str, rows: Sequence[Mapping[str, str]]
) -> None:
    """Writes a table of the split train as `load_dataset` leaves it."""
    namespace, _, dataset = name.partition("/")
    folder = datasets_cache / f"{namespace}___{dataset}" / subset / "0.0.0" / commit
    Dataset.from_list(list(rows)).save_to_disk(str(folder))
    (folder / "data-00000-of-00001.arrow").rename(folder / f"{dataset}-train.arrow")
    (folder / "state.json").unlink()
    info = json.loads((folder / "dataset_info.json").read_text())
    split = {"name": "train", "num_examples": len(rows), "dataset_name": dataset}
    info |= {"config_name": subset, "dataset_name": dataset, "splits": {"train": split}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
