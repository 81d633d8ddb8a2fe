"""Reads the PTX text that nvcc writes into kernels, module variables and source lines.

Only the shape of the text is understood here; what an instruction means is decided in
`instructions/`. A directive that is not known raises ParseError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import ParseError, SourceLine
from .line_table import LineTable
from .ptx_types import ptx_type
from .shared_layout import place_module_variables


@dataclass
class Variable:
    """A `.global`, `.const`, `.shared`, `.local` or `.param` variable."""

    name: str
    offset: int
    size: int
    alignment: int
    space: str
    initial: bytes | None = None


@dataclass
class Instruction:
    """One PTX instruction.

    Attributes:
        opcode: the word before the first dot.
        modifiers: the words after it.
        operands: operand texts; registers declared in an inner scope carry a suffix that makes them
            unique.
        guard: predicate register of `@p`, or None.
        negated: whether the guard is `@!p`.
        text: the instruction as written, for messages.
        source: line of CUDA source it came from.
    """

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    text: str
    source: SourceLine


@dataclass
class Kernel:
    """A `.entry` function."""

    name: str
    parameters: list[Variable]
    registers: dict[str, str] = field(default_factory=dict)
    shared: dict[str, Variable] = field(default_factory=dict)
    local: dict[str, Variable] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    branch_tables: dict[str, list[str]] = field(default_factory=dict)
    max_threads: int = 1024
    # Blocks in a cluster, where the kernel fixes them.
    cluster: tuple[int, int, int] | None = None


@dataclass
class Module:
    """A PTX file. `functions` are names of `.func` bodies, which are skipped: a call raises."""

    kernels: dict[str, Kernel] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)


_LABEL = re.compile(r"([$\w]+)\s*:(?!:)")
_VARIABLE = re.compile(
    r"\.(?P<space>global|const|shared|local|param)\s+(?:\.align\s+(?P<align>\d+)\s+)?"
    r"\.(?P<type>\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)*?(?:\.align\s+\d+\s+)?)?"
    r"(?P<name>[$\w]+)(?P<array>\[\d*\])?\s*(?:=\s*(?P<value>.*))?$",
    re.S,
)
_REGISTERS = re.compile(r"\.reg\s*\.(\w+)\s+(.*)$", re.S)
_INSTRUCTION = re.compile(r"(?:@(!?)([%$\w]+)\s+)?([a-z]\w*)((?:(?:\.|::)\w+)*)\s*(.*)$", re.S)
_SPACE = re.compile(r"\s*")
_LINKAGE = re.compile(r"(?:\.(?:visible|weak|extern|common)\s+)*")
_DEFINITION = re.compile(rf"{_LINKAGE.pattern}\.(entry|func|section)\b")
# What concerns the assembler alone; `.file` is read by LineTable.
_IGNORED = re.compile(r"^\s*\.(?:version|target|address_size|file)\b[^\n]*", re.M)


def split_operands(text: str) -> list[str]:
    """Splits at the commas that stand outside of brackets and braces."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def parse_module(text: str) -> Module:
    """Parses one PTX file."""
    lines = LineTable(text)
    text = _IGNORED.sub("", re.sub(r"//[^\n]*", "", text))
    module, position = Module(), 0
    while (position := _SPACE.match(text, position).end()) < len(text):
        header = _DEFINITION.match(text, position)
        if not header:
            statement, position = _statement(text, position)
            _module_variable(module, _LINKAGE.sub("", statement, 1), ".extern" in statement)
            continue
        opening, semicolon = text.find("{", position), text.find(";", position)
        if header[1] == "func" and 0 <= semicolon < opening:
            position = semicolon + 1  # a declaration
            continue
        end = _closing_brace(text, opening)
        _parse_definition(module, header[1], text[position:opening], text[opening + 1 : end], lines)
        position = end + 1
    for kernel in module.kernels.values():
        place_module_variables(kernel, module.variables)
    return module


def _closing_brace(text: str, opening: int) -> int:
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, opening):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise ParseError(f"unclosed brace: {text[opening : opening + 60]!r}")


def _statement(text: str, position: int) -> tuple[str, int]:
    end = text.find(";", position)
    if end < 0:
        raise ParseError(f"unknown PTX: {text[position : position + 60]!r}")
    return " ".join(text[position:end].split()), end + 1


def _module_variable(module: Module, statement: str, extern: bool) -> None:
    match = _VARIABLE.match(statement)
    if not match:
        raise ParseError(f"unknown directive: {statement!r}")
    variable = _variable(match, 0)
    if extern and variable.space != "shared":
        raise ParseError(f"external variable: {statement!r}")
    module.variables[variable.name] = variable


def _variable(match: re.Match[str], used: int) -> Variable:
    element = ptx_type(match["type"])
    length = match["array"]
    size = element.size * (1 if length is None else int(length[1:-1] or 0))
    alignment = int(match["align"] or element.size)
    offset = -(-used // alignment) * alignment
    initial = None
    if match["value"] is not None:
        words = split_operands(match["value"].strip().removeprefix("{").removesuffix("}"))
        if not all(re.fullmatch(r"-?\d+U?|0[xfd][0-9a-fA-F]+", word) for word in words):
            raise ParseError(f"initialiser of {match['name']}: {match['value'][:60]!r}")
        initial = b"".join(element.constant(word).tobytes() for word in words).ljust(size, b"\0")
    return Variable(match["name"], offset, size, alignment, match["space"], initial)


def _parse_definition(module: Module, kind: str, header: str, body: str, lines: LineTable) -> None:
    if kind == "section":
        return
    if kind == "func":
        module.functions.add(re.findall(r"([$\w]+)\s*(?:\(|$)", header)[-1])
        return
    match = re.search(r"\.entry\s+([$\w]+)\s*(?:\((.*?)\))?\s*([^()]*)$", header, re.S)
    if not match:
        raise ParseError(f"kernel header: {header!r}")
    kernel, used = Kernel(match[1], []), 0
    for text in split_operands(match[2] or ""):
        parameter = _VARIABLE.match(" ".join(text.split()))
        if not parameter:
            raise ParseError(f"kernel parameter: {text!r}")
        kernel.parameters.append(_variable(parameter, used))
        used = kernel.parameters[-1].offset + kernel.parameters[-1].size
    for directive in re.findall(r"\.\w+[^.]*", match[3]):
        name, *values = re.findall(r"\w+", directive)
        if name == "maxntid":
            kernel.max_threads = 1
            for value in values:
                kernel.max_threads *= int(value)
        elif name == "reqnctapercluster":
            x, y, z = (*map(int, values), 1, 1)[:3]
            kernel.cluster = (x, y, z)
        elif name not in ("minnctapersm", "maxnreg", "explicitcluster", "maxclusterrank"):
            raise ParseError(f"unknown directive {directive.strip()!r} of kernel {kernel.name}")
    _BodyParser(kernel, lines).parse(body)
    module.kernels[kernel.name] = kernel


class _BodyParser:
    """Splits a kernel's body into statements; braces open scopes with registers of their own."""

    def __init__(self, kernel: Kernel, lines: LineTable) -> None:
        self.kernel = kernel
        self.lines = lines
        self.scopes: list[dict[str, str]] = [{}]
        self.scope_count = 0
        self.source = SourceLine("?", 0)

    def parse(self, body: str) -> None:
        position = 0
        while (position := _SPACE.match(body, position).end()) < len(body):
            if body[position] == "{":
                self.scope_count += 1
                self.scopes.append({})
                position += 1
            elif body[position] == "}":
                self.scopes.pop()
                position += 1
            elif body.startswith(".loc", position) and not body.startswith(".local", position):
                end = body.find("\n", position)
                self.source = self.lines.resolve(body[position:end], self.source)
                position = end
            elif label := _LABEL.match(body, position):
                self.kernel.labels[label[1]] = len(self.kernel.instructions)
                position = label.end()
            elif body[position] == ";":
                position += 1
            else:
                statement, position = _statement(body, position)
                self._handle(statement)

    def _handle(self, statement: str) -> None:
        kernel = self.kernel
        if statement.startswith(".reg"):
            self._declare_registers(statement)
        elif statement.startswith((".shared", ".local")):
            match = _VARIABLE.match(statement)
            if not match:
                raise ParseError(f"unknown declaration: {statement!r}")
            table = kernel.shared if match["space"] == "shared" else kernel.local
            used = max((v.offset + v.size for v in table.values()), default=0)
            table[match["name"]] = _variable(match, used)
        elif statement.startswith(".branchtargets"):
            label = list(kernel.labels)[-1]
            kernel.branch_tables[label] = split_operands(statement.removeprefix(".branchtargets"))
        elif statement.startswith(".pragma"):
            if "nounroll" not in statement:
                raise ParseError(f"unknown pragma: {statement!r}")
        elif statement.startswith(".param"):
            pass  # an argument of a call; the call itself is refused when its kernel is launched
        else:
            kernel.instructions.append(self._instruction(statement))

    def _declare_registers(self, statement: str) -> None:
        match = _REGISTERS.match(statement)
        if not match:
            raise ParseError(f"unknown declaration: {statement!r}")
        for word in split_operands(match[2]):
            family = re.fullmatch(r"([%$\w]+?)<(\d+)>", word)
            names = [f"{family[1]}{i}" for i in range(int(family[2]))] if family else [word]
            for name in names:
                unique = name if len(self.scopes) == 1 else f"{name}@{self.scope_count}"
                self.scopes[-1][name] = unique
                self.kernel.registers[unique] = match[1]

    def _rename(self, text: str) -> str:
        """Replaces registers of inner scopes by their unique names."""
        if len(self.scopes) == 1:
            return text
        names: dict[str, str] = {}
        for scope in self.scopes[1:]:
            names.update(scope)
        return re.sub(r"[%$\w]+", lambda word: names.get(word[0], word[0]), text) if names else text

    def _instruction(self, statement: str) -> Instruction:
        match = _INSTRUCTION.match(statement)
        if not match:
            raise ParseError(f"unknown statement: {statement!r}")
        negation, guard, opcode, modifiers, operands = match.groups()
        return Instruction(
            opcode,
            tuple(modifiers.split(".")[1:]),
            tuple(split_operands(self._rename(operands))),
            self._rename(guard) if guard else None,
            negation == "!",
            statement,
            self.source,
        )
