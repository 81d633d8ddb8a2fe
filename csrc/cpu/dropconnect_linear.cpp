#include "cpu/dropconnect_linear.h"

namespace regops::cpu {

namespace {

template <class Real, class Visit>
void visit(const DropConnectCall& call, Key key, DropConnectCell cell, Visit visit_one) {
  for (int64_t i = cell.sample_begin; i < cell.sample_end; ++i) {
    for (int64_t n = cell.out_begin; n < cell.out_end; ++n) {
      for (int64_t k = 0; k < call.in_features; ++k) {
        const uint64_t index = dropconnect_index(i, n, k, call.out_features, call.in_features);
        const uint32_t keep = call.rule.fine
                                  ? dropout_keep_bits<true>(key, index / 8, call.rule.threshold)
                                  : dropout_keep_bits<false>(key, index / 8, call.rule.threshold);
        if (keep >> (index % 8) & 1)
          visit_one(i, n, k, n * call.in_features + k, i * call.in_features + k);
      }
    }
  }
}

template <class Real>
Real scale(const DropConnectCall& call) {
  return sizeof(Real) == 8 ? call.rule.scale_f64 : call.rule.scale;
}

template <class Real>
void forward(const DropConnectCall& call, Key key, void* output, DropConnectCell cell) {
  Real* y = static_cast<Real*>(output);
  visit<Real>(call, key, cell, [&](int64_t i, int64_t n, int64_t, int64_t w, int64_t x) {
    y[i * call.out_features + n] += scale<Real>(call) * static_cast<const Real*>(call.weight)[w] *
                                    static_cast<const Real*>(call.input)[x];
  });
}

template <class Real>
void backward(const DropConnectCall& call, Key key, void* grad_input, void* grad_weight,
              DropConnectCell cell) {
  visit<Real>(call, key, cell, [&](int64_t i, int64_t n, int64_t, int64_t w, int64_t x) {
    const Real g =
        scale<Real>(call) * static_cast<const Real*>(call.grad_output)[i * call.out_features + n];
    if (grad_input)
      static_cast<Real*>(grad_input)[x] += g * static_cast<const Real*>(call.weight)[w];
    if (grad_weight)
      static_cast<Real*>(grad_weight)[w] += g * static_cast<const Real*>(call.input)[x];
  });
}

}  // namespace

void dropconnect_forward(const DropConnectCall& call, Key key, void* output, DropConnectCell cell) {
  (call.dtype == DType::float64 ? forward<double> : forward<float>)(call, key, output, cell);
}

void dropconnect_backward(const DropConnectCall& call, Key key, void* grad_input, void* grad_weight,
                          DropConnectCell cell) {
  (call.dtype == DType::float64 ? backward<double> : backward<float>)(call, key, grad_input,
                                                                      grad_weight, cell);
}

}  // namespace regops::cpu
