// Choice of the instruction set, at run time.
#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace regops::cpu {

namespace {

constexpr Isa kAll[] = {Isa::baseline, Isa::avx2, Isa::avx512};

Isa choose() {
  if (const char* name = std::getenv("REGOPS_CPU_CAPABILITY"); name != nullptr && *name != '\0') {
    const Isa isa = isa_from_name(name);
    if (!isa_supported(isa)) {
      throw std::runtime_error(std::string("regops: REGOPS_CPU_CAPABILITY is ") + name +
                               ", which this processor or this build cannot run");
    }
    return isa;
  }
  Isa widest = Isa::baseline;
  for (const Isa isa : kAll) {
    if (isa_supported(isa)) widest = isa;
  }
  return widest;
}

std::atomic<Isa>& active() {
  static std::atomic<Isa> isa{choose()};
  return isa;
}

}  // namespace

bool isa_supported(Isa isa) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             isa_supported(Isa::avx2);
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
             __builtin_cpu_supports("bmi2");
    case Isa::baseline:
      return true;
  }
  return false;
#else
  return isa == Isa::baseline;
#endif
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void set_active_isa(Isa isa) {
  if (!isa_supported(isa)) {
    throw std::runtime_error(std::string("regops: instruction set ") + isa_name(isa) +
                             " is not available on this processor");
  }
  active().store(isa, std::memory_order_relaxed);
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

Isa isa_from_name(const char* name) {
  for (const Isa isa : kAll) {
    if (std::string(name) == isa_name(isa)) return isa;
  }
  throw std::runtime_error(
      std::string("regops: instruction set must be baseline, avx2 or avx512, got ") + name);
}

}  // namespace regops::cpu
