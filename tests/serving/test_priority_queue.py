"""A queue whose items may have moved on."""

from layershuffle.serving.priority_queue import PriorityQueue


class Item:
    def __init__(self, number):
        self.number = number
        self.epoch = 0


def test_the_lowest_comes_first_and_what_has_moved_on_is_dropped():
    one = Item(1)
    two = Item(2)
    three = Item(3)
    queue = PriorityQueue()
    queue.push(2.0, one)
    queue.push(1.0, three)
    queue.push(1.0, two)

    # Of two with the same priority, the one with the lower number comes first.
    assert queue.first() is two
    two.epoch += 1
    assert queue.first() is three
    assert queue.first_priority() == 1.0
    assert queue.first_due(0.5) is None
    assert queue.first_due(1.0) is three
    three.epoch += 1
    assert queue.items() == [one]
    one.epoch += 1
    assert queue.first() is None
    assert queue.first_priority() == float("inf")


def test_a_queue_that_nobody_serves_does_not_grow():
    queue = PriorityQueue()
    item = Item(1)
    for _ in range(10_000):
        item.epoch += 1
        queue.push(1.0, item)
    # It clears out what is outdated when it has 64 entries, and a little more if items are left.
    assert len(queue.entries) <= 70
    assert queue.items() == [item]
