import copy
import pickle

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_cnnopt.core import randomness
from lightning_cnnopt.core.randomness import ResumeRandomState, Stream


def draws(stream, count=1000):
    return torch.randn(count, generator=stream.generator)


def test_a_stream_repeats_for_the_same_seed_and_name():
    assert torch.equal(draws(Stream("crop", seed=1)), draws(Stream("crop", seed=1)))


@pytest.mark.parametrize("other", [Stream("flip", seed=1), Stream("crop", seed=2), Stream("crop1", seed=1)])
def test_streams_of_other_names_or_seeds_are_uncorrelated(other):
    pair = torch.stack([draws(Stream("crop", seed=1)), draws(copy.deepcopy(other))])
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / 1000**0.5


def test_by_default_the_seed_is_torchs():
    state = torch.get_rng_state()
    try:
        torch.manual_seed(5)
        assert torch.equal(draws(Stream("crop")), draws(Stream("crop", seed=5)))
    finally:
        torch.set_rng_state(state)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draws(Stream("crop", seed=0))
    assert torch.equal(torch.get_rng_state(), before)


def on_rank(monkeypatch, number, **options):
    monkeypatch.setattr(randomness, "rank", lambda: number)
    return draws(Stream("crop", seed=0, **options))


def test_ranks_draw_differently(monkeypatch):
    pair = torch.stack([on_rank(monkeypatch, 0), on_rank(monkeypatch, 1)])
    assert abs(torch.corrcoef(pair)[0, 1]) < 5 / 1000**0.5


def test_ranks_draw_the_same_where_asked(monkeypatch):
    assert torch.equal(on_rank(monkeypatch, 0, per_rank=False), on_rank(monkeypatch, 3, per_rank=False))


def test_a_stream_goes_on_where_its_state_was_taken():
    stream = Stream("crop", seed=0)
    draws(stream)
    state = stream.state_dict()
    expected = draws(stream)
    resumed = Stream("crop", seed=99)
    resumed.load_state_dict(state)
    assert torch.equal(draws(resumed), expected)


def test_the_state_loads_with_weights_only(tmp_path):
    torch.save(Stream("crop", seed=0).state_dict(), tmp_path / "state.pt")
    resumed = Stream("crop", seed=1)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(draws(resumed), draws(Stream("crop", seed=0)))


def test_each_rank_takes_its_own_state_and_a_new_rank_starts_anew(monkeypatch):
    states = []
    for number in (0, 1):
        monkeypatch.setattr(randomness, "rank", lambda number=number: number)
        stream = Stream("crop", seed=0)
        draws(stream)
        states.append(stream.generator.get_state())
    expected = torch.randn(1000, generator=stream.generator)
    resumed = Stream("crop", seed=0)
    resumed.load_state_dict({"states": states})
    assert torch.equal(draws(resumed), expected)
    fresh = on_rank(monkeypatch, 2)
    late = Stream("crop", seed=0)
    late.load_state_dict({"states": states})
    assert torch.equal(draws(late), fresh)


@pytest.mark.parametrize("used", [False, True])
def test_a_copy_draws_what_the_original_would(used):
    stream = Stream("crop", seed=0)
    if used:
        draws(stream)
    copies = [pickle.loads(pickle.dumps(stream)), copy.deepcopy(stream)]
    expected = draws(stream)
    assert all(torch.equal(draws(twin), expected) for twin in copies)


class Drawing(BoringModel):
    def __init__(self):
        super().__init__()
        self.drawn = []

    def training_step(self, batch, batch_idx):
        self.drawn.append(float(torch.rand(())))
        return super().training_step(batch, batch_idx)

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(4, 32))


def trainer(tmp_path, **options):
    return Trainer(
        default_root_dir=tmp_path,
        callbacks=[ResumeRandomState()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        limit_val_batches=0,
        **options,
    )


def test_a_resumed_run_draws_from_torch_what_the_whole_run_would(tmp_path):
    torch.manual_seed(0)
    whole = Drawing()
    first = trainer(tmp_path, max_epochs=1)
    first.fit(whole)
    first.save_checkpoint(tmp_path / "half.ckpt")
    state = torch.get_rng_state()
    expected = [float(torch.rand(())) for _ in range(4)]
    torch.manual_seed(123)
    resumed = Drawing()
    trainer(tmp_path, max_epochs=2).fit(resumed, ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert len(resumed.drawn) == 4
    torch.set_rng_state(state)
    assert resumed.drawn == expected
