// The instruction sets the CPU kernels are compiled for, and the one in use.
#pragma once

namespace regops::cpu {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// What this processor (and this build) can run.
bool isa_supported(Isa isa);

// The widest supported set, or REGOPS_CPU_CAPABILITY where the environment names a supported one;
// read once. A name that is unknown or unsupported throws std::runtime_error.
Isa active_isa();

// For tests: run the kernels of another supported set from now on.
void set_active_isa(Isa isa);

const char* isa_name(Isa isa);
Isa isa_from_name(const char* name);

}  // namespace regops::cpu
