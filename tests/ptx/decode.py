"""Turns parsed instructions into functions, once per kernel.

An instruction family registers itself with `@opcode("add", "sub")`. Its function gets a `Decoder`,
takes the modifiers it knows, asks for readers and writers of the operands, and returns what is to
be done at each execution. A modifier that nobody took raises ParseError: nothing is ignored in
silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .errors import ParseError
from .lanes import RESCHEDULE, Lanes
from .parser import Instruction, Kernel, Variable, split_operands
from .ptx_types import SIGNED, TYPES, PtxType, ptx_type
from .shared_layout import static_shared_size
from .special import SPECIAL_PREDICATES, SPECIAL_REGISTERS

if TYPE_CHECKING:
    from .machine import Execute, Group

Array = np.ndarray
Reader = Callable[["Group", Lanes], Array]
Writer = Callable[["Group", Lanes, Array], None]
DecodeFunction = Callable[["Decoder"], "Execute"]
OPCODES: dict[str, DecodeFunction] = {}
_ADDRESS = re.compile(r"\[\s*([%$\w@]+)\s*(?:\+\s*(-?\d+))?\s*\]$")
_IMMEDIATE = re.compile(r"-?\d\w*$")


def opcode(*names: str) -> Callable[[DecodeFunction], DecodeFunction]:
    """Registers a decoding function for some opcodes."""

    def register(function: DecodeFunction) -> DecodeFunction:
        for name in names:
            OPCODES[name] = function
        return function

    return register


class Decoder:
    """One instruction while it is being turned into a function."""

    def __init__(
        self,
        kernel: Kernel,
        instruction: Instruction,
        slots: dict[str, int],
        variables: dict[str, Variable],
    ) -> None:
        """Starts on an instruction, given the registers' numbers and the module's variables."""
        self.kernel, self.instruction, self.variables = kernel, instruction, variables
        self.slots = slots
        self.modifiers = list(instruction.modifiers)
        self.operands = instruction.operands

    def decode(self) -> Execute:
        """The instruction as a function, its guard included."""
        instruction = self.instruction
        if instruction.opcode not in OPCODES:
            raise self.error("unknown instruction")
        execute = OPCODES[instruction.opcode](self)
        if self.modifiers:
            raise self.error(f"unknown modifier .{self.modifiers[0]} in")
        if instruction.guard is None or instruction.opcode in ("bra", "ret", "exit"):
            return execute
        predicate = self.guard()

        def guarded(group: Group, lanes: Lanes) -> int | None:
            active = lanes.where(predicate(group, lanes))
            if active.count == 0:
                return None
            result = execute(group, active)
            if result == RESCHEDULE and active is not lanes:
                rest = np.setdiff1d(lanes.index, active.index, assume_unique=True)
                return group.jump(Lanes(rest, False), np.full(rest.size, group.current + 1))
            return result

        return guarded

    def error(self, message: str) -> ParseError:
        """A ParseError that names the instruction and its line."""
        return ParseError(f"{message} `{self.instruction.text}` at {self.instruction.source}")

    def take(self, *names: str) -> str | None:
        """Takes the first of some modifiers that is present."""
        for name in names:
            if name in self.modifiers:
                self.modifiers.remove(name)
                return name
        return None

    def need(self, *names: str) -> str:
        """Takes one of some modifiers, which must be present."""
        name = self.take(*names)
        if name is None:
            raise self.error(f"expected one of .{', .'.join(names)} in")
        return name

    def type(self) -> PtxType:
        """Takes the last modifier as a type."""
        if not self.modifiers or self.modifiers[-1] not in TYPES:
            raise self.error("expected a type at the end of")
        return ptx_type(self.modifiers.pop())

    def guard(self) -> Reader | None:
        """Reader of the guard predicate, negated if the instruction says so."""
        name = self.instruction.guard
        if name is None:
            return None
        return self.read_predicate(("!" if self.instruction.negated else "") + name)

    def read_predicate(self, operand: str) -> Reader:
        """Reader of a predicate operand, possibly negated by `!`."""
        read = self.read(operand.removeprefix("!"), ptx_type("pred"))
        if operand.startswith("!"):
            return lambda group, lanes: ~read(group, lanes)
        return read

    def read(self, operand: int | str, kind: PtxType) -> Reader:
        """Reader of an operand's values.

        Immediates give one element, registers one per lane.
        """
        text = self.operands[operand] if isinstance(operand, int) else operand
        if text in self.slots:
            return self._read_register(text, kind)
        if text.startswith("%"):
            return self._read_special(text, kind)
        if text == "WARP_SZ":
            text = "32"
        if _IMMEDIATE.match(text):
            constant = kind.decode(kind.constant(text))
            return lambda group, lanes: constant
        return self._symbol(text, kind)

    def _symbol(self, text: str, kind: PtxType) -> Reader:
        """Reader of a variable's address."""
        name, _, text_offset = text.partition("+")
        kernel, offset = self.kernel, int(text_offset or 0)
        parameters = {p.name: p for p in kernel.parameters}
        for variables in (kernel.shared, kernel.local, parameters):
            if name in variables:
                address = np.array([variables[name].offset + offset]).astype(kind.storage)
                return lambda group, lanes: address
        if name not in self.variables:
            raise self.error(f"unknown operand {text} in")
        if self.variables[name].space == "shared":
            address = np.array([static_shared_size(kernel) + offset]).astype(kind.storage)
            return lambda group, lanes: address
        # Every device places the module's variables anew.
        return lambda group, lanes: np.array(
            [group.memory.variables[name].start + offset], kind.storage
        )

    def _read_register(self, name: str, kind: PtxType) -> Reader:
        slot = self.slots[name]
        held = ptx_type(self.kernel.registers[name])
        if held.size < kind.size or (held.kind == "predicate") != (kind.kind == "predicate"):
            raise self.error(f"register {name} does not hold a .{kind.name} in")
        narrow, storage, decode = held.size > kind.size, kind.storage, kind.decode

        def read(group: Group, lanes: Lanes) -> Array:
            if not group.complete[slot] and group.last_writer[slot] is not lanes:
                group.check_defined(slot, lanes)
            bits = group.registers[slot] if lanes.full else group.registers[slot][lanes.index]
            return decode(bits.astype(storage) if narrow else bits)

        return read

    def read_where(self, operand: int, kind: PtxType) -> Callable[[Group, Lanes, Array], Array]:
        """Reader of an operand that counts at some lanes only: the others need not have written it.

        Compilers select between a value and one that only the other branch has made.
        """
        read = self.read(operand, kind)
        slot = self.slots.get(self.operands[operand])
        if slot is None:
            return lambda group, lanes, needed: read(group, lanes)

        def read_needed(group: Group, lanes: Lanes, needed: Array) -> Array:
            if group.complete[slot]:
                return read(group, lanes)
            values = np.zeros(lanes.count, kind.storage)
            if needed.any():
                values[needed] = read(group, lanes.where(needed))
            return values

        return read_needed

    def _read_special(self, name: str, kind: PtxType) -> Reader:
        known = SPECIAL_PREDICATES if kind.kind == "predicate" else SPECIAL_REGISTERS
        if name not in known:
            raise self.error(f"unknown special register {name} in")
        storage, decode = kind.storage, kind.decode

        def read(group: Group, lanes: Lanes) -> Array:
            return decode(group.special[name][lanes.index].astype(storage))

        return read

    def write(self, operand: int | str, kind: PtxType) -> Writer:
        """Writer of values to a register; `_` discards them.

        A wider register gets the value extended by its sign or by zeros, as `ld` and `cvt` do.
        """
        text = self.operands[operand] if isinstance(operand, int) else operand
        if text == "_":
            return lambda group, lanes, values: None
        if text not in self.slots:
            raise self.error(f"unknown destination {text} in")
        slot = self.slots[text]
        held = ptx_type(self.kernel.registers[text])
        if held.size < kind.size or (held.kind == "predicate") != (kind.kind == "predicate"):
            raise self.error(f"register {text} cannot take a .{kind.name} in")
        wider = held.size > kind.size
        signed = SIGNED.get(held.size) if kind.kind == "signed" else None
        storage = held.storage

        def write(group: Group, lanes: Lanes, values: Array) -> None:
            bits = kind.encode(values)
            if wider:
                bits = values.astype(signed).view(storage) if signed else bits.astype(storage)
            if lanes.full:
                group.registers[slot][:] = bits
                group.complete[slot] = True
                return
            group.registers[slot][lanes.index] = bits
            if not group.complete[slot] and group.last_writer[slot] is not lanes:
                group.mark_defined(slot, lanes)

        return write

    def address(self, operand: int, space: str) -> Reader:
        """Reader of `[register + offset]`: signed 64-bit addresses, one per lane."""
        match = _ADDRESS.match(self.operands[operand])
        if not match:
            raise self.error("unknown address in")
        base, offset = match[1], int(match[2] or 0)
        width = TYPES[self.kernel.registers[base]].size if base in self.slots else 8
        read = self.read(base, ptx_type(f"u{8 * width}"))
        if space == "generic" and base not in self.slots and base not in self.variables:
            raise self.error("a named variable needs its state space in")

        def addresses(group: Group, lanes: Lanes) -> Array:
            values = read(group, lanes).astype(np.int64) + offset
            return values if values.size == lanes.count else np.full(lanes.count, values[0])

        return addresses

    def vector(self, operand: int) -> list[str]:
        """Names in `{a, b, c}`, or the one operand that stands there."""
        text = self.operands[operand]
        return split_operands(text[1:-1]) if text.startswith("{") else [text]
