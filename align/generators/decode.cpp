// One token of every row through a Llama-type decoder on a CPU, at the speed that its weights come from memory.
//
// A product of a few rows with a weight reads each weight once and should take as long as reading does; general matrix
// libraries take up to twice that. Activations and sums are float32; weights and cache are float32 or bfloat16.
// Compiled and called by decode.py, which says what the arguments are.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
constexpr int64_t LANES = 16;
constexpr int64_t TILE = 8;       // rows of the batch that meet a weight together
constexpr int64_t TAKEN = 96;     // rows of a weight that a thread takes at once
constexpr int64_t AHEAD = 16384;  // bytes of a weight that are asked for before they are needed

struct BFloat16 {
  uint16_t bits;
};

inline float widen(float value) { return value; }
inline float widen(BFloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}
inline void narrow(float value, float* to) { *to = value; }
inline void narrow(float value, BFloat16* to) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  to->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
inline Floats load(const float* from) {
  Floats values;
  std::memcpy(&values, from, sizeof values);
  return values;
}
inline Floats load(const BFloat16* from) {
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  Words words = __builtin_convertvector(halves, Words) << 16;
  Floats values;
  std::memcpy(&values, &words, sizeof values);
  return values;
}
inline void store(Floats values, float* to) { std::memcpy(to, &values, sizeof values); }
inline float sum(Floats values) {  // by halves: a chain of sixteen additions would be waited for
  values += __builtin_shuffle(values, Ints{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
  values += __builtin_shuffle(values, Ints{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
  values += __builtin_shuffle(values, Ints{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
  return values[0] + values[1];
}

// e^x to about one unit in the last place: 2^n times a polynomial of |r| <= log(2)/2 (Cephes' coefficients)
inline Floats exponential(Floats x) {
  x = x < -87.0f ? Floats{} - 87.0f : x > 88.0f ? Floats{} + 88.0f : x;
  Floats shifted = x * 1.44269504f + 12582912.0f;
  Floats n = shifted - 12582912.0f;
  Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  Floats power;
  std::memcpy(&power, &exponent, sizeof power);
  return p * power;
}

// where a product reads number `c` of row `m` of its input: rows stand in tiles of 8, and of a tile 16 numbers of each row
// after the other, so that a product reads one stream
inline int64_t place(int64_t m, int64_t c, int64_t batch, int64_t width) {
  int64_t first = m / TILE * TILE, rows = std::min(TILE, batch - first);
  return first * width + (c / LANES * rows + m - first) * LANES + c % LANES;
}

// out(row, m, value): the dot products of `ROWS` weight rows with the `M` rows of a tile
template <int ROWS, int M, class Weight, class Out>
inline void dots(const Weight* weight, int64_t stride, const float* tile, int64_t width, Out out) {
  Floats sums[ROWS][M] = {};
  for (int64_t k = 0; k < width; k += LANES) {
    Floats w[ROWS];
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
      __builtin_prefetch(reinterpret_cast<const char*>(weight + row * stride + k) + AHEAD);
      w[row] = load(weight + row * stride + k);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      Floats values = load(tile);
      tile += LANES;
#ifdef __AVX512F__
      asm("" : "+v"(values));  // once into a register: else it is loaded for every row of the weight
#endif
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; ++row) sums[row][m] += w[row] * values;
    }
  }
  for (int row = 0; row < ROWS; ++row)
    for (int m = 0; m < M; ++m) out(row, m, sum(sums[row][m]));
}

// out(n, m, value): rows n in [begin, end) of a weight [N, width] with the rows of a tile; as many sums at once as there
// are registers for
template <int M, class Weight, class Out>
void tile_product(const Weight* weight, int64_t begin, int64_t end, const float* tile, int64_t width, Out out) {
  constexpr int ROWS = M > 4 ? 3 : 4;
  int64_t n = begin;
  for (; n + ROWS <= end; n += ROWS)
    dots<ROWS, M>(weight + n * width, width, tile, width, [&](int row, int m, float value) { out(n + row, m, value); });
  for (; n < end; ++n)
    dots<1, M>(weight + n * width, width, tile, width, [&](int, int m, float value) { out(n, m, value); });
}

// the same for all rows of x, which are in the places of `place`
template <class Weight, class Out>
void product(const Weight* weight, int64_t begin, int64_t end, const float* x, int64_t batch, int64_t width, Out out) {
  for (int64_t first = 0; first < batch; first += TILE) {
    const float* tile = x + first * width;
    auto shifted = [&](int64_t n, int m, float value) { out(n, first + m, value); };
    switch (std::min(batch - first, TILE)) {
      case 1: tile_product<1>(weight, begin, end, tile, width, shifted); break;
      case 2: tile_product<2>(weight, begin, end, tile, width, shifted); break;
      case 3: tile_product<3>(weight, begin, end, tile, width, shifted); break;
      case 4: tile_product<4>(weight, begin, end, tile, width, shifted); break;
      case 5: tile_product<5>(weight, begin, end, tile, width, shifted); break;
      case 6: tile_product<6>(weight, begin, end, tile, width, shifted); break;
      case 7: tile_product<7>(weight, begin, end, tile, width, shifted); break;
      default: tile_product<8>(weight, begin, end, tile, width, shifted);
    }
  }
}

struct Sizes {
  // halves: rotary pairs are (i, i + width / 2), as transformers has them; else neighbours, as LlamaGen has them
  // rope_stride: from one row's cosines and sines to the next one's; 0 where all rows share them
  int64_t layers, batch, dim, heads, hidden, vocab, capacity, halves, rope_stride, position, threads;
};

template <class Weight>
struct Layer {
  const Weight *attention_norm, *wq, *wk, *wv, *wo, *ffn_norm, *w1, *w3, *w2;
  Weight* cache;  // [2, batch, heads, capacity, head_dim]
};

template <class Weight>
void rms_norm(const float* x, const Weight* weight, float epsilon, float* out, int64_t batch, int64_t dim) {
  for (int64_t b = 0; b < batch; ++b) {
    Floats squares = {};
    for (int64_t c = 0; c < dim; c += LANES) {
      Floats values = load(x + b * dim + c);
      squares += values * values;
    }
    float scale = 1.0f / std::sqrt(sum(squares) / float(dim) + epsilon);
    for (int64_t c = 0; c < dim; c += LANES)
      store(load(x + b * dim + c) * scale * load(weight + c), out + place(b, c, batch, dim));
  }
}

// rope: cosine and sine of each pair
inline void rotate(const float* pairs, const float* rope, bool halves, float* out, int64_t width) {
  for (int64_t i = 0; i < width / 2; ++i) {
    int64_t first = halves ? i : 2 * i, second = halves ? i + width / 2 : 2 * i + 1;
    float cos = rope[2 * i], sin = rope[2 * i + 1];
    out[first] = pairs[first] * cos - pairs[second] * sin;
    out[second] = pairs[second] * cos + pairs[first] * sin;
  }
}

// the newest token of one row and head: writes its key and value, and what it attends to
template <int VECTORS, class Weight>
void attend(const float* qkv, const float* rope, bool halves, const uint8_t* visible, Weight* keys, Weight* values, int64_t dim,
            int64_t position, float* scores, float* out, int64_t stride) {
  constexpr int64_t width = VECTORS * LANES;
  float q[width], k[width];
  rotate(qkv, rope, halves, q, width);
  rotate(qkv + dim, rope, halves, k, width);
  for (int64_t c = 0; c < width; ++c) {
    narrow(k[c], keys + position * width + c);
    narrow(qkv[2 * dim + c], values + position * width + c);
  }
  const float scale = 1.0f / std::sqrt(float(width));
  Floats query[VECTORS];
  for (int c = 0; c < VECTORS; ++c) query[c] = load(q + c * LANES) * scale;
  float largest = -INFINITY;
  for (int64_t cell = 0; cell <= position; ++cell) {
    Floats products = {};
    __builtin_prefetch(reinterpret_cast<const char*>(keys + cell * width) + AHEAD / 8);
    __builtin_prefetch(reinterpret_cast<const char*>(values + cell * width));
#pragma GCC unroll 16
    for (int c = 0; c < VECTORS; ++c) products += query[c] * load(keys + cell * width + c * LANES);
    scores[cell] = visible && !visible[cell] ? -INFINITY : sum(products);
    largest = std::max(largest, scores[cell]);
  }
  int64_t padded = (position / LANES + 1) * LANES;
  for (int64_t cell = position + 1; cell < padded; ++cell) scores[cell] = -INFINITY;
  float total = 0;
  for (int64_t cell = 0; cell < padded; cell += LANES) {
    Floats raw = load(scores + cell), weights = exponential(raw - largest);
    weights = raw == -INFINITY ? Floats{} : weights;
    store(weights, scores + cell);
    total += sum(weights);
  }
  Floats sums[VECTORS] = {};
  for (int64_t cell = 0; cell <= position; ++cell) {
#pragma GCC unroll 16
    for (int c = 0; c < VECTORS; ++c) sums[c] += scores[cell] * load(values + cell * width + c * LANES);
  }
  for (int c = 0; c < VECTORS; ++c) store(sums[c] * (1.0f / total), out + c * stride);
}

// by the width of a head, which the loops above are unrolled for
template <class Weight, class... Rest>
void attend_by(int64_t width, Rest... rest) {
  switch (width / LANES) {
    case 1: return attend<1, Weight>(rest...);
    case 2: return attend<2, Weight>(rest...);
    case 3: return attend<3, Weight>(rest...);
    case 4: return attend<4, Weight>(rest...);
    case 5: return attend<5, Weight>(rest...);
    case 6: return attend<6, Weight>(rest...);
    case 7: return attend<7, Weight>(rest...);
    default: return attend<8, Weight>(rest...);
  }
}

template <class Weight>
void step(const Sizes& sizes, const Layer<Weight>* layers, const Weight* norm, const Weight* output, float epsilon,
          const float* rope, const uint8_t* visible, float* x, float* work, float* result) {
  const int64_t batch = sizes.batch, dim = sizes.dim, hidden = sizes.hidden, width = dim / sizes.heads;
  const int64_t wide = std::max(3 * dim, 2 * hidden), padded = (sizes.capacity / LANES + 1) * LANES;
  float* shared = work;                                  // qkv [batch, 3 dim], or gate and up [2, batch, hidden]
  float* attended = shared + batch * wide;               // [batch, dim]
  float* own = attended + batch * dim;                   // for each thread: normalised x [batch, dim], scores [padded]
#pragma omp parallel num_threads(sizes.threads)
  {
    int64_t thread = 0;
#ifdef _OPENMP
    thread = omp_get_thread_num();
#endif
    float* normed = own + thread * (batch * dim + padded);
    float* scores = normed + batch * dim;
    auto add = [&](int64_t n, int64_t m, float value) { x[m * dim + n] += value; };
    // rows are taken a few at a time, since threads do not read equally fast; each loop ends with all of them
    for (int64_t index = 0; index < sizes.layers; ++index) {
      const Layer<Weight>& layer = layers[index];
      rms_norm(x, layer.attention_norm, epsilon, normed, batch, dim);
      const Weight* projections[3] = {layer.wq, layer.wk, layer.wv};
#pragma omp for schedule(dynamic) collapse(2)
      for (int which = 0; which < 3; ++which)
        for (int64_t n = 0; n < dim; n += TAKEN)
          product(projections[which], n, std::min(n + TAKEN, dim), normed, batch, dim,
                  [&](int64_t n, int64_t m, float value) { shared[(m * 3 + which) * dim + n] = value; });
#pragma omp for schedule(dynamic)
      for (int64_t pair = 0; pair < batch * sizes.heads; ++pair) {
        int64_t row = pair / sizes.heads, head = pair % sizes.heads, cells = sizes.capacity * width;
        Weight* keys = layer.cache + pair * cells;
        const uint8_t* seen = visible ? visible + row * sizes.capacity : nullptr;
        float* to = attended + place(row, head * width, batch, dim);
        attend_by<Weight>(width, shared + row * 3 * dim + head * width, rope + row * sizes.rope_stride,
                          bool(sizes.halves), seen, keys,
                          keys + batch * sizes.heads * cells, dim, sizes.position, scores, to,
                          LANES * std::min(TILE, batch - row / TILE * TILE));
      }
#pragma omp for schedule(dynamic)
      for (int64_t n = 0; n < dim; n += TAKEN)
        product(layer.wo, n, std::min(n + TAKEN, dim), attended, batch, dim, add);
      rms_norm(x, layer.ffn_norm, epsilon, normed, batch, dim);
      float *gate = shared, *up = shared + batch * hidden;
#pragma omp for schedule(dynamic)
      for (int64_t n = 0; n < hidden; n += TAKEN) {
        int64_t end = std::min(n + TAKEN, hidden);
        auto to = [&](float* array) {
          return [=](int64_t n, int64_t m, float value) { array[place(m, n, batch, hidden)] = value; };
        };
        product(layer.w1, n, end, normed, batch, dim, to(gate));
        product(layer.w3, n, end, normed, batch, dim, to(up));
        for (int64_t m = 0; m < batch; ++m)
          for (int64_t c = n; c < end; c += LANES) {
            int64_t at = place(m, c, batch, hidden);
            Floats g = load(gate + at);
            store(g / (1.0f + exponential(-g)) * load(up + at), gate + at);
          }
      }
#pragma omp for schedule(dynamic)
      for (int64_t n = 0; n < dim; n += TAKEN)
        product(layer.w2, n, std::min(n + TAKEN, dim), gate, batch, hidden, add);
    }
    rms_norm(x, norm, epsilon, normed, batch, dim);
    if (output) {
#pragma omp for schedule(dynamic)
      for (int64_t n = 0; n < sizes.vocab; n += TAKEN)
        product(output, n, std::min(n + TAKEN, sizes.vocab), normed, batch, dim,
                [&](int64_t n, int64_t m, float value) { result[m * sizes.vocab + n] = value; });
    } else {
#pragma omp for
      for (int64_t m = 0; m < batch; ++m)
        for (int64_t c = 0; c < dim; ++c) result[m * dim + c] = normed[place(m, c, batch, dim)];
    }
  }
}

}  // namespace

// pages of 2 MB where the system grants them: walking through small ones costs a tenth of the time
extern "C" void use_huge_pages(void* address, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t page = 1 << 21;
  constexpr int collapse = 25;  // MADV_COLLAPSE, Linux 6.1
  uintptr_t begin = (reinterpret_cast<uintptr_t>(address) + page - 1) / page * page;
  uintptr_t end = (reinterpret_cast<uintptr_t>(address) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, collapse);
#endif
}

extern "C" void decode_step_float32(const Sizes* sizes, const void* layers, const void* norm, const void* output,
                                    float epsilon, const float* rope, const uint8_t* visible, float* x, float* work,
                                    float* result) {
  step(*sizes, static_cast<const Layer<float>*>(layers), static_cast<const float*>(norm),
       static_cast<const float*>(output), epsilon, rope, visible, x, work, result);
}

extern "C" void decode_step_bfloat16(const Sizes* sizes, const void* layers, const void* norm, const void* output,
                                     float epsilon, const float* rope, const uint8_t* visible, float* x, float* work,
                                     float* result) {
  step(*sizes, static_cast<const Layer<BFloat16>*>(layers), static_cast<const BFloat16*>(norm),
       static_cast<const BFloat16*>(output), epsilon, rope, visible, x, work, result);
}
