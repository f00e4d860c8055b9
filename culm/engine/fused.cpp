// One decoding step of a model as one function: the logits of each row's next token.
//
// Decoding reads every weight once per token; dispatching hundreds of operators costs more than that.
// Here one team of threads runs all layers and synchronises five times in each:
//
//     norm q k v | rotate, attend | out + | norm gate up | down + |
//
// and once more for each norm behind a branch, which needs all outputs of the branch.
// Weights are read where torch stores them (bf16, Int8Linear's, Int4Linear's); activations are bf16,
// or int8 where weights are quantised, with a scale for each 16 (int8) or 32 (int4). The residual
// stream and all sums are fp32. A row's result does not depend on the number of threads, nor on the
// other rows while there are up to 8 in all, or more; with AMX and bf16 weights, one, or more.
// Adapters stay separate: each row may have its own. A cache is in fp16, or in 8 or 4 bits.
//
// With more rows, matmuls are those for many tokens, whose layers are at the end of this file in two
// functions around attention.

#include <omp.h>

#include <vector>

#include "../vectors.h"

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
  const fp16 *scale, *zero;  // keys: (slots, kv_heads, groups, dim); values: (..., groups, GROUP)
};
struct Cache {
  int64_t entries, window, sinks;
  fp16 *keys, *values;  // (slots, kv_heads, entries, dim)
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

// ---------------------------------------------------------------------------------------------
// Matmuls with many rows
//
// Rows are in panels of 16, one in each lane: (panels, elements, 16), so that sums over elements need
// no shuffles. Inputs of matmuls are bf16, two elements of a row after each other: (panels,
// elements / 2, 16, 2), or int8 beside quantised weights. The rest of the last panel is computed and
// never read. Weights are read where they are, each for all rows of a block.

constexpr int64_t OUTPUTS = FEW ? 4 : 6, PANELS = FEW ? 1 : 4;  // of a tile, whose sums stay in registers
constexpr int64_t BLOCK = 16;                                   // panels whose inputs stay in the cache

// SIZE elements of a panel in int8, four of a token after each other. It takes the place of these
// elements in bf16. offset: where sums begin, since weights are shifted. sum: of what the codes stand for.
template <int64_t SIZE>
struct alignas(64) Group {
  Ints codes[SIZE / 4], offset;
  Floats scale, sum;
};
// How many share a scale. Beside int4 weights, whose errors are far larger, more of them cost nothing.
constexpr int64_t group_size(Kind kind) { return kind == INT8 ? 16 : 32; }
template <Kind KIND>
using GroupOf = Group<group_size(KIND)>;
template <Kind KIND>
static const GroupOf<KIND> *group_at(const bf16 *input, int64_t k) {
  static_assert(sizeof(GroupOf<KIND>) <= group_size(KIND) * LANES * sizeof(bf16));
  return (const GroupOf<KIND> *)(input + k * LANES);
}

// All elements of a panel as int8 at `input`. element(k) is called once for each k, in order, and before
// the place of k is written.
template <Kind KIND, typename Element>
static void encode(int64_t inputs, bf16 *input, Element element) {
  constexpr int64_t SIZE = group_size(KIND);
  for (int64_t k = 0; k < inputs; k += SIZE) {
    Floats part[SIZE], most = Floats{};
    for (int64_t i = 0; i < SIZE; i++) part[i] = element(k + i), most = farther(most, part[i]);
    const Floats inverse = all(127) / larger(most, all(1e-30f));
    GroupOf<KIND> made;
    Ints sum = Ints{};
    for (int64_t q = 0; q < SIZE / 4; q++) {
      made.codes[q] = Ints{};
      for (int64_t i = 0; i < 4; i++) {
        const Ints code = rounded(part[4 * q + i] * inverse);
        sum = sum + code;
        made.codes[q] = made.codes[q] | (code & ints(255)) << 8 * i;
      }
    }
    made.scale = most / all(127);
    made.sum = floats(sum) * made.scale;
    made.offset = sum * ints(KIND == INT4 ? -8 : -SHIFT);
    std::memcpy(input + k * LANES, &made, sizeof made);
  }
}

// Elements of a panel in bf16 become int8 if that is what w multiplies.
static void encode(const Linear &w, bf16 *input) {
  auto element = [&](int64_t k) {
    const Ints both = load64<int32_t>(input + (k & ~1) * LANES);
    return cast<float>(k & 1 ? both & ints((int32_t)0xffff0000) : both << 16);
  };
  if (w.kind == INT8) encode<INT8>(w.inputs, input, element);
  if (w.kind == INT4) encode<INT4>(w.inputs, input, element);
}

// R rows of weights: bf16, or the codes of quantised ones in a byte each. Sums of rows are
// multiplied by the factors, then biases are added.
template <int64_t R>
struct Weights {
  const Linear *of;
  std::vector<Kept> kept;
  std::vector<uint8_t> codes;
  std::vector<float> scales, zeros;  // int4: (R, groups)
  const Kept *rows;
  const char *next;  // what is stored of the rows after these
  int64_t bytes;     // of these for 32 inputs
  int64_t groups;
  float factors[R], biases[R];

  void load(const Linear &w, int64_t n) {
    of = &w;
    bytes = R * (w.kind == BF16 ? 64 : w.kind == INT8 ? 32 : 16);
    next = (const char *)w.weight + (n + R) * w.inputs / 32 * (bytes / R);
    for (int64_t r = 0; r < R; r++) {
      factors[r] = w.kind == INT8 ? widen(w.scale[n + r]) : 1;
      biases[r] = w.bias ? w.bias[n + r] : 0;
    }
    if (w.kind == BF16) load_bf16((const bf16 *)w.weight + n * w.inputs);
    else codes.resize(R * w.inputs);
    if (w.kind == INT8) load_int8((const int8_t *)w.weight + n * w.inputs);
    if (w.kind == INT4) load_int4((const uint8_t *)w.weight + n * w.inputs / 2, n);
  }

  void load_bf16(const bf16 *stored) {
    rows = in_place(stored);
    if (rows) return;
    kept.resize(R * of->inputs);
    rows = kept.data();
    for (int64_t r = 0; r < R; r++)
      keep(stored + r * of->inputs, of->inputs, &kept[r * of->inputs]);
  }

  void load_int8(const int8_t *stored) {
    for (int64_t i = 0, size = codes.size(); i < size; i += 64)
      store(&codes[i], signed_codes(stored + i, size - i), size - i);
  }

  void load_int4(const uint8_t *stored, int64_t n) {
    for (size_t i = 0; i < codes.size(); i += 32) {  // two in a byte, the even ones low
      const auto pairs = read<Register<uint8_t, 16>>(stored + i / 2);
      const auto wide = __builtin_convertvector(pairs, Register<uint16_t, 32>);
      const auto single = (wide | wide << 4) & 0x0f0f;
      std::memcpy(&codes[i], &single, sizeof single);
    }
    groups = of->inputs / of->group;
    scales.resize(R * groups), zeros.resize(R * groups);
    for (int64_t i = 0; i < R * groups; i++)
      scales[i] = widen(of->scale[n * groups + i]), zeros[i] = widen(of->zero[n * groups + i]);
  }

  void ask(int64_t k) const {  // for what is stored after these rows, with inputs k to k + 32
    for (int64_t i = 0; i < bytes; i += 64) prefetch(next + k / 32 * bytes + i);
  }
};

// Sums of OUTPUTS outputs for C panels.
template <int C>
static void panel_tile(const Weights<OUTPUTS> &weights, const bf16 *x, float (*sums)[OUTPUTS][LANES]) {
  const Kept *rows = weights.rows;
  const int64_t inputs = weights.of->inputs;
  Floats parts[OUTPUTS][C] = {};
  for (int64_t k = 0; k < inputs; k += 2) {
    if (k % 32 == 0) weights.ask(k);
    Pairs panel[C];
    for (int c = 0; c < C; c++) panel[c] = pairs(x + (c * inputs + k) * LANES);
    for (int r = 0; r < OUTPUTS; r++) {
      const Pairs weight = broadcast(rows + r * inputs + k);
      for (int c = 0; c < C; c++) parts[r][c] = dot(parts[r][c], weight, panel[c]);
    }
  }
  for (int c = 0; c < C; c++)
    for (int r = 0; r < OUTPUTS; r++) store(sums[c][r], parts[r][c]);
}

template <Kind KIND, int C>
static void code_tile(const Weights<OUTPUTS> &weights, const bf16 *x, float (*sums)[OUTPUTS][LANES]) {
  constexpr int64_t SIZE = group_size(KIND);
  const int64_t inputs = weights.of->inputs;
  Floats parts[OUTPUTS][C] = {};
  for (int64_t k = 0; k < inputs; k += SIZE) {
    if (k % 32 == 0) weights.ask(k);
    const GroupOf<KIND> *group[C];
    Ints made[OUTPUTS][C];
    for (int c = 0; c < C; c++) group[c] = group_at<KIND>(x + c * inputs * LANES, k);
    for (int r = 0; r < OUTPUTS; r++)
      for (int c = 0; c < C; c++) made[r][c] = group[c]->offset;
    for (int q = 0; q < SIZE / 4; q++)
      for (int r = 0; r < OUTPUTS; r++) {
        const Ints weight = ints(read<int32_t>(&weights.codes[r * inputs + k + 4 * q]));
        for (int c = 0; c < C; c++)
          made[r][c] = dot_bytes<KIND == INT8>(made[r][c], weight, group[c]->codes[q]);
      }
    for (int r = 0; r < OUTPUTS; r++)
      for (int c = 0; c < C; c++) {
        const Floats part = floats(made[r][c]);
        if (KIND == INT8) {
          parts[r][c] = fma(part, group[c]->scale, parts[r][c]);
          continue;
        }
        const int64_t g = r * weights.groups + k / weights.of->group;
        parts[r][c] = fma(group[c]->sum, all(weights.zeros[g]), parts[r][c]);
        parts[r][c] = fma(part * group[c]->scale, all(weights.scales[g]), parts[r][c]);
      }
  }
  for (int c = 0; c < C; c++)
    for (int r = 0; r < OUTPUTS; r++) store(sums[c][r], parts[r][c]);
}

// The same for up to PANELS panels, for any kind of weights.
static void tiles(const Weights<OUTPUTS> &weights, int64_t count, const bf16 *x,
                  float (*sums)[OUTPUTS][LANES]) {
  const Kind kind = weights.of->kind;
  if (kind == BF16) {
    const auto tile = count == 4   ? panel_tile<4>
                      : count == 3 ? panel_tile<3>
                      : count == 2 ? panel_tile<2>
                                   : panel_tile<1>;
    return tile(weights, x, sums);
  }
  const auto one = kind == INT8 ? code_tile<INT8, 1> : code_tile<INT4, 1>;
  const auto two = kind == INT8 ? code_tile<INT8, 2> : code_tile<INT4, 2>;
  int64_t c = 0;
  for (; c + 2 <= count; c += 2) two(weights, x + c * weights.of->inputs * LANES, sums + c);
  if (c < count) one(weights, x + c * weights.of->inputs * LANES, sums + c);
}

#ifdef CULM_AMX
// The same of 16 outputs in bf16, for C panels, which are tiles as they are.
template <int C>
static void amx_tile(const Weights<LANES> &weights, const bf16 *x, float (*sums)[LANES][LANES]) {
  const int64_t inputs = weights.of->inputs;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < inputs; k += 32) {
    const bf16 *panel = x + k * LANES;
    weights.ask(k);
    _tile_loadd(4, weights.rows + k, inputs * sizeof(bf16));
    _tile_loadd(5, panel, 64);
    _tile_dpbf16ps(0, 4, 5);
    if (C > 1) _tile_loadd(6, panel + inputs * LANES, 64);
    if (C > 1) _tile_dpbf16ps(1, 4, 6);
    if (C > 2) _tile_loadd(7, panel + 2 * inputs * LANES, 64);
    if (C > 2) _tile_dpbf16ps(2, 4, 7);
    if (C > 3) _tile_loadd(5, panel + 3 * inputs * LANES, 64);
    if (C > 3) _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, sums[0], 64);
  if (C > 1) _tile_stored(1, sums[1], 64);
  if (C > 2) _tile_stored(2, sums[2], 64);
  if (C > 3) _tile_stored(3, sums[3], 64);
}

static void tiles(const Weights<LANES> &weights, int64_t count, const bf16 *x,
                  float (*sums)[LANES][LANES]) {
  const auto tile = count == 4   ? amx_tile<4>
                    : count == 3 ? amx_tile<3>
                    : count == 2 ? amx_tile<2>
                                 : amx_tile<1>;
  asm volatile("" ::: "memory");  // for GCC, a tile is not read from memory
  tile(weights, x, sums);
}
#endif

template <int64_t R, size_t L, typename Done>
static void multiply_by(const Linear *const (&layers)[L], const bf16 *x, int64_t panels, int64_t from,
                        int64_t to, Done done) {
  const int64_t inputs = layers[0]->inputs;
  Weights<R> weights[L];
  float sums[L][PANELS][R][LANES];
  for (int64_t block = 0; block < panels; block += BLOCK)
    for (int64_t at = from; at < to; at += R) {
      const int64_t n = std::min(at, to - R), end = std::min(block + BLOCK, panels);
      for (size_t l = 0; l < L; l++) weights[l].load(*layers[l], n);
      for (int64_t p = block; p < end; p += PANELS) {
        const int64_t count = std::min(PANELS, end - p);
        for (size_t l = 0; l < L; l++) tiles(weights[l], count, x + p * inputs * LANES, sums[l]);
        for (int64_t c = 0; c < count; c++)
          done(n, R, p + c, [&](int64_t l, int64_t r) {
            return fma(load(sums[l][c][r]), all(weights[l].factors[r]), all(weights[l].biases[r]));
          });
      }
    }
}

static bool in_amx(const Linear &w) {
#ifdef CULM_AMX
  return w.kind == BF16 && w.outputs >= LANES && tiles_allowed();
#else
  return false;
#endif
}

// Outputs from..to of layers with one input, for all panels: done(n, count, panel, value), where
// value(l, i) is output n + i < n + count of layer l. The last ones may be computed twice.
template <size_t L, typename Done>
static void multiply(const Linear *const (&layers)[L], const bf16 *x, int64_t panels, int64_t from,
                     int64_t to, Done done) {
#ifdef CULM_AMX
  if (std::all_of(layers, layers + L, [](const Linear *w) { return in_amx(*w); }))
    return multiply_by<LANES>(layers, x, panels, from, to, done);
#endif
  multiply_by<OUTPUTS>(layers, x, panels, from, to, done);
}

// ---------------------------------------------------------------------------------------------
// Matmuls with few rows

// With more rows, panels of rows are faster than tiles of weights; with AMX, from two rows on.
constexpr int64_t TILED = 8;

// Rows of activations, prepared for a kind of weights. Chunks of int8 and int4 weights have 64 and
// 128 inputs; a lane of 32 bits sums 4 and 8 of them. An int4 chunk holds even inputs, then odd.
struct Input {
  int64_t rows, inputs, chunks;
  const float *exact;            // (rows, inputs), for adapters
  std::vector<float> low, added; // A x and B A x of one row
  std::vector<Pairs> narrowed;   // (rows, inputs / 32), in bf16
  std::vector<int8_t> bytes;     // (rows, chunks, 64 or 128)
  std::vector<float> scales;     // (rows, chunks, 16)
  std::vector<int32_t> offsets;  // (rows, chunks, 16): where sums begin, since weights are shifted
  std::vector<float> sums;       // (rows, padded): of each group of int4 weights
  struct alignas(64) Line { bf16 numbers[32]; };
  std::vector<Line> storage;     // of `panels`, whose address must be a multiple of 64
  bf16 *panels;                  // of more rows than TILED, or null
  int64_t groups, padded, each;  // groups of int4 weights in a row, a multiple of 16, and in a chunk
  Spread spread;

  void prepare(const Linear &w, const float *x, int64_t count) {
    rows = count, inputs = w.inputs, exact = x;
    panels = nullptr;
    if (rows > (in_amx(w) ? 1 : TILED) && w.outputs >= OUTPUTS) return prepare_panels(w);
    if (w.kind == BF16) {
      narrowed.resize(rows * inputs / 32);
      for (size_t i = 0; i < narrowed.size(); i++) {
        bf16 both[32];
        narrow(load(x + i * 32), both), narrow(load(x + i * 32 + 16), both + 16);
        narrowed[i] = pairs(both);
      }
      return;
    }
    int64_t size = w.kind == INT8 ? 64 : 128;
    chunks = (inputs + size - 1) / size;
    if (w.kind == INT4) {
      groups = inputs / w.group, padded = (groups + 15) / 16 * 16, each = 128 / w.group;
      spread = Spread(each);
      sums.assign(rows * padded, 0);
    }
    bytes.assign(rows * chunks * size, 0);
    offsets.assign(rows * chunks * 16, 0);
    scales.assign(rows * chunks * 16, 0);
    for (int64_t b = 0; b < rows; b++)
      for (int64_t k = 0; k < inputs; k += 32) quantize(w, x + b * inputs + k, b, k);
  }

  void prepare_panels(const Linear &w);

  void quantize(const Linear &w, const float *x, int64_t b, int64_t k) {
    const Floats part[2] = {load(x), load(x + 16)};
    float most[2] = {farthest(part[0]), farthest(part[1])};
    if (group_size(w.kind) == 32) most[0] = most[1] = farthest(farther(part[0], part[1]));
    alignas(64) int8_t codes[64] = {};
    for (int i = 0; i < 2; i++)
      narrow_bytes(rounded(part[i] * all(most[i] > 0 ? 127 / most[i] : 0)), codes + 16 * i);
    const Ints fours = dot_bytes<false>(Ints{}, ints(0x01010101), load64<int32_t>(codes));
    if (w.kind == INT8) {
      const int64_t lane = b * chunks * 16 + k / 4;
      std::memcpy(&bytes[b * chunks * 64 + k], codes, 32);
      for (int i = 0; i < 8; i++) scales[lane + i] = most[i / 4] / 127;
      store(&offsets[lane], fours * ints(-SHIFT), 32);
      return;
    }
    const float scale = most[0] / 127;
    int8_t *place = &bytes[(b * chunks + k / 128) * 128 + k % 128 / 2];
    for (int i = 0; i < 16; i++) place[i] = codes[2 * i], place[64 + i] = codes[2 * i + 1];
    int32_t four[LANES];
    store(four, fours);
    int64_t lane = b * chunks * 16 + k / 8;
    for (int i = 0; i < 4; i++) {
      int32_t eight = four[2 * i] + four[2 * i + 1];
      scales[lane + i] = scale;
      offsets[lane + i] = -8 * eight;  // weights are stored as 0 to 15
      sums[b * padded + k / w.group] += scale * eight;
    }
  }
};

// The same for more rows than TILED.
void Input::prepare_panels(const Linear &w) {
  storage.resize((rows + LANES - 1) / LANES * inputs / 2);
  panels = (bf16 *)storage.data();
  for (int64_t first = 0; first < rows; first += LANES) {
    Ints block[LANES];  // 16 elements of all rows
    auto element = [&](int64_t k) {
      if (k % LANES == 0) {
        for (int64_t b = 0; b < LANES; b++)
          block[b] = first + b < rows ? load64<int32_t>(exact + (first + b) * inputs + k) : Ints{};
        transpose(block);
      }
      return cast<float>(block[k % LANES]);
    };
    bf16 *panel = panels + first * inputs;
    if (w.kind == INT8) encode<INT8>(inputs, panel, element);
    if (w.kind == INT4) encode<INT4>(inputs, panel, element);
    for (int64_t k = 0; k < inputs && w.kind == BF16; k += 2) {
      const Floats even = element(k);
      store(panel + k * LANES, pair(even, element(k + 1)));
    }
  }
}

static void multiply_rows(const Linear &w, const Input &in, int64_t from, int64_t to, float *out,
                          int64_t stride) {
  const int64_t panels = (in.rows + LANES - 1) / LANES;
  multiply<1>({&w}, in.panels, panels, from, to, [&](int64_t n, int64_t count, int64_t p, auto value) {
    for (int64_t r = std::max<int64_t>(from - n, 0); r < count; r++) {  // others are another thread's
      float made[LANES];
      store(made, value(0, r));
      for (int64_t b = p * LANES; b < std::min((p + 1) * LANES, in.rows); b++)
        out[b * stride + n + r] = made[b - p * LANES];
    }
  });
}

// Memory, not arithmetic, limits a step of few rows. Weights are asked for in the order of memory,
// AHEAD bytes or R rows of them before they are needed: R rows are read together, each for B rows of
// activations, so that a load serves many products. Every sum is added up in the same order whatever
// R and B are, so that a row's result does not depend on the others.
constexpr int64_t AHEAD = 4096;
template <int R>
static const char *after(const void *rows, int64_t bytes) {  // of R rows of so many bytes
  return (const char *)rows + std::max(R * bytes, AHEAD);
}
static void ask(const char *next, int64_t line) { prefetch(next + line * 64); }

// Outputs n to n + R, of which those past the last are the last again, for B rows from b on: 16
// partial sums of each.
template <int R, int B>
struct Sums { Floats of[R][B] = {}; };

template <int R, int B>
static Sums<R, B> dot_bf16(const Linear &w, const Input &in, int64_t n, int64_t b) {
  Sums<R, B> sums;
  const int64_t steps = w.inputs / 32;
  const bf16 *weight[R];
  for (int r = 0; r < R; r++) weight[r] = (const bf16 *)w.weight + w.row(n + r) * w.inputs;
  const Pairs *x = &in.narrowed[b * steps];
  const char *next = after<R>(weight[0], w.inputs * 2);
  for (int64_t k = 0; k < steps; k++)
    for (int r = 0; r < R; r++) {
      ask(next, k * R + r);
      const Pairs part = pairs(weight[r] + k * 32);
      for (int i = 0; i < B; i++) sums.of[r][i] = dot(sums.of[r][i], part, x[i * steps + k]);
    }
  return sums;
}

template <int R, int B>
static Sums<R, B> dot_int8(const Linear &w, const Input &in, int64_t n, int64_t b) {
  Sums<R, B> sums;
  const int8_t *weight[R];
  for (int r = 0; r < R; r++) weight[r] = (const int8_t *)w.weight + w.row(n + r) * w.inputs;
  const char *next = after<R>(weight[0], w.inputs);
  auto step = [&](int64_t c, int64_t there) __attribute__((always_inline)) {
    Ints part[R];
    for (int r = 0; r < R; r++) {
      ask(next, c * R + r);
      part[r] = signed_codes(weight[r] + c * 64, there);
    }
    for (int i = 0; i < B; i++) {
      const int64_t at = (b + i) * in.chunks + c;
      const Ints row = load64<int32_t>(&in.bytes[at * 64]);
      const Ints offset = load64<int32_t>(&in.offsets[at * 16]);
      const Floats scale = load(&in.scales[at * 16]);
      for (int r = 0; r < R; r++)
        sums.of[r][i] = fma(floats(dot_bytes<true>(offset, part[r], row)), scale, sums.of[r][i]);
    }
  };
  int64_t c = 0;
  for (; c < w.inputs / 64; c++) step(c, 64);
  if (c < in.chunks) step(c, w.inputs - c * 64);
  for (int r = 0; r < R; r++)
    for (int i = 0; i < B; i++) sums.of[r][i] = sums.of[r][i] * all(widen(w.scale[w.row(n + r)]));
  return sums;
}

template <int R, int B>
static Sums<R, B> dot_int4(const Linear &w, const Input &in, int64_t n, int64_t b) {
  Sums<R, B> sums;
  const int64_t groups = in.groups, each = in.each;
  const Ints nibble = ints(0x0f0f0f0f);
  const Spread spread = in.spread;
  const uint8_t *weight[R];
  const bf16 *scales[R], *zeros[R];
  for (int r = 0; r < R; r++) {
    weight[r] = (const uint8_t *)w.weight + w.row(n + r) * w.inputs / 2;
    scales[r] = w.scale + w.row(n + r) * groups, zeros[r] = w.zero + w.row(n + r) * groups;
  }
  const char *next = after<R>(weight[0], w.inputs / 2);
  auto step = [&](int64_t c, int64_t there, int64_t known) __attribute__((always_inline)) {
    Ints even[R], odd[R];
    Floats scale[R];
    for (int r = 0; r < R; r++) {
      ask(next, c * R + r);
      const Ints both = load64<int32_t>(weight[r] + c * 64, there);
      even[r] = both & nibble, odd[r] = shift_right(both, 4) & nibble;
      scale[r] = spread(scales[r] + c * each, known);
    }
    for (int i = 0; i < B; i++) {
      const int64_t at = (b + i) * in.chunks + c;
      const Ints first = load64<int32_t>(&in.bytes[at * 128]);
      const Ints second = load64<int32_t>(&in.bytes[at * 128 + 64]);
      const Ints offset = load64<int32_t>(&in.offsets[at * 16]);
      const Floats own = load(&in.scales[at * 16]);
      for (int r = 0; r < R; r++) {
        const Ints made = dot_nibbles(offset, even[r], first, odd[r], second);
        sums.of[r][i] = fma(floats(made), scale[r] * own, sums.of[r][i]);
      }
    }
  };
  int64_t c = 0;
  for (; c < w.inputs / 128; c++) step(c, 64, each);
  if (c < in.chunks) step(c, (w.inputs - c * 128) / 2, groups - c * each);
  for (int64_t g = 0; g < groups; g += 16)
    for (int r = 0; r < R; r++) {
      const Floats zero = widen(zeros[r] + g, groups - g);
      for (int i = 0; i < B; i++)
        sums.of[r][i] = fma(zero, load(&in.sums[(b + i) * in.padded + g]), sums.of[r][i]);
    }
  return sums;
}

template <Kind KIND, int R, int B>
static Sums<R, B> dots(const Linear &w, const Input &in, int64_t n, int64_t b) {
  if constexpr (KIND == BF16) return dot_bf16<R, B>(w, in, n, b);
  else if constexpr (KIND == INT8) return dot_int8<R, B>(w, in, n, b);
  else return dot_int4<R, B>(w, in, n, b);
}

// Outputs n to n + 4 or `to` for B rows from b on, R rows of weights together.
template <Kind KIND, int R, int B>
static void tile(const Linear &w, const Input &in, int64_t n, int64_t to, int64_t b, float *out,
                 int64_t stride) {
  Floats sums[4][B];
  for (int r = 0; r < 4; r += R) {
    const Sums<R, B> made = dots<KIND, R, B>(w, in, n + r, b);
    std::copy(made.of[0], made.of[0] + R * B, sums[r]);
  }
  const Four bias = w.bias ? read<Four>(w.bias + n, (to - n) * 4) : Four{};
  for (int i = 0; i < B; i++)
    store(out + (b + i) * stride + n,
          totals({sums[0][i], sums[1][i], sums[2][i], sums[3][i]}) + bias, to - n);
}

// Outputs from..to of w for all rows into out: (rows, stride).
template <Kind KIND>
static void matmul(const Linear &w, const Input &in, int64_t from, int64_t to, float *out,
                   int64_t stride) {
  // Measured with one kind after the other: int4 costs more arithmetic, and bf16 without AVX-512.
  constexpr int ONE = KIND == BF16 ? (FEW ? 2 : 1) : FEW && KIND == INT4 ? 1 : 4;
  constexpr int EIGHT = FEW && KIND == BF16 ? 1 : 2;
  for (int64_t n = from; n < to; n += 4) {
    int64_t b = 0;
    for (; b + 8 <= in.rows; b += 8) tile<KIND, EIGHT, 8>(w, in, n, to, b, out, stride);
    for (; b + 4 <= in.rows; b += 4) tile<KIND, 4, 4>(w, in, n, to, b, out, stride);
    for (; b < in.rows; b++) tile<KIND, ONE, 1>(w, in, n, to, b, out, stride);
  }
}

static void matmul(const Linear &w, const Input &in, int64_t from, int64_t to, float *out,
                   int64_t stride) {
  if (in.panels) return multiply_rows(w, in, from, to, out, stride);
  const auto of_kind = w.kind == BF16 ? matmul<BF16> : w.kind == INT8 ? matmul<INT8> : matmul<INT4>;
  of_kind(w, in, from, to, out, stride);
}

static Floats load(const bf16 *p, int64_t count) { return widen(p, count); }

// Rows from..to of a matrix (rows, columns) times x.
template <typename T>
static void matvec(const T *matrix, int64_t from, int64_t to, int64_t columns, const float *x,
                   float *out) {
  for (int64_t n = from; n < to; n += 4) {
    Floats sums[4] = {};
    for (int64_t i = 0; i < columns; i += 16) {
      const Floats part = load(x + i, columns - i);
      for (int j = 0; j < 4; j++) {
        const T *row = matrix + std::min(n + j, to - 1) * columns + i;
        sums[j] = fma(load(row, columns - i), part, sums[j]);
      }
    }
    store(out + n - from, totals(sums), to - n);
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
  Floats squares = Floats{};
  for (int64_t i = 0; i < size; i += 16) {
    Floats part = load(x + i);
    squares = fma(part, part, squares);
  }
  return (float)(factor / std::sqrt(sum(squares) / size + eps));
}

static void weigh(const float *x, const float *weight, float factor, int64_t size, float *out) {
  for (int64_t i = 0; i < size; i += 16)
    store(out + i, (load(x + i)) * all(factor) * (load(weight + i)));
}

// Head `head` of x (heads, dim): normalised, its first elements rotated.
static void rotate(const float *x, int64_t head, int64_t heads, const float *norm, const Layer &layer,
                   int64_t position, double eps, std::vector<float> &out) {
  const int64_t dim = layer.dim, half = layer.rotated / 2;
  const float *own = x + head * dim;
  out.assign(own, own + dim);
  if (norm && layer.normed == dim) weigh(own, norm, inverse_rms(own, dim, eps), dim, out.data());
  if (norm && layer.normed != dim)
    weigh(own, norm + head * dim, inverse_rms(x, heads * dim, eps), dim, out.data());
  const float *cosine = layer.cosines + position * half, *sine = layer.sines + position * half;
  for (int64_t i = 0; i < half; i++) {
    float first = out[i], second = out[i + half];
    out[i] = first * cosine[i] - second * sine[i];
    out[i + half] = second * cosine[i] + first * sine[i];
  }
}

// The sums of products of a query with four keys.
static Four dots(const float *query, const fp16 *const (&keys)[4], int64_t size) {
  Floats sums[4] = {};
  for (int64_t i = 0; i < size; i += 16) {
    const Floats part = load(query + i);
    for (int j = 0; j < 4; j++) sums[j] = fma(part, widen(keys[j] + i), sums[j]);
  }
  return totals(sums);
}

// x / (1 + e^-y), which is SiLU where y is x.
static Floats times_sigmoid(Floats x, Floats y) {
  Floats below = exponential(Floats{} - y) + all(1);
  return x / below;
}

// cap * tanh(x / cap)
static Floats bounded(Floats x, float cap) {
  Floats twice = times_sigmoid(all(2 * cap), x * all(2 / cap));
  return twice - all(cap);
}

// What a thread needs to attend.
struct Attention {
  std::vector<float> query, turned, scores;
  std::vector<int64_t> entries;
  int64_t own;                             // entry of the new key and value
  std::vector<const fp16 *> keys, values;  // of the entries, then the new ones
  std::vector<fp16> key, value, restored;
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
      const Floats scale = all(widen(v.scale[token]));
      const Floats zero = all(widen(v.zero[token]));
      for (int64_t d = 0; d < dim; d += 16)
        narrow(fma(decoded(v.codes + code + d * cache.bits / 8, cache.bits), scale, zero),
               &restored[(full + i) * dim + d]);
    }
    for (int64_t i = 0, end; i < full; i = end) {  // keys of one group
      const int64_t group = entries[i] / GROUP, channels = (at + group) * dim;
      for (end = i; end < full && entries[end] / GROUP == group;) end++;
      for (int64_t d = 0; d < dim; d += 16) {
        const Floats scale = widen(k.scale + channels + d), zero = widen(k.zero + channels + d);
        for (int64_t j = i; j < end; j++) {
          const int64_t code = (at * GROUP + entries[j]) * width + d * cache.bits / 8;
          narrow(fma(decoded(k.codes + code, cache.bits), scale, zero),
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
    rotate(k, group, layer.kv_heads, layer.k_norm, layer, position, eps, turned);
    for (int64_t i = 0; i < dim; i += 16)
      narrow(load(&turned[i]), &key[i]), narrow(load(v + group * dim + i), &value[i]);
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
    rotate(q, head, layer.heads, layer.q_norm, layer, position, eps, query);
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
      const fp16 *const four[4] = {at(i), at(i + 1), at(i + 2), at(i + 3)};
      store(&scores[i], dots(query.data(), four, dim), 4);
    }
    const Floats share = softmax(count, layer.scale, layer.softcap);
    int64_t d = 0;
    for (; d + 64 <= dim; d += 64) weighted<4>(d, share, out + head * dim);
    for (; d < dim; d += 16) weighted<1>(d, share, out + head * dim);
  }

  // 16 * N elements from d on of the sum of all values; N sums hide the latency of an addition.
  template <int N>
  void weighted(int64_t d, Floats share, float *out) {
    Floats sums[N];
    const int64_t earlier = entries.size();
    for (int j = 0; j < N; j++)
      sums[j] = all(scores[earlier]) * (widen(&value[d + 16 * j]));
    for (int64_t i = 0; i < earlier; i++) {
      const Floats score = all(scores[i]);
      const fp16 *one = values[i] + d;
      for (int j = 0; j < N; j++) sums[j] = fma(score, widen(one + 16 * j), sums[j]);
    }
    for (int j = 0; j < N; j++)
      store(out + d + 16 * j, sums[j] * share);
  }

  // Turns dot products into e^(score - maximum); gives the inverse of their sum.
  Floats softmax(int64_t count, double scale, double softcap) {
    const int64_t padded = scores.size();
    Floats most = all(-INFINITY), total = Floats{};
    for (int64_t i = 0; i < padded; i += 16) {
      Floats part = load(&scores[i]) * all((float)scale);
      if (softcap) part = bounded(part, (float)softcap);
      store(&scores[i], part);
      most = larger(most, first(part, count - i, -INFINITY));
    }
    most = all(largest(most));
    for (int64_t i = 0; i < padded; i += 16) {
      Floats part = exponential(load(&scores[i]) - most);
      part = first(part, count - i, 0);
      store(&scores[i], part);
      total = total + part;
    }
    return all(1 / sum(total));
  }
};

// activation(gate) * up. GELU's 0.5 (1 + tanh(x)) is the sigmoid of 2 x.
static Floats gated(int64_t activation, Floats gate, Floats up) {
  Floats inner = gate;
  if (activation == GELU_TANH) {  // 2 sqrt(2 / pi) (g + 0.044715 g^3)
    Floats cubed = gate * gate * gate;
    inner = fma(cubed, all(0.044715f), gate);
    inner = inner * all(1.5957691216f);
  }
  return times_sigmoid(gate, inner) * up;
}

// up <- activation(gate) * up
static void gated(int64_t activation, const float *gate, float *up, int64_t size) {
  for (int64_t i = 0; i < size; i += 16) {
    const Floats made = gated(activation, load(gate + i, size - i), load(up + i, size - i));
    store(up + i, made, (size - i) * 4);
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
      store(&x[b * width + i], (widen(model->embedding + tokens[b] * width + i)) * all((float)model->embedding_scale));

#pragma omp parallel num_threads(threads)
  {
    const Tiles of_this_thread;
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

struct Reading {
  int64_t tokens, threads;
  float *x;                      // the residual stream
  const float *cosines, *sines;  // (panels, rotated / 2, 16), or null
  // Scratch: outputs of matmuls, and inputs of them, of which `inner` is that of `down`.
  float *sums;
  bf16 *input, *inner;
};

// factor / rms of each token of a panel
static Floats panel_rms(const float *x, int64_t size, double eps, double factor = 1) {
  Floats squares = Floats{};
  for (int64_t i = 0; i < size; i++) {
    Floats part = load(x + i * LANES);
    squares = fma(part, part, squares);
  }
  Floats mean = fma(squares, all(1.f / size), all((float)eps));
  return all((float)factor) / root(mean);
}

// Of a panel: x as the input of w, normalised if there is a norm.
static void prepare(const float *x, const float *norm, const Linear &w, double eps, bf16 *input) {
  const int64_t size = w.inputs;
  const Floats factor = norm ? panel_rms(x, size, eps) : all(1);
  auto element = [&](int64_t i) {
    Floats part = (load(x + i * LANES)) * factor;
    return norm ? part * all(norm[i]) : part;
  };
  for (int64_t i = 0; i < size; i += 2)
    store(input + i * LANES, pair(element(i), element(i + 1)));
  encode(w, input);
}

// Of a panel: adds to x what a branch gave, normalised if there is a norm.
static void add(const float *made, const float *norm, const Model &model, float *x) {
  const int64_t width = model.width;
  const Floats factor = norm ? panel_rms(made, width, model.eps, model.branch_scale)
                             : all((float)model.branch_scale);
  for (int64_t i = 0; i < width; i++) {
    Floats part = (load(made + i * LANES)) * factor;
    if (norm) part = part * all(norm[i]);
    store(x + i * LANES, load(x + i * LANES) + part);
  }
}

static void put(Floats x, float *out) { store(out, x); }
static void put(Floats x, fp16 *out) { narrow(x, out); }

// Head `head` of a panel of x (heads * dim, 16) to out (tokens, heads, dim).
template <typename T>
static void put_head(const float *x, int64_t head, int64_t heads, int64_t panel, const float *norm,
                     bool rotated, const Layer &layer, double eps, const Reading &reading, T *out) {
  const int64_t dim = layer.dim, half = rotated && reading.cosines ? layer.rotated / 2 : 0;
  std::vector<float> spare(x + head * dim * LANES, x + (head + 1) * dim * LANES);
  auto element = [&](int64_t i) { return load(&spare[i * LANES]); };
  if (norm) {
    const bool each = layer.normed == dim;
    const Floats factor = each ? panel_rms(spare.data(), dim, eps) : panel_rms(x, heads * dim, eps);
    const float *weight = each ? norm : norm + head * dim;
    for (int64_t i = 0; i < dim; i++)
      store(&spare[i * LANES], element(i) * factor * all(weight[i]));
  }
  for (int64_t i = 0; i < half; i++) {
    const Floats cosine = load(reading.cosines + (panel * half + i) * LANES);
    const Floats sine = load(reading.sines + (panel * half + i) * LANES);
    const Floats first = element(i), second = element(i + half);
    store(&spare[i * LANES], fma(first, cosine, Floats{} - (second * sine)));
    store(&spare[(i + half) * LANES], fma(second, cosine, first * sine));
  }
  const int64_t first = panel * LANES, count = std::min(LANES, reading.tokens - first);
  for (int64_t d = 0; d < dim; d += LANES) {
    Ints rows[LANES];
    for (int64_t i = 0; i < LANES; i++) rows[i] = cast<int32_t>(element(d + i));
    transpose(rows);
    for (int64_t t = 0; t < count; t++)
      put(cast<float>(rows[t]), out + ((first + t) * heads + head) * dim + d);
  }
}

// A panel of x (tokens, inputs) as the input of w.
static void take(const float *x, const Linear &w, int64_t panel, int64_t tokens, bf16 *input) {
  const int64_t first = panel * LANES, count = std::min(LANES, tokens - first), size = w.inputs;
  for (int64_t i = 0; i < size; i += LANES) {
    Ints rows[LANES] = {};
    for (int64_t t = 0; t < count; t++) rows[t] = load64<int32_t>(x + (first + t) * size + i);
    transpose(rows);
    for (int64_t j = 0; j < LANES; j += 2)
      store(input + (i + j) * LANES, pair(cast<float>(rows[j]), cast<float>(rows[j + 1])));
  }
  encode(w, input);
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
void culm_read_heads(const Model *model, int64_t l, const Reading *reading, float *q, fp16 *k, fp16 *v) {
  const Layer &layer = model->layer[l];
  const int64_t panels = (reading->tokens + LANES - 1) / LANES, width = model->width;
  const Linear *const linears[3] = {&layer.q, &layer.k, &layer.v};
  const int64_t total = layer.q.outputs + layer.k.outputs + layer.v.outputs;
#pragma omp parallel num_threads(reading->threads)
  {
    const Tiles of_this_thread;
#pragma omp for
    for (int64_t p = 0; p < panels; p++)
      prepare(reading->x + p * width * LANES, layer.attention_norm, layer.q, model->eps,
              reading->input + p * width * LANES);
    for (int64_t i = 0, start = 0; i < 3; start += linears[i++]->outputs)
      share(linears[i]->outputs, [&](int64_t from, int64_t to) {
        multiply<1>({linears[i]}, reading->input, panels, from, to,
                    [&](int64_t n, int64_t count, int64_t p, auto value) {
          for (int64_t r = 0; r < count; r++)
            store(reading->sums + (p * total + start + n + r) * LANES, value(0, r));
        });
      });
#pragma omp barrier
#pragma omp for
    for (int64_t p = 0; p < panels; p++) {
      const float *sums = reading->sums + p * total * LANES;
      auto put_heads = [&](const Linear &w, const float *norm, bool rotated, auto *out) {
        for (int64_t head = 0, heads = w.outputs / layer.dim; head < heads; head++)
          put_head(sums, head, heads, p, norm, rotated, layer, model->eps, *reading, out);
        sums += w.outputs * LANES;
      };
      put_heads(layer.q, layer.q_norm, true, q);
      put_heads(layer.k, layer.k_norm, true, k);
      put_heads(layer.v, nullptr, false, v);
    }
  }
}

// The rest of the layer. heads: (tokens, heads, dim), what attention gave.
void culm_read_branches(const Model *model, int64_t l, const Reading *reading, const float *heads) {
  const Layer &layer = model->layer[l];
  const int64_t panels = (reading->tokens + LANES - 1) / LANES, width = model->width;
  const int64_t mixed = layer.out.inputs, size = layer.up.outputs;
  auto project = [&](const Linear &w, const bf16 *input) {
    share(width, [&](int64_t from, int64_t to) {
      multiply<1>({&w}, input, panels, from, to, [&](int64_t n, int64_t count, int64_t p, auto value) {
        for (int64_t r = 0; r < count; r++)
          store(reading->sums + (p * width + n + r) * LANES, value(0, r));
      });
    });
  };
#pragma omp parallel num_threads(reading->threads)
  {
    const Tiles of_this_thread;
#pragma omp for
    for (int64_t p = 0; p < panels; p++)
      take(heads, layer.out, p, reading->tokens, reading->input + p * mixed * LANES);
    project(layer.out, reading->input);
#pragma omp barrier
#pragma omp for
    for (int64_t p = 0; p < panels; p++) {
      float *x = reading->x + p * width * LANES;
      add(reading->sums + p * width * LANES, layer.attention_out_norm, *model, x);
      prepare(x, layer.mlp_norm, layer.gate, model->eps, reading->input + p * width * LANES);
    }
    share(size, [&](int64_t from, int64_t to) {
      multiply<2>({&layer.gate, &layer.up}, reading->input, panels, from, to,
                  [&](int64_t n, int64_t count, int64_t p, auto value) {
        auto element = [&](int64_t r) { return gated(layer.activation, value(0, r), value(1, r)); };
        for (int64_t r = 0; r < count; r += 2)
          store(reading->inner + (p * size + n + r) * LANES, pair(element(r), element(r + 1)));
      });
    });
#pragma omp barrier
#pragma omp for
    for (int64_t p = 0; p < panels; p++) encode(layer.down, reading->inner + p * size * LANES);
    project(layer.down, reading->inner);
#pragma omp barrier
#pragma omp for
    for (int64_t p = 0; p < panels; p++)
      add(reading->sums + p * width * LANES, layer.mlp_out_norm, *model, reading->x + p * width * LANES);
  }
}
}
