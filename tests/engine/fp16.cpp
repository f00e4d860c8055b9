#include "../../culm/vectors.h"

extern "C" {
void fp16_widen(const fp16 *from, float *to, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) store(to + i, widen(from + i));
}
void fp16_narrow(const float *from, fp16 *to, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) narrow(load(from + i), to + i);
}
}
