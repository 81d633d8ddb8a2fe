"""The device that tests see: memory, launches, and what went wrong in a kernel."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

import numpy as np

from . import instructions  # noqa: F401  (registers the instructions)
from .compile import CompiledLibrary
from .decode import Decoder
from .errors import DeviceError
from .global_races import GlobalAccessLog
from .machine import Dimensions, Group, Launch, Program
from .memory import Memory
from .parser import Kernel, Variable
from .ptx_types import ptx_type
from .shared_layout import static_shared_size

Array = np.ndarray
# Threads that run in lockstep: more of them share numpy's cost per call, fewer stay in the cache.
THREADS_PER_GROUP = 8192
_LAUNCH_FAILURE = 719
_UINT = ctypes.POINTER(ctypes.c_uint)


class _Facts(ctypes.Structure):
    """What the stand-in for the runtime asks about a kernel."""

    _fields_ = (
        ("target", ctypes.c_int),
        ("static_shared", ctypes.c_int),
        ("max_threads", ctypes.c_int),
        ("cluster", ctypes.c_uint * 3),
    )


_LaunchCallback = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    _UINT,
    _UINT,
    _UINT,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_size_t,
)
_FactsCallback = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.POINTER(_Facts))


@dataclass(frozen=True)
class Properties:
    """What host code can ask about a device; shared memory in bytes."""

    major: int
    minor: int
    processors: int
    largest_shared: int
    shared_per_processor: int
    cluster_launch: bool
    l2_bytes: int
    clock_khz: int

    def as_array(self) -> ctypes.Array[ctypes.c_int]:
        """The structure of integers that the stand-in takes."""
        values = [int(value) for value in vars(self).values()]
        return (ctypes.c_int * len(values))(*values)


H200 = Properties(9, 0, 132, 227 * 1024, 228 * 1024, True, 50 * 2**20, 1_980_000)
A100 = Properties(8, 0, 108, 163 * 1024, 164 * 1024, False, 40 * 2**20, 1_410_000)


class Device:
    """Runs the launchers of a compiled library, and its kernels in the interpreter.

    Attributes:
        launched: names of the kernels launched so far.
        shapes: in what blocks and clusters each of them was.
        instructions: number of instructions executed so far, each for a group of threads.
    """

    def __init__(
        self,
        library: CompiledLibrary,
        order: str | int = "forward",
        properties: Properties = H200,
    ) -> None:
        """Prepares a device with zeroed module variables.

        Args:
            library: what `compile_cuda` returned.
            order: in which order blocks (clusters) run: "forward", "reverse", or a seed to shuffle
                them by. A kernel's result must not depend on it, up to the order in which atomics
                add floats.
            properties: which device it is. Host code may keep what it has asked once, so use one
                device for each library.
        """
        if order not in ("forward", "reverse") and not isinstance(order, int):
            raise ValueError(f'expected order "forward", "reverse" or a seed, got {order!r}')
        self.library = library
        self.order = order
        self.properties = properties
        self.launched: set[str] = set()
        self.shapes: set[tuple[str, Dimensions, Dimensions]] = set()
        self.memory = Memory()
        self._keep_alive: list[Array] = []
        self._failure: BaseException | None = None
        self._host = ctypes.CDLL(str(library.shared_object))
        self._callbacks = _LaunchCallback(self._on_launch), _FactsCallback(self._on_question)
        for variable in library.module.variables.values():
            if variable.space != "shared":
                self.memory.add_variable(variable)

    def register(self, array: Array, writable: bool = True) -> ctypes.c_void_p:
        """Makes a contiguous numpy array device memory and returns its address.

        Registering the same array again returns the same address.
        """
        self._keep_alive.append(array)
        name = f"buffer of {array.dtype}{list(array.shape)}"
        self.memory.register(array, writable, name)
        return ctypes.c_void_p(array.ctypes.data)

    def call(self, function: str, *arguments: object) -> int:
        """Calls an `extern "C"` launcher and returns its int.

        Raises:
            DeviceError: a kernel that it launched showed a defect.
            ParseError: a kernel uses PTX that the interpreter does not know.
        """
        self._failure = None
        self._host.fake_cudart_set_device(self.properties.as_array(), *self._callbacks)
        result = getattr(self._host, function)(*arguments)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._host.fake_cudart_reset()
            raise failure
        return result

    def set_capture_status(self, status: int) -> None:
        """What cudaStreamIsCapturing reports: 0 none, 1 active, 2 invalidated."""
        self._host.fake_cudart_set_capture_status(status)

    def _on_question(self, name: bytes, facts: object) -> None:
        kernel = self.library.module.kernels[name.decode()]
        target = int(re.sub(r"\D", "", self.library.architecture))
        shared = static_shared_size(kernel)
        cluster = (ctypes.c_uint * 3)(*(kernel.cluster or (0, 0, 0)))
        facts[0] = _Facts(target, shared, kernel.max_threads, cluster)

    def _on_launch(
        self,
        name: bytes,
        grid: object,
        block: object,
        cluster: object,
        explicit_cluster: int,
        arguments: object,
        dynamic_shared: int,
    ) -> int:
        try:
            kernel = self.library.module.kernels[name.decode()]
            size = max((p.offset + p.size for p in kernel.parameters), default=0)
            room = np.zeros(size + 32, np.uint8)
            parameters = room[-room.ctypes.data % 16 :][:size]
            for parameter, address in zip(kernel.parameters, arguments, strict=False):
                bits = ctypes.string_at(address, parameter.size)
                end = parameter.offset + parameter.size
                parameters[parameter.offset : end] = np.frombuffer(bits, np.uint8)
            three = [(d[0], d[1], d[2]) for d in (grid, block, cluster)]
            explicit = bool(explicit_cluster)
            program = self._program(name.decode())
            self.launch(Launch(program, *three[:2], parameters, dynamic_shared, three[2], explicit))
        except BaseException as failure:
            self._failure = self._failure or failure
            return _LAUNCH_FAILURE
        return 0

    def launch(self, launch: Launch) -> None:
        """Runs a kernel."""
        kernel = launch.program.kernel
        if launch.threads > kernel.max_threads:
            raise DeviceError(
                f"kernel {kernel.name} launched with {launch.threads} threads a block, "
                f"its launch bounds allow {kernel.max_threads}"
            )
        self.launched.add(kernel.name)
        self.shapes.add((kernel.name, launch.block, launch.cluster))
        grid = launch.grid
        clusters = np.arange(grid[0] * grid[1] * grid[2] // launch.cluster_size)
        if self.order == "reverse":
            clusters = clusters[::-1]
        elif self.order != "forward":
            clusters = np.random.default_rng(self.order).permutation(clusters)
        together = max(1, THREADS_PER_GROUP // (launch.threads * launch.cluster_size))
        log, storage = GlobalAccessLog(), []
        for start in range(0, clusters.size, together):
            blocks = launch.in_clusters(clusters[start : start + together])
            group = Group(launch, self.memory, blocks, log, storage)
            group.run()
            group.finish()
        log.check()

    def _program(self, name: str) -> Program:
        programs = self.library.programs
        if name not in programs:
            programs[name] = decode(
                self.library.module.kernels[name], self.library.module.variables
            )
        return programs[name]


def decode(kernel: Kernel, variables: dict[str, Variable]) -> Program:
    """Makes a kernel executable."""
    slots = {register: slot for slot, register in enumerate(kernel.registers)}
    steps = [Decoder(kernel, i, slots, variables).decode() for i in kernel.instructions]
    dtypes = [ptx_type(held).storage for held in kernel.registers.values()]
    return Program(kernel, steps, dtypes, list(kernel.registers))
