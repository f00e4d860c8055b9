// The values of int4 weights in bf16, in one pass: a group has 16 of them, which a table holds.

#include <immintrin.h>

#include <cstdint>

extern "C" {

// weight: (outputs, inputs / 2), the even input in the low half of a byte; scale, zero: (outputs,
// inputs / group) bf16; out: (outputs, inputs) bf16. A group is a multiple of 32.
void culm_dequantize(const uint8_t *weight, const uint16_t *scale, const uint16_t *zero,
                     uint16_t *out, int64_t outputs, int64_t inputs, int64_t group,
                     int64_t threads) {
  const int64_t groups = inputs / group;
  const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i low = _mm512_set1_epi32(0x000F000F);
  auto widen = [](uint16_t x) { return _mm512_castsi512_ps(_mm512_set1_epi32(x << 16)); };
#pragma omp parallel for num_threads(threads)
  for (int64_t n = 0; n < outputs; n++)
    for (int64_t g = n * groups; g < (n + 1) * groups; g++) {
      __m512 values = _mm512_fmadd_ps(codes, widen(scale[g]), widen(zero[g]));
      __m512i table = _mm512_castsi256_si512((__m256i)_mm512_cvtneps_pbh(values));
      for (int64_t k = g * group; k < (g + 1) * group; k += 32) {
        __m512i pair = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)(weight + k / 2)));
        pair = _mm512_and_si512(_mm512_or_si512(pair, _mm512_slli_epi32(pair, 12)), low);
        _mm512_storeu_si512(out + k, _mm512_permutexvar_epi16(pair, table));
      }
    }
}
}
