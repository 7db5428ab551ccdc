// A tiny network of its own for each instance at every pixel, and its logits up-sampled.

#include "vectors.h"

namespace {

// Outputs (R, PANEL) of a layer: bias + weight (R, inner) inputs (inner, PANEL).
template <int R>
FORCE_INLINE void rows_of_layer(const float* weight, const float* bias, const float* inputs,
                                int64_t step, int64_t inner, float* outputs, bool last) {
  Vector sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = Vector{} + (bias ? bias[r] : 0);
  for (int64_t k = 0; k < inner; ++k) {
    const Vector left = load(inputs + k * step, WIDTH),
                 right = load(inputs + k * step + WIDTH, WIDTH);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float factor = weight[r * inner + k];
      sum[r][0] += factor * left;
      sum[r][1] += factor * right;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < 2; ++n)
      store(outputs + r * PANEL + n * WIDTH, last ? sum[r][n] : relu(sum[r][n]), WIDTH);
}

void layer(const float* weight, const float* bias, const float* inputs, int64_t step, int64_t inner,
           float* outputs, int64_t rows, bool last) {
  constexpr int R = WIDTH == 16 ? 8 : 4;
  int64_t r = 0;
  const auto at = [&](int64_t row) { return bias ? bias + row : nullptr; };
  for (; r + R <= rows; r += R)
    rows_of_layer<R>(weight + r * inner, at(r), inputs, step, inner, outputs + r * PANEL, last);
  for (; r < rows; ++r)
    rows_of_layer<1>(weight + r * inner, at(r), inputs, step, inner, outputs + r * PANEL, last);
}

// A row of `width` numbers becomes `factor` times as long; a fixed factor makes it quick.
template <int fixed>
void widen(const float* row, int64_t width, int64_t factor, float* out) {
  if (fixed) factor = fixed;
  const int64_t middle = factor / 2;
  const auto pixel = [&](int64_t j, int64_t before, int64_t after) {
    for (int64_t k = 0; k < factor; ++k) {
      const float share = static_cast<float>(k < middle ? middle - k : k - middle) / factor;
      const float beside = row[k < middle ? before : after];
      out[j * factor + k] = row[j] + share * (beside - row[j]);
    }
  };
  pixel(0, 0, std::min<int64_t>(1, width - 1));
  for (int64_t j = 1; j < width - 1; ++j) pixel(j, j - 1, j + 1);
  if (width > 1) pixel(width - 1, width - 2, width - 1);
}

// (height, width) -> (factor height, factor width), as condseg.ops.masks.aligned_upsample.
void upsample(const float* map, int64_t height, int64_t width, int64_t factor, float* out) {
  const int64_t middle = factor / 2, row = factor * width;
  for (int64_t i = 0; i < height; ++i)
    (factor == 2 ? widen<2> : widen<0>)(map + i * width, width, factor,
                                        out + (i * factor + middle) * row);
  for (int64_t y = 0; y < factor * height; ++y) {
    const int64_t i = y / factor, k = y % factor;
    if (k == middle) continue;
    const float share = static_cast<float>(k < middle ? middle - k : k - middle) / factor;
    const int64_t other = k < middle ? std::max<int64_t>(i - 1, 0) : std::min(i + 1, height - 1);
    const float *near = out + (i * factor + middle) * row,
                *far = out + (other * factor + middle) * row;
    float* to = out + y * row;
    for (int64_t x = 0; x < row; ++x) to[x] = near[x] + share * (far[x] - near[x]);
  }
}

}  // namespace

extern "C" {

int64_t mask_head_scratch(int64_t pixels, int64_t widest, int64_t threads) {
  return threads * (pixels + PANEL + 2 * widest * PANEL);
}

// shared (B, K, height width), read by the instances of each picture, which are neighbours;
// params: of each layer the instances' weights (P, out, in) and biases (P, out), null for none;
// outputs: of each layer; widest: of a layer's inputs and outputs.
// -> maps (P, factor height, factor width).
void mask_head(const float* shared, const float* const* params, const int64_t* outputs,
               const int64_t* counts, float* maps, float* scratch, int64_t layers, int64_t pictures,
               int64_t inputs, int64_t height, int64_t width, int64_t factor, int64_t widest,
               int64_t threads) {
  const int64_t pixels = height * width;
  for (int64_t picture = 0, first = 0; picture < pictures; first += counts[picture++]) {
    const float* const seen = shared + picture * inputs * pixels;
    in_parallel(counts[picture], threads, [&](int64_t instance, int64_t thread) {
      const int64_t p = first + instance;
      float* const logits = scratch + thread * (pixels + PANEL + 2 * widest * PANEL);
      float* const hidden[2] = {logits + pixels + PANEL, logits + pixels + PANEL + widest * PANEL};
      for (int64_t start = 0; start < pixels; start += PANEL) {
        const float* in = seen + start;
        int64_t step = pixels, inner = inputs;
        if (start + PANEL > pixels) {  // behind the last pixel there is nothing to read
          for (int64_t k = 0; k < inputs; ++k)
            for (int n = 0; n < PANEL; ++n)
              hidden[1][k * PANEL + n] = start + n < pixels ? in[k * step + n] : 0;
          in = hidden[1], step = PANEL;
        }
        for (int64_t l = 0; l < layers; ++l) {
          const bool last = l == layers - 1;
          float* const out = last ? logits + start : hidden[l % 2];
          const float* const weight = params[2 * l] + p * outputs[l] * inner;
          const float* const bias = params[2 * l + 1];
          layer(weight, bias ? bias + p * outputs[l] : nullptr, in, step, inner, out, outputs[l],
                last);
          in = out, step = PANEL, inner = outputs[l];
        }
      }
      upsample(logits, height, width, factor, maps + p * pixels * factor * factor);
    });
  }
}
}
