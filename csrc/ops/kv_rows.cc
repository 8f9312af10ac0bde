// csrc/ops/kv_rows.cc
// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_rows.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "kernels/convert.h"
#include "kernels/hadamard.h"
#include "kernels/q8.h"
#include "ops/rows.h"
#include "runtime/pages.h"

namespace halfbyte {
namespace {

template <class T, class U>
void RequireAlike(const HeadRows<T>& a, const HeadRows<U>& b, size_t row_len) {
  Require(b.HasShape(a.batch, a.heads, a.tokens, row_len),
          "kv: codes or steps are not shaped like the rows");
}

// Calls f(batch, head, token) for every row.
template <class T, class F>
void ForEachHeadRow(const Context& context, const HeadRows<T>& x, const F& f) {
  ForEachRow(context, x.batch * x.heads * x.tokens, x.row_len, [&](size_t row) {
    const size_t pair = row / x.tokens;
    f(pair / x.heads, pair % x.heads, row % x.tokens);
  });
}

}  // namespace

float EncodeI8(const float* x, size_t n, bool rotate, float step, int8_t* codes) {
  if (rotate) {
    auto* turned = reinterpret_cast<float*>(ThreadScratch(n * sizeof(float)));
    memcpy(turned, x, n * sizeof(float));
    Hadamard(turned, n);
    x = turned;
  }
  if (step == 0.0f) step = MaxMagnitude(x, n) / 127.0f;
  if (step >= FLT_MIN) {
    QuantizeI8(x, n, step, codes);
    return step;
  }
  memset(codes, 0, n);
  return isnan(step) ? step : 0.0f;
}

void DecodeI8(const int8_t* codes, size_t n, bool rotated, float step, float* x) {
  ConvertI8ToF32(codes, step, n, x);
  if (rotated) Hadamard(x, n);
}

void EncodeI8(const Context& context, HeadRows<const float> x, bool rotate, float step,
              HeadRows<int8_t> codes, HeadRows<float> steps) {
  RequireAlike(x, codes, x.row_len);
  RequireAlike(x, steps, 1);
  ForEachHeadRow(context, x, [&](size_t b, size_t h, size_t t) {
    *steps.Row(b, h, t) =
        EncodeI8(x.Row(b, h, t), x.row_len, rotate, step, codes.Row(b, h, t));
  });
}

void DecodeI8(const Context& context, HeadRows<const int8_t> codes,
              HeadRows<const float> steps, bool rotated, HeadRows<float> x) {
  RequireAlike(x, codes, x.row_len);
  RequireAlike(x, steps, 1);
  ForEachHeadRow(context, x, [&](size_t b, size_t h, size_t t) {
    DecodeI8(codes.Row(b, h, t), x.row_len, rotated, *steps.Row(b, h, t),
             x.Row(b, h, t));
  });
}

}  // namespace halfbyte
