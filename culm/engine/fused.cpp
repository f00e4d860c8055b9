// One decoding step of a model as one function: the logits of each row's next token.
//
// Decoding reads every weight once per token; dispatching hundreds of operators costs more than that.
// Here one team of threads runs all layers and synchronises five times in each:
//
//     norm q k v | rotate, attend | out + | norm gate up | down + |
//
// and once more for each norm behind a branch, which needs all outputs of the branch.
// Weights are read where torch stores them (bf16, Int8Linear's, Int4Linear's); activations are bf16,
// or int8 with a scale per 32 of them where weights are quantised. The residual stream and all
// sums are fp32. A row's result does not depend on the other rows or on the number of threads.
// Adapters stay separate: each row may have its own. A cache may be in 8 or 4 bits.
//
// At the end of this file are the layers for many tokens, in two functions around attention.

#include <immintrin.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using bf16 = uint16_t;
enum Kind : int64_t { BF16, INT8, INT4, FP32 };

// Of low rank: scale * B A x is added to the outputs of the rows that have one.
struct Adapters {
  int64_t rank;           // 0: there are none
  Kind kind;              // BF16 or FP32
  const int64_t *number;  // of each row's adapter; less than 0: none
  const double *scale;
  const void *a, *b;      // (adapters, rank, inputs), (adapters, outputs, rank)
  const float *factor;    // (adapters, outputs), of what is not bias (DoRA), or null
};

struct Linear {
  Kind kind;
  int64_t outputs, inputs, group;
  const void *weight;         // (outputs, inputs) bf16 or int8; (outputs, inputs / 2) int4 pairs
  const bf16 *scale, *zero;   // int8: (outputs); int4: (outputs, inputs / group)
  const float *bias;          // (outputs) or null
  Adapters adapters;

  int64_t row(int64_t n) const { return std::min(n, outputs - 1); }
};

enum Activation : int64_t { SILU, GELU_TANH };

// A window of 0 is none. Position p of a sequence is entry p of its slot, or, from `sinks` on, entry
// sinks + (p - sinks) mod (entries - sinks). `at` says which position an entry has.
// A quantised cache has the last GROUP tokens or fewer in keys and values, (slots, kv_heads, GROUP,
// dim); those before them, in full groups, are zero + scale * code. The caller quantises a group
// after the step that fills it, which still reads it exactly.
constexpr int64_t GROUP = 32;
struct Codes {
  const uint8_t *codes;      // (slots, kv_heads, groups, GROUP, dim * bits / 8), even channels low
  const bf16 *scale, *zero;  // keys: (slots, kv_heads, groups, dim); values: (..., groups, GROUP)
};
struct Cache {
  int64_t entries, window, sinks;
  bf16 *keys, *values;  // (slots, kv_heads, entries, dim)
  int64_t *at;          // (slots, entries), or null where entries are positions
  int64_t bits, groups; // of a quantised cache; 0: it is not
  Codes key_codes, value_codes;
};

struct Layer {
  int64_t heads, kv_heads, dim, rotated, activation;
  int64_t normed;  // elements of a norm of queries: dim, or those of all heads
  double scale, softcap;  // of scores; a cap of 0 is none
  const float *attention_norm, *mlp_norm, *attention_out_norm, *mlp_out_norm;  // null: none
  const float *q_norm, *k_norm;                                                // null: none
  const float *cosines, *sines;  // (length, rotated / 2)
  Cache cache;
  Linear q, k, v, out, gate, up, down;
};

struct Model {
  int64_t width, layers;
  double eps, embedding_scale, branch_scale, head_scale;
  const bf16 *embedding;  // (vocabulary, width)
  const float *norm;
  Linear head;
  const Layer *layer;
};

static __m512 widen(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
static __m512 widen(const bf16 *p) { return widen(_mm256_loadu_si256((const __m256i *)p)); }
static float widen(bf16 x) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(x << 16))); }
static void narrow(__m512 x, bf16 *p) {
  _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh(x));
}

// e^x with a relative error of 2e-7: 2^n times a polynomial on half a unit around 0.
static __m512 exponential(__m512 x) {
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691e-4f);
  for (float c : {1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f, 1.6666665e-1f, 0.5f, 1.f, 1.f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

// ---------------------------------------------------------------------------------------------
// Matmuls with few rows

// Rows of activations, prepared for a kind of weights. Chunks of int8 and int4 weights have 64 and
// 128 inputs; a lane of 32 bits sums 4 and 8 of them. An int4 chunk holds even inputs, then odd.
struct Input {
  int64_t rows, inputs, chunks;
  const float *exact;            // (rows, inputs), for adapters
  std::vector<float> low, added; // A x and B A x of one row
  std::vector<bf16> narrowed;
  std::vector<int8_t> bytes;     // (rows, chunks, 64 or 128)
  std::vector<float> scales;     // (rows, chunks, 16)
  std::vector<int32_t> offsets;  // (rows, chunks, 16): where sums begin, since weights are shifted
  std::vector<float> sums;       // (rows, 16 * n): of each group of int4 weights
  int64_t groups;

  void prepare(const Linear &w, const float *x, int64_t count) {
    rows = count, inputs = w.inputs, exact = x;
    if (w.kind == BF16) {
      narrowed.resize(rows * inputs);
      for (int64_t i = 0; i < rows * inputs; i += 16) narrow(_mm512_loadu_ps(x + i), &narrowed[i]);
      return;
    }
    int64_t size = w.kind == INT8 ? 64 : 128;
    chunks = (inputs + size - 1) / size;
    groups = w.kind == INT4 ? (inputs / w.group + 15) / 16 * 16 : 0;
    bytes.assign(rows * chunks * size, 0);
    offsets.assign(rows * chunks * 16, 0);
    scales.assign(rows * chunks * 16, 0);
    sums.assign(rows * groups, 0);
    for (int64_t b = 0; b < rows; b++)
      for (int64_t k = 0; k < inputs; k += 32) quantize(w, x + b * inputs + k, b, k);
  }

  void quantize(const Linear &w, const float *x, int64_t b, int64_t k) {
    __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    float scale = most / 127;
    __m512 inverse = _mm512_set1_ps(most > 0 ? 127 / most : 0);
    __m128i first = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(low, inverse)));
    __m128i second = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(high, inverse)));
    __m256i both = _mm256_set_m128i(second, first), ones = _mm256_set1_epi8(1);
    __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), ones, both);
    if (w.kind == INT8) {
      _mm256_storeu_si256((__m256i *)&bytes[b * chunks * 64 + k], both);
      _mm256_storeu_ps(&scales[b * chunks * 16 + k / 4], _mm256_set1_ps(scale));
      _mm256_storeu_si256((__m256i *)&offsets[b * chunks * 16 + k / 4],
                          _mm256_mullo_epi32(fours, _mm256_set1_epi32(-128)));
      return;
    }
    int8_t *place = &bytes[(b * chunks + k / 128) * 128 + k % 128 / 2];
    _mm_storeu_si128((__m128i *)place, _mm256_cvtepi16_epi8(both));
    _mm_storeu_si128((__m128i *)(place + 64), _mm256_cvtepi16_epi8(_mm256_srli_epi16(both, 8)));
    alignas(32) int32_t four[8];
    _mm256_store_si256((__m256i *)four, fours);
    int64_t lane = b * chunks * 16 + k / 8;
    for (int i = 0; i < 4; i++) {
      int32_t eight = four[2 * i] + four[2 * i + 1];
      scales[lane + i] = scale;
      offsets[lane + i] = -8 * eight;  // weights are stored as 0 to 15
      sums[b * groups + k / w.group] += scale * eight;
    }
  }
};

// The totals of four times 16 partial sums.
static __m128 totals(const __m512 (&sums)[4]) {
  auto fold = [](__m512 a, __m512 b) {  // of each 128 bits: a, b, a, b
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  __m512d first = (__m512d)fold(sums[0], sums[1]), second = (__m512d)fold(sums[2], sums[3]);
  __m512 all = _mm512_add_ps((__m512)_mm512_unpacklo_pd(first, second),
                             (__m512)_mm512_unpackhi_pd(first, second));
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

static __mmask64 least(int64_t bits) { return bits >= 64 ? ~0ull : (1ull << bits) - 1; }

// Memory, not arithmetic, limits a step of few rows. Weights are asked for in the order of memory,
// AHEAD bytes or R rows of them before they are needed: R rows are read together, each for B rows of
// activations, so that a load serves many products. Every sum is added up in the same order whatever
// R and B are, so that a row's result does not depend on the others.
constexpr int64_t AHEAD = 4096;
template <int R>
static const char *after(const void *rows, int64_t bytes) {  // of R rows of so many bytes
  return (const char *)rows + std::max(R * bytes, AHEAD);
}
static void ask(const char *next, int64_t line) { _mm_prefetch(next + line * 64, _MM_HINT_T0); }

// Outputs n to n + R, of which those past the last are the last again, for B rows from b on: 16
// partial sums of each.
template <int R, int B>
static void dot_bf16(const Linear &w, const Input &in, int64_t n, int64_t b, __m512 (*sums)[B]) {
  const bf16 *weight[R], *x = &in.narrowed[b * w.inputs];
  for (int r = 0; r < R; r++) weight[r] = (const bf16 *)w.weight + w.row(n + r) * w.inputs;
  const char *next = after<R>(weight[0], w.inputs * 2);
  for (int64_t k = 0; k < w.inputs; k += 32) {
    __m512bh row[B];
    for (int i = 0; i < B; i++) row[i] = (__m512bh)_mm512_loadu_si512(x + i * w.inputs + k);
    for (int r = 0; r < R; r++) {
      ask(next, k / 32 * R + r);
      const __m512bh part = (__m512bh)_mm512_loadu_si512(weight[r] + k);
      for (int i = 0; i < B; i++) sums[r][i] = _mm512_dpbf16_ps(sums[r][i], part, row[i]);
    }
  }
}

template <int R, int B>
static void dot_int8(const Linear &w, const Input &in, int64_t n, int64_t b, __m512 (*sums)[B]) {
  const __m512i shift = _mm512_set1_epi8((char)0x80);  // signed to unsigned, which dpbusd takes
  const int8_t *weight[R];
  for (int r = 0; r < R; r++) weight[r] = (const int8_t *)w.weight + w.row(n + r) * w.inputs;
  const char *next = after<R>(weight[0], w.inputs);
  auto step = [&](int64_t c, __mmask64 there) {
    __m512i part[R];
    for (int r = 0; r < R; r++) {
      ask(next, c * R + r);
      part[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(there, weight[r] + c * 64), shift);
    }
    for (int i = 0; i < B; i++) {
      const int64_t at = (b + i) * in.chunks + c;
      const __m512i row = _mm512_loadu_si512(&in.bytes[at * 64]);
      const __m512i offset = _mm512_loadu_si512(&in.offsets[at * 16]);
      const __m512 scale = _mm512_loadu_ps(&in.scales[at * 16]);
      for (int r = 0; r < R; r++) {
        const __m512i dot = _mm512_dpbusd_epi32(offset, part[r], row);
        sums[r][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, sums[r][i]);
      }
    }
  };
  int64_t c = 0;
  for (; c < w.inputs / 64; c++) step(c, ~0ull);
  if (c < in.chunks) step(c, least(w.inputs - c * 64));
  for (int r = 0; r < R; r++)
    for (int i = 0; i < B; i++)
      sums[r][i] = _mm512_mul_ps(sums[r][i], _mm512_set1_ps(widen(w.scale[w.row(n + r)])));
}

template <int R, int B>
static void dot_int4(const Linear &w, const Input &in, int64_t n, int64_t b, __m512 (*sums)[B]) {
  const int64_t groups = w.inputs / w.group, each = 128 / w.group;
  const __m512i nibble = _mm512_set1_epi8(15);
  // Which scale lane i has, in its upper half: so a permutation also widens bf16.
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i group =
      _mm512_slli_epi32(_mm512_srli_epi32(_mm512_mullo_epi32(lanes, _mm512_set1_epi32(each)), 4), 16);
  const uint8_t *weight[R];
  const bf16 *scales[R], *zeros[R];
  for (int r = 0; r < R; r++) {
    weight[r] = (const uint8_t *)w.weight + w.row(n + r) * w.inputs / 2;
    scales[r] = w.scale + w.row(n + r) * groups, zeros[r] = w.zero + w.row(n + r) * groups;
  }
  const char *next = after<R>(weight[0], w.inputs / 2);
  auto step = [&](int64_t c, __mmask64 there, __mmask8 known) {
    __m512i even[R], odd[R];
    __m512 scale[R];
    for (int r = 0; r < R; r++) {
      ask(next, c * R + r);
      const __m512i pair = _mm512_maskz_loadu_epi8(there, weight[r] + c * 64);
      even[r] = _mm512_and_si512(pair, nibble);
      odd[r] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), nibble);
      const __m128i own = _mm_maskz_loadu_epi16(known, scales[r] + c * each);
      scale[r] = (__m512)_mm512_maskz_permutexvar_epi16(0xAAAAAAAA, group, _mm512_castsi128_si512(own));
    }
    for (int i = 0; i < B; i++) {
      const int64_t at = (b + i) * in.chunks + c;
      const __m512i first = _mm512_loadu_si512(&in.bytes[at * 128]);
      const __m512i second = _mm512_loadu_si512(&in.bytes[at * 128 + 64]);
      const __m512i offset = _mm512_loadu_si512(&in.offsets[at * 16]);
      const __m512 own = _mm512_loadu_ps(&in.scales[at * 16]);
      for (int r = 0; r < R; r++) {
        const __m512i dot =
            _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(offset, even[r], first), odd[r], second);
        sums[r][i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scale[r], own), sums[r][i]);
      }
    }
  };
  const __mmask8 all = (__mmask8)least(each);
  int64_t c = 0;
  for (; c < w.inputs / 128; c++) step(c, ~0ull, all);
  if (c < in.chunks) step(c, least((w.inputs - c * 128) / 2), (__mmask8)least(groups - c * each));
  for (int64_t g = 0; g < groups; g += 16)
    for (int r = 0; r < R; r++) {
      const __m512 zero = widen(_mm256_maskz_loadu_epi16((__mmask16)least(groups - g), zeros[r] + g));
      for (int i = 0; i < B; i++)
        sums[r][i] = _mm512_fmadd_ps(zero, _mm512_loadu_ps(&in.sums[(b + i) * in.groups + g]), sums[r][i]);
    }
}

// Outputs n to n + 4 or `to` for B rows from b on, R rows of weights together.
template <int R, int B>
static void tile(const Linear &w, const Input &in, int64_t n, int64_t to, int64_t b, float *out,
                 int64_t stride) {
  __m512 sums[4][B] = {};
  const auto dot = w.kind == BF16 ? dot_bf16<R, B> : w.kind == INT8 ? dot_int8<R, B> : dot_int4<R, B>;
  for (int r = 0; r < 4; r += R) dot(w, in, n + r, b, sums + r);
  const __mmask8 there = (__mmask8)least(to - n) & 15;
  const __m128 bias = w.bias ? _mm_maskz_loadu_ps(there, w.bias + n) : _mm_setzero_ps();
  for (int i = 0; i < B; i++)
    _mm_mask_storeu_ps(out + (b + i) * stride + n, there,
                       _mm_add_ps(totals({sums[0][i], sums[1][i], sums[2][i], sums[3][i]}), bias));
}

// Outputs from..to of w for all rows into out: (rows, stride).
static void matmul(const Linear &w, const Input &in, int64_t from, int64_t to, float *out,
                   int64_t stride) {
  const auto one = w.kind == BF16 ? tile<1, 1> : tile<4, 1>;  // int4 costs more arithmetic
  for (int64_t n = from; n < to; n += 4) {
    int64_t b = 0;
    for (; b + 8 <= in.rows; b += 8) tile<2, 8>(w, in, n, to, b, out, stride);
    for (; b + 4 <= in.rows; b += 4) tile<4, 4>(w, in, n, to, b, out, stride);
    for (; b < in.rows; b++) one(w, in, n, to, b, out, stride);
  }
}

static __m512 load(__mmask16 there, const float *p) { return _mm512_maskz_loadu_ps(there, p); }
static __m512 load(__mmask16 there, const bf16 *p) {
  return widen(_mm256_maskz_loadu_epi16(there, p));
}

// Rows from..to of a matrix (rows, columns) times x.
template <typename T>
static void matvec(const T *matrix, int64_t from, int64_t to, int64_t columns, const float *x,
                   float *out) {
  for (int64_t n = from; n < to; n += 4) {
    __m512 sums[4] = {};
    for (int64_t i = 0; i < columns; i += 16) {
      const __mmask16 there = (__mmask16)least(columns - i);
      const __m512 part = load(there, x + i);
      for (int j = 0; j < 4; j++) {
        const T *row = matrix + std::min(n + j, to - 1) * columns + i;
        sums[j] = _mm512_fmadd_ps(load(there, row), part, sums[j]);
      }
    }
    _mm_mask_storeu_ps(out + n - from, (__mmask8)least(to - n), totals(sums));
  }
}

// Adds what adapters give to outputs from..to of w. Every thread computes all of A x, since waiting
// for the others would take longer.
template <typename T>
static void adapt(const Linear &w, Input &in, int64_t from, int64_t to, float *out, int64_t stride) {
  const Adapters &own = w.adapters;
  if (!own.rank || from == to) return;
  in.low.resize(own.rank), in.added.resize(to - from);
  const T *lower = (const T *)own.a, *upper = (const T *)own.b;
  for (int64_t b = 0; b < in.rows; b++) {
    const int64_t number = own.number[b];
    if (number < 0) continue;
    matvec(lower + number * own.rank * w.inputs, 0, own.rank, w.inputs, in.exact + b * w.inputs,
           in.low.data());
    matvec(upper + number * w.outputs * own.rank, from, to, own.rank, in.low.data(), in.added.data());
    for (int64_t n = from; n < to; n++) {
      float &value = out[b * stride + n], bias = w.bias ? w.bias[n] : 0;
      value += (float)*own.scale * in.added[n - from];
      if (own.factor) value = (value - bias) * own.factor[number * w.outputs + n] + bias;
    }
  }
}

// ---------------------------------------------------------------------------------------------
// The layers

// factor / rms(x)
static float inverse_rms(const float *x, int64_t size, double eps, double factor = 1) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += 16) {
    __m512 part = _mm512_loadu_ps(x + i);
    squares = _mm512_fmadd_ps(part, part, squares);
  }
  return (float)(factor / std::sqrt(_mm512_reduce_add_ps(squares) / size + eps));
}

static void weigh(const float *x, const float *weight, float factor, int64_t size, float *out) {
  for (int64_t i = 0; i < size; i += 16)
    _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(factor)),
                                            _mm512_loadu_ps(weight + i)));
}

// Head `head` of x (heads, dim): normalised, its first elements rotated, in bf16.
static void rotate(const float *x, int64_t head, int64_t heads, const float *norm, const Layer &layer,
                   int64_t position, double eps, std::vector<float> &spare, bf16 *out) {
  const int64_t dim = layer.dim, half = layer.rotated / 2;
  const float *own = x + head * dim;
  spare.assign(own, own + dim);
  if (norm && layer.normed == dim) weigh(own, norm, inverse_rms(own, dim, eps), dim, spare.data());
  if (norm && layer.normed != dim)
    weigh(own, norm + head * dim, inverse_rms(x, heads * dim, eps), dim, spare.data());
  const float *cosine = layer.cosines + position * half, *sine = layer.sines + position * half;
  for (int64_t i = 0; i < half; i++) {
    float first = spare[i], second = spare[i + half];
    spare[i] = first * cosine[i] - second * sine[i];
    spare[i + half] = second * cosine[i] + first * sine[i];
  }
  for (int64_t i = 0; i < dim; i += 16) narrow(_mm512_loadu_ps(&spare[i]), out + i);
}

// The sums of products of a query with four keys.
static __m128 dots(const bf16 *query, const bf16 *const (&keys)[4], int64_t size) {
  __m512 sums[4] = {};
  for (int64_t i = 0; i < size; i += 32) {
    __mmask32 there = (__mmask32)least(size - i);
    __m512bh part = (__m512bh)_mm512_maskz_loadu_epi16(there, query + i);
    for (int j = 0; j < 4; j++)
      sums[j] = _mm512_dpbf16_ps(sums[j], part,
                                 (__m512bh)_mm512_maskz_loadu_epi16(there, keys[j] + i));
  }
  return totals(sums);
}

// x / (1 + e^-y), which is SiLU where y is x.
static __m512 times_sigmoid(__m512 x, __m512 y) {
  __m512 below = _mm512_add_ps(exponential(_mm512_sub_ps(_mm512_setzero_ps(), y)), _mm512_set1_ps(1));
  return _mm512_div_ps(x, below);
}

// cap * tanh(x / cap)
static __m512 bounded(__m512 x, float cap) {
  __m512 twice = times_sigmoid(_mm512_set1_ps(2 * cap), _mm512_mul_ps(x, _mm512_set1_ps(2 / cap)));
  return _mm512_sub_ps(twice, _mm512_set1_ps(cap));
}

// 16 codes of 8 or 4 bits.
static __m512 decoded(const uint8_t *codes, int64_t bits) {
  __m128i bytes;
  if (bits == 8) {
    bytes = _mm_loadu_si128((const __m128i *)codes);
  } else {
    __m128i pairs = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)codes));
    bytes = _mm_and_si128(_mm_or_si128(pairs, _mm_slli_epi16(pairs, 4)), _mm_set1_epi16(0x0f0f));
  }
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
}

// What a thread needs to attend.
struct Attention {
  std::vector<float> spare, scores;
  std::vector<int64_t> entries;
  int64_t own;                             // entry of the new key and value
  std::vector<const bf16 *> keys, values;  // of the entries, then the new ones
  std::vector<bf16> query, key, value, restored;
  const Layer *of_layer = nullptr;
  int64_t of_head = -1;  // the key head that these are of, in a row

  // The entries of the earlier tokens that `position` sees: sinks, then the window. Gives its own.
  int64_t find(const Cache &cache, int64_t position) {
    const int64_t first = cache.window ? std::max<int64_t>(position - cache.window + 1, 0) : 0;
    auto entry = [&](int64_t p) {
      return p < cache.sinks ? p : cache.sinks + (p - cache.sinks) % (cache.entries - cache.sinks);
    };
    entries.clear();
    for (int64_t p = 0; p < std::min(cache.sinks, first); p++) entries.push_back(p);
    for (int64_t p = first, e = entry(first); p < position; p++, e++) {
      if (e == cache.entries) e = cache.sinks;
      entries.push_back(e);
    }
    return entry(position);
  }

  // Dequantises the first `full` entries of a head: their keys, then their values.
  void restore(const Cache &cache, int64_t head, int64_t full, int64_t dim) {
    const int64_t width = dim * cache.bits / 8, at = head * cache.groups;
    const Codes &k = cache.key_codes, &v = cache.value_codes;
    restored.resize(2 * full * dim);
    for (int64_t i = 0; i < full; i++) {
      const int64_t token = at * GROUP + entries[i], code = token * width;
      const __m512 scale = _mm512_set1_ps(widen(v.scale[token]));
      const __m512 zero = _mm512_set1_ps(widen(v.zero[token]));
      for (int64_t d = 0; d < dim; d += 16)
        narrow(_mm512_fmadd_ps(decoded(v.codes + code + d * cache.bits / 8, cache.bits), scale, zero),
               &restored[(full + i) * dim + d]);
    }
    for (int64_t i = 0, end; i < full; i = end) {  // keys of one group
      const int64_t group = entries[i] / GROUP, channels = (at + group) * dim;
      for (end = i; end < full && entries[end] / GROUP == group;) end++;
      for (int64_t d = 0; d < dim; d += 16) {
        const __m512 scale = widen(k.scale + channels + d), zero = widen(k.zero + channels + d);
        for (int64_t j = i; j < end; j++) {
          const int64_t code = (at * GROUP + entries[j]) * width + d * cache.bits / 8;
          narrow(_mm512_fmadd_ps(decoded(k.codes + code, cache.bits), scale, zero),
                 &restored[j * dim + d]);
        }
      }
    }
  }

  // Where the keys and values of the entries are.
  void locate(const Cache &cache, int64_t head, int64_t dim, int64_t first, int64_t size) {
    const int64_t count = entries.size();
    int64_t full = 0;  // entries in full groups
    while (full < count && entries[full] < first) full++;
    if (full) restore(cache, head, full, dim);
    keys.resize(count + 1), values.resize(count + 1);
    for (int64_t i = 0; i < full; i++)
      keys[i] = &restored[i * dim], values[i] = &restored[(full + i) * dim];
    for (int64_t i = full; i < count; i++) {
      const int64_t at = (head * size + entries[i] - first) * dim;
      keys[i] = cache.keys + at, values[i] = cache.values + at;
    }
    keys[count] = key.data(), values[count] = value.data();
  }

  // The keys and values that a row's query heads with one key head see; the new ones are stored.
  void open(const Layer &layer, double eps, const float *k, const float *v, int64_t group, int64_t slot,
            int64_t position) {
    const int64_t dim = layer.dim, kv_head = slot * layer.kv_heads + group;
    if (of_layer == &layer && of_head == kv_head) return;
    of_layer = &layer, of_head = kv_head;
    key.resize(dim), value.resize(dim);
    rotate(k, group, layer.kv_heads, layer.k_norm, layer, position, eps, spare, key.data());
    for (int64_t i = 0; i < dim; i += 16) narrow(_mm512_loadu_ps(v + group * dim + i), &value[i]);
    const Cache &cache = layer.cache;
    const int64_t first = cache.groups ? position / GROUP * GROUP : 0;
    const int64_t size = cache.groups ? GROUP : cache.entries;
    own = find(cache, position) - first;
    locate(cache, kv_head, dim, first, size);
  }

  // One query head of one row.
  void attend(const Layer &layer, double eps, const float *q, const float *k, const float *v,
              int64_t head, int64_t slot, int64_t position, float *out) {
    const int64_t dim = layer.dim, shared = layer.heads / layer.kv_heads, group = head / shared;
    query.resize(dim);
    rotate(q, head, layer.heads, layer.q_norm, layer, position, eps, spare, query.data());
    open(layer, eps, k, v, group, slot, position);
    const Cache &cache = layer.cache;
    const int64_t count = keys.size(), size = cache.groups ? GROUP : cache.entries;
    if (head % shared == 0) {  // other threads use their own copy and never look at this entry
      const int64_t at = (of_head * size + own) * dim;
      std::copy(key.begin(), key.end(), cache.keys + at);
      std::copy(value.begin(), value.end(), cache.values + at);
    }
    if (head == 0 && cache.at) cache.at[slot * cache.entries + own] = position;
    scores.assign((count + 15) / 16 * 16, 0);
    for (int64_t i = 0; i < count; i += 4) {
      auto at = [&](int64_t e) { return keys[std::min(e, count - 1)]; };
      const bf16 *const four[4] = {at(i), at(i + 1), at(i + 2), at(i + 3)};
      _mm_storeu_ps(&scores[i], dots(query.data(), four, dim));
    }
    const __m512 share = softmax(count, layer.scale, layer.softcap);
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64) weighted<4>(d, share, out + head * dim);
    for (; d < dim; d += 16) weighted<1>(d, share, out + head * dim);
  }

  // 16 * N elements from d on of the sum of all values; N sums hide the latency of an addition.
  template <int N>
  void weighted(int64_t d, __m512 share, float *out) {
    __m512 sums[N];
    const int64_t earlier = entries.size();
    for (int j = 0; j < N; j++)
      sums[j] = _mm512_mul_ps(_mm512_set1_ps(scores[earlier]), widen(&value[d + 16 * j]));
    for (int64_t i = 0; i < earlier; i++) {
      const __m512 score = _mm512_set1_ps(scores[i]);
      const bf16 *one = values[i] + d;
      for (int j = 0; j < N; j++) sums[j] = _mm512_fmadd_ps(score, widen(one + 16 * j), sums[j]);
    }
    for (int j = 0; j < N; j++)
      _mm512_storeu_ps(out + d + 16 * j, _mm512_mul_ps(sums[j], share));
  }

  // Turns dot products into e^(score - maximum); gives the inverse of their sum.
  __m512 softmax(int64_t count, double scale, double softcap) {
    const int64_t padded = scores.size();
    __m512 most = _mm512_set1_ps(-INFINITY), total = _mm512_setzero_ps();
    for (int64_t i = 0; i < padded; i += 16) {
      __m512 part = _mm512_mul_ps(_mm512_loadu_ps(&scores[i]), _mm512_set1_ps((float)scale));
      if (softcap) part = bounded(part, (float)softcap);
      _mm512_storeu_ps(&scores[i], part);
      most = _mm512_mask_max_ps(most, (__mmask16)least(count - i), most, part);
    }
    most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
    for (int64_t i = 0; i < padded; i += 16) {
      __m512 part = exponential(_mm512_sub_ps(_mm512_loadu_ps(&scores[i]), most));
      part = _mm512_maskz_mov_ps((__mmask16)least(count - i), part);
      _mm512_storeu_ps(&scores[i], part);
      total = _mm512_add_ps(total, part);
    }
    return _mm512_set1_ps(1 / _mm512_reduce_add_ps(total));
  }
};

// activation(gate) * up. GELU's 0.5 (1 + tanh(x)) is the sigmoid of 2 x.
static __m512 gated(int64_t activation, __m512 gate, __m512 up) {
  __m512 inner = gate;
  if (activation == GELU_TANH) {  // 2 sqrt(2 / pi) (g + 0.044715 g^3)
    __m512 cubed = _mm512_mul_ps(_mm512_mul_ps(gate, gate), gate);
    inner = _mm512_fmadd_ps(cubed, _mm512_set1_ps(0.044715f), gate);
    inner = _mm512_mul_ps(inner, _mm512_set1_ps(1.5957691216f));
  }
  return _mm512_mul_ps(times_sigmoid(gate, inner), up);
}

// up <- activation(gate) * up
static void gated(int64_t activation, const float *gate, float *up, int64_t size) {
  for (int64_t i = 0; i < size; i += 16) {
    __mmask16 there = (__mmask16)least(size - i);
    __m512 g = _mm512_maskz_loadu_ps(there, gate + i), u = _mm512_maskz_loadu_ps(there, up + i);
    _mm512_mask_storeu_ps(up + i, there, gated(activation, g, u));
  }
}

extern "C" {

// tokens, positions: (rows), the rows being the slots from 0 on; logits: (rows, vocabulary).
void culm_decode(const Model *model, int64_t rows, const int64_t *tokens, const int64_t *positions,
                 float *logits, int64_t threads) {
  const int64_t width = model->width;
  int64_t heads = 0, kv = 0, inner = 0;
  for (int64_t l = 0; l < model->layers; l++) {
    const Layer &layer = model->layer[l];
    heads = std::max(heads, layer.q.outputs), kv = std::max(kv, layer.k.outputs);
    inner = std::max(inner, layer.up.outputs);
  }
  std::vector<float> x(rows * width), q(rows * heads), k(rows * kv), v(rows * kv);
  std::vector<float> mixed(rows * heads), gate(rows * inner), up(rows * inner), branch(rows * width);
  for (int64_t b = 0; b < rows; b++)
    for (int64_t i = 0; i < width; i += 16)
      _mm512_storeu_ps(&x[b * width + i],
                       _mm512_mul_ps(widen(model->embedding + tokens[b] * width + i),
                                     _mm512_set1_ps((float)model->embedding_scale)));

#pragma omp parallel num_threads(threads)
  {
    const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
    Input in;
    Attention attention;
    std::vector<float> normed(rows * width);
    auto mine = [&](int64_t size, auto work) {  // a share of the outputs, in whole blocks of 16
      int64_t blocks = (size + 15) / 16;
      work(std::min(size, blocks * me / team * 16), std::min(size, blocks * (me + 1) / team * 16));
    };
    auto norm = [&](const float *weight, const Linear &next, double factor = 1) {
      for (int64_t b = 0; b < rows && weight; b++)
        weigh(&x[b * width], weight, inverse_rms(&x[b * width], width, model->eps, factor), width,
              &normed[b * width]);
      in.prepare(next, weight ? normed.data() : x.data(), rows);
    };
    auto apply = [&](const Linear &w, float *out) {
      mine(w.outputs, [&](int64_t from, int64_t to) {
        matmul(w, in, from, to, out, w.outputs);
        const auto add_adapters = w.adapters.kind == BF16 ? adapt<bf16> : adapt<float>;
        add_adapters(w, in, from, to, out, w.outputs);
      });
    };
    auto add = [&](const Linear &w, const float *input, const float *weight) {
      in.prepare(w, input, rows);
      apply(w, branch.data());
      if (weight) {
#pragma omp barrier
      }
      mine(width, [&](int64_t from, int64_t to) {
        for (int64_t b = 0; b < rows; b++) {
          const float *made = &branch[b * width];
          float factor = (float)model->branch_scale;
          if (weight) factor = inverse_rms(made, width, model->eps, factor);
          for (int64_t i = from; i < to; i++)
            x[b * width + i] += weight ? made[i] * factor * weight[i] : made[i] * factor;
        }
      });
    };
    for (int64_t l = 0; l < model->layers; l++) {
      const Layer &layer = model->layer[l];
      const int64_t q_size = layer.q.outputs, kv_size = layer.k.outputs, size = layer.up.outputs;
      norm(layer.attention_norm, layer.q);
      apply(layer.q, q.data()), apply(layer.k, k.data()), apply(layer.v, v.data());
#pragma omp barrier
      // Query heads with the same key head follow each other in a thread.
      const int64_t all = rows * layer.heads, shared = layer.heads / layer.kv_heads;
      const int64_t chunk = all / shared % team ? (all + team - 1) / team : shared;
      for (int64_t first = me * chunk; first < all; first += team * chunk)
        for (int64_t i = first; i < std::min(first + chunk, all); i++) {
          int64_t b = i / layer.heads;
          attention.attend(layer, model->eps, &q[b * q_size], &k[b * kv_size], &v[b * kv_size],
                           i % layer.heads, b, positions[b], &mixed[b * q_size]);
        }
#pragma omp barrier
      add(layer.out, mixed.data(), layer.attention_out_norm);
#pragma omp barrier
      norm(layer.mlp_norm, layer.gate);
      apply(layer.gate, gate.data()), apply(layer.up, up.data());
      mine(size, [&](int64_t from, int64_t to) {
        for (int64_t b = 0; b < rows; b++)
          gated(layer.activation, &gate[b * size + from], &up[b * size + from], to - from);
      });
#pragma omp barrier
      add(layer.down, up.data(), layer.mlp_out_norm);
#pragma omp barrier
    }
    norm(model->norm, model->head, model->head_scale);
    apply(model->head, logits);
  }
}
}

// ---------------------------------------------------------------------------------------------
// Reading many tokens: the same layers, whose attention PyTorch computes in between
//
// Tokens are in panels of 16, one in each lane: (panels, elements, 16), so that sums over elements
// need no shuffles. Inputs of matmuls are bf16, two elements of a token after each other: (panels,
// elements / 2, 16, 2). The rest of the last panel is computed and never read. Weights are read
// where they are, each for all tokens of a block.

constexpr int64_t LANES = 16, OUTPUTS = 6, PANELS = 4;  // of a tile, whose sums stay in registers
constexpr int64_t BLOCK = 16;                           // panels whose inputs stay in the cache

struct Reading {
  int64_t tokens, threads;
  float *x;                      // the residual stream
  const float *cosines, *sines;  // (panels, rotated / 2, 16), or null
  // Scratch: outputs of matmuls, and inputs of them, of which `inner` is that of `down`.
  float *sums;
  bf16 *input, *inner;
};

// Two elements of 16 tokens in bf16.
static __m512i pair(__m512 even, __m512 odd) {
  __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
  __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Swaps halves of pairs of rows, then quarters, eighths and sixteenths.
static void transpose(__m512i (&rows)[16]) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int step = 8; step; step /= 2) {
    const __mmask16 upper = _mm512_test_epi32_mask(lanes, _mm512_set1_epi32(step));
    // Lane j from 16 on is lane j - 16 of the second row.
    const __m512i low = _mm512_mask_add_epi32(lanes, upper, lanes, _mm512_set1_epi32(16 - step));
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(step));
    for (int i = 0; i < 16; i++) {
      if (i & step) continue;
      __m512i first = _mm512_permutex2var_epi32(rows[i], low, rows[i + step]);
      rows[i + step] = _mm512_permutex2var_epi32(rows[i], high, rows[i + step]);
      rows[i] = first;
    }
  }
}

// factor / rms of each token of a panel
static __m512 panel_rms(const float *x, int64_t size, double eps, double factor = 1) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i++) {
    __m512 part = _mm512_loadu_ps(x + i * LANES);
    squares = _mm512_fmadd_ps(part, part, squares);
  }
  __m512 mean = _mm512_fmadd_ps(squares, _mm512_set1_ps(1.f / size), _mm512_set1_ps((float)eps));
  return _mm512_div_ps(_mm512_set1_ps((float)factor), _mm512_sqrt_ps(mean));
}

// OUTPUTS rows of weights in bf16; their sums are multiplied by the scales, then biases are added.
struct Weights {
  std::vector<bf16> restored;
  const bf16 *rows;
  const char *next;  // what is stored of the rows after these
  int64_t bytes;     // of these for 32 inputs
  float scales[OUTPUTS], biases[OUTPUTS];

  void load(const Linear &w, int64_t n) {
    rows = (const bf16 *)w.weight + n * w.inputs;
    bytes = OUTPUTS * (w.kind == BF16 ? 64 : w.kind == INT8 ? 32 : 16);
    next = (const char *)w.weight + (n + OUTPUTS) * w.inputs / 32 * (bytes / OUTPUTS);
    for (int64_t r = 0; r < OUTPUTS; r++) {
      scales[r] = w.kind == INT8 ? widen(w.scale[n + r]) : 1;
      biases[r] = w.bias ? w.bias[n + r] : 0;
    }
    if (w.kind == BF16) return;
    restored.resize(OUTPUTS * w.inputs);
    rows = restored.data();
    for (int64_t r = 0; r < OUTPUTS; r++)
      w.kind == INT8 ? restore_int8(w, n + r, &restored[r * w.inputs])
                     : restore_int4(w, n + r, &restored[r * w.inputs]);
  }

  static void restore_int8(const Linear &w, int64_t n, bf16 *out) {  // integers up to 127 are exact
    const int8_t *weight = (const int8_t *)w.weight + n * w.inputs;
    for (int64_t k = 0; k < w.inputs; k += LANES) {
      __m512i codes = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(weight + k)));
      narrow(_mm512_cvtepi32_ps(codes), out + k);
    }
  }

  static void restore_int4(const Linear &w, int64_t n, bf16 *out) {  // a table of a group's 16 values
    const uint8_t *weight = (const uint8_t *)w.weight + n * w.inputs / 2;
    const int64_t groups = w.inputs / w.group;
    const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i low = _mm512_set1_epi32(0x000F000F);
    for (int64_t g = 0; g < groups; g++) {
      __m512 scale = _mm512_set1_ps(widen(w.scale[n * groups + g]));
      __m512 values = _mm512_fmadd_ps(codes, scale, _mm512_set1_ps(widen(w.zero[n * groups + g])));
      __m512i table = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(values));
      for (int64_t k = g * w.group; k < (g + 1) * w.group; k += 32) {
        __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(weight + k / 2)));
        both = _mm512_and_si512(_mm512_or_si512(both, _mm512_slli_epi32(both, 12)), low);
        _mm512_storeu_si512(out + k, _mm512_permutexvar_epi16(both, table));
      }
    }
  }
};

// Sums of OUTPUTS outputs for C panels.
template <int C>
static void panel_tile(const Weights &weights, int64_t inputs, const bf16 *x,
                       float (*sums)[OUTPUTS][LANES]) {
  const bf16 *rows = weights.rows;
  __m512 parts[OUTPUTS][C] = {};
  for (int64_t k = 0; k < inputs; k += 2) {
    if (k % 32 == 0)
      for (int64_t i = 0; i < weights.bytes; i += 64)
        _mm_prefetch(weights.next + k / 32 * weights.bytes + i, _MM_HINT_T0);
    __m512bh panel[C];
    for (int c = 0; c < C; c++)
      panel[c] = (__m512bh)_mm512_loadu_si512(x + (c * inputs + k) * LANES);
    for (int r = 0; r < OUTPUTS; r++) {
      int32_t two;
      std::memcpy(&two, rows + r * inputs + k, sizeof two);
      const __m512bh weight = (__m512bh)_mm512_set1_epi32(two);
      for (int c = 0; c < C; c++) parts[r][c] = _mm512_dpbf16_ps(parts[r][c], weight, panel[c]);
    }
  }
  for (int c = 0; c < C; c++)
    for (int r = 0; r < OUTPUTS; r++) _mm512_storeu_ps(sums[c][r], parts[r][c]);
}

// Outputs from..to of layers with one input, for all panels: done(n, panel, value), where value(l, i)
// is output n + i < n + OUTPUTS of layer l. The last ones may be computed twice.
template <size_t L, typename Done>
static void multiply(const Linear *const (&layers)[L], const bf16 *x, int64_t panels, int64_t from,
                     int64_t to, Done done) {
  const int64_t inputs = layers[0]->inputs;
  Weights weights[L];
  float sums[L][PANELS][OUTPUTS][LANES];
  for (int64_t block = 0; block < panels; block += BLOCK)
    for (int64_t at = from; at < to; at += OUTPUTS) {
      const int64_t n = std::min(at, to - OUTPUTS), end = std::min(block + BLOCK, panels);
      for (size_t l = 0; l < L; l++) weights[l].load(*layers[l], n);
      for (int64_t p = block; p < end; p += PANELS) {
        const int64_t count = std::min(PANELS, end - p);
        const auto compute = count == 4   ? panel_tile<4>
                             : count == 3 ? panel_tile<3>
                             : count == 2 ? panel_tile<2>
                                          : panel_tile<1>;
        for (size_t l = 0; l < L; l++)
          compute(weights[l], inputs, x + p * inputs * LANES, sums[l]);
        for (int64_t c = 0; c < count; c++)
          done(n, p + c, [&](int64_t l, int64_t r) {
            return _mm512_fmadd_ps(_mm512_loadu_ps(sums[l][c][r]), _mm512_set1_ps(weights[l].scales[r]),
                                   _mm512_set1_ps(weights[l].biases[r]));
          });
      }
    }
}

// Of a panel: x as the input of a matmul, normalised if there is a norm.
static void prepare(const float *x, const float *norm, int64_t size, double eps, bf16 *input) {
  const __m512 factor = norm ? panel_rms(x, size, eps) : _mm512_set1_ps(1);
  auto element = [&](int64_t i) {
    __m512 part = _mm512_mul_ps(_mm512_loadu_ps(x + i * LANES), factor);
    return norm ? _mm512_mul_ps(part, _mm512_set1_ps(norm[i])) : part;
  };
  for (int64_t i = 0; i < size; i += 2)
    _mm512_storeu_si512(input + i * LANES, pair(element(i), element(i + 1)));
}

// Of a panel: adds to x what a branch gave, normalised if there is a norm.
static void add(const float *made, const float *norm, const Model &model, float *x) {
  const int64_t width = model.width;
  const __m512 factor = norm ? panel_rms(made, width, model.eps, model.branch_scale)
                             : _mm512_set1_ps((float)model.branch_scale);
  for (int64_t i = 0; i < width; i++) {
    __m512 part = _mm512_mul_ps(_mm512_loadu_ps(made + i * LANES), factor);
    if (norm) part = _mm512_mul_ps(part, _mm512_set1_ps(norm[i]));
    _mm512_storeu_ps(x + i * LANES, _mm512_add_ps(_mm512_loadu_ps(x + i * LANES), part));
  }
}

// Head `head` of a panel of x (heads * dim, 16) to out (tokens, heads, dim).
static void put_head(const float *x, int64_t head, int64_t heads, int64_t panel, const float *norm,
                     bool rotated, const Layer &layer, double eps, const Reading &reading, bf16 *out) {
  const int64_t dim = layer.dim, half = rotated && reading.cosines ? layer.rotated / 2 : 0;
  std::vector<float> spare(x + head * dim * LANES, x + (head + 1) * dim * LANES);
  auto element = [&](int64_t i) { return _mm512_loadu_ps(&spare[i * LANES]); };
  if (norm) {
    const bool each = layer.normed == dim;
    const __m512 factor = each ? panel_rms(spare.data(), dim, eps) : panel_rms(x, heads * dim, eps);
    const float *weight = each ? norm : norm + head * dim;
    for (int64_t i = 0; i < dim; i++)
      _mm512_storeu_ps(&spare[i * LANES],
                       _mm512_mul_ps(_mm512_mul_ps(element(i), factor), _mm512_set1_ps(weight[i])));
  }
  for (int64_t i = 0; i < half; i++) {
    const __m512 cosine = _mm512_loadu_ps(reading.cosines + (panel * half + i) * LANES);
    const __m512 sine = _mm512_loadu_ps(reading.sines + (panel * half + i) * LANES);
    const __m512 first = element(i), second = element(i + half);
    _mm512_storeu_ps(&spare[i * LANES],
                     _mm512_fmsub_ps(first, cosine, _mm512_mul_ps(second, sine)));
    _mm512_storeu_ps(&spare[(i + half) * LANES],
                     _mm512_fmadd_ps(second, cosine, _mm512_mul_ps(first, sine)));
  }
  const int64_t first = panel * LANES, count = std::min(LANES, reading.tokens - first);
  for (int64_t d = 0; d < dim; d += 32) {
    __m512i rows[16] = {};
    const int64_t size = std::min<int64_t>(32, dim - d);
    for (int64_t i = 0; i < size; i += 2) rows[i / 2] = pair(element(d + i), element(d + i + 1));
    transpose(rows);
    for (int64_t t = 0; t < count; t++)
      _mm512_mask_storeu_epi16(out + ((first + t) * heads + head) * dim + d, (__mmask32)least(size),
                               rows[t]);
  }
}

// A panel of x (tokens, size) as the input of a matmul.
static void take(const bf16 *x, int64_t size, int64_t panel, int64_t tokens, bf16 *input) {
  const int64_t first = panel * LANES, count = std::min(LANES, tokens - first);
  for (int64_t i = 0; i < size; i += 32) {
    __m512i rows[16] = {};
    for (int64_t t = 0; t < count; t++) rows[t] = _mm512_loadu_si512(x + (first + t) * size + i);
    transpose(rows);
    for (int64_t j = 0; j < 16; j++) _mm512_storeu_si512(input + (i + 2 * j) * LANES, rows[j]);
  }
}

// A share of all outputs, in whole blocks of 16.
template <typename Work>
static void share(int64_t size, Work work) {
  const int64_t me = omp_get_thread_num(), team = omp_get_num_threads(), blocks = size / LANES;
  const int64_t from = blocks * me / team * LANES, to = blocks * (me + 1) / team * LANES;
  if (from < to) work(from, to);
}

extern "C" {

// The layer up to its queries, keys and values: (tokens, heads, dim), rotated.
void culm_read_heads(const Model *model, int64_t l, const Reading *reading, bf16 *q, bf16 *k, bf16 *v) {
  const Layer &layer = model->layer[l];
  const int64_t panels = (reading->tokens + LANES - 1) / LANES, width = model->width;
  const Linear *const linears[3] = {&layer.q, &layer.k, &layer.v};
  const float *norms[3] = {layer.q_norm, layer.k_norm, nullptr};
  bf16 *const outs[3] = {q, k, v};
  const int64_t total = layer.q.outputs + layer.k.outputs + layer.v.outputs;
#pragma omp parallel num_threads(reading->threads)
  {
#pragma omp for
    for (int64_t p = 0; p < panels; p++)
      prepare(reading->x + p * width * LANES, layer.attention_norm, width, model->eps,
              reading->input + p * width * LANES);
    for (int64_t i = 0, start = 0; i < 3; start += linears[i++]->outputs)
      share(linears[i]->outputs, [&](int64_t from, int64_t to) {
        multiply<1>({linears[i]}, reading->input, panels, from, to, [&](int64_t n, int64_t p, auto value) {
          for (int64_t r = 0; r < OUTPUTS; r++)
            _mm512_storeu_ps(reading->sums + (p * total + start + n + r) * LANES, value(0, r));
        });
      });
#pragma omp barrier
#pragma omp for
    for (int64_t p = 0; p < panels; p++)
      for (int64_t i = 0, start = 0; i < 3; start += linears[i++]->outputs)
        for (int64_t head = 0, heads = linears[i]->outputs / layer.dim; head < heads; head++)
          put_head(reading->sums + (p * total + start) * LANES, head, heads, p, norms[i], i < 2, layer,
                   model->eps, *reading, outs[i]);
  }
}

// The rest of the layer. heads: (tokens, heads, dim), what attention gave.
void culm_read_branches(const Model *model, int64_t l, const Reading *reading, const bf16 *heads) {
  const Layer &layer = model->layer[l];
  const int64_t panels = (reading->tokens + LANES - 1) / LANES, width = model->width;
  const int64_t mixed = layer.out.inputs, size = layer.up.outputs;
  auto project = [&](const Linear &w, const bf16 *input) {
    share(width, [&](int64_t from, int64_t to) {
      multiply<1>({&w}, input, panels, from, to, [&](int64_t n, int64_t p, auto value) {
        for (int64_t r = 0; r < OUTPUTS; r++)
          _mm512_storeu_ps(reading->sums + (p * width + n + r) * LANES, value(0, r));
      });
    });
  };
#pragma omp parallel num_threads(reading->threads)
  {
#pragma omp for
    for (int64_t p = 0; p < panels; p++)
      take(heads, mixed, p, reading->tokens, reading->input + p * mixed * LANES);
    project(layer.out, reading->input);
#pragma omp barrier
#pragma omp for
    for (int64_t p = 0; p < panels; p++) {
      float *x = reading->x + p * width * LANES;
      add(reading->sums + p * width * LANES, layer.attention_out_norm, *model, x);
      prepare(x, layer.mlp_norm, width, model->eps, reading->input + p * width * LANES);
    }
    share(size, [&](int64_t from, int64_t to) {
      multiply<2>({&layer.gate, &layer.up}, reading->input, panels, from, to,
                  [&](int64_t n, int64_t p, auto value) {
        auto element = [&](int64_t r) { return gated(layer.activation, value(0, r), value(1, r)); };
        for (int64_t r = 0; r < OUTPUTS; r += 2)
          _mm512_storeu_si512(reading->inner + (p * size + n + r) * LANES,
                              pair(element(r), element(r + 1)));
      });
    });
#pragma omp barrier
    project(layer.down, reading->inner);
#pragma omp barrier
#pragma omp for
    for (int64_t p = 0; p < panels; p++)
      add(reading->sums + p * width * LANES, layer.mlp_out_norm, *model, reading->x + p * width * LANES);
  }
}
}
