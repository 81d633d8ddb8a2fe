// Launchers for keys on the device.
#pragma once

#include <cstdint>

extern "C" {

// key[0..1] = seed, offset
int regops_store_key_cuda(int64_t* key, uint64_t seed, uint64_t offset, void* stream);

// folded[0..1] = fold_in(key, data)
int regops_fold_in_cuda(const int64_t* key, int64_t data, int64_t* folded, void* stream);

// words[4 i ...] = the Philox block of keys[i], counters[2 i], counters[2 i + 1]: for known
// answers.
int regops_philox_cuda(const uint64_t* keys, const uint64_t* counters, uint32_t* words, int64_t n,
                       void* stream);

}  // extern "C"
