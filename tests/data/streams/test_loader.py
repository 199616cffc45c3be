"""Batches of a stream, whatever it comes from."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.augmentation import MixUp, PaddedCrop
from lightning_cnnopt.callbacks import ClassWeights
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.core.randomness import gather
from lightning_cnnopt.data.streams import base, loader
from lightning_cnnopt.data.streams.base import StreamDataModule
from lightning_cnnopt.data.streams.loader import StreamLoader
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, assert_same_weights, quiet_trainer, weights_of


class Numbers:
    """Samples 0 to count - 1; an image holds its number, and a note is made of each that is decoded."""

    def __init__(self, count=24, notes=None):
        self.count, self.notes = count, notes

    def __repr__(self):
        return f"{type(self).__name__}({self.count})"

    def useful_workers(self, workers, ranks):
        return workers

    def read(self, seed, rank, ranks, worker, workers):
        order = torch.arange(self.count)
        if seed is not None:
            order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        yield from order[rank * workers + worker :: ranks * workers].tolist()

    def decode(self, sample):
        if self.notes is not None:
            with self.notes.open("a") as file:
                file.write(f"{sample}\n")
        return torch.full((1, 4, 4), sample, dtype=torch.uint8), sample % 3

    def name(self, sample):
        return f"Number {sample}"


class Streamed(StreamDataModule):
    def __init__(self, count=24, **arguments):
        self.count = count
        defaults = {"image_size": 4, "in_channels": 1, "num_classes": 3, "train_samples": 24, "batch_size": 4, "workers": 2}
        super().__init__(**{**defaults, **arguments})

    def source(self, split):
        return Numbers(self.count) if split != "test" else None


def numbers(batch):
    images, targets = batch
    assert images.dtype == torch.uint8
    assert torch.equal(images[:, 0, 0, 0] % 3, targets)
    return images[:, 0, 0, 0].tolist()


def epoch(stream):
    return [numbers(batch) for batch in stream]


def flat(batches):
    return [sample for batch in batches for sample in batch]


@pytest.fixture
def as_rank(monkeypatch):
    def pretend(rank, ranks):
        monkeypatch.setattr(loader, "rank", lambda: rank)
        monkeypatch.setattr(loader, "world_size", lambda: ranks)

    return pretend


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_an_epoch_of_equal_parts_takes_every_sample_once_in_another_order_each_time(workers):
    stream = StreamLoader(Numbers(), 4, batches=6, workers=workers, seed=1)
    first, second = epoch(stream), epoch(stream)
    assert len(first) == len(second) == len(stream) == 6
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(24))
    assert first != second
    again = StreamLoader(Numbers(), 4, batches=6, workers=workers, seed=1)
    assert [epoch(again), epoch(again)] == [first, second]
    assert epoch(StreamLoader(Numbers(), 4, batches=6, workers=workers, seed=2)) != first


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_an_epoch_without_overlap(workers, as_rank):
    seen = []
    for rank in range(3):
        as_rank(rank, 3)
        stream = StreamLoader(Numbers(), 4, batches=2, workers=workers, seed=1)
        seen.append(flat(epoch(stream)))
    assert [len(part) for part in seen] == [8, 8, 8]
    assert sorted(flat(seen)) == list(range(24))


@pytest.mark.parametrize("count", [1, 7, 24, 25])
@pytest.mark.parametrize("workers", [0, 2, 3])
def test_over_all_ranks_an_evaluation_loses_and_doubles_no_sample(count, workers, as_rank):
    seen = []
    for rank in range(2):
        as_rank(rank, 2)
        seen += flat(epoch(StreamLoader(Numbers(count), 4, workers=workers)))
    assert sorted(seen) == list(range(count))


class Broken(Numbers):
    """Of which every fifth sample can't be decoded."""

    def decode(self, sample):
        if sample % 5 == 4:
            raise DataError(f"Number {sample} is broken.")
        return super().decode(sample)


def test_a_broken_sample_ends_the_run_by_default_and_the_message_says_how_to_go_on():
    with pytest.raises(DataError, match=r"Number 4 is broken\. .*on_broken='skip'"):
        epoch(StreamLoader(Broken(), 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_make_their_batch_smaller_and_are_told_with_their_count(workers):
    stream = StreamLoader(Broken(), 4, batches=6, workers=workers, seed=1, on_broken="skip")
    whole = StreamLoader(Numbers(), 4, batches=6, workers=workers, seed=1)
    with pytest.warns(UserWarning, match=r"4 samples were broken and left out: Number .* And 1 more\."):
        batches = epoch(stream)
    assert batches == [[sample for sample in batch if sample % 5 != 4] for batch in epoch(whole)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_class_that_is_none_of_them_is_a_broken_sample(workers):
    class Two(Streamed):
        def source(self, split):
            return Numbers(6)

    data = Two(num_classes=2, workers=workers, train_samples=6, batch_size=2, mean=[0.0], std=[1.0])
    for loader_of in (data.train_dataloader, data.val_dataloader, data.test_dataloader):
        with pytest.raises(DataError, match=r"Number [25] is of class 2; with 2 classes it has to be from 0 to 1\. .*'skip'"):
            epoch(loader_of())
    assert len(flat(epoch(data.predict_dataloader()))) == 6, "of what is predicted the class may be unknown"
    skipping = Two(num_classes=2, workers=workers, on_broken="skip")
    with pytest.warns(UserWarning, match=r"2 samples were broken and left out: Number \d is of class 2;"):
        assert sorted(flat(epoch(skipping.val_dataloader()))) == [0, 1, 3, 4]


def test_a_binary_stream_has_two_classes():
    class Binary(Streamed):
        task = "binary"

        def source(self, split):
            return Numbers(2)

    assert flat(epoch(Binary(num_classes=1, workers=0).val_dataloader())) == [0, 1]


@pytest.mark.filterwarnings("ignore:.*were broken")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_skips_is_resumed_exactly(workers):
    made = {"batches": 6, "workers": workers, "on_broken": "skip"}
    stream = StreamLoader(Broken(), 4, seed=1, **made)
    going = iter(stream)
    for _ in range(3):
        next(going)
    state = stream.state_dict()
    rest = [numbers(batch) for batch in going]
    other = StreamLoader(Broken(), 4, seed=9, **made)
    other.load_state_dict(state)
    assert epoch(other) == rest


def test_what_is_told_of_an_epoch_that_is_left_early_is_what_was_seen():
    stream = StreamLoader(Broken(), 8, on_broken="skip")
    going = iter(stream)
    next(going)
    with pytest.warns(UserWarning, match="1 samples were broken and left out: Number 4 is broken"):
        going.close()


def test_a_batch_of_which_all_are_broken_ends_the_run():
    with pytest.raises(DataError, match=r"Broken\(24\): all 1 samples of a batch are broken: Number 4"):
        epoch(StreamLoader(Broken(), 1, on_broken="skip"))


def test_a_data_module_hands_its_policy_on_and_measures_without_broken_samples(monkeypatch):
    class Module(Streamed):
        def source(self, split):
            return Broken()

    with pytest.raises(DataError, match="on_broken='skip'"):
        Module().measure()
    skipping = Module(on_broken="skip")
    kept = torch.tensor([n for n in range(24) if n % 5 != 4]) / 255
    assert skipping.measure()[0] == pytest.approx([float(kept.mean())], abs=1e-4)
    assert skipping.val_dataloader().on_broken == skipping.train_dataloader().on_broken == "skip"
    with pytest.raises(ConfigurationError, match="on_broken"):
        Module(on_broken="ignore")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image_size": 4.5}, "image_size=4.5 is not a whole number"),
        ({"image_size": (4, 4, 3)}, r"image_size=\(4, 4, 3\); expected height and width"),
        ({"batch_size": 2.5}, "batch_size=2.5 is not a whole number"),
        ({"workers": 0.5}, "workers=0.5 is not a whole number"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        Streamed(**arguments)


def test_the_length_of_an_evaluation_is_not_known():
    with pytest.raises(TypeError, match="not known"):
        len(StreamLoader(Numbers(), 4))


def test_a_part_that_is_shorter_is_begun_anew_in_another_order():
    batches = epoch(StreamLoader(Numbers(8), 4, batches=6, seed=1))
    rounds = [flat(batches[i : i + 2]) for i in (0, 2, 4)]
    assert all(sorted(taken) == list(range(8)) for taken in rounds)
    assert rounds[0] != rounds[1] != rounds[2]


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("taken", [0, 1, 2, 3, 5, 6])
def test_resumed_the_very_next_batch_comes_and_then_the_same_epochs(workers, taken):
    stream = StreamLoader(Numbers(), 4, batches=6, workers=workers, seed=1)
    epoch(stream)
    going = iter(stream)
    for _ in range(taken):
        next(going)
    state = stream.state_dict()
    rest = [numbers(batch) for batch in going]
    following = epoch(stream)
    other = StreamLoader(Numbers(), 4, batches=6, workers=workers, seed=99)
    other.load_state_dict(state)
    assert other.state_dict() == state
    if rest:
        assert epoch(other) == rest
    assert epoch(other) == following


def test_an_epoch_that_is_ended_is_followed_by_the_next():
    stream = StreamLoader(Numbers(), 4, batches=6, seed=1)
    going = iter(stream)
    next(going)
    state = stream.state_dict()
    second = epoch(stream)
    other = StreamLoader(Numbers(), 4, batches=6, seed=9)
    other.load_state_dict(state)
    other.end_epoch()
    assert epoch(other) == second


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_seen_is_read_again_and_hardly_decoded(workers, tmp_path):
    notes = tmp_path / "decoded"
    stream = StreamLoader(Numbers(164, notes), 4, batches=41, workers=workers, seed=1)
    stream.load_state_dict({"epoch": 0, "position": 40, "seed": 1})
    assert len(epoch(stream)) == 1
    decoded = len(notes.read_text().split())
    assert decoded == 4 if not workers else decoded <= 4 * 3 * workers  # they work two batches ahead


def test_the_state_holds_builtins_only():
    stream = StreamLoader(Numbers(), 4, batches=6)
    next(iter(stream))
    assert {type(value) for value in stream.state_dict().values()} == {int}


def test_an_empty_source_is_said():
    for batches in (None, 3):
        with pytest.raises(DataError, match=r"Numbers\(0\) has no samples"):
            epoch(StreamLoader(Numbers(0), 4, batches=batches))
    with pytest.raises(DataError, match="has no samples"):
        _ = Streamed(0).mean


# in a data module


def test_statistics_are_those_of_the_first_images_and_measured_once(monkeypatch):
    data = Streamed()
    expected = torch.arange(24).double() / 255
    assert data.mean == pytest.approx([float(expected.mean())], abs=1e-6)
    assert data.std == pytest.approx([float(expected.std(correction=0))], abs=1e-6)
    monkeypatch.setattr(Numbers, "read", None)
    assert data.pixel_statistics() == (data.mean, data.std)
    assert Streamed(mean=[0.2], std=[0.3]).pixel_statistics() == ([0.2], [0.3])
    monkeypatch.undo()
    monkeypatch.setattr(base, "MEASURED", 3)
    assert Streamed().mean == pytest.approx([1 / 255], abs=1e-6)


def test_a_sample_batch_has_a_stream_of_its_own():
    data = Streamed(normalize=False)
    state = torch.get_rng_state()
    sample = data.sample_batch(8)
    assert torch.equal(torch.get_rng_state(), state)
    assert sample.shape == (8, 1, 4, 4)
    assert torch.equal(Streamed(normalize=False).sample_batch(8), sample)
    assert len(data.sample_batch(1000)) == 24


@pytest.mark.slow
@pytest.mark.parametrize("make", [Foreign, lambda: ImageClassifier(torch_network, **Streamed().model_args())])
def test_a_run_resumes_to_the_same_bits(make, tmp_path):
    def run(*callbacks, ckpt_path=None, seed=4):
        torch.manual_seed(seed)
        module, data = make(), Streamed(augmentation=[PaddedCrop(1)], mixing=MixUp())
        quiet_trainer(*callbacks, max_epochs=3).fit(module, data, ckpt_path=ckpt_path)
        return weights_of(module)

    whole, path = run(), tmp_path / "cut.ckpt"
    for batches in (4, 6, 9):
        with pytest.raises(Killed):
            run(SaveAtBatch(batches, path))
        assert_same_weights(run(ckpt_path=str(path), seed=99), whole)


class torch_network(torch.nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(16, num_classes))


class Summing(Foreign):
    def __init__(self):
        super().__init__()
        self.validated = []

    def validation_step(self, batch, batch_idx):
        self.validated += batch[1].tolist()


class Sharing(Foreign):
    """Asserts, in each process, what all of them see together."""

    def __init__(self):
        super().__init__()
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained += batch[0][:, 0, 0, 0].mul(255).round().int().tolist()
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.validated += batch[0][:, 0, 0, 0].mul(255).round().int().tolist()

    def on_train_end(self):
        assert len(self.trained) == 24
        parts = gather(self.trained)
        for epoch in (slice(12), slice(12, 24)):
            assert sorted(flat(part[epoch] for part in parts)) == list(range(24))
        assert sorted(flat(gather(self.validated))) == sorted(list(range(24)) * 2)
        assert len(set(map(tuple, parts))) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_share_every_epoch(workers):
    data = Streamed(workers=workers, batch_size=3, eval_batch_size=5, mean=[0.0], std=[1.0])
    quiet_trainer(max_epochs=2, devices=2, strategy="ddp_fork", num_sanity_val_steps=0).fit(Sharing(), data)


class Rare(Numbers):
    def decode(self, sample):
        image, _ = super().decode(sample)
        return image, int(sample == 7)


class Unbalanced(Streamed):
    def source(self, split):
        return Rare() if split == "train" else None


def told_of(data, caplog, *callbacks, **flags):
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        quiet_trainer(*callbacks, **{"max_epochs": 2, **flags}).fit(Foreign(classes=3), data)
    warned = [str(warning.message) for warning in caught if "Unbalanced" in str(warning.message)]
    return [line for line in caplog.messages if "training samples of" in line], warned


@pytest.mark.parametrize("workers", [0, 2])
def test_class_counts_are_told_after_the_first_whole_epoch_with_a_warning_of_rare_ones(workers, caplog):
    data = Unbalanced(class_names=["many", "one", "none"], workers=workers, mean=[0.0], std=[1.0])
    told, warned = told_of(data, caplog)
    assert told == ["Unbalanced, an epoch: 24 training samples of 3 classes, from 1 of 'one' to 23 of 'many'."]
    empty, rare = warned
    assert "no training sample is of 'none'" in empty
    assert "'one' has 1 training samples and 'many' 23" in rare
    assert "sampling" not in rare
    assert told_of(data, caplog) == ([], [])


def test_both_answers_of_a_binary_stream_are_counted(caplog):
    class Binary(Unbalanced):
        task = "binary"

    told, _ = told_of(Binary(num_classes=1, mean=[0.0], std=[1.0]), caplog)
    assert told == ["Binary, an epoch: 24 training samples of 2 classes, from 1 of '1' to 23 of '0'."]


def test_of_an_epoch_that_was_cut_short_nothing_is_told(caplog):
    assert told_of(Unbalanced(mean=[0.0], std=[1.0]), caplog, limit_train_batches=3) == ([], [])


def test_weights_of_classes_that_are_in_use_spare_the_warning_of_rare_ones(caplog):
    told, warned = told_of(Unbalanced(mean=[0.0], std=[1.0]), caplog, ClassWeights(counts=[22, 1, 1]))
    assert len(told) == 1
    assert len(warned) == 1  # of the class without a sample


def test_validation_takes_every_sample_and_augments_none():
    module = Summing()
    quiet_trainer(max_epochs=1, num_sanity_val_steps=0).fit(module, Streamed(eval_batch_size=5, mixing=MixUp()))
    assert sorted(module.validated) == [label for label in range(3) for _ in range(8)]


def test_it_says_whether_it_validates_and_tests():
    assert Streamed().has_validation
    assert not Streamed().has_test
    data = Streamed()
    data.source = lambda split: None if split == "val" else Numbers()
    assert not data.has_validation
    assert data.val_dataloader() == []


def test_without_a_test_split_the_error_says_so():
    with pytest.raises(DataError, match="Streamed has no test split"):
        Streamed().test_dataloader()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"in_channels": 2}, "in_channels=2; expected 1 or 3"),
        ({"workers": -1}, "workers=-1"),
        ({"shuffle_buffer": 0}, "shuffle_buffer=0"),
        ({"train_samples": 0}, "train_samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"mean": [0.5]}, "mean and std belong together"),
        ({"class_names": ["a"], "num_classes": 2}, "1 class_names for num_classes=2"),
    ],
)
def test_arguments_that_can_not_be_right_are_refused(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        Streamed(**arguments)


def test_how_many_samples_there_are_has_to_be_known_and_enough():
    with pytest.raises(ConfigurationError, match="pass train_samples="):
        Streamed(train_samples=None).train_dataloader()
    with pytest.raises(DataError, match="train_samples=3 are less than a batch of 4 on each of 1 processes"):
        Streamed(train_samples=3).train_dataloader()
