"""The device that tests see: memory, launches, and what went wrong in a kernel."""

from __future__ import annotations

import ctypes

import numpy as np

from . import instructions  # noqa: F401  (registers the instructions)
from .compile import CompiledLibrary
from .decode import Decoder
from .errors import DeviceError
from .global_races import GlobalAccessLog
from .machine import Group, Launch, Program
from .memory import Memory
from .parser import Kernel
from .ptx_types import ptx_type

Array = np.ndarray
# Threads that run in lockstep: more of them share numpy's cost per call, fewer stay in the cache.
THREADS_PER_GROUP = 8192
_LAUNCH_FAILURE = 719
_UINT = ctypes.POINTER(ctypes.c_uint)
_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, _UINT, _UINT, ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t
)


class Device:
    """Runs the launchers of a compiled library, and its kernels in the interpreter.

    Attributes:
        launched: names of the kernels launched so far.
        instructions: number of instructions executed so far, each for a group of threads.
    """

    def __init__(self, library: CompiledLibrary, order: str | int = "forward") -> None:
        """Prepares a device with zeroed module variables.

        Args:
            library: what `compile_cuda` returned.
            order: in which order blocks run: "forward", "reverse", or a seed to shuffle them by. A
                kernel's result
                must not depend on it, up to the order in which atomics add floats.
        """
        if order not in ("forward", "reverse") and not isinstance(order, int):
            raise ValueError(f'expected order "forward", "reverse" or a seed, got {order!r}')
        self.library = library
        self.order = order
        self.launched: set[str] = set()
        self.memory = Memory()
        self._programs: dict[str, Program] = {}
        self._keep_alive: list[Array] = []
        self._failure: BaseException | None = None
        self._host = ctypes.CDLL(str(library.shared_object))
        self._callback = _Callback(self._on_launch)
        for variable in library.module.variables.values():
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
        self._host.fake_cudart_set_launch(self._callback)
        result = getattr(self._host, function)(*arguments)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self._host.fake_cudart_reset()
            raise failure
        return result

    def set_capture_status(self, status: int) -> None:
        """What cudaStreamIsCapturing reports: 0 none, 1 active, 2 invalidated."""
        self._host.fake_cudart_set_capture_status(status)

    def _on_launch(
        self, name: bytes, grid: object, block: object, arguments: object, dynamic_shared: int
    ) -> int:
        try:
            kernel = self._program(name.decode()).kernel
            size = max((p.offset + p.size for p in kernel.parameters), default=0)
            room = np.zeros(size + 32, np.uint8)
            parameters = room[-room.ctypes.data % 16 :][:size]
            for parameter, address in zip(kernel.parameters, arguments, strict=False):
                bits = ctypes.string_at(address, parameter.size)
                end = parameter.offset + parameter.size
                parameters[parameter.offset : end] = np.frombuffer(bits, np.uint8)
            three = [(d[0], d[1], d[2]) for d in (grid, block)]
            self.launch(name.decode(), three[0], three[1], parameters, dynamic_shared)
        except BaseException as failure:
            self._failure = self._failure or failure
            return _LAUNCH_FAILURE
        return 0

    def launch(
        self,
        name: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        parameters: Array,
        dynamic_shared: int,
    ) -> None:
        """Runs a kernel; `parameters` are the bytes of its parameters."""
        program = self._program(name)
        launch = Launch(program, grid, block, parameters, dynamic_shared)
        if launch.threads > program.kernel.max_threads:
            raise DeviceError(
                f"kernel {name} launched with {launch.threads} threads a block, "
                f"its launch bounds allow {program.kernel.max_threads}"
            )
        self.launched.add(name)
        blocks = np.arange(grid[0] * grid[1] * grid[2])
        if self.order == "reverse":
            blocks = blocks[::-1]
        elif self.order != "forward":
            blocks = np.random.default_rng(self.order).permutation(blocks)
        together = max(1, THREADS_PER_GROUP // launch.threads)
        log, storage = GlobalAccessLog(), []
        for start in range(0, blocks.size, together):
            group = Group(launch, self.memory, blocks[start : start + together], log, storage)
            group.run()
            group.finish()
        log.check()

    def _program(self, name: str) -> Program:
        if name not in self._programs:
            self._programs[name] = self._decode(self.library.module.kernels[name])
        return self._programs[name]

    def _decode(self, kernel: Kernel) -> Program:
        slots = {register: slot for slot, register in enumerate(kernel.registers)}
        steps = [Decoder(kernel, i, slots, self.memory).decode() for i in kernel.instructions]
        dtypes = [ptx_type(held).storage for held in kernel.registers.values()]
        return Program(kernel, steps, dtypes, list(kernel.registers))
