import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import FineTuning
from meow_ray.finetune import batch_of, micro_batches, num_steps

PAIRS, BATCH, SEED, EPOCHS = st.integers(1, 40), st.integers(1, 12), st.integers(0, 5), st.integers(1, 3)


@pytest.mark.parametrize(
    ("pairs", "batch", "epochs", "steps"), [(8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 5, 15), (1, 8, 2, 2)]
)
def test_a_run_has_a_step_a_batch(pairs: int, batch: int, epochs: int, steps: int):
    assert num_steps(pairs, FineTuning(batch_size=batch, epochs=epochs)) == steps


@given(PAIRS, BATCH, SEED, EPOCHS)
def test_the_batches_of_an_epoch_are_a_partition_of_the_pairs(pairs: int, batch: int, seed: int, epochs: int):
    spec = FineTuning(batch_size=batch, seed=seed, epochs=epochs)
    steps = num_steps(pairs, spec)
    batches = [batch_of(step, pairs, spec) for step in range(steps)]
    for epoch in range(epochs):
        seen = batches[epoch * steps // epochs : (epoch + 1) * steps // epochs]
        assert sorted(i for members in seen for i in members) == list(range(pairs))
        assert all(len(members) == batch for members in seen[:-1])
        assert 0 < len(seen[-1]) <= batch


def test_the_order_depends_on_seed_and_epoch_alone():
    spec = FineTuning(batch_size=40)
    assert batch_of(0, 40, spec) == batch_of(0, 40, FineTuning(batch_size=40, epochs=9))
    assert batch_of(0, 40, spec) != batch_of(1, 40, spec)
    assert batch_of(0, 40, spec) != batch_of(0, 40, FineTuning(batch_size=40, seed=1))
    halves = FineTuning(batch_size=20)
    assert batch_of(0, 40, halves) + batch_of(1, 40, halves) == batch_of(0, 40, spec)


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 4))
def test_the_workers_micro_batches_are_a_partition_of_the_batch(batch: list[int], world: int, micro: int):
    count = max(1, -(-len(batch) // (world * micro)))
    shares = [micro_batches(batch, rank, world, micro, count) for rank in range(world)]
    assert sorted(i for share in shares for rows in share for i in rows) == sorted(batch)
    assert all(len(share) == count and all(len(rows) <= micro for rows in share) for share in shares)
