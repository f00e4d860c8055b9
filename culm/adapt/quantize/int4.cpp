// The values of int4 weights in bf16, in one pass.

#include "../../vectors.h"

extern "C" {

// weight: (outputs, inputs / 2), the even input in the low half of a byte; scale, zero: (outputs,
// inputs / group) bf16; out: (outputs, inputs) bf16. A group is a multiple of 32.
void culm_dequantize(const uint8_t *weight, const bf16 *scale, const bf16 *zero, bf16 *out,
                     int64_t outputs, int64_t inputs, int64_t group, int64_t threads) {
  const int64_t groups = outputs * (inputs / group);
#pragma omp parallel for num_threads(threads)
  for (int64_t g = 0; g < groups; g++)
    restore_int4(weight + g * group / 2, widen(scale[g]), widen(zero[g]), group, out + g * group);
}
}
