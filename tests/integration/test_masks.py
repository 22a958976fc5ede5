"""Training that chooses weights to drop (BalancedSubnet), with two workers and resumed on one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.test_training import SPEC, TOLERANCE, Curves, Setup, losses
from tests.support.training import Run


@pytest.fixture(scope="module")
def curves(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Curves]:
    runs = Curves(tmp_path_factory.mktemp("masks"), tiny_model, slow=False)
    yield runs
    for group in runs.groups.values():
        group.close()


def test_masks_drop_weights_of_feed_forward_networks_and_change_no_others(
    curves: Curves, tiny_model: Path
):
    spec = SPEC.model_copy(
        update={"objective": "balanced_subnet", "settings": {"ratio": 0.1}, "learning_rate": 1e-2}
    )
    setup = Setup(2, 2, True, False)
    checkpoints = curves.folder / "masks"
    epoch = 2  # steps: five facts in batches of four
    whole = Run(curves.job(setup, spec), checkpoints)
    stopped = Run(curves.job(setup, spec), checkpoints, stop_at=epoch)
    expected, _ = curves.train([whole, stopped], 2)
    # a checkpoint holds the scores, for another number of workers, too
    alone = curves.job(Setup(1, 2, True, False), spec)
    resumed = Run(alone, curves.folder / "again", resume=checkpoints / str(epoch))
    history = curves.train([resumed], 1)[0]
    assert losses(history) == pytest.approx(losses(expected), rel=TOLERANCE)
    before = load_file(tiny_model / "model.safetensors")
    masks = []
    for run in (whole, resumed):
        after = load_file(Path(run.job.out, "model.safetensors"))
        assert after.keys() == before.keys()
        for name, weight in after.items():
            changed = weight != before[name]
            assert (weight[changed] == 0).all()
            assert changed.sum() == (round(0.1 * weight.numel()) if ".mlp." in name else 0)
        masks.append(torch.cat([(after[name] == 0).flatten() for name in sorted(after)]))
    assert (masks[0] != masks[1]).sum() < 0.01 * masks[0].sum()
