"""What is worked out once, although the Observation of each client brings a copy of what it is worked out from."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

A = TypeVar("A")
P = ParamSpec("P")
T = TypeVar("T")
Function = Callable[Concatenate[A, P], T]


def once(same: Callable[[A, A], bool]) -> Callable[[Function[A, P, T]], Function[A, P, T]]:
    """Makes a function keep its last result for as long as it is asked the same; what it raises is not kept.

    The clients of an audit share one network, and building or running a large one costs more than many a closed form.

    Args:
        same: Whether two first arguments are alike; the others are compared as they are. Results must not be changed.
    """

    def keeping(function: Function[A, P, T]) -> Function[A, P, T]:
        kept: list[tuple[A, object, T]] = []

        @wraps(function)
        def asked(about: A, /, *args: P.args, **kwargs: P.kwargs) -> T:
            rest = (args, kwargs)
            for last, others, result in kept:
                if others == rest and same(about, last):
                    return result
            result = function(about, *args, **kwargs)
            kept[:] = [(about, rest, result)]
            return result

        return asked

    return keeping
