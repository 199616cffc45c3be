from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import ResidentLoader, resident
from tests.lightning_tools import Foreign, quiet_trainer


@pytest.fixture
def as_rank(monkeypatch):
    def pretend(rank: int, ranks: int) -> None:
        monkeypatch.setattr(resident, "rank", lambda: rank)
        monkeypatch.setattr(resident, "world_size", lambda: ranks)

    return pretend


def loader_of(count: int, batch_size: int = 4, shuffle: bool = True, seed: int = 0, **arguments) -> ResidentLoader:
    """Every image holds the number of its sample, and so does its target."""
    images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 2, 3, 3)
    return ResidentLoader(images, torch.arange(count), batch_size, shuffle, seed=seed, **arguments)


def epoch(loader: ResidentLoader) -> list[list[int]]:
    batches = []
    for images, targets in loader:
        assert images.shape[1:] == (2, 3, 3)
        assert torch.equal(images[:, 1, 2, 2], targets)
        batches.append(targets.tolist())
    return batches


def flat(batches: list[list[int]]) -> list[int]:
    return [sample for batch in batches for sample in batch]


@given(count=st.integers(1, 60), batch_size=st.integers(1, 20), shuffle=st.booleans())
def test_every_sample_comes_exactly_once_in_an_epoch(count, batch_size, shuffle):
    loader = loader_of(count, batch_size, shuffle)
    for _ in range(2):
        batches = epoch(loader)
        assert sorted(flat(batches)) == list(range(count))
        assert len(batches) == len(loader)
        assert all(len(batch) == batch_size for batch in batches[:-2])


def test_the_order_differs_between_epochs_and_seeds_and_is_fixed_by_the_seed():
    loader = loader_of(50)
    first, second = epoch(loader), epoch(loader)
    assert first != second
    again = loader_of(50)
    assert [epoch(again), epoch(again)] == [first, second]
    assert epoch(loader_of(50, seed=1)) != first


def test_the_order_is_that_of_the_run_by_default_and_leaves_the_global_generator_alone():
    torch.manual_seed(8)
    state = torch.get_rng_state()
    first = epoch(loader_of(50, seed=None))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(10)
    assert epoch(loader_of(50, seed=None)) == first
    torch.manual_seed(9)
    assert epoch(loader_of(50, seed=None)) != first


def test_without_shuffling_the_order_is_that_of_the_data():
    assert flat(epoch(loader_of(11, shuffle=False))) == list(range(11))


def test_every_order_is_as_likely():
    loader, counts = loader_of(3, 3), {}
    for _ in range(1200):
        order = tuple(flat(epoch(loader)))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(140 < count < 265 for count in counts.values())


def global_batches(as_rank, ranks: int, **arguments) -> list[list[int]]:
    parts = []
    for rank in range(ranks):
        as_rank(rank, ranks)
        parts.append(epoch(loader_of(**arguments)))
    assert len({len(part) for part in parts}) == 1
    return [flat([part[i] for part in parts]) for i in range(len(parts[0]))]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [48, 60, 71, 72])
def test_the_global_batch_is_the_same_whatever_the_number_of_ranks(as_rank, ranks, count):
    as_rank(0, 1)
    alone = epoch(loader_of(count, 12))
    together = global_batches(as_rank, ranks, count=count, batch_size=12 // ranks)
    used = count - count % ranks
    alone = [batch[: used - 12 * i] for i, batch in enumerate(alone)]  # what the ranks do not share out is left out
    if used % 12 == 0 or used % 12 >= 2 * ranks:
        assert together == alone
    else:  # the rest is too small for so many ranks and has joined the batch before it
        assert together == [*alone[:-2], alone[-2] + alone[-1]]


@settings(max_examples=150, deadline=None)
@given(count=st.integers(1, 50), batch_size=st.integers(1, 8), ranks=st.integers(1, 6))
def test_over_all_ranks_an_evaluation_loses_and_doubles_no_sample(count, batch_size, ranks):
    parts = parts_of(count, batch_size, ranks, shuffle=False)
    assert sorted(sample for part in parts for sample in flat(part)) == list(range(count))
    if count >= ranks:
        assert all(batch for part in parts for batch in part)
    sizes = [[len(part[i]) for part in parts] for i in range(len(parts[0]))]
    assert all(max(row) - min(row) <= 1 for row in sizes)


@settings(max_examples=150, deadline=None)
@given(count=st.integers(1, 50), batch_size=st.integers(1, 8), ranks=st.integers(1, 6), shuffle=st.booleans())
def test_over_all_ranks_a_training_batch_has_equal_parts_and_at_most_a_rest_is_left_out(count, batch_size, ranks, shuffle):
    if count < ranks:
        with pytest.raises(DataError, match=f"{count} training samples can't be shared out to {ranks} processes"):
            parts_of(count, batch_size, ranks, shuffle=shuffle, training=True)
        return
    parts = parts_of(count, batch_size, ranks, shuffle=shuffle, training=True)
    seen = [sample for part in parts for sample in flat(part)]
    assert len(set(seen)) == len(seen) == count - count % ranks
    assert all(len({len(part[i]) for part in parts}) == 1 for i in range(len(parts[0])))


def parts_of(count, batch_size, ranks, **arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resident, "world_size", lambda: ranks)
        parts = []
        for rank in range(ranks):
            patch.setattr(resident, "rank", lambda rank=rank: rank)
            loader = loader_of(count, batch_size, **arguments)
            parts.append(epoch(loader))
            assert len(parts[-1]) == len(loader)
    assert len({len(part) for part in parts}) == 1
    return parts


def test_the_rest_that_two_ranks_can_not_share_is_another_one_each_epoch(as_rank):
    loaders = []
    for rank in range(2):
        as_rank(rank, 2)
        loader = loader_of(15)
        loaders.append([set(flat(epoch(loader))) for _ in range(20)])
    left_out = [set(range(15)) - first - second for first, second in zip(*loaders, strict=True)]
    assert all(len(rest) == 1 for rest in left_out)
    assert len(set.union(*left_out)) > 5


@settings(max_examples=100, deadline=None)
@given(count=st.integers(2, 60), batch_size=st.integers(2, 9), ranks=st.integers(1, 4))
def test_no_rank_trains_on_a_batch_of_one(count, batch_size, ranks):
    if count < 2 * ranks:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resident, "world_size", lambda: ranks)
        for rank in range(ranks):
            patch.setattr(resident, "rank", lambda rank=rank: rank)
            assert min(len(batch) for batch in epoch(loader_of(count, batch_size))) >= 2


@pytest.mark.parametrize(("count", "batches"), [(12, 3), (13, 3), (15, 3), (16, 4), (3, 1)])
def test_drop_last_leaves_out_a_smaller_last_batch_but_not_the_only_one(count, batches):
    loader = loader_of(count, 4, drop_last=True)
    sizes = [len(batch) for batch in epoch(loader)]
    assert len(loader) == len(sizes) == batches
    assert sizes == ([4] * batches if count > 3 else [3])


def test_a_dropped_rest_is_another_one_each_epoch():
    loader = loader_of(15, 4, drop_last=True)
    assert len({frozenset(range(15)) - frozenset(flat(epoch(loader))) for _ in range(10)}) > 1


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("taken", [0, 1, 3, 5])
def test_resumed_within_an_epoch_the_very_next_batch_comes_and_then_the_same_epochs(shuffle, taken):
    loader = loader_of(22, 4, shuffle)
    epoch(loader)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = loader.state_dict()
    rest = [targets.tolist() for _, targets in batches]
    following = epoch(loader)

    other = loader_of(22, 4, shuffle, seed=99)
    other.load_state_dict(state)
    assert epoch(other) == rest
    assert epoch(other) == following


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_resumed_between_epochs_the_next_one_comes(epochs):
    loader = loader_of(22)
    for _ in range(epochs):
        epoch(loader)
    state = loader.state_dict()
    expected = [epoch(loader), epoch(loader)]
    other = loader_of(22)
    other.load_state_dict(state)
    assert [epoch(other), epoch(other)] == expected


@pytest.mark.parametrize("taken", [0, 1, 3, 5, 6])
def test_an_epoch_that_is_ended_is_followed_by_the_next_whatever_was_left_of_it(taken):
    loader = loader_of(22)
    batches = iter(loader)
    for _ in range(taken):
        next(batches, None)
    state = loader.state_dict()
    expected = [epoch(loader), epoch(loader)]  # an iteration that is given up is not gone on with
    other = loader_of(22, seed=9 if taken else 0)
    other.load_state_dict(state)
    other.end_epoch()
    assert [epoch(other), epoch(other)] == expected


def test_to_end_an_epoch_changes_nothing_where_none_was_resumed():
    loader, other = loader_of(22), loader_of(22)
    for _ in range(2):
        other.end_epoch()
        assert epoch(other) == epoch(loader)


@pytest.mark.parametrize("ended", [False, True])
def test_the_state_of_a_resumed_loader_is_the_one_it_was_given_until_it_goes_on(ended):
    loader = loader_of(22)
    next(iter(loader))
    other, third = loader_of(22, seed=9), loader_of(22, seed=8)
    other.load_state_dict(loader.state_dict())
    if ended:
        other.end_epoch()
    third.load_state_dict(other.state_dict())
    assert [epoch(third), epoch(third)] == [epoch(other), epoch(other)]


def test_the_state_holds_builtins_and_tensors_only(tmp_path):
    loader = loader_of(22)
    next(iter(loader))
    torch.save(loader.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = loader_of(22, seed=5)
    other.load_state_dict(state)
    assert len(epoch(other)) == len(loader) - 1


def test_with_index_gives_the_numbers_of_the_samples_in_place_of_targets():
    images = torch.rand(10, 1, 3, 3)
    loader = ResidentLoader(images, torch.full((10,), 7), batch_size=4, with_index=True)
    batches = list(loader)
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(10))
    assert torch.equal(torch.cat([batch["image"] for batch in batches]), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_are_copies_of_the_same_type(dtype):
    images = torch.ones(4, 1, 2, 2, dtype=dtype)
    batch, _ = next(iter(ResidentLoader(images, torch.arange(4), batch_size=4)))
    assert batch.dtype == dtype
    batch.zero_()
    assert images.all()


def test_images_that_are_not_contiguous_are_read_right():
    images = torch.arange(6 * 2 * 3 * 4).view(6, 3, 4, 2).permute(0, 3, 1, 2)
    batch = next(iter(ResidentLoader(images, torch.arange(6), batch_size=6, shuffle=True, with_index=True)))
    assert torch.equal(batch["image"], images[batch["index"]])


def test_no_samples_or_unequal_numbers_are_refused():
    with pytest.raises(DataError, match="no samples"):
        ResidentLoader(torch.zeros(0, 1, 2, 2), torch.zeros(0))
    with pytest.raises(DataError, match="3 images and 2 targets"):
        ResidentLoader(torch.zeros(3, 1, 2, 2), torch.zeros(2))
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        ResidentLoader(torch.zeros(3, 1, 2, 2), torch.zeros(3), batch_size=0)
    with pytest.raises(ConfigurationError, match=r"batch_size=4\.0 is not a whole number"):
        ResidentLoader(torch.zeros(3, 1, 2, 2), torch.zeros(3), batch_size=4.0)
    for shape in ((3,), ()):
        with pytest.raises(DataError, match=r"images of shape \(3?,?\); expected \(N, …\)"):
            ResidentLoader(torch.zeros(shape), torch.zeros(3))


def test_a_trainer_runs_over_it_epoch_by_epoch():
    class Noting(Foreign):
        def __init__(self):
            super().__init__()
            self.seen = []

        def training_step(self, batch, batch_idx):
            self.seen.append(batch[1].clone())
            return super().training_step((batch[0], batch[1] % 3), batch_idx)

    module = Noting()
    loader = ResidentLoader(torch.rand(10, 1, 4, 4), torch.arange(10), batch_size=4, shuffle=True)
    quiet_trainer(max_epochs=2).fit(module, loader)
    first, second = torch.cat(module.seen[:3]).tolist(), torch.cat(module.seen[3:]).tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
