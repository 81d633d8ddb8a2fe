// Element types, for code that knows nothing of torch.
#pragma once

#include <cstdint>

namespace regops {

enum class DType : int { float64 = 0, float32 = 1, bfloat16 = 2, float16 = 3 };

// Storage only; each kernel converts as its processor does best.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

}  // namespace regops
