// Arguments that several ops take alike.
#pragma once

#include <ATen/core/Tensor.h>

#include "dtype.h"

namespace regops {

// The type that kernels know elements by; float32 for any that they do not know.
DType dtype_of(at::ScalarType type);
inline DType dtype_of(const at::Tensor& tensor) { return dtype_of(tensor.scalar_type()); }

// `name` is that of the argument.
void check_dtype(const char* op, const char* name, const at::Tensor& tensor);
void check_strided(const char* op, const char* name, const at::Tensor& tensor);
void check_p(const char* op, double p);

// Of a p in a tensor all but its value, which a device may still be computing.
void check_tensor_p(const char* op, const at::Tensor& p);

}  // namespace regops
