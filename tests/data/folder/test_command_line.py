"""``cnnopt fit --data ImageFolder``: it trains, or says in one paragraph what is wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from lightning_cnnopt.__main__ import main

from .files import make_folder, pixels, save

QUICKSTART = str(Path(__file__).parents[3] / "configs" / "quickstart.yaml")
SHORT = ["--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler writes to an earlier test's stream


def fit(root, *arguments):
    return main(["fit", "-c", QUICKSTART, *SHORT, "--data", "ImageFolder", "--data.root", str(root), *arguments])


def test_the_overlay_trains_and_tests():
    make_folder("data/images", {"train": {"cat": 12, "dog": 12}, "test": {"cat": 3, "dog": 3}}, size=(20, 30))
    overlay = Path(QUICKSTART).parent / "data" / "image_folder.yaml"
    assert main(["fit", "-c", QUICKSTART, "-c", str(overlay), *SHORT, "--data.size", "[8, 8]"]) == 0
    assert list(Path("runs").rglob("classes_test.csv"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda root: root.rename(root.with_name("moved")), "root' does not exist"),
        (lambda root: save(root / "train" / "cat" / "9.png", pixels(9, 9)), "2 sizes (height x width)"),
        (lambda root: (root / "test" / "cat" / "0.png").write_bytes(b"no image"), "test/cat/0.png can't be decoded"),
        (lambda root: ["--data.cache_dir", str(root / "train" / "cat" / "0.png" / "cache")], "can't be written to"),
    ],
    ids=["missing", "sizes", "broken", "cache"],
)
def test_what_is_wrong_is_one_paragraph(spoil, said, tmp_path, capfd):
    root = make_folder(tmp_path / "root", size=(8, 8))
    arguments = spoil(root)
    status = fit(f"{root}/", *(arguments if isinstance(arguments, list) else []))
    out, err = capfd.readouterr()
    assert status == 2, err
    assert "Traceback" not in out + err
    (line,) = [line for line in err.splitlines() if line.startswith("cnnopt: ")]
    assert said in line
