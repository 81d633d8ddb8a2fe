"""The PTX interpreter names every seeded defect with its line and is silent on correct kernels."""

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest

from tests.ptx import (
    CompileError,
    Device,
    DeviceError,
    NvccNotFound,
    ParseError,
    compile_cuda,
    find_nvcc,
    require_nvcc,
)
from tests.ptx.parser import parse_module
from tests.ptx.runtime import decode

SAMPLES = Path(__file__).parent / "ptx" / "samples"
BUGS, LEGAL = SAMPLES / "bugs.cu", SAMPLES / "legal.cu"
KERNEL = re.compile(r"__global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(")


def seeded_bugs(path):
    """(kernel, line, message) of every kernel of a file of defects."""
    kernel = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := KERNEL.match(line):
            kernel = match[1]
        if match := re.search(r"// BUG: (.*)", line):
            yield pytest.param(kernel, number, match[1], id=kernel)


def legal_kernels(path):
    """(kernel, expected values) of every kernel of a file of correct ones."""
    text = path.read_text()
    for value, kernel in re.findall(r"// VALUE: (.*)\n__global__ void (\w+)\(", text):
        yield pytest.param(kernel, value, id=kernel)


@pytest.fixture(scope="module")
def library():
    require_nvcc()
    return compile_cuda([BUGS, LEGAL])


def run(device, launcher, kernel):
    """Calls a kernel of these files on buffers with a gap between them."""
    room = np.zeros(1024, np.float32)
    out, values = room[:256], room[600:900]
    values[:] = np.arange(1, 301)
    pointers = device.register(out), device.register(values, writable=False)
    assert device.call(launcher, kernel.encode(), *pointers, 256) == 0
    return out


def check_bug(device, path, kernel, line, message):
    """Asserts that a defect is reported as its line says."""
    with pytest.raises(DeviceError) as caught:
        run(device, "run_bug", kernel)
    report = str(caught.value)
    assert message in report
    assert f"\n  at {path}:{line}: " in report
    assert re.search(rf"kernel \w*{kernel}\w*, block \(\d+, 0, 0\) thread \(\d+, 0, 0\)", report)


def check_legal(device, path, kernel, value):
    """Asserts that a correct kernel gives the values that its comment says."""
    out = run(device, "run_legal", kernel)
    case = re.search(rf"CASE\({kernel}, (\d+), (?:\d+, )?(\d+), \d+\)", path.read_text())
    threads = int(case[1]) * int(case[2])
    t = np.arange(256)
    expected = np.broadcast_to(eval(value, {"t": t, "where": np.where}), 256)
    np.testing.assert_array_equal(out, np.where(t < threads, expected, 0))


@pytest.mark.parametrize(("kernel", "line", "message"), list(seeded_bugs(BUGS)))
def test_seeded_bug_is_named_with_its_line(library, kernel, line, message):
    check_bug(Device(library), BUGS, kernel, line, message)


@pytest.mark.parametrize("order", ["forward", "reverse", 1])
@pytest.mark.parametrize(("kernel", "value"), list(legal_kernels(LEGAL)))
def test_legal_kernel_is_silent_and_right(library, kernel, value, order):
    check_legal(Device(library, order), LEGAL, kernel, value)


def test_every_sample_kernel_is_tested():
    for path, tested in ((BUGS, seeded_bugs(BUGS)), (LEGAL, legal_kernels(LEGAL))):
        assert set(KERNEL.findall(path.read_text())) == {param.id for param in tested}


@pytest.fixture(scope="module")
def launches():
    require_nvcc()
    return compile_cuda([SAMPLES / "launches.cu"])


def test_atomics(launches):
    device = Device(launches)
    values = np.random.default_rng(0).integers(1, 2**32, 1000, dtype=np.uint32)
    counters, total, pair = (
        np.zeros(12, np.uint32),
        np.zeros(1, np.float32),
        np.zeros(2, np.float16),
    )
    buffers = [device.register(x) for x in (counters, values, total, pair)]
    assert device.call("run_atomics", *buffers, values.size) == 0
    assert counters[:8].tolist() == np.bincount(values % 8, minlength=8).tolist()
    assert counters[8] == values.max()
    assert counters[9] == np.bitwise_xor.reduce(values)
    assert counters[10] == 1000 % 7
    assert counters[11] == values[0]
    assert total[0] == 250
    assert pair.tolist() == [1000, 500]


def test_warp_wide_instructions(launches):
    device = Device(launches)
    values = np.random.default_rng(1).integers(0, 1000, 64, dtype=np.uint32)
    out = np.zeros((64, 8), np.uint32)
    assert device.call("run_warp_wide", device.register(out), device.register(values)) == 0
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    lane = np.arange(32)
    for warp, rows in zip(values.reshape(2, 32), out.reshape(2, 32, 8), strict=True):
        assert (rows[:, 0] == (bits * (warp & 1)).sum()).all()
        assert rows[:, 1].tolist() == [(bits * (warp & 3 == w & 3)).sum() for w in warp]
        assert (rows[:, 2] == warp.sum()).all()
        assert (rows[:, 3] == warp.min()).all()
        assert rows[:, 4].tolist() == warp[np.where(lane % 16 >= 3, lane - 3, lane)].tolist()
        assert rows[:, 5].tolist() == warp[np.where(lane % 8 < 3, lane + 5, lane)].tolist()
        assert rows[:, 6].tolist() == warp[warp & 31].tolist()
        assert (rows[:, 7] == (warp == 1).any() + 2 * (warp != 1).all()).all()


class Table(ctypes.Structure):
    _fields_ = (
        ("out", ctypes.c_void_p * 3),
        ("shift", ctypes.c_char),
        ("length", ctypes.c_int16 * 3),
    )


def test_structures_by_value(launches):
    device = Device(launches)
    outputs = [np.zeros(length, np.float32) for length in (5, 64, 1)]
    pointers = (ctypes.c_void_p * 3)(*(device.register(x).value for x in outputs))
    table = Table(pointers, b"\xfd", (ctypes.c_int16 * 3)(5, 64, 1))
    assert device.call("run_by_value", ctypes.byref(table), ctypes.c_float(0.5)) == 0
    for out in outputs:
        assert out.tolist() == [0.5 * i - 3 for i in range(out.size)]


def test_launch_errors_reach_the_launcher(launches):
    device = Device(launches)
    pointer = device.register(np.zeros(2048, np.float32))
    assert device.call("run_bounded", pointer, 128) == 0
    assert device.call("run_bounded", pointer, 0) == 9
    assert device.call("run_bounded", pointer, 1025) == 9
    with pytest.raises(DeviceError, match="launch bounds allow 128"):
        device.call("run_bounded", pointer, 256)
    assert device.call("run_bounded", pointer, 128) == 0


def test_large_dynamic_shared_memory_needs_the_attribute(launches):
    device, out = Device(launches), np.zeros(1, np.float32)
    pointer = device.register(out)
    assert device.call("run_dynamic_shared", pointer, 16 * 1024, 0) == 1
    assert device.call("run_dynamic_shared", pointer, 16 * 1024, 1) == 0
    assert out[0] == 3


def test_runtime_queries(launches):
    device = Device(launches)
    numbers, name = [ctypes.c_int(-1) for _ in range(3)], ctypes.c_char_p()
    device.set_capture_status(1)
    arguments = [ctypes.byref(x) for x in (*numbers, name)]
    assert device.call("query_device", *arguments) == 0
    assert [x.value for x in numbers] == [132, 1, 16]
    assert name.value == b"cudaErrorInvalidConfiguration"
    device.set_capture_status(0)


def test_endless_loop_is_ended(launches, monkeypatch):
    monkeypatch.setattr("tests.ptx.machine.MAX_STEPS", 1000)
    device = Device(launches)
    with pytest.raises(DeviceError, match=r"still running after 1000 instructions\n.*endless"):
        device.call("run_endless", device.register(np.zeros(1, np.uint32)))


@pytest.mark.parametrize(("order", "last"), [("forward", 4999), ("reverse", 0)])
def test_order_of_blocks(launches, order, last):
    device, out, copy = Device(launches, order), np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    assert device.call("run_last_block", device.register(out), device.register(copy)) == 0
    assert out[0] == last
    assert copy[0] == 2**32 - 1


def test_launched_kernels_are_recorded(launches):
    device = Device(launches)
    device.call("run_bounded", device.register(np.zeros(128, np.float32)), 128)
    assert len(device.launched) == 1
    assert device.launched < launches.kernels
    assert len(launches.kernels) == 7


def test_registration_is_checked(launches):
    device = Device(launches)
    array = np.zeros(8, np.float32)
    assert device.register(array).value == device.register(array).value == array.ctypes.data
    with pytest.raises(ValueError, match="overlaps"):
        device.register(array[2:])
    with pytest.raises(ValueError, match="contiguous"):
        device.register(array.reshape(2, 4).T)
    with pytest.raises(ValueError, match="order"):
        Device(launches, "sideways")


def test_missing_runtime_function_fails_to_link(tmp_path, monkeypatch):
    require_nvcc()
    monkeypatch.setattr("tests.ptx.compile.CACHE", tmp_path / "cache")
    source = tmp_path / "synchronizes.cu"
    source.write_text('extern "C" int f() { return cudaDeviceSynchronize(); }\n')
    with pytest.raises(CompileError, match="undefined reference to `cudaDeviceSynchronize'"):
        compile_cuda([source])


def test_second_build_comes_from_the_cache(launches, monkeypatch):
    monkeypatch.setattr("tests.ptx.compile._call", lambda *command: pytest.fail("compiled again"))
    assert compile_cuda([SAMPLES / "launches.cu"]).shared_object == launches.shared_object


def test_nvcc_is_looked_for(tmp_path, monkeypatch):
    for name in ("home", "path"):
        nvcc = tmp_path / name / "bin" / "nvcc"
        nvcc.parent.mkdir(parents=True)
        nvcc.write_text("")
        nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    assert find_nvcc() == tmp_path / "home" / "bin" / "nvcc"
    monkeypatch.delenv("CUDA_HOME")
    assert find_nvcc() == tmp_path / "path" / "bin" / "nvcc"


def test_missing_nvcc_skips_with_a_reason(monkeypatch):
    monkeypatch.setattr("os.access", lambda *arguments: False)
    with pytest.raises(NvccNotFound):
        compile_cuda([BUGS])
    with pytest.raises(
        pytest.skip.Exception, match="CUDA sources cannot be compiled here: no nvcc"
    ):
        require_nvcc()


PRODUCT = "mma.sync.aligned.m16n8k16"
MATRICES = "{f, f, f, f}, {r, r, r, r}, {r, r}, {f, f, f, f}"
UNKNOWN = [
    ("wibble.f32 f, f;", "unknown instruction `wibble.f32 f, f`"),
    ("add.wibble.f32 f, f, f;", "unknown modifier .wibble"),
    ("add.rz.f64 d, d, d;", "rounding mode .rz is not supported"),
    ("add.f8 f, f, f;", "expected a type"),
    ("mov.u32 r, %clock;", "unknown special register %clock"),
    ("mov.u64 d, %globaltimer;", "unknown special register %globaltimer"),
    ("ld.global.wibble.f32 f, [d];", "unknown modifier .wibble"),
    ("cvt.rn.satfinite.bf16.f32 h, f;", "unknown modifier .satfinite"),
    ("barrier.cluster.sync;", "expected one of .arrive, .wait"),
    ("mapa.u32 r, r, r;", "unknown type"),
    ("mbarrier.init.shared.b64 [r], r;", "unknown instruction `mbarrier"),
    ("cp.async.wait_all;", "unknown instruction `cp"),
    ("call helper, (r);", "not inlined is not supported: `call helper"),
    ("{ .param .b32 a; st.param.b32 [a], r; }", "not inlined is not supported: `st.param"),
    (f"{PRODUCT}.row.col.f32.bf16.f16.f32 {MATRICES};", "unknown types of matrices"),
    (f"{PRODUCT}.row.col.f16.f16.f16.f16 {MATRICES};", "unknown types of matrices"),
    (f"{PRODUCT}.row.col.f32.e4m3.e4m3.f32 {MATRICES};", "expected a type"),
    (f"{PRODUCT}.col.col.f32.f16.f16.f32 {MATRICES};", "expected one of .row"),
    (f"{PRODUCT}.row.col.wibble.f32.f16.f16.f32 {MATRICES};", "unknown modifier .wibble"),
    (f"{PRODUCT}.row.col.f32.f16.f16.f32 {{f, f}}, r, r, r;", "expected 4 registers in operand 1"),
    ("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 f, r, r, f;", "expected one of .m16n8k16"),
    ("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {r, r}, [r];", "unknown instruction `ldmatrix"),
    (".wibble 3;", "unknown statement"),
    ("@p .wibble;", "unknown statement"),
    ("add.f32 f, f, 0d3ff0000000000000;", "immediate 0d3ff0000000000000"),
    ("add.f32 f, f, nowhere;", "unknown operand nowhere"),
    ("bra nowhere;", "unknown label"),
]


@pytest.mark.parametrize(("statement", "message"), UNKNOWN)
def test_unknown_ptx_is_an_error(statement, message):
    declarations = ".reg .pred p; .reg .b16 h; .reg .f32 f; .reg .b32 r; .reg .b64 d;"
    text = f".version 9.0\n.entry k()\n{{ {declarations} {statement} ret; }}\n"
    with pytest.raises(ParseError, match=message):
        decode(parse_module(text).kernels["k"], {})


@pytest.mark.parametrize(
    "text", [".wibble 3;", ".entry k() .wibble 3 { ret; }", ".entry k( { ret; }"]
)
def test_unknown_directive_is_an_error(text):
    with pytest.raises(ParseError):
        parse_module(text)
