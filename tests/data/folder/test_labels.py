from __future__ import annotations

import pytest
import torch

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import ImageFolder

from .files import pixels, save


def table(root, text, files="abcdef"):
    for seed, name in enumerate(files):
        save(root / "images" / f"{name}.png", pixels(seed=seed))
    (root / "labels.csv").write_text(text)
    return {"root": str(root), "labels": str(root / "labels.csv"), "val_size": 0}


def rows(data, split="train"):
    found, paths = data.load(split), data.paths(split)
    return dict(zip([path.stem for path in paths], found.targets.tolist(), strict=True))


def test_a_table_of_classes_and_splits(tmp_path):
    text = "file,label,split\nimages/b.png,dog,train\nimages/a.png,cat,train\nimages/c.png,cat,test\nimages/d.png,dog,val\n"
    arguments = table(tmp_path, text)
    del arguments["val_size"]
    data = ImageFolder(**arguments)
    assert data.class_names == ["cat", "dog"]
    assert rows(data) == {"a": 0, "b": 1}
    assert rows(data, "test") == {"c": 0}
    assert [path.stem for path in data.paths("val")] == ["d"]
    assert torch.equal(data.train_set.images[1].permute(1, 2, 0), torch.from_numpy(pixels(seed=1)))


def test_a_table_without_splits_is_training_data_and_its_order_does_not_count(tmp_path):
    lines = ["images/b.png,dog", "images/a.png,cat", "images/c.png,cat"]
    first = ImageFolder(**table(tmp_path, "\n".join(["file,label", *lines])))
    assert rows(first) == {"a": 0, "b": 1, "c": 0}
    packed = first._sources.of("train").path.stat()
    second = ImageFolder(
        **table(tmp_path, "\n".join(["\ufefflabel,file", *(",".join(reversed(r.split(","))) for r in lines[::-1])]), "")
    )
    assert rows(second) == rows(first)
    assert second._sources.of("train").path.stat().st_ino == packed.st_ino
    with pytest.raises(DataError, match="no test split"):
        _ = first.test_set


def test_without_a_column_of_splits_the_first_folder_is_the_split(tmp_path):
    for name in ("train/a", "train/b", "test/c"):
        save(tmp_path / f"{name}.png", pixels())
    (tmp_path / "labels.csv").write_text("file,label\ntrain/a.png,x\n./train/b.png,y\ntest/c.png,y\n")
    data = ImageFolder(str(tmp_path), labels=str(tmp_path / "labels.csv"), val_size=0)
    assert (rows(data), rows(data, "test")) == ({"a": 0, "b": 1}, {"c": 1})


def test_numbers_are_in_the_order_of_numbers(tmp_path):
    data = ImageFolder(**table(tmp_path, "file,label\nimages/a.png,10\nimages/b.png,9\nimages/c.png,2\n"))
    assert data.class_names == ["2", "9", "10"]
    assert rows(data) == {"a": 2, "b": 1, "c": 0}


def test_numbers_that_are_equal_are_in_the_order_of_their_text(tmp_path):
    names = ["0" * zeros + "1" for zeros in (3, 0, 5, 1, 4, 2)]  # a set has them in another order in each run
    lines = [f"images/{file}.png,{name}" for file, name in zip("abcdef", names, strict=True)]
    data = ImageFolder(**table(tmp_path, "\n".join(["file,label", *lines])))
    assert data.class_names == sorted(names)


def test_a_binary_table(tmp_path):
    data = ImageFolder(task="binary", **table(tmp_path, "file,label\nimages/a.png,no\nimages/b.png,yes\n"))
    assert (data.num_classes, data.class_names) == (1, ["no", "yes"])
    assert rows(data) == {"a": 0.0, "b": 1.0}
    assert data.train_set.targets.dtype == torch.float32


def test_labels_with_a_column_each(tmp_path):
    text = "file,sea,sky,split\nimages/a.png,1,0,train\nimages/b.png,1,1,train\nimages/c.png,0,0,test\n"
    data = ImageFolder(task="multilabel", **table(tmp_path, text))
    assert (data.num_classes, data.class_names) == (2, ["sea", "sky"])
    assert rows(data) == {"a": [1, 0], "b": [1, 1]}
    assert rows(data, "test") == {"c": [0, 0]}
    assert data.class_counts() == [2, 1]


def test_labels_with_a_separator(tmp_path):
    text = "file,label\nimages/a.png,sky; sea\nimages/b.png,sea\nimages/c.png,\n"
    data = ImageFolder(task="multilabel", separator=";", **table(tmp_path, text))
    assert data.class_names == ["sea", "sky"]
    assert rows(data) == {"a": [1, 1], "b": [1, 0], "c": [0, 0]}


@pytest.mark.parametrize(
    ("text", "task", "said"),
    [
        ("name,label\n", "multiclass", r"columns \['name', 'label'\]; expected file, label and perhaps split"),
        ("file,cat,dog\na.png,0,1\n", "multiclass", r"columns \['file', 'cat', 'dog'\]"),
        ("", "multiclass", r"columns \[\]; expected file"),
        ("file,label\nimages/a.png\n", "multiclass", "line 2 of .*labels.csv has 1 cells; expected 2"),
        ("file,label\nimages/a.png,\n", "multiclass", "line 2 .* has no label"),
        ("file,label\n,x\n", "multiclass", "line 2 .* names no file"),
        ("file,label\nimages/a.png,x\n\nimages/a.png,y\n", "multiclass", "lists 'images/a.png' twice, in lines 2 and 4"),
        (
            "file,label,split\nimages/a.png,x,dev\n",
            "multiclass",
            "line 2 .* has the split 'dev'; expected one of train, val, test",
        ),
        ("file,label,split\nimages/a.png,x,test\n", "multiclass", "lists no image of the split 'train'"),
        ("file,label\nimages/a.png,x\n", "multiclass", "holds one class only, 'x'"),
        (
            "file,label,split\nimages/a.png,x,train\nimages/b.png,y,train\nimages/c.png,z,test\n",
            "multiclass",
            "the split 'test' of .* has 'z', which the training split has not",
        ),
        ("file,label\nimages/a.png,x\nimages/b.png,y\nimages/c.png,z\n", "binary", "task='binary' takes two classes; .* has 3"),
        (
            'file,label\nimages/a.png,x\nimages/b.png,"y\nimages/c.png,x\n',
            "multiclass",
            "line 3 of .*labels.csv is no row of a CSV",
        ),
        (
            'file,label\na.png,"x\nb.png,x\nc.png,y"\nd.png,y\n',
            "multiclass",
            "line 2 .* a cell goes on in the next line.* mark",
        ),
        ('file,label\na.png,x\n\nb.png,"x\r\nc.png,"y"\n', "multiclass", "line 4 .* is no row of a CSV table"),
        (
            "file,label\nimages/a.png,x\nimages/b.png,y\n./images//a.png,y\n",
            "multiclass",
            r"lists './images//a.png' twice, in lines 2 \(as 'images/a.png'\) and 4",
        ),
        ("file,label\nimages/a.png,x\n../set/images/a.png,x\n", "multiclass", r"lists '\.\./set/images/a.png' twice"),
        ("file,cat,dog\nimages/a.png,0,2\n", "multilabel", "line 2 .* has '2' in the column of a label; expected 0 or 1"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(text, task, said, tmp_path):
    with pytest.raises(DataError, match=said):
        ImageFolder(task=task, **table(tmp_path / "set", text))


def test_cells_in_quotation_marks_are_read(tmp_path):
    data = ImageFolder(**table(tmp_path, 'file,"label"\r\n"images/a.png","a ""cat"", asleep"\r\nimages/b.png, dog"s \r\n'))
    assert data.class_names == ['a "cat", asleep', 'dog"s']


def test_a_file_that_the_table_lists_has_to_be_there(tmp_path):
    with pytest.raises(DataError, match=r"gone.png can't be read: No such file"):
        _ = ImageFolder(**table(tmp_path, "file,label\nimages/a.png,x\nimages/gone.png,y\n")).image_size


def test_arguments_that_contradict_each_other(tmp_path):
    arguments = table(tmp_path, "file,label\nimages/a.png,x\nimages/b.png,y\n")
    with pytest.raises(ConfigurationError, match=r"separator=';' is for task='multilabel'"):
        ImageFolder(separator=";", **arguments)
    with pytest.raises(ConfigurationError, match=r"give the separator between them"):
        ImageFolder(task="multilabel", **arguments)
    with pytest.raises(ConfigurationError, match="takes labels="):
        ImageFolder(str(tmp_path), task="multilabel")
    with pytest.raises(ConfigurationError, match="is for the table given by labels="):
        ImageFolder(str(tmp_path), separator=";")
    with pytest.raises(DataError, match=r"labels='gone.csv' is missing"):
        ImageFolder(str(tmp_path), labels="gone.csv")
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,x\n")
    with pytest.raises(DataError, match="is no CSV table in UTF-8"):
        ImageFolder(**arguments)
