// Stores that pass the cache by, and how large an output must be for them. Per instruction set.
//
// A plain store first reads the line that it overwrites; a streaming store does not, which saves a
// third of a copy's traffic where the output is too large to be found in the cache later.

namespace regops::cpu::REGOPS_ISA {

// Both pointers aligned to 64 bytes; bytes a multiple of 64.
static inline __attribute__((always_inline)) void stream_lines(void* to, const void* from,
                                                               int64_t bytes) {
#if REGOPS_VECTOR_BYTES == 64
  for (int64_t i = 0; i < bytes; i += 64) {
    _mm512_stream_si512((__m512i*)((char*)to + i), _mm512_load_si512((const char*)from + i));
  }
#elif REGOPS_VECTOR_BYTES == 32
  for (int64_t i = 0; i < bytes; i += 32) {
    _mm256_stream_si256((__m256i*)((char*)to + i),
                        _mm256_load_si256((const __m256i*)((const char*)from + i)));
  }
#elif defined(__SSE2__)
  for (int64_t i = 0; i < bytes; i += 16) {
    _mm_stream_si128((__m128i*)((char*)to + i),
                     _mm_load_si128((const __m128i*)((const char*)from + i)));
  }
#else
  std::memcpy(to, from, bytes);
#endif
}

// REGOPS_VECTOR_BYTES from a register, to where they are aligned.
template <class V>
static inline __attribute__((always_inline)) void stream_vector(void* to, V vector) {
#if REGOPS_VECTOR_BYTES == 64
  _mm512_stream_si512((__m512i*)to, (__m512i)vector);
#elif REGOPS_VECTOR_BYTES == 32
  _mm256_stream_si256((__m256i*)to, (__m256i)vector);
#elif defined(__SSE2__)
  _mm_stream_si128((__m128i*)to, (__m128i)vector);
#else
  std::memcpy(to, &vector, sizeof vector);
#endif
}

// Any number of bytes, where both pointers stand alike to lines of 64 bytes: whole lines by
// streaming stores.
static inline void stream_run(void* to, const void* from, int64_t bytes) {
  const int64_t first = -reinterpret_cast<uintptr_t>(to) % 64;
  if (first >= bytes) {
    std::memcpy(to, from, bytes);
    return;
  }
  const int64_t lines = (bytes - first) / 64 * 64;
  std::memcpy(to, from, first);
  stream_lines(static_cast<char*>(to) + first, static_cast<const char*>(from) + first, lines);
  const int64_t last = first + lines;
  std::memcpy(static_cast<char*>(to) + last, static_cast<const char*>(from) + last, bytes - last);
}

// Streaming stores are ordered only by a fence: before another thread may read the output.
static inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// How far ahead of its use input is asked for. The arithmetic of one group fills the processor's
// window, so without this no load is issued before its turn: 16M fp32, one core: 9.3 ms without,
// 3.3 ms with 2 KiB, 2.7 with 4, 2.3 with 8 KiB (a streaming copy: 2.3-2.9).
constexpr int64_t kPrefetchBytes = 8192;

static inline __attribute__((always_inline)) void prefetch_lines(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    __builtin_prefetch(static_cast<const char*>(from) + kPrefetchBytes + i);
  }
}

}  // namespace regops::cpu::REGOPS_ISA
