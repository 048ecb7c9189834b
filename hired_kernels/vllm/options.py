# SPDX-License-Identifier: Apache-2.0
"""What a server and a request ask for: `Options`.

A server says it in `--hf-overrides '{"hired": {"budget": 0.2, "max_budget": 0.4}}'`, a request in
`mm_processor_kwargs={"hired_budget": 0.1}`. Front end and workers both read the model's
configuration, so both know the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .. import geometry, ops
from ..models.accounting import Anatomy, Plan, Settings, plan_of, refuse
from . import support

REQUEST = "hired_budget"
_RULES = ("alpha", "policy", "judge")
_OF_A_SERVER = ("budget", "max_budget", *_RULES)
# vLLM's caches tell numbers apart by their bytes: beyond this an integer could pass for a share.
_LARGEST = (1 << 31) - 1

Budget = float | int | None


@dataclass(frozen=True)
class Options:
    """What a server was started with. `why_not` says why its model has to stay as it is, if so.

    budget: of a request that asks for none; None leaves its pictures to the stock model.
    max_budget: the most that a request may ask for, and that vLLM profiles its memory with. With
    None it may ask for anything, the stock model included.
    """

    settings: Settings
    anatomy: Anatomy | None
    budget: Budget
    max_budget: Budget
    why_not: str | None

    @classmethod
    def of(cls, config: Any) -> Options:
        """From the configuration of a model, with the server's overrides in it.

        Raises ValueError for options that do not exist, or that the model cannot be served with.
        """
        asked = getattr(config, "hired", {})
        if not isinstance(asked, Mapping) or not set(asked) <= set(_OF_A_SERVER):
            raise refuse("hired", f"a mapping of {', '.join(_OF_A_SERVER)}", repr(asked))
        budget, max_budget = asked.get("budget"), asked.get("max_budget")
        settings = Settings(**{name: asked[name] for name in _RULES if name in asked})
        why_not = support.why_not(config)
        anatomy = support.anatomy_of(config) if why_not is None else None
        if anatomy is not None:
            support.check_settings(config, settings)
        options = cls(settings, anatomy, budget, max_budget, why_not)
        for each in (budget, max_budget):
            options.check(each)
        options._check_default()
        return options

    def asked(self, processor_kwargs: Mapping[str, object]) -> Budget:
        """The budget of a request with these `mm_processor_kwargs`, None for the stock model.

        Raises ValueError for what it cannot be.
        """
        check_names(processor_kwargs)
        budget: Any = processor_kwargs.get(REQUEST, self.budget)
        self.check(budget)
        return budget

    def check(self, budget: Any) -> None:
        """Raise ValueError unless a request may have this budget, whatever its pictures."""
        if budget is None:
            return
        share = isinstance(budget, float) and 0 < budget <= 1
        count = isinstance(budget, int) and not isinstance(budget, bool) and 0 < budget <= _LARGEST
        if not share and not count:
            expected = f"a float in (0, 1] or an integer from 1 to {_LARGEST}"
            raise refuse(REQUEST, expected, repr(budget))
        if self.why_not is not None:
            raise ValueError(self.why_not)

    def _anatomy(self) -> Anatomy:
        """Of a model that can be served: nobody else asks."""
        assert self.anatomy is not None, self.why_not
        return self.anatomy

    def _check_default(self) -> None:
        """Raise ValueError where the server would refuse requests that ask for nothing."""
        budget, limit = self.budget, self.max_budget
        if isinstance(budget, float):
            T, policy = self._anatomy().tokens, self.settings.policy
            if geometry.share_of_tokens(budget, (0, 0), T, policy=policy) < 1:
                raise refuse("budget", "at least one token of each picture", budget)
        if limit is not None and (type(budget) is not type(limit) or budget > limit):
            expected = f"a budget of at most max_budget, {limit}, both shares or both integers"
            raise refuse("budget", expected, budget)

    def admit(
        self, budget: Budget, pictures: Sequence[geometry.Layout], most: int | None = None
    ) -> Plan | None:
        """What a request's pictures keep that are cut up like this; None: the stock model.

        `most` is what no picture may have more tokens than where there is no `max_budget`.

        Raises ValueError where there would be no token, or more than `max_budget` allows, or where
        the operator would refuse them.
        """
        if budget is None:
            if self.max_budget is not None:
                raise refuse(REQUEST, f"at most max_budget, {self.max_budget}", "none")
            return None
        todo = self.plan([budget] * len(pictures), pictures)
        limits = [max(1, rows) if most is None else most for rows in todo.rows]
        allowed = f"at most {most} tokens of a picture, the stock model's most, or a max_budget"
        if self.max_budget is not None:
            limits = self.plan([self.max_budget] * len(pictures), pictures).rows
            allowed = f"at most max_budget, {self.max_budget}"
        for rows, limit, picture in zip(todo.rows, limits, pictures, strict=True):
            if not 0 < rows <= limit:
                expected = allowed if rows > limit else "at least one token of each picture"
                got = f"{budget}, {rows} tokens of {picture.height} x {picture.width} pixels"
                raise refuse(REQUEST, expected, got)
        self._rehearse(todo)
        return todo

    def _rehearse(self, todo: Plan) -> None:
        """The worker's call without its tensors, where an error ends one request, not the engine.

        Raises ValueError as the operators do (the published policy cannot serve every grid), and
        unless the placeholders are as many as the tokens.
        """
        P, T = sum(todo.partitions), self._anatomy().patches ** 2
        features = torch.empty(P, T, 0, device="meta")
        rows = torch.empty(P, 1, T, device="meta")
        kept = ops.select(features, rows, rows, **todo.rules(self.settings))
        if kept.indices.shape[0] != sum(todo.rows):
            raise refuse(REQUEST, f"{kept.indices.shape[0]} placeholders", sum(todo.rows))

    def plan(self, budgets: Sequence[float | int], pictures: Sequence[geometry.Layout]) -> Plan:
        """What pictures keep that are cut up like this, with a budget for each."""
        return plan_of(self.settings, self._anatomy(), pictures, budgets)


def check_names(processor_kwargs: Mapping[str, object]) -> None:
    """Raise ValueError for an option that looks like ours and is none."""
    for name in processor_kwargs:
        if name.startswith("hired") and name != REQUEST:
            raise refuse("mm_processor_kwargs", REQUEST, name)
