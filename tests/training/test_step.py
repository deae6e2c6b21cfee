import torch

from timm_mvhybrid.training.step import as_numbers


def test_numbers_keep_names_and_order():
    values = {"b": torch.tensor(2, dtype=torch.int64), "a": 1, "c": torch.tensor([0.1], dtype=torch.float64)}
    numbers = as_numbers(values)
    assert list(numbers.items()) == [("b", 2.0), ("a", 1.0), ("c", 0.1)]
