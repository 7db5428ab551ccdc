// A filter of its own for every position, and the gradients, in one pass over the filters.

#include "vectors.h"

namespace {

struct Window {
  int64_t height, width, rows, columns, dilation;

  int64_t above() const { return dilation * (rows / 2); }
  int64_t before() const { return dilation * (columns / 2); }
  int64_t padded_width() const { return width + 2 * before(); }
  int64_t padded_size() const { return (height + 2 * above()) * padded_width() + WIDTH; }
  int64_t taps() const { return rows * columns; }
  // Where in the padded map the pixel in row y sees through a tap, from the row's start.
  int64_t seen(int64_t y, int64_t tap) const {
    return (y + tap / columns * dilation) * padded_width() + tap % columns * dilation;
  }

  void pad(const float* x, float* padded) const {
    std::fill_n(padded, padded_size(), 0.0f);
    for (int64_t y = 0; y < height; ++y)
      std::copy_n(x + y * width, width, padded + (y + above()) * padded_width() + before());
  }

  void cut(const float* padded, float* x) const {
    for (int64_t y = 0; y < height; ++y)
      std::copy_n(padded + (y + above()) * padded_width() + before(), width, x + y * width);
  }
};

}  // namespace

extern "C" {

int64_t filter_locally_scratch(int64_t height, int64_t width, int64_t rows, int64_t columns,
                               int64_t dilation, int64_t threads) {
  return threads * 2 * Window{height, width, rows, columns, dilation}.padded_size();
}

// x and y (F, C, H, W), filters (F, taps, H, W): C channels share a filter.
void filter_locally(const float* x, const float* filters, float* y, float* scratch, int64_t count,
                    int64_t channels, int64_t height, int64_t width, int64_t rows, int64_t columns,
                    int64_t dilation, int64_t threads) {
  const Window window{height, width, rows, columns, dilation};
  const int64_t size = height * width, taps = window.taps();
  in_parallel(count * channels, threads, [&](int64_t map, int64_t thread) {
    float* const padded = scratch + thread * 2 * window.padded_size();
    window.pad(x + map * size, padded);
    const float* const kernel = filters + map / channels * taps * size;
    for (int64_t row = 0; row < height; ++row)
      for (int64_t column = 0; column < width; column += WIDTH) {
        const int64_t at = row * width + column, left = width - column;
        Vector sum = {};
        for (int64_t t = 0; t < taps; ++t)
          sum += load(kernel + t * size + at, left) *
                 load(padded + window.seen(row, t) + column, WIDTH);
        store(y + map * size + at, sum, left);
      }
  });
}

// Gradients of x and of the filters.
void filter_locally_gradients(const float* x, const float* filters, const float* grad_y,
                              float* grad_x, float* grad_filters, float* scratch, int64_t count,
                              int64_t channels, int64_t height, int64_t width, int64_t rows,
                              int64_t columns, int64_t dilation, int64_t threads) {
  const Window window{height, width, rows, columns, dilation};
  const int64_t size = height * width, taps = window.taps();
  in_parallel(count, threads, [&](int64_t f, int64_t thread) {
    float* const padded = scratch + thread * 2 * window.padded_size();
    float* const grad_padded = padded + window.padded_size();
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t map = f * channels + c;
      window.pad(x + map * size, padded);
      std::fill_n(grad_padded, window.padded_size(), 0.0f);
      for (int64_t row = 0; row < height; ++row)
        for (int64_t column = 0; column < width; column += WIDTH) {
          const int64_t at = row * width + column, left = width - column;
          const Vector grad = load(grad_y + map * size + at, left);
          for (int64_t t = 0; t < taps; ++t) {
            const int64_t seen = window.seen(row, t) + column, tap = (f * taps + t) * size + at;
            const Vector product = grad * load(padded + seen, WIDTH);
            store(grad_filters + tap, c ? load(grad_filters + tap, left) + product : product, left);
            store(grad_padded + seen,
                  load(grad_padded + seen, WIDTH) + grad * load(filters + tap, left), WIDTH);
          }
        }
      window.cut(grad_padded, grad_x + map * size);
    }
  });
}
}
