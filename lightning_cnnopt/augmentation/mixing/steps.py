"""What all batches of one optimizer step draw alike."""

from __future__ import annotations

from typing import Any

import torch

from lightning_cnnopt.core.randomness import Stream


class StepDraws:
    """Hands the same draws to all batches of one optimizer step, on every rank: they are parts of one batch.

    At the first batch of a step a seed is drawn from a stream of its own; every batch of that step gets a fresh generator
    with that seed. A run that is resumed while gradients accumulate goes on with the draws of its step.

    Args:
        seed: The run's seed, the same on every rank; by default that of torch.

    Example:
        >>> draws = StepDraws(seed=0)
        >>> first, again, next_step = (torch.rand(1, generator=draws.generator(step)) for step in (0, 0, 1))
        >>> bool(first == again), bool(first == next_step)
        (True, False)
    """

    def __init__(self, seed: int | None = None) -> None:
        self.stream = Stream("mixing", seed, per_rank=False)
        self._step: int | None = None
        self._seed = 0

    def begin(self, seed: int | None = None) -> None:
        """Let the next batch begin an optimizer step of its own; ``seed`` counts where nothing was drawn yet."""
        self.stream.seed = seed if seed is not None else self.stream.seed
        self._step = None

    def generator(self, step: int | None = None) -> torch.Generator:
        """Return a generator in the state that all batches of an optimizer step begin with.

        Args:
            step: Number of the step; without it every call is a step of its own.
        """
        if step is None or step != self._step:
            self._seed = int(torch.randint(2**62, (), generator=self.stream.generator))
            self._step = step
        return torch.Generator().manual_seed(self._seed)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream, and the step that is going on. Under DDP every rank has to call it."""
        return {**self.stream.state_dict(), "step": self._step, "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the stream and the step."""
        self.stream.load_state_dict(state)
        self._step, self._seed = state["step"], state["seed"]
