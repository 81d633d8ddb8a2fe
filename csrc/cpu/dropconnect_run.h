// How a cell of DropConnect with a mask for each sample is walked, and its random bits. After
// philox_run.h; once per instruction set.

namespace regops::cpu::REGOPS_ISA {
namespace {  // so that the linker sees no member

constexpr int kRows = 4;                 // of W side by side: an x that was read serves four
constexpr int64_t kRunDecisions = 4096;  // 8 KiB of half-words
constexpr int64_t kChunkBytes = 4096;    // four rows of W and dW are 32 KiB
constexpr int64_t kTileSamples = 64;     // x and dx of a chunk are 512 KiB, half of a small L2

// The random bits of one sample's run: `rows` rows of W, elements [begin, begin + width) of each.
template <class Bits>
class RunBits {
 public:
  explicit RunBits(Key key) : run_(philox_run(key, 0)) {}

  void fill(uint64_t first_index, int64_t in_features, int64_t rows, int64_t width) {
    if (width == in_features) {
      stride_ = width;
      fill_row(0, first_index, rows * width);
      return;
    }
    stride_ = kChunk + kPerBlock;
    for (int64_t r = 0; r < rows; ++r) fill_row(r, first_index + r * in_features, width);
  }

  const Bits* row(int64_t r) const { return bits_ + kFirst + r * stride_; }

 private:
  static constexpr int64_t kPerBlock = 16 / sizeof(Bits);
  static constexpr int64_t kChunk = kChunkBytes / sizeof(float);
  static constexpr int64_t kFirst = 64 / sizeof(Bits);  // room for the start of a block
  static constexpr int64_t kOvershoot = (kRunOvershoot + REGOPS_VECTOR_BYTES) / sizeof(Bits);

  // A row begins where its bits do: what its first block holds of other elements goes before it.
  void fill_row(int64_t r, uint64_t index, int64_t count) {
    const int64_t skip = index % kPerBlock;
    fill_run(run_, index / kPerBlock, (skip + count + kPerBlock - 1) / kPerBlock,
             bits_ + kFirst + r * stride_ - skip);
  }

  PhiloxRun run_;
  int64_t stride_ = 0;
  alignas(64) Bits bits_[kFirst + kRunDecisions + kRows * kPerBlock + kOvershoot];
};

// One sample's pass over a run.
struct Run {
  int64_t sample, out, rows, begin, width;
};

// Calls visit(run, its random bits) for all of a cell.
template <class Real, class Bits, class Visit>
static inline __attribute__((always_inline)) void for_runs(const DropConnectCall& call, Key key,
                                                           const DropConnectCell& cell,
                                                           Visit visit) {
  constexpr int64_t kChunk = kChunkBytes / sizeof(Real);
  const int64_t in_features = call.in_features;
  if (in_features == 0) return;
  const int64_t chunks = (in_features + kChunk - 1) / kChunk;
  const int64_t chunk =  // as equal as whole lines allow
      chunks == 1 ? in_features : ((in_features + chunks - 1) / chunks + 63) / 64 * 64;
  const int64_t rows = std::max<int64_t>(kRows, kRows * kChunk / chunk / kRows * kRows);
  RunBits<Bits> bits(key);
  for (int64_t tile = cell.sample_begin; tile < cell.sample_end; tile += kTileSamples) {
    const int64_t tile_end = std::min(tile + kTileSamples, cell.sample_end);
    for (int64_t begin = 0; begin < in_features; begin += chunk) {
      const int64_t width = std::min(chunk, in_features - begin);
      for (int64_t out = cell.out_begin; out < cell.out_end; out += rows) {
        for (int64_t sample = tile; sample < tile_end; ++sample) {
          const Run run = {sample, out, std::min(rows, cell.out_end - out), begin, width};
          bits.fill(dropconnect_index(sample, out, begin, call.out_features, in_features),
                    in_features, run.rows, width);
          visit(run, bits);
        }
      }
    }
  }
}

}  // namespace
}  // namespace regops::cpu::REGOPS_ISA
