"""How requests are routed: the policy of a router."""

from dataclasses import dataclass
from typing import Literal, get_args

from layershuffle.errors import UserError
from layershuffle.serving.checks import check_numbers

Routing = Literal["any", "sequential", "chain", "path"]
OnLoss = Literal["reassign", "skip"]


@dataclass(frozen=True)
class Policy:
    """How requests are routed. Times are in seconds.

    Attributes:
        routing: "any" runs whichever remaining layer has an idle node, "sequential" the next layer in order on an idle
            node. In both, an idle node takes the oldest request. "chain" runs the next layer on a node that is drawn at
            random by speed and waits for it, as the chains of Petals (arXiv 2209.01188) do. "path" chooses such a chain
            when the request comes, the one with the least estimated time if all requests that are on their way to
            its nodes go first, and chooses again for the layers that are left when the next node is gone.
        on_loss: what happens to a layer whose last holder is lost. With "reassign" another node loads it. With "skip" a
            request does without it.
        max_missed: with "skip", how many layers a request may miss.
        patience: with "skip", the seconds that a request waits before it gives up what it waits for: in sequence the
            next layer, in any order all that are left.
        step_deadline: the seconds after which a node that hasn't answered is suspected. Its step then runs elsewhere,
            and it gets no work until it answers.
        request_deadline: the seconds after which a request fails.
        visit: how many layers a node may run in a row for a request, if it holds several that the request can run.
        width: at how many nodes a request may be at a time. Each of them reads the newest state when it starts, and
            what it changes is added to the state that is the newest when it ends. So layers also start in sequence with
            the routings that keep to it, but needn't end so.
        answer_by: the seconds after which a request is answered with what has come by then, whatever it misses. A step
            that isn't expected to end by then doesn't start. None to wait until ``request_deadline``, and fail.

    Raises:
        UserError: if the routing or what happens on a loss is unknown, a number is out of its range, or ``width`` and
            ``visit`` are both above 1.
    """

    routing: Routing = "any"
    on_loss: OnLoss = "reassign"
    max_missed: int = 3
    patience: float = 1.0
    step_deadline: float = 10.0
    request_deadline: float = 60.0
    visit: int = 1
    width: int = 1
    answer_by: float | None = None

    def __post_init__(self) -> None:
        if self.routing not in get_args(Routing) or self.on_loss not in get_args(OnLoss):
            raise UserError(
                f"routing is one of {', '.join(get_args(Routing))} and on_loss one of {', '.join(get_args(OnLoss))}, "
                f"not {self.routing} and {self.on_loss}"
            )
        # All other fields are numbers.
        numbers = {name: value for name, value in vars(self).items() if name not in ("routing", "on_loss")}
        positive = ("step_deadline", "request_deadline", "visit", "width", "answer_by")
        check_numbers(numbers, whole=("max_missed", "visit", "width"), positive=positive)
        if self.visit > 1 and self.width > 1:
            # The second layer of the visit would read a state that only this node has seen, which no order can say.
            raise UserError(
                f"a visit of {self.visit} layers in a row can't be combined with a width of {self.width}: leave one of "
                "them at 1"
            )
        if self.answer_by is not None and self.answer_by > self.request_deadline:
            raise UserError(
                f"answer_by is above 0 and at most the request_deadline of {self.request_deadline:g} s, "
                f"not {self.answer_by:g}"
            )


LIMITS = ("max_missed", "patience", "step_deadline", "request_deadline", "visit", "width", "answer_by")
"""The fields of a ``Policy`` that all policies of a simulation have in common."""
POLICIES = {
    "any": Policy("any"),
    "sequential": Policy("sequential"),
    "chain": Policy("chain"),
    "path": Policy("path"),
    "any-skip": Policy("any", "skip"),
    "sequential-skip": Policy("sequential", "skip"),
}
"""The policies that a simulation compares, by name."""
