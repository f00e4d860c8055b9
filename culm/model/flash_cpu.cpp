// Attention of whole rows in bf16 on a CPU, forward and backward, by blocks of queries and keys
// (FlashAttention, arXiv 2205.14135 and 2307.08691): no scores are kept in memory.
//
// A unit of work is one head of keys in one row, with the heads of queries that read it; each has one
// thread, so results do not depend on the number of threads. Within a block all matrices are
// transposed, so that a vector has 16 queries and every reduction over keys is a loop over vectors:
//
//   forward     S' = K Q'      P' = exp(S' - max)                      O' += V' P'
//   backward    S' = K Q'      P' = exp(S' - logsum)                   dV += P' dO
//               dP' = V dO'    dS' = P' (dP' - sum(dO O)) * scale      dK += dS' Q     dQ' += K' dS'
//
// Query i sees the keys from `bounds[i][0]` to `bounds[i][1]`, both included; neither may decrease
// within a row. Blocks that nobody sees are skipped.

#include "../vectors.h"

#include <cmath>
#include <memory>
#include <new>

constexpr int64_t BLOCK = 64;  // queries and keys of a block
constexpr int64_t STEP = 32;   // what sizes are filled up to, with zeros
constexpr int64_t PARTS = BLOCK / LANES;
constexpr float LOWEST = -1e30f, LOG2_E = 1.44269504f;

static inline int64_t filled(int64_t size, int64_t step) { return (size + step - 1) / step * step; }

// ---------------------------------------------------------------------------------------------
// Products of matrices whose sizes are multiples of STEP

// A row of a factor on the right side has pairs of numbers, from two rows of the matrix.
using Pair = int32_t;

// c (rows, columns) = or += a (rows, inner) b (inner, columns)
static void vector_matmul(int64_t rows, int64_t columns, int64_t inner, const bf16 *a, int64_t a_row,
                          const Pair *b, int64_t b_row, float *c, int64_t c_row, bool add) {
  constexpr int HIGH = FEW ? 4 : 8, WIDE = FEW ? 1 : 2;
  for (int64_t n = 0; n < columns; n += WIDE * LANES)
    for (int64_t m = 0; m < rows; m += HIGH) {
      Floats sums[HIGH][WIDE];
      for (int i = 0; i < HIGH; i++)
        for (int j = 0; j < WIDE; j++)
          sums[i][j] = add ? load(c + (m + i) * c_row + n + j * LANES) : Floats{};
      for (int64_t k = 0; k < inner; k += 2) {
        Pairs right[WIDE];
        for (int j = 0; j < WIDE; j++)
          right[j] = pairs(load64<int32_t>(b + k / 2 * b_row + n + j * LANES));
#pragma GCC unroll 8
        for (int i = 0; i < HIGH; i++) {
          const Pairs left = pairs(ints(read<Pair>(a + (m + i) * a_row + k)));
          for (int j = 0; j < WIDE; j++) sums[i][j] = dot(sums[i][j], left, right[j]);
        }
      }
      for (int i = 0; i < HIGH; i++)
        for (int j = 0; j < WIDE; j++) store(c + (m + i) * c_row + n + j * LANES, sums[i][j]);
    }
}

#ifdef CULM_AMX

static void tile_matmul(int64_t rows, int64_t columns, int64_t inner, const bf16 *a, int64_t a_row,
                        const Pair *b, int64_t b_row, float *c, int64_t c_row, bool add) {
  asm volatile("" ::: "memory");  // GCC does not know that a tile is read from memory
  for (int64_t m = 0; m < rows; m += 32)
    for (int64_t n = 0; n < columns; n += 32) {
      float *out = c + m * c_row + n;
      if (add) {
        _tile_loadd(0, out, c_row * 4);
        _tile_loadd(1, out + 16, c_row * 4);
        _tile_loadd(2, out + 16 * c_row, c_row * 4);
        _tile_loadd(3, out + 16 * c_row + 16, c_row * 4);
      } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
      }
      for (int64_t k = 0; k < inner; k += 32) {
        const bf16 *left = a + m * a_row + k;
        const Pair *right = b + k / 2 * b_row + n;
        _tile_loadd(4, left, a_row * 2);
        _tile_loadd(6, right, b_row * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + 16, b_row * 4);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, left + 16 * a_row, a_row * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      _tile_stored(0, out, c_row * 4);
      _tile_stored(1, out + 16, c_row * 4);
      _tile_stored(2, out + 16 * c_row, c_row * 4);
      _tile_stored(3, out + 16 * c_row + 16, c_row * 4);
    }
}

static void matmul(int64_t rows, int64_t columns, int64_t inner, const bf16 *a, int64_t a_row,
                   const Pair *b, int64_t b_row, float *c, int64_t c_row, bool add) {
  const auto chosen = tiles_allowed() ? tile_matmul : vector_matmul;
  chosen(rows, columns, inner, a, a_row, b, b_row, c, c_row, add);
}

#else

constexpr auto matmul = vector_matmul;

#endif

// ---------------------------------------------------------------------------------------------
// Forms of a matrix of `rows` rows of `width` numbers, both multiples of STEP

// Rows from memory, filled up with zeros.
static void gather(const bf16 *from, int64_t stride, int64_t there, int64_t rows, int64_t size,
                   int64_t width, bf16 *to) {
  for (int64_t i = 0; i < rows; i++, to += width) {
    const int64_t count = i < there ? size : 0;
    std::memcpy(to, from + i * stride, count * sizeof(bf16));
    std::memset(to + count, 0, (width - count) * sizeof(bf16));
  }
}

// (rows, columns) -> (columns, rows)
static void transposed(const Pair *from, int64_t rows, int64_t columns, Pair *to, int64_t to_row) {
  for (int64_t i = 0; i < rows; i += LANES)
    for (int64_t j = 0; j < columns; j += LANES) {
      Ints block[LANES];
      for (int64_t r = 0; r < LANES; r++) block[r] = load64<int32_t>(from + (i + r) * columns + j);
      transpose(block);
      for (int64_t r = 0; r < LANES; r++) store(to + (j + r) * to_row + i, block[r]);
    }
}

// The factor on the right side that has these rows.
static void paired(const bf16 *from, int64_t rows, int64_t width, Pair *to) {
  for (int64_t i = 0; i < rows; i += 2)
    for (int64_t j = 0; j < width; j += LANES)
      store(to + i / 2 * width + j,
            pair(widen(from + i * width + j), widen(from + (i + 1) * width + j)));
}

// The factor on the right side that has these rows as columns.
static void paired_columns(const bf16 *from, int64_t rows, int64_t width, Pair *to) {
  transposed((const Pair *)from, rows, width / 2, to, rows);
}

template <typename T>
using Buffer = std::unique_ptr<T[], void (*)(void *)>;
template <typename T>
static Buffer<T> buffer(int64_t count, bool zero = false) {
  const int64_t bytes = filled(count * sizeof(T), 64);
  T *made = (T *)std::aligned_alloc(64, bytes);
  if (!made) throw std::bad_alloc();  // which ends the process: no thread may leave the others alone
  if (zero) std::memset(made, 0, bytes);
  return Buffer<T>(made, std::free);
}

// ---------------------------------------------------------------------------------------------

struct Rows {
  const bf16 *q, *k, *v;   // (batch, length, heads, width), (.., kv_heads, width), (.., values)
  const int32_t *bounds;   // (batch, length, 2)
  bf16 *out, *rest;        // (batch, length, heads, values); what rounding took from out
  float *logsum;           // (batch, heads, length): log of the sum of exp(scores)
  const bf16 *grad_out;
  bf16 *grad_q, *grad_k, *grad_v;
  int64_t batch, length, heads, kv_heads, width, values;
  float scale;
};

// 2^x with a relative error of 2e-7, for x up to 127; below -125 it is 2^-125, since a CPU takes
// long for numbers that are not normal.
static inline Floats power_of_two(Floats x) {
  x = larger(all(-125), x);
  const Ints n = rounded(x);
  const Floats r = x - floats(n);
  Floats p = all(1.3276471e-3f);
  for (float c : {9.6755410e-3f, 5.5507131e-2f, 0.24022120f, 0.69314694f, 1.0000001f})
    p = fma(p, r, all(c));
  return cast<float>(cast<int32_t>(p) + (n << 23));
}

// Which keys a block of queries sees.
struct Visible {
  Ints first[PARTS], last[PARTS];
  int64_t begin = INT32_MAX, end = 0;          // some query sees each block in between
  int64_t full_from = 0, full_to = INT32_MAX;  // every query sees the keys in between

  Visible(const int32_t *bounds, int64_t count) {
    int32_t firsts[BLOCK], lasts[BLOCK];
    for (int64_t i = 0; i < BLOCK; i++) {
      firsts[i] = i < count ? bounds[2 * i] : INT32_MAX;
      lasts[i] = i < count ? bounds[2 * i + 1] : -1;
      if (i >= count) continue;
      begin = std::min<int64_t>(begin, firsts[i]), end = std::max<int64_t>(end, lasts[i] + 1);
      full_from = std::max<int64_t>(full_from, firsts[i]);
      full_to = std::min<int64_t>(full_to, lasts[i] + 1);
    }
    begin = begin / BLOCK * BLOCK;
    for (int64_t n = 0; n < PARTS; n++) {
      first[n] = load64<int32_t>(firsts + n * LANES), last[n] = load64<int32_t>(lasts + n * LANES);
    }
  }
  bool full(int64_t key) const { return key >= full_from && key + BLOCK <= full_to; }

  // x where the queries of vector n see the key, `rest` elsewhere.
  Floats masked(Floats x, int64_t n, int64_t key, float rest) const {
    return Floats::make([&](int i) {
      const auto sees = (first[n].part[i] <= (int32_t)key) & (last[n].part[i] >= (int32_t)key);
      return sees ? x.part[i] : rest - Register<float>{};
    });
  }
};

// The keys and values of a unit, in the forms that the products need.
struct Keys {
  int64_t length, width, values;  // filled up
  Buffer<bf16> k, v;              // (length, width), (length, values)
  Buffer<bf16> turned;            // columns of each block: (length / BLOCK, size, BLOCK)
  int64_t size;                   // of v, forward, or of k, backward

  Keys(const Rows &r, int64_t row, int64_t head, bool backward)
      : length(filled(r.length, BLOCK)), width(filled(r.width, STEP)), values(filled(r.values, STEP)),
        k(buffer<bf16>(length * width)), v(buffer<bf16>(length * values)),
        turned(buffer<bf16>(length * (backward ? width : values))), size(backward ? width : values) {
    const int64_t at = row * r.length * r.kv_heads + head;
    gather(r.k + at * r.width, r.kv_heads * r.width, r.length, length, r.width, width, k.get());
    gather(r.v + at * r.values, r.kv_heads * r.values, r.length, length, r.values, values, v.get());
    auto pairs = buffer<Pair>(BLOCK / 2 * size);
    for (int64_t at = 0; at < length * size; at += BLOCK * size) {
      paired((backward ? k : v).get() + at, BLOCK, size, pairs.get());
      transposed(pairs.get(), BLOCK / 2, size, (Pair *)(turned.get() + at), BLOCK / 2);
    }
  }
};

static inline void narrow_part(Floats x, bf16 *to, int64_t count) {
  if (count >= LANES) return narrow(x, to);
  bf16 made[LANES];
  narrow(x, made);
  std::memcpy(to, made, count * sizeof(bf16));
}

// columns (size, BLOCK) times a factor for each query -> rows of `out`, and what rounding takes away
static void put(const float *columns, const Floats *factors, int64_t size, int64_t count, bf16 *out,
                int64_t stride, bf16 *rest = nullptr) {
  for (int64_t n = 0; n < PARTS && n * LANES < count; n++)
    for (int64_t d = 0; d < size; d += LANES) {
      Ints block[LANES];
      for (int64_t i = 0; i < LANES; i++)
        block[i] = cast<int32_t>(load(columns + (d + i) * BLOCK + n * LANES) * factors[n]);
      transpose(block);
      for (int64_t i = 0; i < LANES && n * LANES + i < count; i++) {
        const int64_t at = (n * LANES + i) * stride + d;
        const Floats exact = cast<float>(block[i]);
        narrow_part(exact, out + at, size - d);
        if (rest) narrow_part(exact - widen(out + at, size - d), rest + at, size - d);
      }
    }
}

struct Forward {
  const Rows &r;
  Keys keys;
  Buffer<bf16> q = buffer<bf16>(BLOCK * keys.width);
  Buffer<Pair> queries = buffer<Pair>(BLOCK * keys.width / 2);
  Buffer<float> scores = buffer<float>(BLOCK * BLOCK);
  Buffer<Pair> weights = buffer<Pair>(BLOCK / 2 * BLOCK);
  Buffer<float> out = buffer<float>(keys.values * BLOCK);
  Floats row_max[PARTS], row_sum[PARTS];  // row_max: of scores so far, in powers of two

  Forward(const Rows &rows, int64_t row, int64_t head) : r(rows), keys(rows, row, head, false) {}

  // A block of queries of one head, from `start` on.
  void attend(int64_t row, int64_t head, int64_t start) {
    const int64_t count = std::min(BLOCK, r.length - start), at = row * r.length + start;
    gather(r.q + (at * r.heads + head) * r.width, r.heads * r.width, count, BLOCK, r.width,
           keys.width, q.get());
    paired_columns(q.get(), BLOCK, keys.width, queries.get());
    const Visible visible(r.bounds + 2 * at, count);
    for (int64_t n = 0; n < PARTS; n++) row_max[n] = all(LOWEST), row_sum[n] = Floats{};
    for (int64_t key = visible.begin; key < visible.end; key += BLOCK) {
      matmul(BLOCK, BLOCK, keys.width, keys.k.get() + key * keys.width, keys.width, queries.get(),
             BLOCK, scores.get(), BLOCK, false);
      const bool later = key > visible.begin;
      if (visible.full(key)) weigh<true>(visible, key, later);
      else weigh<false>(visible, key, later);
      matmul(keys.values, BLOCK, BLOCK, keys.turned.get() + key * keys.size, BLOCK, weights.get(),
             BLOCK, out.get(), BLOCK, later);
    }
    float *logsum = r.logsum + (row * r.heads + head) * r.length + start;
    for (int64_t n = 0; n < PARTS; n++) {
      float highest[LANES], total[LANES];
      store(highest, row_max[n]), store(total, row_sum[n]);
      for (int64_t i = 0; i < LANES && n * LANES + i < count; i++)
        logsum[n * LANES + i] = (highest[i] + std::log2(total[i])) / LOG2_E;
      for (int64_t i = 0; i < LANES; i++)
        if (highest[i] <= LOWEST) total[i] = NAN;  // every score overflowed
      row_sum[n] = all(1.f) / load(total);
    }
    const int64_t own = (at * r.heads + head) * r.values;
    put(out.get(), row_sum, r.values, count, r.out + own, r.heads * r.values, r.rest + own);
  }
  void finish(int64_t, int64_t) {}

  // Weights of a block of keys; what was summed before is rescaled.
  template <bool FULL>
  void weigh(const Visible &visible, int64_t key, bool later) {
    const Floats rate = all(r.scale * LOG2_E);
    Floats highest[PARTS], totals[PARTS] = {};
    for (Floats &one : highest) one = all(-INFINITY);
    for (int64_t i = 0; i < BLOCK; i++)
      for (int64_t n = 0; n < PARTS; n++) {
        Floats x = load(scores.get() + i * BLOCK + n * LANES);
        if (!FULL) x = visible.masked(x, n, key + i, -INFINITY);
        highest[n] = larger(highest[n], x);
      }
    for (int64_t n = 0; n < PARTS; n++) highest[n] = larger(row_max[n], highest[n] * rate);
    for (int64_t i = 0; i < BLOCK; i += 2)
      for (int64_t n = 0; n < PARTS; n++) {
        Floats weight[2];
        for (int64_t j = 0; j < 2; j++) {
          const Floats x = load(scores.get() + (i + j) * BLOCK + n * LANES);
          weight[j] = power_of_two(fma(x, rate, Floats{} - highest[n]));
          if (!FULL) weight[j] = visible.masked(weight[j], n, key + i + j, 0);
        }
        totals[n] = totals[n] + (weight[0] + weight[1]);
        store(weights.get() + i / 2 * BLOCK + n * LANES, pair(weight[0], weight[1]));
      }
    Floats factors[PARTS];
    float rises = 0;
    for (int64_t n = 0; n < PARTS; n++) {
      factors[n] = power_of_two(row_max[n] - highest[n]);
      rises += sum(highest[n] - row_max[n]);  // NaN if one is; the others rise all the same
      row_sum[n] = fma(row_sum[n], factors[n], totals[n]);
      row_max[n] = highest[n];
    }
    for (int64_t d = 0; later && !(rises <= 0) && d < keys.values; d++)
      for (int64_t n = 0; n < PARTS; n++) {
        float *sum = out.get() + d * BLOCK + n * LANES;
        store(sum, load(sum) * factors[n]);
      }
  }
};

struct Backward {
  const Rows &r;
  Keys keys;
  int64_t width = keys.width, values = keys.values;
  Buffer<float> grad_k = buffer<float>(keys.length * width, true);
  Buffer<float> grad_v = buffer<float>(keys.length * values, true);
  Buffer<bf16> q = buffer<bf16>(BLOCK * width), grad = buffer<bf16>(BLOCK * values);
  Buffer<Pair> q_rows = buffer<Pair>(BLOCK / 2 * width), q_columns = buffer<Pair>(BLOCK / 2 * width);
  Buffer<Pair> grad_rows = buffer<Pair>(BLOCK / 2 * values);
  Buffer<Pair> grad_columns = buffer<Pair>(BLOCK / 2 * values);
  Buffer<float> scores = buffer<float>(BLOCK * BLOCK), grad_weights = buffer<float>(BLOCK * BLOCK);
  Buffer<bf16> weights = buffer<bf16>(BLOCK * BLOCK), grad_scores = buffer<bf16>(BLOCK * BLOCK);
  Buffer<Pair> grad_score_pairs = buffer<Pair>(BLOCK / 2 * BLOCK);
  Buffer<float> grad_q = buffer<float>(width * BLOCK);
  float logsums[BLOCK], delta[BLOCK];  // in powers of two; sum(dO O), the mean of dP under P

  Backward(const Rows &rows, int64_t row, int64_t head) : r(rows), keys(rows, row, head, true) {}

  void attend(int64_t row, int64_t head, int64_t start) {
    const int64_t count = std::min(BLOCK, r.length - start), at = row * r.length + start;
    const int64_t own = at * r.heads + head;
    gather(r.q + own * r.width, r.heads * r.width, count, BLOCK, r.width, width, q.get());
    gather(r.grad_out + own * r.values, r.heads * r.values, count, BLOCK, r.values, values, grad.get());
    paired(q.get(), BLOCK, width, q_rows.get());
    paired_columns(q.get(), BLOCK, width, q_columns.get());
    paired(grad.get(), BLOCK, values, grad_rows.get());
    paired_columns(grad.get(), BLOCK, values, grad_columns.get());
    const float *logsum = r.logsum + (row * r.heads + head) * r.length + start;
    for (int64_t i = 0; i < BLOCK; i++) {
      logsums[i] = i < count ? logsum[i] * LOG2_E : 0, delta[i] = 0;
      if (i >= count) continue;
      const bf16 *out = r.out + (own + i * r.heads) * r.values;
      const bf16 *rest = r.rest + (own + i * r.heads) * r.values;
      Floats total = Floats{};
      for (int64_t d = 0; d < r.values; d += LANES) {
        const Floats exact = widen(out + d, r.values - d) + widen(rest + d, r.values - d);
        total = fma(widen(grad.get() + i * values + d), exact, total);
      }
      delta[i] = sum(total);
    }
    const Visible visible(r.bounds + 2 * at, count);
    for (int64_t key = visible.begin; key < visible.end; key += BLOCK) {
      matmul(BLOCK, BLOCK, width, keys.k.get() + key * width, width, q_columns.get(), BLOCK,
             scores.get(), BLOCK, false);
      matmul(BLOCK, BLOCK, values, keys.v.get() + key * values, values, grad_columns.get(), BLOCK,
             grad_weights.get(), BLOCK, false);
      if (visible.full(key)) differentiate<true>(visible, key);
      else differentiate<false>(visible, key);
      matmul(BLOCK, values, BLOCK, weights.get(), BLOCK, grad_rows.get(), values,
             grad_v.get() + key * values, values, true);
      matmul(BLOCK, width, BLOCK, grad_scores.get(), BLOCK, q_rows.get(), width,
             grad_k.get() + key * width, width, true);
      matmul(width, BLOCK, BLOCK, keys.turned.get() + key * keys.size, BLOCK, grad_score_pairs.get(),
             BLOCK, grad_q.get(), BLOCK, key > visible.begin);
    }
    Floats scales[PARTS];
    for (Floats &one : scales) one = all(r.scale);
    put(grad_q.get(), scales, r.width, count, r.grad_q + own * r.width, r.heads * r.width);
  }

  template <bool FULL>
  void differentiate(const Visible &visible, int64_t key) {
    const Floats rate = all(r.scale * LOG2_E);
    for (int64_t i = 0; i < BLOCK; i += 2)
      for (int64_t n = 0; n < PARTS; n++) {
        const Floats logsum = load(logsums + n * LANES), mean = load(delta + n * LANES);
        Floats change[2];
        for (int64_t j = 0; j < 2; j++) {
          const int64_t place = (i + j) * BLOCK + n * LANES;
          Floats weight = power_of_two(fma(load(scores.get() + place), rate, Floats{} - logsum));
          if (!FULL) weight = visible.masked(weight, n, key + i + j, 0);
          change[j] = weight * (load(grad_weights.get() + place) - mean);
          narrow(weight, weights.get() + place);
          narrow(change[j], grad_scores.get() + place);
        }
        store(grad_score_pairs.get() + i / 2 * BLOCK + n * LANES, pair(change[0], change[1]));
      }
  }

  // The sums over all queries, to memory.
  void finish(int64_t row, int64_t head) {
    const int64_t at = row * r.length * r.kv_heads + head;
    write(grad_k.get(), r.scale, width, r.width, r.grad_k + at * r.width);
    write(grad_v.get(), 1, values, r.values, r.grad_v + at * r.values);
  }
  void write(const float *from, float scale, int64_t filled_width, int64_t size, bf16 *to) {
    for (int64_t i = 0; i < r.length; i++, from += filled_width, to += r.kv_heads * size)
      for (int64_t d = 0; d < size; d += LANES)
        narrow_part(load(from + d) * all(scale), to + d, size - d);
  }
};

// One unit after the other on each thread.
template <typename Unit>
static void run(const Rows &r, int64_t threads) {
#pragma omp parallel num_threads(threads)
  {
    const Tiles of_this_thread;
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t row = 0; row < r.batch; row++)
      for (int64_t head = 0; head < r.kv_heads; head++) {
        Unit unit(r, row, head);
        const int64_t group = r.heads / r.kv_heads;
        for (int64_t h = head * group; h < (head + 1) * group; h++)
          for (int64_t start = 0; start < r.length; start += BLOCK) unit.attend(row, h, start);
        unit.finish(row, head);
      }
  }
}

extern "C" void culm_flash_forward(const Rows *rows, int64_t threads) { run<Forward>(*rows, threads); }
extern "C" void culm_flash_backward(const Rows *rows, int64_t threads) { run<Backward>(*rows, threads); }
