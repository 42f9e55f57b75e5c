"""PTX as a list of instructions: what `ptx_machine` runs."""

import re
from dataclasses import dataclass, field

_DECLARATION = re.compile(r"\.reg\s+\.(\w+)\s+(.+)")
_GUARD = re.compile(r"@(!?)\s*([%\w$]+)\s+(.*)", re.DOTALL)
_ENTRY = re.compile(
    r"\.entry\s+[\w$]+\(\s*\.param\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]\s*\)", re.DOTALL
)


@dataclass
class Instruction:
    """One instruction; `op` is its name at the dots."""

    op: list[str]
    operands: list[str]
    guard: str | None = None
    unless: bool = False  # the guard is to be false
    target: int | None = None  # of a branch


@dataclass
class Program:
    """A kernel whose one parameter has this name and so many bytes."""

    parameter: str
    parameter_bytes: int
    instructions: list[Instruction] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)  # of registers, by their names without numbers


class _Scope:
    """What inline assembly declares between braces, made unique."""

    def __init__(self, number: int, outer: "_Scope | None") -> None:
        self.number, self.outer = number, outer
        self.names: dict[str, str] = {}

    def declare(self, name: str) -> str:
        self.names[name] = name if self.outer is None else f"{name}@{self.number}"
        return self.names[name]

    def find(self, name: str) -> str:
        if name in self.names:
            return self.names[name]
        return name if self.outer is None else self.outer.find(name)


def parse(text: str) -> Program:
    """Read the one kernel of a file."""
    text = re.sub(r"//[^\n]*", "", text)
    entry = _ENTRY.search(text)
    assert entry is not None, "no kernel with one parameter"
    program = Program(entry[1], int(entry[2]))
    labels: dict[str, int] = {}
    branches: list[tuple[Instruction, str, _Scope]] = []
    scope, scopes = None, 0
    for what, statement in _statements(text[text.index("{", entry.end()) :]):
        if what == "{":
            scope, scopes = _Scope(scopes, scope), scopes + 1
        elif what == "}":
            scope = scope.outer
            if scope is None:
                break
        elif what == ":":
            labels[scope.declare(statement)] = len(program.instructions)
        elif declared := _DECLARATION.match(statement):
            for name in declared[2].split(","):
                plain = name.strip().split("<")[0]
                program.kinds[scope.declare(plain) if "<" not in name else plain] = declared[1]
        elif not statement.startswith("."):
            instruction = _instruction(statement, scope)
            program.instructions.append(instruction)
            if instruction.op[0] == "bra":
                branches.append((instruction, instruction.operands[0], scope))
    for instruction, label, where in branches:
        instruction.target = labels[where.find(label)]
    return program


def _statements(text: str):
    """``(kind, text)``: "{", "}", ":" for a label and ";" for the rest."""
    start = at = depth = 0
    while at < len(text):
        char, before = text[at], text[start:at].strip()
        if depth == 0 and char in "{}" and not before:
            yield char, ""
            start = at + 1
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
        elif char == ";" and depth == 0:
            if before:
                yield ";", before
            start = at + 1
        elif char == ":" and re.fullmatch(r"[\w$]+", before) and text[at + 1 : at + 2] != ":":
            yield ":", before
            start = at + 1
        at += 1


def _instruction(statement: str, scope: _Scope) -> Instruction:
    guard, unless = None, False
    if guarded := _GUARD.match(statement):
        unless, guard, statement = bool(guarded[1]), scope.find(guarded[2]), guarded[3]
    name, _, rest = statement.partition(" ") if " " in statement else statement.partition("\t")
    name, tab, more = name.partition("\t")
    operands = [_renamed(each, scope) for each in _split(more + tab + rest)]
    return Instruction(name.strip().replace("::", "_").split("."), operands, guard, unless)


def _split(text: str) -> list[str]:
    """Operands; those in braces or brackets are one."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "{[") - (char in "}]")
        if char == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _renamed(operand: str, scope: _Scope) -> str:
    return re.sub(r"[%A-Za-z_$][\w$.]*", lambda found: scope.find(found[0]), operand)
