// The argument list that the dispatcher's forms of cross-entropy share, spelt out once.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "ops/cross_entropy.h"

namespace regops {

#define REGOPS_CROSS_ENTROPY_SCHEMA                                              \
  "Tensor input, Tensor target, Tensor? weight, Tensor? target_b, Tensor? lam, " \
  "Tensor? num_items, int ignore_index, str reduction, float label_smoothing, "  \
  "str smoothing, float z_loss, float entropy_weight, bool return_lse, bool inplace_backward"

// Defines an op of those arguments and `more`, which begins with a comma where it is not empty.
inline void define_cross_entropy(torch::Library& library, const std::string& name,
                                 const std::string& more, const std::string& result) {
  const std::string schema = name + "(" REGOPS_CROSS_ENTROPY_SCHEMA + more + ") -> " + result;
  library.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
}

using OptionalTensor = std::optional<at::Tensor>;

template <class Result, class... More>
using CrossEntropySignature = Result(const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                     const OptionalTensor&, const OptionalTensor&,
                                     const OptionalTensor&, int64_t, std::string_view, double,
                                     std::string_view, double, double, bool, bool, More...);

// A function of the arguments in one struct, as one that the dispatcher can call.
template <auto function>
struct Unpacked;

template <class Result, class... More, Result (*function)(const CrossEntropyArguments&, More...)>
struct Unpacked<function> {
  static Result call(const at::Tensor& input, const at::Tensor& target,
                     const OptionalTensor& weight, const OptionalTensor& target_b,
                     const OptionalTensor& lam, const OptionalTensor& num_items,
                     int64_t ignore_index, std::string_view reduction, double label_smoothing,
                     std::string_view smoothing, double z_loss, double entropy_weight,
                     bool return_lse, bool inplace_backward, More... more) {
    return function({input, target, weight, target_b, lam, num_items, ignore_index,
                     std::string(reduction), label_smoothing, std::string(smoothing), z_loss,
                     entropy_weight, return_lse, inplace_backward},
                    more...);
  }
};

// The way back: a dispatcher's op called with the arguments in one struct.
template <class Result, class... More>
class CrossEntropyOp {
 public:
  explicit CrossEntropyOp(const char* name)
      : op_(c10::Dispatcher::singleton()
                .findSchemaOrThrow(name, "")
                .typed<CrossEntropySignature<Result, More...>>()) {}

  Result operator()(const CrossEntropyArguments& a, More... more) const {
    return op_.call(a.input, a.target, a.weight, a.target_b, a.lam, a.num_items, a.ignore_index,
                    a.reduction, a.label_smoothing, a.smoothing, a.z_loss, a.entropy_weight,
                    a.return_lse, a.inplace_backward, more...);
  }

 private:
  c10::TypedOperatorHandle<CrossEntropySignature<Result, More...>> op_;
};

}  // namespace regops
