// From an element type known at run time to one that a template knows. For kernel files: it comes
// before the instruction sets, and `call` is a macro that takes the type.
#pragma once

#include "dtype.h"

#define REGOPS_FOR_DTYPE(dtype, call) \
  switch (dtype) {                    \
    case DType::float64:              \
      return call(double);            \
    case DType::float32:              \
      return call(float);             \
    case DType::bfloat16:             \
      return call(BFloat16);          \
    case DType::float16:              \
      return call(Half);              \
  }
