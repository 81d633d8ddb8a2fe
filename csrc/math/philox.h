// Philox4x32-10, the counter-based generator behind every random number in regops.
//
// J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel Random Numbers: As Easy as 1, 2,
// 3", SC 2011. A block is a pure function of (key, counter): 128 bits in, 128 bits out, no state.
// Ten rounds of two 32 x 32 -> 64 bit products: 20 multiplications for 128 random bits.
#pragma once

#include <cstdint>

#include "math/host_device.h"

namespace regops {

constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53u;
constexpr uint32_t kPhiloxMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u;  // golden ratio
constexpr uint32_t kPhiloxWeyl1 = 0xBB67AE85u;  // sqrt(3) - 1
constexpr int kPhiloxRounds = 10;

// Streams of the same seed that must never meet: each purpose has its own constant, mixed into the
// seed. torch's CUDA kernels use the bare seed, so no stream of ours repeats one of theirs.
constexpr uint64_t kDomainVariates = 0x7265676F70733031ull;  // "regops01": masks and other variates
constexpr uint64_t kDomainFoldIn = 0x7265676F70733032ull;    // "regops02": keys made from keys

// What a kernel needs of a key: `seed` selects the Philox key, `offset` the upper counter words.
struct Key {
  uint64_t seed;
  uint64_t offset;
};

struct PhiloxBlock {
  uint32_t word[4];
};

// On the device two halves, which ptxas makes one IMAD.WIDE: a product of 64-bit numbers whose
// upper words are 0 it lets add such a word, 20 instructions a block beside the 40 that it takes.
REGOPS_HOST_DEVICE uint64_t philox_product(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
  return static_cast<uint64_t>(__umulhi(a, b)) << 32 | a * b;
#else
  return static_cast<uint64_t>(a) * b;
#endif
}

REGOPS_HOST_DEVICE PhiloxBlock philox4x32(uint64_t key, uint64_t counter_low,
                                          uint64_t counter_high) {
  uint32_t c0 = static_cast<uint32_t>(counter_low);
  uint32_t c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high);
  uint32_t c3 = static_cast<uint32_t>(counter_high >> 32);
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    // c <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0))
    const uint64_t product0 = philox_product(kPhiloxMultiplier0, c0);
    const uint64_t product1 = philox_product(kPhiloxMultiplier1, c2);
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(product0);
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
  return {{c0, c1, c2, c3}};
}

// Block `index` of the stream of variates that a key stands for.
REGOPS_HOST_DEVICE PhiloxBlock variate_block(Key key, uint64_t index) {
  return philox4x32(key.seed ^ kDomainVariates, index, key.offset);
}

// The key of sub-stream `data` of a key's stream: four new words, so two sub-streams, or a
// sub-stream and its parent, meet no more often than two random keys do.
REGOPS_HOST_DEVICE Key fold_in(Key key, uint64_t data) {
  const PhiloxBlock block = philox4x32(key.seed ^ kDomainFoldIn, data, key.offset);
  return {block.word[0] | static_cast<uint64_t>(block.word[1]) << 32,
          block.word[2] | static_cast<uint64_t>(block.word[3]) << 32};
}

}  // namespace regops
