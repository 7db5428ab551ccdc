// 3x3 convolutions with a quarter of the multiplications, and the gradients of their kernels.
//
// A 4x4 tile of the output depends on a 6x6 tile of the map. As polynomials, map and kernel are
// multiplied by their values at six points of each axis: 0, a, -a, b, -b and infinity; for each of
// the 36 pairs of points that is one matrix product over the channels. Maps are in channels_last
// (B, H, W, C). Source: Lavin and Gray, CVPR 2016, section 4.

#include "vectors.h"

namespace {

constexpr int TILE = 4, SEEN = 6, PAIRS = SEEN * SEEN, TAPS = 9;
constexpr int64_t TILES = 2 * ROWS;     // of a block, or half; it fits a core's cache
constexpr int64_t KERNELS = 3 << 20;    // max elements of transformed kernels at a time
constexpr int64_t CHANNELS = 16;        // of kernels that a thread transforms at a time
constexpr int64_t GRADIENT_TILES = 96;  // of a block when gradients of kernels are summed

// Elements of one pair. A multiple of 4096 bytes would map all 36 pairs to the same cache sets.
int64_t pair(int64_t numbers) { return parts_of(numbers, WIDTH) * WIDTH + WIDTH; }

// These points minimise the rounding error.
constexpr float a = 2.0f / 3, b = 4.0f / 3, a2 = a * a, b2 = b * b, a3 = a2 * a, b3 = b2 * b;

// Along one axis; `in` and `out` are steps between neighbours.
FORCE_INLINE void map_values(const Vector* x, int in, Vector* v, int out) {
  const Vector x1 = x[in], x2 = x[2 * in], x3 = x[3 * in], x4 = x[4 * in];
  const Vector even_a = x4 - b2 * x2, odd_a = a * (x3 - b2 * x1);
  const Vector even_b = x4 - a2 * x2, odd_b = b * (x3 - a2 * x1);
  v[0] = a2 * b2 * x[0] - (a2 + b2) * x2 + x4;
  v[out] = even_a + odd_a, v[2 * out] = even_a - odd_a;
  v[3 * out] = even_b + odd_b, v[4 * out] = even_b - odd_b;
  v[5 * out] = a2 * b2 * x1 - (a2 + b2) * x3 + x[5 * in];
}

constexpr float of_zero = 1 / (a2 * b2), of_a = 1 / (2 * a2 * (a2 - b2)),
                of_b = 1 / (2 * b2 * (b2 - a2));

FORCE_INLINE void kernel_values(const Vector* w, int in, Vector* v, int out) {
  const Vector even_a = of_a * (w[0] + a2 * w[2 * in]), odd_a = of_a * a * w[in];
  const Vector even_b = of_b * (w[0] + b2 * w[2 * in]), odd_b = of_b * b * w[in];
  v[0] = of_zero * w[0];
  v[out] = even_a + odd_a, v[2 * out] = even_a - odd_a;
  v[3 * out] = even_b + odd_b, v[4 * out] = even_b - odd_b;
  v[5 * out] = w[2 * in];
}

FORCE_INLINE void kernel_gradient(const Vector* v, int in, Vector* w, int out) {
  const Vector even_a = of_a * (v[in] + v[2 * in]), odd_a = of_a * a * (v[in] - v[2 * in]);
  const Vector even_b = of_b * (v[3 * in] + v[4 * in]), odd_b = of_b * b * (v[3 * in] - v[4 * in]);
  w[0] = of_zero * v[0] + even_a + even_b;
  w[out] = odd_a + odd_b;
  w[2 * out] = a2 * even_a + b2 * even_b + v[5 * in];
}

FORCE_INLINE void result(const Vector* v, int in, Vector* y, int out) {
  const Vector even_a = v[in] + v[2 * in], odd_a = v[in] - v[2 * in];
  const Vector even_b = v[3 * in] + v[4 * in], odd_b = v[3 * in] - v[4 * in];
  y[0] = v[0] + even_a + even_b;
  y[out] = a * odd_a + b * odd_b;
  y[2 * out] = a2 * even_a + b2 * even_b;
  y[3 * out] = a3 * odd_a + b3 * odd_b + v[5 * in];
}

FORCE_INLINE void result_gradient(const Vector* y, int in, Vector* v, int out) {
  const Vector even_a = y[0] + a2 * y[2 * in], odd_a = a * y[in] + a3 * y[3 * in];
  const Vector even_b = y[0] + b2 * y[2 * in], odd_b = b * y[in] + b3 * y[3 * in];
  v[0] = y[0];
  v[out] = even_a + odd_a, v[2 * out] = even_a - odd_a;
  v[3 * out] = even_b + odd_b, v[4 * out] = even_b - odd_b;
  v[5 * out] = y[3 * in];
}

// A batch of maps x (B, H, W, C) and the output, or its gradient, y (B, H, W, O).
struct Maps {
  const float* x;
  float* y;
  int64_t batch, height, width;

  int64_t down() const { return parts_of(height, TILE); }
  int64_t across() const { return parts_of(width, TILE); }
  int64_t tiles() const { return batch * down() * across(); }
};

struct Tile {
  const Maps* maps;
  int64_t image, top, left;

  // Offset of a pixel in maps with this number of channels.
  int64_t pixel(int64_t row, int64_t column, int64_t channels) const {
    return ((image * maps->height + row) * maps->width + column) * channels;
  }

  // side x side pixels of a vector of channels, from `border` pixels before the tile.
  FORCE_INLINE void window(const float* of, int64_t channels, int64_t channel, int side, int border,
                           Vector* seen) const {
    for (int i = 0; i < side; ++i)
      for (int j = 0; j < side; ++j) {
        const int64_t row = top - border + i, column = left - border + j;
        const bool inside = row >= 0 && row < maps->height && column >= 0 && column < maps->width;
        const float* from = of + pixel(row, column, channels) + channel;
        seen[i * side + j] = inside ? load(from, channels - channel) : Vector{};
      }
  }
};

// All tiles of several maps, map after map.
struct Tiles {
  const Maps* maps;
  int64_t number = 0;

  Tiles(const Maps* maps, int64_t count) : maps(maps) {
    for (int64_t i = 0; i < count; ++i) number += maps[i].tiles();
  }

  Tile operator[](int64_t tile) const {
    const Maps* its = maps;
    for (; tile >= its->tiles(); ++its) tile -= its->tiles();
    const int64_t row = tile / its->across();
    return {its, row / its->down(), row % its->down() * TILE, tile % its->across() * TILE};
  }
};

// The 36 values of a tile of x in all channels; `step` is the distance of pairs.
FORCE_INLINE void transform_map(const Tile& tile, int64_t channels, float* values, int64_t step) {
  for (int64_t c = 0; c < channels; c += WIDTH) {
    Vector v[PAIRS], along[PAIRS];
    tile.window(tile.maps->x, channels, c, SEEN, 1, v);
    for (int j = 0; j < SEEN; ++j) map_values(v + j, SEEN, along + j, SEEN);
    for (int i = 0; i < SEEN; ++i) map_values(along + SEEN * i, 1, v + SEEN * i, 1);
    for (int p = 0; p < PAIRS; ++p) store(values + p * step + c, v[p], channels - c);
  }
}

// The 36 values of a tile of the gradient y in a vector of channels.
FORCE_INLINE void transform_gradient(const Tile& tile, int64_t channels, int64_t channel,
                                     float* values, int64_t step) {
  Vector y[TILE * TILE] = {}, v[PAIRS], along[PAIRS];
  if (channel < channels) tile.window(tile.maps->y, channels, channel, TILE, 0, y);
  for (int j = 0; j < TILE; ++j) result_gradient(y + j, TILE, along + j, TILE);
  for (int i = 0; i < SEEN; ++i) result_gradient(along + TILE * i, 1, v + SEEN * i, 1);
  for (int p = 0; p < PAIRS; ++p) store(values + p * step, v[p], WIDTH);
}

// 3x3 kernels with any strides; a negative by_tap flips them.
struct Kernels {
  const float* at;
  int64_t outputs, inputs, by_output, by_input, by_tap;

  FORCE_INLINE void taps(int64_t output, int64_t input, Vector* w) const {
    const float* first = at + input * by_input - (by_tap < 0 ? (TAPS - 1) * by_tap : 0);
    for (int n = 0; n < WIDTH; ++n)
      for (int t = 0; t < TAPS; ++t)
        w[t][n] = output + n < outputs ? first[(output + n) * by_output + t * by_tap] : 0;
  }
};

// values (36, panels, C, PANEL) of the kernels of some panels of outputs.
void transform_kernels(const Kernels& kernels, int64_t first, int64_t panels, float* values,
                       int64_t threads) {
  const int64_t step = pair(panels * kernels.inputs * PANEL);
  in_parallel(panels * parts_of(kernels.inputs, CHANNELS), threads, [&](int64_t part, int64_t) {
    const int64_t panel = part % panels, start = part / panels * CHANNELS;
    for (int64_t c = start; c < std::min(start + CHANNELS, kernels.inputs); ++c)
      for (int half = 0; half < PANEL; half += WIDTH) {
        Vector w[TAPS], along[3 * SEEN], v[PAIRS];
        kernels.taps((first + panel) * PANEL + half, c, w);
        for (int j = 0; j < 3; ++j) kernel_values(w + j, 3, along + j, 3);
        for (int i = 0; i < SEEN; ++i) kernel_values(along + 3 * i, 1, v + SEEN * i, 1);
        for (int p = 0; p < PAIRS; ++p)
          store(values + p * step + (panel * kernels.inputs + c) * PANEL + half, v[p], WIDTH);
      }
  });
}

int64_t panels_at_a_time(int64_t inputs, int64_t outputs) {
  const int64_t panels = parts_of(outputs, PANEL);
  return std::clamp<int64_t>(KERNELS / (PAIRS * inputs * PANEL), 1, panels);
}

}  // namespace

extern "C" {

// Elements of conv3x3's working memory.
int64_t conv3x3_scratch(int64_t inputs, int64_t outputs, int64_t threads) {
  const int64_t kernels = pair(panels_at_a_time(inputs, outputs) * inputs * PANEL);
  return PAIRS * (kernels + threads * (pair(TILES * inputs) + pair(TILES * PANEL)));
}

// x (B, H, W, C) of all maps, bias (O) or null -> their y (B, H, W, O).
void conv3x3(const Maps* maps, int64_t count, const float* weight, const float* bias,
             float* scratch, int64_t inputs, int64_t outputs, int64_t by_output, int64_t by_input,
             int64_t by_tap, int64_t threads) {
  const Tiles tiles(maps, count);
  const Kernels kernels{weight, outputs, inputs, by_output, by_input, by_tap};
  const int64_t all = parts_of(outputs, PANEL), most = panels_at_a_time(inputs, outputs);
  const int64_t of_seen = pair(TILES * inputs), of_products = pair(TILES * PANEL);
  float *const values = scratch, *const own = scratch + PAIRS * pair(most * inputs * PANEL);
  const int64_t step = tiles.number < 4 * TILES * threads ? ROWS : TILES;
  for (int64_t start = 0; start < all; start += most) {
    const int64_t panels = std::min(most, all - start), of_kernels = pair(panels * inputs * PANEL);
    transform_kernels(kernels, start, panels, values, threads);
    in_parallel(parts_of(tiles.number, step), threads, [&](int64_t block, int64_t thread) {
      float* const seen = own + thread * PAIRS * (of_seen + of_products);
      float* const products = seen + PAIRS * of_seen;
      const int64_t first = block * step, rows = std::min(step, tiles.number - first);
      for (int64_t t = 0; t < rows; ++t)
        transform_map(tiles[first + t], inputs, seen + t * inputs, of_seen);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const float* const b = values + panel * inputs * PANEL;
        for (int p = 0; p < PAIRS; ++p)
          product<false>({seen + p * of_seen, inputs, 1}, b + p * of_kernels, PANEL, inputs,
                         products + p * of_products, PANEL, rows,
                         p + 1 < PAIRS ? b + (p + 1) * of_kernels : b + inputs * PANEL);
        for (int64_t t = 0; t < rows; ++t) {
          const Tile tile = tiles[first + t];
          const int64_t down = std::min<int64_t>(TILE, tile.maps->height - tile.top);
          const int64_t across = std::min<int64_t>(TILE, tile.maps->width - tile.left);
          for (int half = 0; half < PANEL; half += WIDTH) {
            const int64_t o = (start + panel) * PANEL + half;
            if (o >= outputs) continue;
            Vector v[PAIRS], along[TILE * SEEN], sum[TILE * TILE];
            for (int p = 0; p < PAIRS; ++p)
              v[p] = load(products + p * of_products + t * PANEL + half, WIDTH);
            for (int j = 0; j < SEEN; ++j) result(v + j, SEEN, along + j, SEEN);
            for (int i = 0; i < TILE; ++i) result(along + SEEN * i, 1, sum + TILE * i, 1);
            const Vector beside = bias ? load(bias + o, outputs - o) : Vector{};
            for (int i = 0; i < down; ++i)
              for (int j = 0; j < across; ++j)
                store(tile.maps->y + tile.pixel(tile.top + i, tile.left + j, outputs) + o,
                      sum[TILE * i + j] + beside, outputs - o);
          }
        }
      }
    });
  }
}

int64_t conv3x3_weight_scratch(int64_t inputs, int64_t outputs, int64_t) {
  const int64_t most = panels_at_a_time(inputs, outputs) * PANEL;
  return PAIRS *
         (pair(inputs * most) + pair(GRADIENT_TILES * inputs) + pair(GRADIENT_TILES * most));
}

// x (B, H, W, C) and the gradients y (B, H, W, O) -> the gradient of the kernel (O, C, 3, 3).
void conv3x3_weight(const Maps* maps, int64_t count, float* grad_weight, float* scratch,
                    int64_t inputs, int64_t outputs, int64_t threads) {
  const Tiles tiles(maps, count);
  const int64_t all = parts_of(outputs, PANEL), most = panels_at_a_time(inputs, outputs);
  const int64_t of_sums = pair(inputs * most * PANEL), of_seen = pair(GRADIENT_TILES * inputs);
  const int64_t of_grads = pair(GRADIENT_TILES * most * PANEL);
  float* const sums = scratch;                  // (36, panels, C, PANEL)
  float* const seen = sums + PAIRS * of_sums;   // (36, tiles, C)
  float* const grads = seen + PAIRS * of_seen;  // (36, panels, tiles, PANEL)
  const int64_t blocks = parts_of(tiles.number, GRADIENT_TILES);
  for (int64_t start = 0; start < all; start += most) {
    const int64_t panels = std::min(most, all - start), first_output = start * PANEL;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = block * tiles.number / blocks;
      const int64_t rows = (block + 1) * tiles.number / blocks - first;
      in_parallel(rows, threads, [&](int64_t t, int64_t) {
        const Tile tile = tiles[first + t];
        if (start == 0 || blocks > 1) transform_map(tile, inputs, seen + t * inputs, of_seen);
        for (int64_t o = 0; o < panels * PANEL; o += WIDTH)
          transform_gradient(tile, outputs, first_output + o,
                             grads + (o / PANEL * GRADIENT_TILES + t) * PANEL + o % PANEL,
                             of_grads);
      });
      in_parallel(PAIRS * panels, threads, [&](int64_t part, int64_t) {
        const int64_t p = part / panels, panel = part % panels;
        const Left a{seen + p * of_seen, 1, inputs};
        const float* const b = grads + p * of_grads + panel * GRADIENT_TILES * PANEL;
        float* const c = sums + p * of_sums + panel * inputs * PANEL;
        block ? product<true>(a, b, PANEL, rows, c, PANEL, inputs)
              : product<false>(a, b, PANEL, rows, c, PANEL, inputs);
      });
    }
    in_parallel(panels * parts_of(inputs, CHANNELS), threads, [&](int64_t part, int64_t) {
      const int64_t panel = part % panels, begin = part / panels * CHANNELS;
      for (int64_t c = begin; c < std::min(begin + CHANNELS, inputs); ++c)
        for (int half = 0; half < PANEL; half += WIDTH) {
          Vector v[PAIRS], along[3 * SEEN], w[TAPS];
          for (int p = 0; p < PAIRS; ++p)
            v[p] = load(sums + p * of_sums + (panel * inputs + c) * PANEL + half, WIDTH);
          for (int j = 0; j < SEEN; ++j) kernel_gradient(v + j, SEEN, along + j, SEEN);
          for (int i = 0; i < 3; ++i) kernel_gradient(along + SEEN * i, 1, w + 3 * i, 1);
          for (int n = 0; n < WIDTH; ++n) {
            const int64_t o = first_output + panel * PANEL + half + n;
            for (int t = 0; o < outputs && t < TAPS; ++t)
              grad_weight[(o * inputs + c) * TAPS + t] = w[t][n];
          }
        }
    });
  }
}
}
