// The Python module regops._C: fast eager entries to the ops, and facts about the build.
//
// The ops themselves are registered with torch's dispatcher when this library loads
// (torch.ops.regops).
#include <atomic>
#include <variant>

#include <ATen/Parallel.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include "cpu/dropout.h"
#include "cpu/isa.h"
#include "ops/adamw.h"
#include "ops/contiguity.h"
#include "ops/copy.h"
#include "ops/cross_entropy_signature.h"
#include "ops/dropconnect_linear.h"
#include "ops/dropout.h"
#include "ops/grad_norm.h"
#include "ops/read_write.h"
#include "ops/sgdw.h"
#ifdef REGOPS_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace py = pybind11;

namespace {

// A list of tensors that Python keeps alive meanwhile. Borrowed, since a second owner of a tensor
// takes and releases its Python object: 30 ns, of which a step of 1000 parameters has 5000.
class ListOfTensors {
 public:
  ListOfTensors() = default;
  ListOfTensors(ListOfTensors&&) = default;
  ~ListOfTensors() {
    for (at::Tensor& tensor : tensors_) Borrow::destroyBorrow(tensor);
  }

  void reserve(size_t size) { tensors_.reserve(size); }
  void append(const at::Tensor& tensor) { tensors_.push_back(Borrow::createBorrow(tensor)); }
  at::TensorList list() const { return tensors_; }

 private:
  using Borrow = c10::MaybeOwnedTraits<at::Tensor>;
  std::vector<at::Tensor> tensors_;
};

}  // namespace

namespace pybind11::detail {

template <>
struct type_caster<ListOfTensors> {
  PYBIND11_TYPE_CASTER(ListOfTensors, const_name("list[torch.Tensor]"));

  bool load(handle source, bool) {
    if (!PyList_Check(source.ptr())) return false;
    const Py_ssize_t size = PyList_GET_SIZE(source.ptr());
    value.reserve(size);
    for (Py_ssize_t i = 0; i < size; ++i) {
      PyObject* const item = PyList_GET_ITEM(source.ptr(), i);
      if (!THPVariable_Check(item)) return false;
      value.append(THPVariable_Unpack(item));
    }
    return true;
  }
};

}  // namespace pybind11::detail

namespace {

py::dict build_info() {
  py::list compiled;
  for (const auto isa :
       {regops::cpu::Isa::baseline, regops::cpu::Isa::avx2, regops::cpu::Isa::avx512}) {
    if (regops::cpu::isa_supported(isa)) compiled.append(regops::cpu::isa_name(isa));
  }
  py::dict info;
  info["cpu_capabilities"] = compiled;
  info["cpu_capability"] = regops::cpu::isa_name(regops::cpu::active_isa());
  info["compiler"] = __VERSION__;
  info["torch_compiled_with"] = TORCH_VERSION;
#ifdef REGOPS_WITH_CUDA
  info["cuda"] = regops_cuda_version();
  info["cuda_architectures"] = REGOPS_CUDA_ARCHITECTURES;
#else
  info["cuda"] = py::none();
  info["cuda_architectures"] = py::none();
#endif
  return info;
}

// The first words of a key's stream from block `first` on.
std::vector<uint32_t> variate_blocks(uint64_t seed, uint64_t offset, uint64_t first) {
  std::vector<uint32_t> words(4 * regops::cpu::kVariateBlocks);
  regops::cpu::variate_blocks({seed, offset}, first, words.data());
  return words;
}

// What kernels are told of a dense tensor's memory order, for tests of those that run elsewhere.
py::object permuted_layout(const at::Tensor& tensor, int64_t first,
                           const std::optional<std::vector<int64_t>>& strides) {
  regops::LogicalIndices indices{first, std::nullopt};
  if (strides) indices.strides = *strides;
  const auto layout = regops::permuted_layout(tensor, indices);
  if (!layout) return py::none();
  py::dict fields;
  fields["first"] = layout->first;
  fields["rows"] = layout->rows;
  fields["row_memory"] = layout->row_memory;
  fields["columns"] = layout->columns;
  fields["column_memory"] = layout->column_memory;
  fields["column_logical"] = layout->column_logical;
  fields["outer"] = layout->outer;
  fields["outer_dims"] = layout->outer_dims;
  const auto list = [&](const int64_t* values) {
    return std::vector<int64_t>(values, values + layout->outer_dims);
  };
  fields["outer_size"] = list(layout->outer_size);
  fields["outer_memory"] = list(layout->outer_memory);
  fields["outer_logical"] = list(layout->outer_logical);
  return fields;
}

// How many threads at::parallel_for gives this library: torch.get_num_threads(), or the build is
// off.
int64_t parallel_threads() {
  std::atomic<int64_t> threads{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) { ++threads; });
  return threads;
}

// One block by the vector code of the instruction set in use.
py::tuple philox_block(uint64_t key, uint64_t counter_low, uint64_t counter_high) {
  uint32_t word[4];
  regops::cpu::philox_block(key, counter_low, counter_high, word);
  return py::make_tuple(word[0], word[1], word[2], word[3]);
}

// What Python hands over in place of an op's argument: lists are taken apart, and a learning rate
// may be a number.
template <class T>
struct Held {
  using Type = std::decay_t<T>;
  static T unwrap(Type& value) { return value; }
};
template <>
struct Held<at::TensorList> {
  using Type = ListOfTensors;
  static at::TensorList unwrap(Type& value) { return value.list(); }
};
template <>
struct Held<const at::Tensor&> {
  using Type = std::variant<at::Tensor, double>;
  static const at::Tensor& unwrap(Type& value) {
    if (const double* number = std::get_if<double>(&value)) {
      value = at::scalar_tensor(*number, at::kDouble);
    }
    return std::get<at::Tensor>(value);
  }
};

// The gradients of parameters, if all have one, and all are of one dtype and device; else None. For
// each parameter the same questions cost 0.3 us in Python.
py::object uniform_gradients(const ListOfTensors& params) {
  const auto alike = [](const at::Tensor& a, const at::Tensor& b) {
    return a.scalar_type() == b.scalar_type() && a.device() == b.device();
  };
  py::list gradients;
  const at::Tensor* first = nullptr;
  for (const at::Tensor& param : params.list()) {
    const at::Tensor& gradient = param.grad();
    if (first == nullptr) first = &gradient;
    if (!gradient.defined() || !alike(param, params.list()[0]) || !alike(gradient, *first)) {
      return py::none();
    }
    gradients.append(py::reinterpret_steal<py::object>(THPVariable_Wrap(gradient)));
  }
  return gradients;
}

template <auto* function>
struct Bound;
template <class... Arguments, void (*function)(Arguments...)>
struct Bound<function> {
  static void call(typename Held<Arguments>::Type... arguments) {
    function(Held<Arguments>::unwrap(arguments)...);
  }
};

#ifdef __SANITIZE_ADDRESS__
// Proof, for the tests, that the sanitizer sees what this library does.
float read_past_end(const at::Tensor& tensor) {
  return tensor.const_data_ptr<float>()[tensor.numel()];
}
#endif

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("dropout", &regops::dropout_eager, py::arg("input"), py::arg("p"), py::arg("training"),
        py::arg("inplace"), py::arg("key"), py::arg("generator"));
  m.def("dropconnect_linear", &regops::dropconnect_linear_eager, py::arg("input"),
        py::arg("weight"), py::arg("bias"), py::arg("p"), py::arg("training"), py::arg("mask"),
        py::arg("drop_bias"), py::arg("key"), py::arg("generator"));
  m.def("check_dropconnect_linear", &regops::check_dropconnect_linear_eager, py::arg("input"),
        py::arg("weight"), py::arg("bias"), py::arg("p"), py::arg("training"), py::arg("mask"),
        py::arg("key"), py::arg("generator"));
  m.def("dropconnect_moments", &regops::dropconnect_moments, py::arg("input"), py::arg("weight"),
        py::arg("bias"), py::arg("p"), py::arg("drop_bias"));
  m.def("cross_entropy", &regops::Unpacked<&regops::cross_entropy_eager>::call);
  m.def("check_cross_entropy", &regops::Unpacked<&regops::check_cross_entropy_eager>::call);
  m.def("linear_cross_entropy", &regops::Unpacked<&regops::linear_cross_entropy_eager>::call);
  m.def("check_linear_cross_entropy",
        &regops::Unpacked<&regops::check_linear_cross_entropy_eager>::call);
  m.def("grad_norm", &regops::grad_norm_eager);
  m.def("uniform_gradients", &uniform_gradients);
  m.def("adamw_step_", &Bound<&regops::AdamWOp::call>::call);
  m.def("check_adamw_step_", &Bound<&regops::adamw_step<&regops::check_step>>::call);
  m.def("sgdw_step_", &Bound<&regops::SgdwOp::call>::call);
  m.def("check_sgdw_step_", &Bound<&regops::sgdw_step<&regops::check_step>>::call);
  m.def("copy", &regops::copy, py::arg("input"));
  m.def("copy_", &regops::copy_inplace, py::arg("output"), py::arg("input"));
  m.def("read_write_", &regops::read_write_inplace, py::arg("written"), py::arg("read"));
  m.def("build_info", &build_info);
  m.def("variate_blocks", &variate_blocks, py::arg("seed"), py::arg("offset"), py::arg("first"));
  m.def("permuted_layout", &permuted_layout, py::arg("tensor"), py::arg("first") = 0,
        py::arg("strides") = py::none());
  m.def("parallel_threads", &parallel_threads);
  m.def("philox_block", &philox_block, py::arg("key"), py::arg("counter_low"),
        py::arg("counter_high"));
  m.def("set_cpu_capability", [](const std::string& name) {
    regops::cpu::set_active_isa(regops::cpu::isa_from_name(name.c_str()));
  });
#ifdef __SANITIZE_ADDRESS__
  m.def("read_past_end", &read_past_end);
#endif
}
