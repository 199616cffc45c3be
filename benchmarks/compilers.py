"""What a compiler would buy for P3: the same work as one loop, by torch.compile, numba or a C++ operator, and its price.

The loops take what was drawn and write normalized floats straight from the set, with no copy between; that is as good as a
compiler gets it. The price is what a process needs until its first batch, and a compiler on the machine, or a package more. How
much of it a training would notice is told by the last row of the benchmark ``loading``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from benchmarks.frame.rows import FASTER, MORE, Benchmark, Command, Function, Goal, Row
from benchmarks.loading import BATCH, COUNT, MEAN, SIZE, STD, ours
from benchmarks.peers import images, seconds_a_thousand

_PADDING = 4
_CPP = """
#include <torch/extension.h>

void crop_flip_normalize(at::Tensor data, at::Tensor index, at::Tensor top, at::Tensor left, at::Tensor flipped,
                         at::Tensor scale, at::Tensor shift, at::Tensor out) {
  const int64_t channels = data.size(1), height = data.size(2), width = data.size(3);
  const uint8_t* from = data.const_data_ptr<uint8_t>();
  const int64_t *places = index.const_data_ptr<int64_t>(), *down = top.const_data_ptr<int64_t>(),
                *right = left.const_data_ptr<int64_t>(), *mirrored = flipped.const_data_ptr<int64_t>();
  const float *factor = scale.const_data_ptr<float>(), *offset = shift.const_data_ptr<float>();
  float* to = out.data_ptr<float>();
  at::parallel_for(0, index.size(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t y = 0; y < height; ++y) {
          const int64_t row = y + down[n];
          const uint8_t* line = from + ((places[n] * channels + c) * height + row) * width;
          float* target = to + ((n * channels + c) * height + y) * width;
          for (int64_t x = 0; x < width; ++x) {
            const int64_t column = (mirrored[n] ? width - 1 - x : x) + right[n];
            const bool inside = row >= 0 && row < height && column >= 0 && column < width;
            target[x] = (inside ? factor[c] * line[column] : 0.0f) + offset[c];
          }
        }
  });
}
"""


@cache
def _numba() -> Callable[..., None]:
    import numba

    @numba.njit(parallel=True, fastmath=True)  # type: ignore[untyped-decorator]
    def loop(data: Any, index: Any, top: Any, left: Any, flipped: Any, scale: Any, shift: Any, out: Any) -> None:
        _, channels, height, width = data.shape
        for n in numba.prange(len(index)):
            for c in range(channels):
                for y in range(height):
                    row = y + top[n]
                    for x in range(width):
                        column = (width - 1 - x if flipped[n] else x) + left[n]
                        level = 0.0
                        if 0 <= row < height and 0 <= column < width:
                            level = data[index[n], c, row, column] * scale[c]
                        out[n, c, y, x] = level + shift[c]

    numba.set_num_threads(min(numba.get_num_threads(), _threads()))
    return lambda *tensors: loop(*(tensor.numpy() for tensor in tensors))


@cache
def _compiled() -> Callable[..., None]:
    import torch

    @torch.compile(dynamic=False)
    def gathered(data: Any, index: Any, top: Any, left: Any, flipped: Any, scale: Any, shift: Any) -> Any:
        places = torch.arange(SIZE)
        rows = places + top[:, None]
        columns = torch.where(flipped[:, None] > 0, SIZE - 1 - places, places) + left[:, None]
        inside = ((rows >= 0) & (rows < SIZE))[:, :, None] & ((columns >= 0) & (columns < SIZE))[:, None, :]
        rows, columns = rows.clamp(0, SIZE - 1), columns.clamp(0, SIZE - 1)
        channels = torch.arange(3)[None, :, None, None]
        levels = data[index[:, None, None, None], channels, rows[:, None, :, None], columns[:, None, None, :]]
        return torch.where(inside[:, None], levels.float(), 0.0) * scale.view(3, 1, 1) + shift.view(3, 1, 1)

    def run(*tensors: Any) -> None:
        gathered(*tensors[:-1])

    return run


@cache
def _cpp() -> Callable[..., None]:
    from torch.utils import cpp_extension

    built = cpp_extension.load_inline(
        "cnnopt_p3", _CPP, functions=["crop_flip_normalize"], extra_cflags=["-O3", "-march=native"]
    )
    operator: Callable[..., None] = built.crop_flip_normalize
    return operator


_KINDS: dict[str, Callable[[], Callable[..., None]]] = {"torch.compile": _compiled, "numba": _numba, "C++": _cpp}


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _batches(kind: str, count: int, pair: int) -> int:
    """Work through ``count`` images in shuffled batches, each with its draws."""
    import torch

    data, run = images(COUNT, SIZE), _KINDS[kind]()
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    scale, shift = 1 / (255 * std), -mean / std
    generator = torch.Generator().manual_seed(pair)
    for index in torch.randperm(COUNT, generator=generator)[:count].split(BATCH):
        top, left = torch.randint(-_PADDING, _PADDING + 1, (2, len(index)), generator=generator)
        flipped = torch.randint(2, (len(index),), generator=generator)
        run(data, index, top, left, flipped, scale, shift, torch.empty(len(index), 3, SIZE, SIZE))
    return count


def _loop(kind: str, pair: int) -> Mapping[str, float]:
    return seconds_a_thousand(partial(_batches, kind, COUNT - COUNT % BATCH, pair))


def _start(kind: str) -> None:
    """Do a first batch in this process; every kind makes the images and imports this package, too."""
    import torch

    from lightning_cnnopt.architecture import Preprocessing
    from lightning_cnnopt.augmentation import Augment, HorizontalFlip, PaddedCrop

    if kind == "eager":
        batch = images(COUNT, SIZE)[torch.randperm(COUNT)[:BATCH]]
        Preprocessing(3, MEAN, STD)(Augment([PaddedCrop(_PADDING), HorizontalFlip()])(batch))
        return
    with tempfile.TemporaryDirectory() as folder:  # nothing is left there from an earlier start
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ["TORCH_EXTENSIONS_DIR"] = folder
        _batches(kind, BATCH, 0)


_OURS = Function("eager: ResidentLoader, Augment, Preprocessing", ours)


def _rows() -> tuple[Row, ...]:
    rows = []
    has_compiler = shutil.which("c++") and shutil.which("ninja")
    for kind in _KINDS:
        needs, lacks = (("numba",), "") if kind == "numba" else ((), "" if has_compiler else "no c++ and ninja on this machine")
        rows.append(Row(kind, _OURS, Function(kind, partial(_loop, kind), needs=needs, lacks=lacks), Goal(FASTER, 1)))
        command = Command(f"python -m benchmarks.compilers {kind}")
        rows.append(
            Row(
                f"first batch, {kind}", command, Command("python -m benchmarks.compilers eager"), Goal(MORE, 0.1), warm_up=False
            )
        )
    return tuple(rows)


BENCHMARK = Benchmark(
    id="P3c",
    what="what a compiler would buy: crop, flip, normalize, seconds a thousand images; seconds to the first batch",
    against="one loop by torch.compile, numba and C++; eager",
    goal="eager is at least as fast; a compiler takes at most 0.1 s more",
    rows=_rows(),
    packages=("numba",),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["eager", *_KINDS])
    _start(parser.parse_args().kind)
