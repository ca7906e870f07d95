"""A queue whose items may have moved on."""

from layershuffle.serving.priority_queue import PriorityQueue


class Item:
    def __init__(self, number):
        self.number, self.epoch = number, 0


def test_the_lowest_comes_first_and_what_has_moved_on_is_dropped():
    queue, (one, two, three) = PriorityQueue(), map(Item, (1, 2, 3))
    for priority, item in ((2.0, one), (1.0, three), (1.0, two)):
        queue.push(priority, item)
    assert queue.first() is two  # by its number, of two with the same priority
    two.epoch += 1
    assert queue.first() is three
    assert queue.first_priority() == 1.0
    assert queue.first_due(0.5) is None
    assert queue.first_due(1.0) is three
    three.epoch += 1
    assert queue.items() == [one]
    one.epoch += 1
    assert (queue.first(), queue.first_priority()) == (None, float("inf"))


def test_a_queue_that_nobody_serves_does_not_grow():
    queue, item = PriorityQueue(), Item(1)
    for _ in range(10_000):
        item.epoch += 1
        queue.push(1.0, item)
    assert len(queue.entries) <= 70
    assert queue.items() == [item]
