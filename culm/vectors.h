// Vectors of 16 numbers for the compiled parts, on any CPU.
//
// A vector fills one register of AVX-512, two of AVX2 or four of NEON and SSE. Arithmetic is that of
// GCC's vector types; only what they lack is written for each instruction set, with a version in
// plain C++ for all others. Sums of products are fused where the CPU can (`fma`).

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define CULM_AVX512 1
constexpr int BYTES = 64;
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define CULM_AVX2 1
constexpr int BYTES = 32;
#else
constexpr int BYTES = 16;
#endif

#if defined(CULM_AVX512) && defined(__AMX_TILE__) && defined(__AMX_BF16__)
#define CULM_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr int64_t LANES = 16, PER_REGISTER = BYTES / 4;
constexpr int REGISTERS = 64 / BYTES;
constexpr bool FEW = BYTES < 64;  // a CPU has 32 registers of 64 bytes, but 16 or 32 of fewer

using bf16 = uint16_t;
struct fp16 { uint16_t bits; };
typedef float Four __attribute__((vector_size(16)));

template <typename T, int SIZE>
struct RegisterOf { typedef T type __attribute__((vector_size(SIZE))); };
template <typename T, int SIZE = BYTES>
using Register = typename RegisterOf<T, SIZE>::type;

// 16 numbers; `make(f)` has f(i) in register i.
template <typename T>
struct Vector {
  Register<T> part[REGISTERS];

  template <typename F>
  static inline Vector make(F f) {
    return make(f, std::make_integer_sequence<int, REGISTERS>());
  }
  template <typename F, int... I>
  static inline Vector make(F f, std::integer_sequence<int, I...>) {
    return {{(Register<T>)f(I)...}};
  }
};
using Floats = Vector<float>;
using Ints = Vector<int32_t>;  // or the same 64 bytes as smaller integers

template <typename T, typename U>
static inline Vector<T> cast(Vector<U> x) {  // the same bits
  return Vector<T>::make([&](int i) { return (Register<T>)x.part[i]; });
}

#define CULM_OPERATOR(op)                                                        \
  template <typename T>                                                          \
  static inline Vector<T> operator op(Vector<T> a, Vector<T> b) {                \
    return Vector<T>::make([&](int i) { return a.part[i] op b.part[i]; });       \
  }
CULM_OPERATOR(+)
CULM_OPERATOR(-)
CULM_OPERATOR(*)
CULM_OPERATOR(/)
CULM_OPERATOR(&)
CULM_OPERATOR(|)
#undef CULM_OPERATOR
static inline Ints operator<<(Ints x, int n) {
  return Ints::make([&](int i) { return x.part[i] << n; });
}
static inline Ints shift_right(Ints x, int n) {  // with zeros from the left
  return Ints::make([&](int i) { return (Register<uint32_t>)x.part[i] >> n; });
}

static inline Floats all(float x) {
  return Floats::make([&](int) { return x - Register<float>{}; });
}
static inline Ints ints(int32_t x) {
  return Ints::make([&](int) { return x - Register<int32_t>{}; });
}

// ---------------------------------------------------------------------------------------------
// Memory, of any alignment. `count` is how many elements are there; the others are 0 and not stored.

template <typename R>
static inline R read(const void *p) {
  R x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
template <typename R>
static inline R read(const void *p, int64_t bytes) {
  R x = {};
  std::memcpy(&x, p, std::min<int64_t>(bytes, sizeof x));
  return x;
}
template <typename T>
static inline Vector<T> load64(const void *p) {  // 64 bytes
  return Vector<T>::make([&](int i) { return read<Register<T>>((const char *)p + i * BYTES); });
}
static inline Floats load(const float *p) { return load64<float>(p); }
template <typename T>
static inline void store(void *p, Vector<T> x) {
#pragma GCC unroll 4
  for (int i = 0; i < REGISTERS; i++) std::memcpy((char *)p + i * BYTES, &x.part[i], BYTES);
}

#ifdef CULM_AVX512
static inline uint64_t least(int64_t bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }
#endif

// What is there of 64 bytes.
template <typename T>
static inline Vector<T> load64(const void *p, int64_t bytes) {
#ifdef CULM_AVX512
  return {(Register<T>)_mm512_maskz_loadu_epi8(least(bytes), p)};
#else
  return Vector<T>::make([&](int i) {
    const int64_t left = bytes - i * BYTES;
    const char *part = (const char *)p + i * BYTES;
    if (left >= BYTES) return read<Register<T>>(part);
    return left > 0 ? read<Register<T>>(part, left) : Register<T>{};
  });
#endif
}
static inline Floats load(const float *p, int64_t count) {
#ifdef CULM_AVX512
  return {_mm512_maskz_loadu_ps((__mmask16)least(count), p)};
#else
  return load64<float>(p, count * 4);
#endif
}
// The first `bytes` of x.
template <typename T>
static inline void store(void *p, Vector<T> x, int64_t bytes) {
#ifdef CULM_AVX512
  _mm512_mask_storeu_epi8(p, least(bytes), (__m512i)x.part[0]);
#else
  if (bytes >= 64) return store(p, x);
  std::memcpy(p, &x, bytes);
#endif
}
static inline void store(float *p, Four x, int64_t count) {
  std::memcpy(p, &x, count >= 4 ? 16 : count * 4);
}

static inline void prefetch(const void *p) { __builtin_prefetch(p, 0, 3); }

// ---------------------------------------------------------------------------------------------
// Arithmetic

// a b + c, rounded once where the CPU can.
static inline Floats fma(Floats a, Floats b, Floats c) {
  return Floats::make([&](int i) {
#if defined(CULM_AVX512)
    return _mm512_fmadd_ps(a.part[i], b.part[i], c.part[i]);
#elif defined(CULM_AVX2)
    return _mm256_fmadd_ps(a.part[i], b.part[i], c.part[i]);
#elif defined(__ARM_NEON)
    return vfmaq_f32(c.part[i], a.part[i], b.part[i]);
#else
    return a.part[i] * b.part[i] + c.part[i];
#endif
  });
}

// The larger one; NaN where b is.
static inline Floats larger(Floats a, Floats b) {
#ifdef CULM_AVX512
  return {_mm512_max_ps(a.part[0], b.part[0])};
#else
  return Floats::make([&](int i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; });
#endif
}

// The smaller one; NaN where b is.
static inline Floats smaller(Floats a, Floats b) {
#ifdef CULM_AVX512
  return {_mm512_min_ps(a.part[0], b.part[0])};
#else
  return Floats::make([&](int i) { return a.part[i] < b.part[i] ? a.part[i] : b.part[i]; });
#endif
}

// The larger of |x| and |y|; NaN where one of them is, since the bits of NaN are above those of numbers.
static inline Floats farther(Floats x, Floats y) {
  const Ints a = cast<int32_t>(x) & ints(0x7fffffff), b = cast<int32_t>(y) & ints(0x7fffffff);
#ifdef CULM_AVX512
  return {(Register<float>)_mm512_max_epi32((__m512i)a.part[0], (__m512i)b.part[0])};
#else
  return cast<float>(Ints::make([&](int i) { return a.part[i] > b.part[i] ? a.part[i] : b.part[i]; }));
#endif
}

static inline Floats root(Floats x) {
#ifdef CULM_AVX512
  return {_mm512_sqrt_ps(x.part[0])};
#else
  return Floats::make([&](int i) {
    Register<float> y;
    for (int j = 0; j < PER_REGISTER; j++) y[j] = std::sqrt(x.part[i][j]);
    return y;
  });
#endif
}

// `rest` in all lanes but the first `count`.
static inline Floats first(Floats x, int64_t count, float rest) {
#ifdef CULM_AVX512
  return {_mm512_mask_mov_ps(_mm512_set1_ps(rest), (__mmask16)least(count), x.part[0])};
#else
  if (count >= LANES) return x;
  Floats made = all(rest);
  std::memcpy(&made, &x, count * 4);
  return made;
#endif
}

// To the nearest integers, of numbers below 2^22.
static inline Ints rounded(Floats x) {
#ifdef CULM_AVX512
  return {(Register<int32_t>)_mm512_cvtps_epi32(x.part[0])};
#else
  const float shift = 3 << 22;  // whose last bit is worth 1
  return Ints::make([&](int i) {
    return __builtin_convertvector(x.part[i] + shift - shift, Register<int32_t>);
  });
#endif
}
static inline Floats floats(Ints x) {
#ifdef CULM_AVX512
  return {_mm512_cvtepi32_ps((__m512i)x.part[0])};
#else
  return Floats::make([&](int i) { return __builtin_convertvector(x.part[i], Register<float>); });
#endif
}

static inline float sum(Floats x) {
#ifdef CULM_AVX512
  return _mm512_reduce_add_ps(x.part[0]);
#else
  float sums[LANES];
  store(sums, x);
  for (int64_t n = LANES / 2; n; n /= 2)
    for (int64_t i = 0; i < n; i++) sums[i] += sums[i + n];
  return sums[0];
#endif
}
static inline float largest(Floats x) {
#ifdef CULM_AVX512
  return _mm512_reduce_max_ps(x.part[0]);
#else
  float all[LANES];
  store(all, x);
  return *std::max_element(all, all + LANES);
#endif
}
static inline float farthest(Floats x) {  // the largest |x|; NaN if one is
#ifdef CULM_AVX512
  const int32_t most = _mm512_reduce_max_epi32((__m512i)farther(x, x).part[0]);
#else
  int32_t all[LANES];
  store(all, farther(x, x));
  const int32_t most = *std::max_element(all, all + LANES);
#endif
  return read<float>(&most);
}

// The sums of four vectors.
static inline Four totals(const Floats (&sums)[4]) {
#if defined(CULM_AVX512)
  auto fold = [](__m512 a, __m512 b) {  // of each 128 bits: a, b, a, b
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  __m512d first = (__m512d)fold(sums[0].part[0], sums[1].part[0]);
  __m512d second = (__m512d)fold(sums[2].part[0], sums[3].part[0]);
  __m512 all = _mm512_add_ps((__m512)_mm512_unpacklo_pd(first, second),
                             (__m512)_mm512_unpackhi_pd(first, second));
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return (Four)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(CULM_AVX2)
  auto both = [&](int i) { return sums[i].part[0] + sums[i].part[1]; };
  __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(both(0), both(1)), _mm256_hadd_ps(both(2), both(3)));
  return (Four)(_mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1));
#else
  return Four{sum(sums[0]), sum(sums[1]), sum(sums[2]), sum(sums[3])};
#endif
}

// e^x with a relative error of 2e-7: 2^n times a polynomial on half a unit around 0, which would
// overflow far below the bounds that x is kept within.
static inline Floats exponential(Floats x) {
#ifdef CULM_AVX512
  x = larger(all(-104), x);
  const Floats n = {_mm512_roundscale_ps((x * all(1.44269504f)).part[0], 0)};
#else  // 2^n is a float: from 1e-38 to infinity
  x = Floats{} - larger(all(-88.4f), Floats{} - larger(all(-87.3f), x));
  const Ints power = rounded(x * all(1.44269504f));
  const Floats n = floats(power);
#endif
  Floats r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  Floats p = all(1.9875691e-4f);
  for (float c : {1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f, 1.6666665e-1f, 0.5f, 1.f, 1.f})
    p = fma(p, r, all(c));
#ifdef CULM_AVX512
  return {_mm512_scalef_ps(p.part[0], n.part[0])};
#else
  return p * cast<float>((power + ints(127)) << 23);
#endif
}

// ---------------------------------------------------------------------------------------------
// bf16, rounded to nearest, ties to even

static inline float widen(bf16 x) {
  const uint32_t bits = (uint32_t)x << 16;
  return read<float>(&bits);
}
static inline Floats widen(const bf16 *p) {
  return Floats::make([&](int i) {
    const auto halves = read<Register<bf16, BYTES / 2>>(p + i * PER_REGISTER);
    return (Register<float>)(__builtin_convertvector(halves, Register<uint32_t>) << 16);
  });
}
static inline Floats widen(const bf16 *p, int64_t count) {
  if (count >= LANES) return widen(p);
#ifdef CULM_AVX512
  const __m256i there = _mm256_maskz_loadu_epi16((__mmask16)least(count), p);
  return {(Register<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(there), 16)};
#else
  bf16 there[LANES] = {};
  for (int64_t i = 0; i < count; i++) there[i] = p[i];
  return widen(there);
#endif
}

#ifndef CULM_AVX512
// The bits of bf16 in the upper half, with others below.
static inline Ints upper_half(Floats x) {
  return Ints::make([&](int i) {
    const auto bits = (Register<uint32_t>)x.part[i];
    const auto near = bits + 0x7fff + (bits >> 16 & 1);
    return x.part[i] == x.part[i] ? near : bits | 0x400000;  // adding could make a NaN a number
  });
}
#endif
static inline void narrow(Floats x, bf16 *p) {
#ifdef CULM_AVX512
  const __m256bh made = _mm512_cvtneps_pbh(x.part[0]);
  std::memcpy(p, &made, sizeof made);
#else
  const Ints bits = shift_right(upper_half(x), 16);
#pragma GCC unroll 4
  for (int i = 0; i < REGISTERS; i++) {
    const auto made = __builtin_convertvector(bits.part[i], Register<bf16, BYTES / 2>);
    std::memcpy(p + i * PER_REGISTER, &made, sizeof made);
  }
#endif
}

// ---------------------------------------------------------------------------------------------
// fp16, rounded to nearest, ties to even. Numbers beyond the largest become that one: an infinity in a
// cache would make NaN of all that attends, even where its weight is 0.

constexpr float LARGEST_FP16 = 65504;

static inline Floats widen(const fp16 *p) {
#if defined(CULM_AVX512)
  return {_mm512_cvtph_ps(read<__m256i>(p))};
#elif defined(CULM_AVX2)
  return Floats::make([&](int i) { return _mm256_cvtph_ps(read<__m128i>(p + i * PER_REGISTER)); });
#elif defined(__ARM_NEON)
  return Floats::make([&](int i) { return vcvt_f32_f16(read<float16x4_t>(p + i * PER_REGISTER)); });
#else
  return Floats::make([&](int i) {
    const auto halves = read<Register<uint16_t, BYTES / 2>>(p + i * PER_REGISTER);
    const auto bits = __builtin_convertvector(halves, Register<uint32_t>);
    const auto size = (Register<uint32_t>)((Register<float>)((bits & 0x7fff) << 13) * 0x1p112f);
    const auto infinite = (Register<uint32_t>)((bits & 0x7fff) >= 0x7c00) & 0x7f800000;
    return (Register<float>)(size | infinite | (bits & 0x8000) << 16);
  });
#endif
}
static inline float widen(fp16 x) {
  const fp16 there[LANES] = {x};
  return widen(there).part[0][0];
}
static inline void narrow(Floats x, fp16 *p) {
  x = larger(all(-LARGEST_FP16), smaller(all(LARGEST_FP16), x));
#ifdef CULM_AVX512
  const __m256i made = _mm512_cvtps_ph(x.part[0], _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &made, sizeof made);
#else
#pragma GCC unroll 4
  for (int i = 0; i < REGISTERS; i++) {
#if defined(CULM_AVX2)
    const __m128i made = _mm256_cvtps_ph(x.part[i], _MM_FROUND_TO_NEAREST_INT);
#elif defined(__ARM_NEON)
    const float16x4_t made = vcvt_f16_f32(x.part[i]);
#else
    const auto bits = (Register<uint32_t>)x.part[i], size = bits & 0x7fffffff;
    // The last bit of 0.5 is worth what that of the smallest numbers in fp16 is.
    const auto small = (Register<uint32_t>)((Register<float>)size + 0.5f) - 0x3f000000;
    const auto normal = (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13;
    const auto is_small = (Register<uint32_t>)(size < 113u << 23);
    const auto is_nan = (Register<uint32_t>)(size > 0x7f800000);
    const auto near = (small & is_small) | (normal & ~is_small);
    const auto half = (near & ~is_nan) | (0x7e00 & is_nan) | (bits >> 16 & 0x8000);
    const auto made = __builtin_convertvector(half, Register<uint16_t, BYTES / 2>);
#endif
    std::memcpy(p + i * PER_REGISTER, &made, sizeof made);
  }
#endif
}

// ---------------------------------------------------------------------------------------------
// Pairs of bf16

// Two numbers in each lane, even[i] in the lower half, in bf16.
static inline Ints pair(Floats even, Floats odd) {
#ifdef CULM_AVX512
  auto bits = [](Floats x) {
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x.part[0]));
  };
  return {(Register<int32_t>)_mm512_or_si512(bits(even), _mm512_slli_epi32(bits(odd), 16))};
#else
  return shift_right(upper_half(even), 16) | (upper_half(odd) & ints((int32_t)0xffff0000));
#endif
}

// The same as a factor of `dot`.
#ifdef CULM_AVX512
struct Pairs { __m512bh both; };
#else
struct Pairs { Floats even, odd; };
#endif
static inline Pairs pairs(Ints x) {
#ifdef CULM_AVX512
  return {(__m512bh)x.part[0]};
#else
  return {cast<float>(x << 16), cast<float>(x & ints((int32_t)0xffff0000))};
#endif
}
static inline Pairs pairs(const bf16 *p) { return pairs(load64<int32_t>(p)); }

// A number that is one of a pair in all lanes is kept in the form that is broadcast fastest.
#ifdef CULM_AVX512
using Kept = bf16;
#else
using Kept = float;
#endif
static inline Pairs broadcast(const Kept *p) {
#ifdef CULM_AVX512
  return {(__m512bh)_mm512_set1_epi32(read<int32_t>(p))};
#else
  return {all(p[0]), all(p[1])};
#endif
}

static inline const Kept *in_place(const bf16 *rows) {  // null if their form is another one
#ifdef CULM_AVX512
  return rows;
#else
  return nullptr;
#endif
}
static inline void keep(const bf16 *row, int64_t count, Kept *out) {  // count: a multiple of 16
#ifdef CULM_AVX512
  std::memcpy(out, row, count * sizeof(bf16));
#else
  for (int64_t i = 0; i < count; i += LANES) store(out + i, widen(row + i));
#endif
}

// sum + even a even b + odd a odd b
static inline Floats dot(Floats sum, Pairs a, Pairs b) {
#ifdef CULM_AVX512
  return {_mm512_dpbf16_ps(sum.part[0], a.both, b.both)};
#else
  return fma(a.odd, b.odd, fma(a.even, b.even, sum));
#endif
}

// Rows become columns.
static inline void transpose(Ints (&rows)[LANES]) {
#ifdef CULM_AVX512  // swaps halves of pairs of rows, then quarters, eighths and sixteenths
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int step = 8; step; step /= 2) {
    const __mmask16 upper = _mm512_test_epi32_mask(lanes, _mm512_set1_epi32(step));
    // Lane j from 16 on is lane j - 16 of the second row.
    const __m512i low = _mm512_mask_add_epi32(lanes, upper, lanes, _mm512_set1_epi32(16 - step));
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(step));
    for (int i = 0; i < LANES; i++) {
      if (i & step) continue;
      const __m512i one = (__m512i)rows[i].part[0], other = (__m512i)rows[i + step].part[0];
      rows[i].part[0] = (Register<int32_t>)_mm512_permutex2var_epi32(one, low, other);
      rows[i + step].part[0] = (Register<int32_t>)_mm512_permutex2var_epi32(one, high, other);
    }
  }
#else
  int32_t from[LANES][LANES], to[LANES][LANES];
  std::memcpy(from, rows, sizeof from);
  for (int i = 0; i < LANES; i++)
    for (int j = 0; j < LANES; j++) to[j][i] = from[i][j];
  std::memcpy(rows, to, sizeof to);
#endif
}

// ---------------------------------------------------------------------------------------------
// Tiles: eight registers of 16 rows of 64 bytes, which AMX multiplies

#ifdef CULM_AMX
static bool tiles_allowed() {  // Linux gives a process its tiles when it asks for them
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;
  static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return allowed;
}

struct Tiles {  // of this thread, while it lives: eight of 16 rows of 64 bytes
  Tiles() {
    if (!tiles_allowed()) return;
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;
    asm volatile("" ::"r"(config) : "memory");  // for GCC, the next line reads 8 bytes of it
    _tile_loadconfig(config);
  }
  ~Tiles() {
    if (tiles_allowed()) _tile_release();
  }
};
#else
struct Tiles {};
#endif

// ---------------------------------------------------------------------------------------------
// Integers of 8 and 4 bits

template <typename T>
static inline Ints widen_bytes(Register<T, 16> bytes) {
  return Ints::make([&](int i) {
    const auto part = read<Register<T, BYTES / 4>>((const char *)&bytes + i * BYTES / 4);
    return __builtin_convertvector(part, Register<int32_t>);
  });
}

// 16 codes of 8 or 4 bits, of which the even ones are in the lower halves.
static inline Floats decoded(const uint8_t *codes, int64_t bits) {
  if (bits == 8) return floats(widen_bytes<uint8_t>(read<Register<uint8_t, 16>>(codes)));
  const auto two = __builtin_convertvector(read<Register<uint8_t, 8>>(codes), Register<uint16_t, 16>);
  return floats(widen_bytes<uint8_t>((Register<uint8_t, 16>)((two | two << 4) & 0x0f0f)));
}

// Each lane multiplies four bytes of `codes` by four of `row` and adds them to `sum`. One factor of the
// instruction of VNNI is unsigned, so signed codes are shifted by SHIFT there; those of 4 bits need
// no shift anywhere. A sum that begins at -SHIFT times the sum of the row is right.
#ifdef CULM_AVX512
constexpr int32_t SHIFT = 128;
#else
constexpr int32_t SHIFT = 0;
#endif
static inline Ints signed_codes(const int8_t *p, int64_t bytes) {
  const Ints codes = load64<int32_t>(p, bytes);
#ifdef CULM_AVX512
  return {(Register<int32_t>)_mm512_xor_si512((__m512i)codes.part[0], _mm512_set1_epi8((char)SHIFT))};
#else
  return codes;
#endif
}
template <bool SIGNED>
static inline Ints dot_bytes(Ints sum, Ints codes, Ints row) {
  return Ints::make([&](int i) {
#if defined(CULM_AVX512)
    return _mm512_dpbusd_epi32((__m512i)sum.part[i], (__m512i)codes.part[i], (__m512i)row.part[i]);
#elif defined(CULM_AVX2)
    __m256i a = (__m256i)codes.part[i], b = (__m256i)row.part[i];
    if (SIGNED) b = _mm256_sign_epi8(b, a), a = _mm256_abs_epi8(a);
    const __m256i two = _mm256_maddubs_epi16(a, b);  // at most 2 * 128 * 127, which 16 bits hold
    return sum.part[i] + (Register<int32_t>)_mm256_madd_epi16(two, _mm256_set1_epi16(1));
#elif defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(sum.part[i], (int8x16_t)codes.part[i], (int8x16_t)row.part[i]);
#else
    auto byte = [](Register<int32_t> x, int n) { return x << (24 - 8 * n) >> 24; };
    Register<int32_t> total = sum.part[i];
    for (int n = 0; n < 4; n++) total += byte(codes.part[i], n) * byte(row.part[i], n);
    return total;
#endif
  });
}

// The same of codes of 4 bits in two parts, a of which is multiplied by x and b by y.
static inline Ints dot_nibbles(Ints sum, Ints a, Ints x, Ints b, Ints y) {
#ifdef CULM_AVX2
  return Ints::make([&](int i) {
    const __m256i first = _mm256_maddubs_epi16((__m256i)a.part[i], (__m256i)x.part[i]);
    const __m256i second = _mm256_maddubs_epi16((__m256i)b.part[i], (__m256i)y.part[i]);
    const __m256i both = _mm256_add_epi16(first, second);  // at most 4 * 15 * 127
    return sum.part[i] + (Register<int32_t>)_mm256_madd_epi16(both, _mm256_set1_epi16(1));
  });
#else
  return dot_bytes<false>(dot_bytes<false>(sum, a, x), b, y);
#endif
}

// 16 integers of a byte each.
static inline void narrow_bytes(Ints x, int8_t *p) {
#ifdef CULM_AVX512
  const __m128i made = _mm512_cvtepi32_epi8((__m512i)x.part[0]);
  std::memcpy(p, &made, sizeof made);
#else
#pragma GCC unroll 4
  for (int i = 0; i < REGISTERS; i++) {
    const auto made = __builtin_convertvector(x.part[i], Register<int8_t, BYTES / 4>);
    std::memcpy(p + i * PER_REGISTER, &made, sizeof made);
  }
#endif
}

// Lane i gets value i * count / 16 of `count` (1, 2 or 4) values, of which only the first `known` are
// there.
struct Spread {
  int64_t count;
#ifdef CULM_AVX512
  __m512i which;  // in the upper half of a lane, so that a permutation also widens
#elif defined(CULM_AVX2)
  __m256i which[2];
#endif

  explicit Spread(int64_t n = 1) : count(n) {
#if defined(CULM_AVX512) || defined(CULM_AVX2)
    int32_t lanes[LANES];
    for (int64_t i = 0; i < LANES; i++) lanes[i] = i * n / LANES;
#endif
#if defined(CULM_AVX512)
    which = _mm512_slli_epi32(_mm512_loadu_si512(lanes), 16);
#elif defined(CULM_AVX2)
    which[0] = read<__m256i>(lanes), which[1] = read<__m256i>(lanes + 8);
#endif
  }

  Floats operator()(const bf16 *values, int64_t known) const {
#ifdef CULM_AVX512
    const __m128i there = _mm_maskz_loadu_epi16((__mmask8)least(known), values);
    const __m512i own = _mm512_castsi128_si512(there);
    return {(Register<float>)_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, which, own)};
#else
    uint64_t four = 0;
    if (known >= 4) four = read<uint64_t>(values);
    else for (int64_t i = 0; i < known; i++) four |= (uint64_t)values[i] << 16 * i;
#ifdef CULM_AVX2
    const __m128i wide = _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_cvtsi64_si128(four)), 16);
    const __m256 own = _mm256_castps128_ps256((__m128)wide);
    return Floats::make([&](int i) { return _mm256_permutevar8x32_ps(own, which[i]); });
#else
    return Floats::make([&](int i) {
      return widen((bf16)(four >> 16 * (i * count / REGISTERS))) - Register<float>{};
    });
#endif
#endif
  }
};

// A group of int4 weights, two in a byte and the even ones in the lower halves, in bf16. `count`: a
// multiple of 32.
static inline void restore_int4(const uint8_t *codes, float scale, float zero, int64_t count, bf16 *out) {
#ifdef CULM_AVX512  // a table of the 16 values that a group has
  const __m512 steps = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512 values = _mm512_fmadd_ps(steps, _mm512_set1_ps(scale), _mm512_set1_ps(zero));
  const __m512i table = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(values));
#endif
  for (int64_t k = 0; k < count; k += 32) {
    const Ints both = widen_bytes<uint8_t>(read<Register<uint8_t, 16>>(codes + k / 2));
#ifdef CULM_AVX512
    const Ints which = (both | both << 12) & ints((int32_t)0x000F000F);
    store(out + k, Ints{(Register<int32_t>)_mm512_permutexvar_epi16((__m512i)which.part[0], table)});
#else
    auto value = [&](Ints code) { return fma(floats(code) - all(8.f), all(scale), all(zero)); };
    store(out + k, pair(value(both & ints(15)), value(shift_right(both, 4))));
#endif
  }
}
