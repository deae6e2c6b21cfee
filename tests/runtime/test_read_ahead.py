"""Items made in advance: their order, their errors, and their end."""

import threading

import pytest

from timm_mvhybrid.runtime.read_ahead import read_ahead


def test_order_and_end():
    assert list(read_ahead(iter(range(7)))) == list(range(7))
    assert list(read_ahead([])) == []
    assert list(read_ahead([None, 0])) == [None, 0]


def test_the_next_item_is_made_while_one_is_used():
    made = threading.Event()

    def items():
        yield 1
        made.set()
        yield 2

    found = read_ahead(items())
    assert next(found) == 1
    assert made.wait(60), "the second item waits until it is asked for"
    assert list(found) == [2]


def test_an_error_comes_where_its_item_would_have_been():
    def items():
        yield 1
        raise ValueError("no second one")

    found = read_ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second one"):
        next(found)


def test_who_stops_early_leaves_no_thread():
    before = threading.active_count()
    found = read_ahead(iter(range(100)))
    assert next(found) == 0
    found.close()
    assert threading.active_count() == before
