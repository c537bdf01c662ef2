"""Which pairs are positive, as a function of two ids, known by name: PyTorch's operators can be handed no function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from art_kernels.tracklet_nce.passes import Pairs

if TYPE_CHECKING:
    from jaxtyping import Int

#: True, or a tensor of True, where the ids are those of a positive pair.
Function = Callable[[Any, Any], Any]

#: Name of the rule that makes pairs positive whose ids are equal: indices and labels are such ids.
EQUAL = "equal"

_functions: dict[str, Function] = {}


class Positives(NamedTuple):
    """The positive pairs of `tracklet_nce`, by a rule on ids: what calling a `PositiveRule` gives.

    Attributes:
        anchor_ids: of each anchor, int64.
        candidate_ids: of each candidate, int64.
        rule: which pairs of ids are those of a positive pair.

    Examples:
        >>> import torch
        >>> from art_kernels import positive_rule
        >>> @positive_rule
        ... def neighbours(anchor, candidate):
        ...     return (anchor - candidate <= 1) & (candidate - anchor <= 1)
        >>> positives = neighbours(torch.arange(4), torch.arange(4))
        >>> positives.rule.name == neighbours.name
        True
    """

    anchor_ids: Int[Tensor, " m"]
    candidate_ids: Int[Tensor, " n"]
    rule: PositiveRule


@dataclass(frozen=True)
class PositiveRule:
    """A rule that `positive_rule` made; called with ids it gives `Positives`.

    Attributes:
        name: by which `function_of` finds the function.

    Examples:
        >>> import torch
        >>> from art_kernels import positive_rule, tracklet_nce
        >>> @positive_rule
        ... def same_parity(anchor, candidate):
        ...     return anchor % 2 == candidate % 2
        >>> vectors, ids = torch.randn(4, 8), torch.arange(4)
        >>> tracklet_nce(vectors, vectors, same_parity(ids, ids), temperature=0.07).shape
        torch.Size([])
    """

    name: str

    def __call__(self, anchor_ids: Int[Tensor, " m"], candidate_ids: Int[Tensor, " n"]) -> Positives:
        """The pairs of these anchors and candidates that are positive."""
        return Positives(anchor_ids, candidate_ids, self)


def positive_rule(function: Function) -> PositiveRule:
    """Make a rule for `tracklet_nce` of a function of two ids; a decorator.

    The function is called with int64 tensors that broadcast against each other, and compiled into GPU kernels from its
    source. So it is a function of a module, of two parameters, made of operators alone (== != < <= > >= & | ^ ~ + - *
    // %), with numbers written out: no `and`, `or`, `not`, `if`, no calls, no global names. Ids that are divided should
    not be negative: PyTorch rounds down, a GPU rounds towards 0.

    Args:
        function: `f(anchor, candidate) -> bool`.

    Raises:
        TypeError: not a plain function, or not of two parameters.
        ValueError: a function in a function, one that is not made of operators alone, or another function with the
            name of one that is there already.

    Examples:
        >>> import torch
        >>> from art_kernels import positive_rule, tracklet_nce
        >>> @positive_rule
        ... def same_class_other_video(anchor, candidate):  # an id is class * 1_000_000 + video
        ...     return (anchor // 1_000_000 == candidate // 1_000_000) & (anchor != candidate)
        >>> ids = torch.tensor([3_000_001, 3_000_002, 7_000_003])
        >>> positives = same_class_other_video(ids, ids)
        >>> tracklet_nce(torch.randn(3, 8), torch.randn(3, 8), positives, temperature=0.07).shape
        torch.Size([])
    """
    if not inspect.isfunction(function):
        raise TypeError(f"positive_rule: function is {function!r}, expected a function of a module, made with def")
    name = f"{function.__module__}.{function.__qualname__}"
    if "<" in name.removeprefix(function.__module__) or function.__closure__:
        raise ValueError(
            f"positive_rule: {name} is a lambda or is made in another function, expected a function of a module, "
            "which kernels can be compiled from; move it there"
        )
    parameters = inspect.signature(function).parameters.values()
    if [parameter.kind for parameter in parameters] != [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2 or any(
        parameter.default is not inspect.Parameter.empty for parameter in parameters
    ):
        raise TypeError(
            f"positive_rule: {name} takes {inspect.signature(function)}, expected two ids, (anchor, candidate)"
        )
    _check_operators(name, function)
    return _register(name, function)


def function_of(name: str) -> Function:
    """The function of the rule `name`.

    Raises:
        ValueError: no such rule here: the module that makes it has not been imported in this process.
    """
    if name not in _functions:
        raise ValueError(
            f"tracklet_nce: no positive_rule is named {name!r} in this process; import the module that makes it"
        )
    return _functions[name]


def pairs_of(
    positives: Tensor | tuple[Tensor, Tensor] | Positives, count: int, excluded: Int[Tensor, " m"] | None
) -> Pairs:
    """The three forms of positives, over `count` candidates, as one: ids and a rule."""
    if isinstance(positives, Positives):
        return Pairs(positives.anchor_ids, positives.candidate_ids, excluded, positives.rule.name)
    if isinstance(positives, Tensor):
        return Pairs(positives, torch.arange(count, device=positives.device), excluded, EQUAL)
    return Pairs(positives[0], positives[1], excluded, EQUAL)


def _register(name: str, function: Function) -> PositiveRule:
    known = _functions.get(name)
    if known is not None and _body(known) != _body(function):
        raise ValueError(
            f"positive_rule: there is another function named {name}, and a rule is known by its name; rename one"
        )
    _functions[name] = function  # the same text again, as when a module is reloaded, is the same rule
    return PositiveRule(name)


def _body(function: Any) -> tuple[object, ...]:
    code = function.__code__
    return code.co_code, code.co_consts, code.co_names


def _check_operators(name: str, function: Any) -> None:
    """Raise ValueError unless `function` is made of operators alone: by the names it uses, and by a trial."""
    used = function.__code__.co_names
    if used:
        raise ValueError(
            f"positive_rule: {name} uses {', '.join(used)}, expected operators on anchor, candidate and numbers alone; "
            "write numbers out, and make ids that need no call"
        )
    anchors, candidates = torch.tensor([[2], [3]], device="cpu"), torch.tensor([[3, 5]], device="cpu")
    try:
        result = function(anchors, candidates)
    except Exception as error:
        raise ValueError(
            f"positive_rule: {name} cannot be called with tensors: {error}; use operators alone, "
            "& | ~ in place of and, or, not"
        ) from error
    if not isinstance(result, Tensor) or result.dtype != torch.bool:
        got = result.dtype if isinstance(result, Tensor) else repr(result)
        raise ValueError(f"positive_rule: {name} gives {got} for tensors of ids, expected bool; compare, as with ==")


def _equal(anchor: Any, candidate: Any) -> Any:
    return anchor == candidate


_register(EQUAL, _equal)
