# SPDX-License-Identifier: Apache-2.0
"""Which function of a C++ source each line stands in, by its braces. Written for csrc/, laid out as
clang-format does; what it cannot make out belongs to no function."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

NO_FUNCTIONS = ("noexcept", "requires", "alignas", "decltype")


def bare(source: str) -> str:
    """The source without comments, strings and preprocessor lines; line by line the same."""
    kept = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'|^[ \t]*#(?:\\\n|[^\n])*"
    blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
    return re.sub(kept, blank, source, flags=re.DOTALL | re.MULTILINE)


def opened(head: str) -> tuple[str, str]:
    """What a brace opens, from what stands before it: its sort and name."""
    head = re.sub(r"\s+", " ", head).strip()
    if re.search(r"\b(namespace|extern)\b[^()]*$", head):
        return "scope", ""
    if found := re.search(r"\b(?:class|struct|union)\s+(\w+)[^()=]*$", head):
        return "class", found[1]
    flat, depth = "", 0
    for char in head:  # parentheses, emptied
        depth -= char == ")"
        flat += char if depth == 0 else ""
        depth += char == "("
    flat = re.sub(r"\b(public|private|protected):", "", flat)
    flat = re.split(r"(?<!:):(?!:)", flat)[0]  # what follows initialises members
    calls = re.findall(r"(operator\s*[^\s\w(]+|[\w~]+)\s*\(\)", flat)
    names = [name for name in calls if name not in NO_FUNCTIONS]
    return ("function", names[-1]) if names and "=" not in flat.split("()")[-1] else ("other", "")


def functions(source: str) -> list[str]:
    """For each line, the function that it stands in, its head included; "" outside. In a class
    `Class::function`; a lambda is part of its function."""
    text = bare(source)
    names = [""] * (text.count("\n") + 2)
    stack: list[tuple[str, str, int]] = []
    start = 0  # of the statement
    for at, char in enumerate(text):
        if char not in ";{}":
            continue
        if char == "{":
            inside = any(sort == "function" for sort, _, _ in stack)
            sort, name = ("other", "") if inside else opened(text[start:at])
            if sort == "function":
                start = re.compile(r"(\s|(public|private|protected):)*").match(text, start).end()
                name = "::".join([*(outer for kind, outer, _ in stack if kind == "class"), name])
            stack.append((sort, name, start))
        elif char == "}" and stack:
            sort, name, begin = stack.pop()
            if sort == "function":
                first, last = text.count("\n", 0, begin) + 1, text.count("\n", 0, at) + 1
                names[first : last + 1] = [name] * (last + 1 - first)
        if not any(sort == "function" for sort, _, _ in stack):
            start = at + 1
    return names


@lru_cache
def functions_of(path: str) -> list[str]:
    return functions(Path(path).read_text())
