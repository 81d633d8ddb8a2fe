// A block of an optimizer step: the gradient on its way in, the update, the weight on its way out.
// Once per instruction set.

namespace regops::cpu::REGOPS_ISA {
namespace {  // so that the linker sees no member

// Elements of a block that is one loop: 16M float32 take 5 % less time than in short ones.
constexpr int64_t kLongBlock = 4096;

// Of a row that max_norm limits: its norm, without writing, or its scaled weights.
enum class Pass { plain, measure, scaled };

// Where max_norm makes whole rows the unit of work.
static inline bool limits_rows(const StepOptions& options, const StepTensors& tensors) {
  return tensors.row > 0 && !std::isinf(options.max_norm);
}

template <class Real>
struct Scratch {
  alignas(64) Real weight[kStepBlock];
  alignas(64) Real grad[kStepBlock];
  alignas(64) Real first[kStepBlock];
  alignas(64) Real second[kStepBlock];
  alignas(64) Real largest[kStepBlock];
  alignas(64) Real image[kStepBlock];  // the weight as its parameter holds it
  alignas(64) uint32_t random[kStepWords];
};

static inline int64_t size_of(DType dtype) {
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}

static inline void* at_element(void* tensor, DType dtype, int64_t index) {
  return static_cast<char*>(tensor) + index * size_of(dtype);
}

template <class Real>
class Step {
 public:
  Step(const StepOptions& options, const StepScalars& scalars, Scratch<Real>& scratch)
      : options_(options), scalars_(scalars), scratch_(scratch) {}

  // Elements [begin, begin + n) of each tensor. Returns the sum of the squares of the new weights
  // if `pass` asks for it, and writes nothing then.
  double block(const StepTensors& tensors, int64_t begin, int64_t n, Pass pass, Real factor) const {
    if (scalars_.skip) {
      if (pass != Pass::measure) finish_gradient(tensors, begin, n);
      return 0.0;
    }
    const bool in_place = pass == Pass::plain;
    Real* w = read_weight(tensors, begin, n, in_place);
    Real grad_factor = static_cast<Real>(scalars_.grad_factor);
    const Real* g = read_gradient(tensors, begin, n, w, grad_factor);
    Real *m = nullptr, *v = nullptr, *u = nullptr;
    const bool rounded = in_place && update_rounded(tensors, w, g, begin, n, grad_factor);
    if (!rounded) {
      m = read_state(tensors.first, begin, n, scratch_.first, in_place);
      v = read_state(tensors.second, begin, n, scratch_.second, in_place);
      u = read_state(tensors.largest, begin, n, scratch_.largest, in_place);
      update(tensors, w, g, m, v, u, n, grad_factor);
    }
    if (options_.l1 != 0.0) {
      const Real threshold = static_cast<Real>(scalars_.threshold);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) w[i] = soft_threshold(w[i], threshold);
    }
    if (pass == Pass::measure) return squares_of(w, n);
    if (pass == Pass::scaled) {
      for (int64_t i = 0; i < n; ++i) w[i] *= factor;
    }
    if (!rounded) write_states(tensors, m, v, u, begin, n);
    write_weight(tensors, w, begin, n);
    if (tensors.ema != nullptr) {
      Real* ema = static_cast<Real*>(tensors.ema) + begin;
      const Real decay = static_cast<Real>(options_.ema_decay);
      const Real rest = static_cast<Real>(1.0 - options_.ema_decay);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) ema[i] = average(ema[i], w[i], decay, rest);
    }
    finish_gradient(tensors, begin, n);
    return 0.0;
  }

  // Whether a step is one loop over memory: longer blocks interrupt it less.
  bool needs_no_scratch(const StepTensors& tensors) const {
    return options_.param == kReal && options_.grad == kReal && tensors.ema == nullptr &&
           (options_.state == kReal || rounds_in_update(tensors)) && !prepares_gradient() &&
           options_.l1 == 0.0 && !options_.zero_grad && scalars_.unscale == 1.0 &&
           !limits_rows(options_, tensors);
  }

 private:
  static constexpr DType kReal = std::is_same_v<Real, double> ? DType::float64 : DType::float32;

  Real* read_weight(const StepTensors& tensors, int64_t begin, int64_t n, bool in_place) const {
    if (options_.param == kReal) {
      Real* memory = static_cast<Real*>(tensors.param) + begin;
      if (in_place) return memory;
      std::memcpy(scratch_.weight, memory, n * sizeof(Real));
      return scratch_.weight;
    }
    Real* w = scratch_.weight;
    read_reals(options_.param, tensors.param, begin, n, w);
    if constexpr (std::is_same_v<Real, float>) {
      if (tensors.master != nullptr && options_.master == Master::kahan) {
        read_reals(options_.param, tensors.master, begin, n, scratch_.image);
        for (int64_t i = 0; i < n; ++i) w[i] += scratch_.image[i];
      } else if (tensors.master != nullptr) {
        // A parameter that was changed since, for example loaded, is no image of its master.
        const float* master = static_cast<const float*>(tensors.master) + begin;
        round_trip(master, scratch_.image, n);
        for (int64_t i = 0; i < n; ++i) w[i] = scratch_.image[i] == w[i] ? master[i] : w[i];
      }
    }
    return w;
  }

  // What a parameter that holds `from` reads as.
  void round_trip(const float* from, float* to, int64_t n) const {
    alignas(64) uint16_t narrow[kStepBlock];
    write_reals(options_.param, from, narrow, 0, n);
    read_reals(options_.param, narrow, 0, n, to);
  }

  void write_weight(const StepTensors& tensors, const Real* w, int64_t begin, int64_t n) const {
    if (options_.param == kReal) {
      Real* memory = static_cast<Real*>(tensors.param) + begin;
      if (memory != w) std::memcpy(memory, w, n * sizeof(Real));
      return;
    }
    if constexpr (std::is_same_v<Real, float>) {
      if (options_.master == Master::stochastic) {
        store_stochastically(options_.param, w, at_element(tensors.param, options_.param, begin), n,
                             variates<uint16_t>(scalars_.keys[kRoundParam],
                                                tensors.first_index + begin, n, scratch_.random));
        return;
      }
      write_reals(options_.param, w, tensors.param, begin, n);
      if (tensors.master == nullptr) return;
      if (options_.master == Master::fp32) {
        std::memcpy(static_cast<float*>(tensors.master) + begin, w, n * sizeof(float));
        return;
      }
      read_reals(options_.param, tensors.param, begin, n, scratch_.image);
      for (int64_t i = 0; i < n; ++i) {
        scratch_.image[i] = rounding_error(w[i], scratch_.image[i]);
      }
      write_reals(options_.param, scratch_.image, tensors.master, begin, n);
    }
  }

  bool prepares_gradient() const {
    return !std::isinf(options_.clip_value) || scalars_.noise != 0.0 || options_.l2 != 0.0;
  }

  // The gradient to be multiplied by `factor`, which becomes 1 where that is done here.
  const Real* read_gradient(const StepTensors& tensors, int64_t begin, int64_t n, const Real* w,
                            Real& factor) const {
    if (options_.grad == kReal && !prepares_gradient()) {
      return static_cast<const Real*>(tensors.grad) + begin;
    }
    Real* g = scratch_.grad;
    read_reals(options_.grad, tensors.grad, begin, n, g);
    if (!prepares_gradient()) return g;
    for (int64_t i = 0; i < n; ++i) g[i] *= factor;
    factor = Real(1);
    if (!std::isinf(options_.clip_value)) {
      const Real limit = static_cast<Real>(options_.clip_value);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) g[i] = clip_value(g[i], limit);
    }
    if (scalars_.noise != 0.0) {
      add_noise(g, n, static_cast<Real>(scalars_.noise), scalars_.keys[kGradientNoise],
                tensors.first_index + begin, scratch_.random);
    }
    if (options_.l2 != 0.0) {
      const Real l2 = static_cast<Real>(options_.l2);
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) g[i] += l2 * w[i];
    }
    return g;
  }

  Real* read_state(void* state, int64_t begin, int64_t n, Real* scratch, bool in_place) const {
    if (state == nullptr) return scratch;
    if (options_.state == kReal && in_place) return static_cast<Real*>(state) + begin;
    read_reals(options_.state, state, begin, n, scratch);
    return scratch;
  }

  void write_states(const StepTensors& tensors, const Real* m, const Real* v, const Real* u,
                    int64_t begin, int64_t n) const {
    const uint16_t* random = nullptr;  // the same for both moments
    if (options_.state != kReal) {
      random = variates<uint16_t>(scalars_.keys[kRoundMoments], tensors.first_index + begin, n,
                                  scratch_.random);
    }
    write_state(tensors.first, m, begin, n, random);
    write_state(tensors.second, v, begin, n, random);
    // To nearest: stochastically it would take the largest of many roundings, and drift up.
    if (tensors.largest != nullptr && (options_.state != kReal || u == scratch_.largest)) {
      write_reals(options_.state, u, tensors.largest, begin, n);
    }
  }

  void write_state(void* state, const Real* values, int64_t begin, int64_t n,
                   const uint16_t* random) const {
    if (state == nullptr) return;
    if (options_.state == kReal) {
      Real* memory = static_cast<Real*>(state) + begin;
      if (memory != values) std::memcpy(memory, values, n * sizeof(Real));
    } else if constexpr (std::is_same_v<Real, float>) {
      store_stochastically(options_.state, values, at_element(state, options_.state, begin), n,
                           random);
    }
  }

  // (Blocks begin at multiples of 8 from a range's own beginning.)
  bool rounds_in_update(const StepTensors& tensors) const {
    return options_.rule == StepRule::adamw && options_.state == DType::bfloat16 &&
           tensors.largest == nullptr && tensors.first_index % 8 == 0;
  }

  // AdamW with bfloat16 moments in one loop: the divisions of one group and the random bits of the
  // next keep different parts of the processor busy. In cache 0.40 ns an element; block by block,
  // as elsewhere, 0.49. False where it does not apply.
  bool update_rounded(const StepTensors& tensors, Real* w, const Real* g, int64_t begin, int64_t n,
                      Real factor) const {
    constexpr int64_t kGroup = 8 * kPhiloxLanes;
    const uint64_t first = tensors.first_index + begin;
    if (!rounds_in_update(tensors) || n % kGroup != 0) return false;
    if constexpr (std::is_same_v<Real, float>) {
      const AdamWFactors<float> f = adamw_factors<float>(options_, scalars_);
      BFloat16* const m16 = static_cast<BFloat16*>(tensors.first) + begin;
      BFloat16* const v16 = static_cast<BFloat16*>(tensors.second) + begin;
      for (int64_t i = 0; i < n; i += kGroup) {
        alignas(64) uint16_t random[kGroup];
        fill_blocks<1>(scalars_.keys[kRoundMoments], (first + i) / 8, random);
#pragma GCC ivdep
        for (int64_t j = 0; j < kGroup; ++j) {
          float m = float_from_bits(static_cast<uint32_t>(m16[i + j].bits) << 16);
          float v = float_from_bits(static_cast<uint32_t>(v16[i + j].bits) << 16);
          float none;
          w[i + j] = adamw_update<false>(w[i + j], factor * g[i + j], m, v, none, f);
          m16[i + j].bits = stochastic_bfloat16(m, random[j]);
          v16[i + j].bits = stochastic_bfloat16(v, random[j]);
        }
      }
    }
    return true;
  }

  void update(const StepTensors& tensors, Real* w, const Real* g, Real* m, Real* v, Real* u,
              int64_t n, Real factor) const {
    if (options_.rule == StepRule::adamw) {
      const auto run = tensors.largest != nullptr ? adamw<true> : adamw<false>;
      run(w, g, m, v, u, n, factor, adamw_factors<Real>(options_, scalars_));
    } else {
      const auto run = tensors.first == nullptr ? sgdw<false, false>
                       : options_.nesterov      ? sgdw<true, true>
                                                : sgdw<true, false>;
      run(w, g, m, n, factor, sgdw_factors<Real>(options_, scalars_));
    }
  }

  template <bool kAmsgrad>
  static void adamw(Real* w, const Real* g, Real* m, Real* v, Real* u, int64_t n, Real factor,
                    AdamWFactors<Real> f) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      w[i] = adamw_update<kAmsgrad>(w[i], factor * g[i], m[i], v[i], u[i], f);
    }
  }

  template <bool kMomentum, bool kNesterov>
  static void sgdw(Real* w, const Real* g, Real* buffer, int64_t n, Real factor,
                   SgdwFactors<Real> f) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      w[i] = sgdw_update<kMomentum, kNesterov>(w[i], factor * g[i], buffer[i], f);
    }
  }

  // As torch's fused optimizers, gradients are left unscaled, unless they are to be cleared.
  void finish_gradient(const StepTensors& tensors, int64_t begin, int64_t n) const {
    if (options_.zero_grad) {
      std::memset(at_element(tensors.grad, options_.grad, begin), 0, n * size_of(options_.grad));
    } else if (scalars_.unscale != 1.0 && !scalars_.skip) {
      read_reals(options_.grad, tensors.grad, begin, n, scratch_.grad);
      const Real unscale = static_cast<Real>(scalars_.unscale);
      for (int64_t i = 0; i < n; ++i) scratch_.grad[i] *= unscale;
      write_reals(options_.grad, scratch_.grad, tensors.grad, begin, n);
    }
  }

  const StepOptions& options_;
  const StepScalars& scalars_;
  Scratch<Real>& scratch_;
};

}  // namespace
}  // namespace regops::cpu::REGOPS_ISA
