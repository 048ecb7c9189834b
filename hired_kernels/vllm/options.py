# SPDX-License-Identifier: Apache-2.0
"""What a server and a request ask for: `Options`.

A server says it in `--hf-overrides '{"hired": {"budget": 0.2, "max_budget": 0.4}}'`, a request in
`mm_processor_kwargs={"hired_budget": 0.1}`. Front end and workers both read the model's
configuration, so both know the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..models import support
from ..models.accounting import Anatomy, Plan, Settings, plan, refuse

REQUEST = "hired_budget"
_RULES = ("alpha", "policy")
_OF_A_SERVER = ("budget", "max_budget", *_RULES)

Budget = float | int | None


@dataclass(frozen=True)
class Options:
    """What a server was started with. `why_not` says why its model has to stay as it is, if so.

    budget: of a request that asks for none; None leaves its pictures to the stock model.
    max_budget: the most that a request may ask for, and what vLLM sizes its encoder cache by. With
    None it may ask for anything, the stock model included.
    """

    settings: Settings
    anatomy: Anatomy | None
    budget: Budget
    max_budget: Budget
    why_not: str | None

    @classmethod
    def of(cls, config: Any) -> Options:
        """From the configuration of a LLaVA model, with the server's overrides in it.

        Raises ValueError for options that do not exist, or that the model cannot be served with.
        """
        asked = getattr(config, "hired", None) or {}
        if not isinstance(asked, Mapping) or not set(asked) <= set(_OF_A_SERVER):
            raise refuse("hired", f"a mapping of {', '.join(_OF_A_SERVER)}", repr(asked))
        budget, max_budget = asked.get("budget"), asked.get("max_budget")
        if max_budget is not None and budget is None:
            raise refuse("hired", "a budget beside max_budget", repr(asked))
        settings = Settings(**{name: asked[name] for name in _RULES if name in asked})
        why_not = _why_not(config)
        anatomy = Anatomy.of(config) if why_not is None else None
        options = cls(settings, anatomy, budget, max_budget, why_not)
        for each in (budget, max_budget):
            options.check(each)
        return options

    def asked(self, processor_kwargs: Mapping[str, object]) -> Budget:
        """The budget of a request with these `mm_processor_kwargs`, None for the stock model.

        Raises ValueError for what it cannot be.
        """
        for name in processor_kwargs:
            if name.startswith("hired") and name != REQUEST:
                raise refuse("mm_processor_kwargs", REQUEST, name)
        budget = processor_kwargs.get(REQUEST, self.budget)
        self.check(budget)
        return budget

    def check(self, budget: Any) -> None:
        """Raise ValueError unless a request may have this budget, whatever its pictures."""
        if budget is None:
            return
        try:
            replace(self.settings, budget=budget)
        except ValueError as error:
            raise ValueError(str(error).replace("budget", REQUEST, 1)) from None
        if self.why_not is not None:
            raise ValueError(self.why_not)

    def admit(self, budget: Budget, sizes: Sequence[tuple[int, int]]) -> Plan | None:
        """What a request's pictures of these (height, width) in pixels keep; None: the stock model.

        Raises ValueError where there would be no token, or more than `max_budget` allows.
        """
        if budget is None:
            if self.max_budget is not None:
                raise refuse(REQUEST, f"at most max_budget, {self.max_budget}", "none")
            return None
        todo = self.plan([budget] * len(sizes), sizes)
        limits = todo.rows
        if self.max_budget is not None:
            limits = self.plan([self.max_budget] * len(sizes), sizes).rows
        for rows, limit, (height, width) in zip(todo.rows, limits, sizes, strict=True):
            if not 0 < rows <= limit:
                expected = "at least one token of each picture"
                if rows > limit:
                    expected = f"at most max_budget, {self.max_budget}"
                got = f"{budget}, {rows} tokens of {height} x {width} pixels"
                raise refuse(REQUEST, expected, got)
        return todo

    def plan(self, budgets: Sequence[float | int], sizes: Sequence[tuple[int, int]]) -> Plan:
        """What pictures keep, with a budget and a (height, width) in pixels for each."""
        return plan(self.settings, self.anatomy, sizes, budgets)


def _why_not(config: Any) -> str | None:
    """Why HiRED cannot serve a model of this configuration, or None."""
    try:
        support.check(config)
    except ValueError as error:
        return str(error)
    strategy = support.strategy_of(config)
    if strategy != "default":
        return str(refuse("vision_feature_select_strategy", "default", strategy))
    return None
